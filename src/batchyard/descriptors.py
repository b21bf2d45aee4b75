"""How the files and connections that one process may have open are shared out.

Of all that the system allows, five eighths are for calls to upstreams, an eighth for the results
that are being written, and a quarter for clients; some are spare. Each of the three keeps to its
share, so that none takes what another needs: a call or a client without a descriptor is refused and
comes again, but results that cannot be written would end the process.
"""

from __future__ import annotations

import resource

from batchyard import limits


def raise_limit() -> None:
    """Ask for all the descriptors that there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def calls_max() -> int:
    """Return how many calls to upstreams may be in flight, and connections to them be open."""
    return _share(5, 8, limits.CALLS_MAX)


def result_files_max() -> int:
    """Return how many files of results may be open."""
    return _share(1, 8, limits.CALLS_MAX)


def connections_max() -> int:
    """Return how many connections clients may have."""
    allowed = _allowed()
    return limits.CONNECTIONS_MAX if allowed is None else min(limits.CONNECTIONS_MAX, allowed // 4)


def _share(part: int, of: int, most: int) -> int:
    allowed = _allowed()
    if allowed is None:
        return most
    return max(1, min(most, (allowed - limits.DESCRIPTORS_SPARE) * part // of))


def _allowed() -> int | None:
    """Return how many descriptors the process may have; None where there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
