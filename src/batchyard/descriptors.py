"""How the files and connections that one process may have open are shared out.

Of all that the system allows, nine sixteenths are for calls to upstreams and one for the results
that are being written. Clients have three, and as much again for what they ask for: a file, or a
call that is passed on. The rest is spare. Each keeps to its share, since a call or a client without
a descriptor is refused and comes again, but results that cannot be written end the process.
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
    return _share(9)


def result_files_max() -> int:
    """Return how many files of results may be open."""
    return _share(1)


def connections_max() -> int:
    """Return how many connections clients may have."""
    allowed = _allowed()
    if allowed is None:
        return limits.CONNECTIONS_MAX
    return min(limits.CONNECTIONS_MAX, allowed * 3 // 16)


def _share(sixteenths: int) -> int:
    allowed = _allowed()
    if allowed is None:
        return limits.CALLS_MAX
    most = (allowed - limits.DESCRIPTORS_SPARE) * sixteenths // 16
    return max(1, min(limits.CALLS_MAX, most))


def _allowed() -> int | None:
    """Return how many descriptors the process may have; None where there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
