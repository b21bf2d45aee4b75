"""Where a yard keeps what it knows: on this machine, or in a database and a bucket that it shares.

On one machine that is SQLite and a directory. Many machines share PostgreSQL and an object store;
one without the other would keep half of a batch where only one machine sees it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from batchyard.errors import ConfigError, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchyard.clock import Clock
    from batchyard.ledger import Ledger
    from batchyard.ledger.left import LeftBatches
    from batchyard.segments import Segments

Role = Literal["all", "api", "worker"]
ROLES: tuple[Role, ...] = ("all", "api", "worker")
_LEDGERS = frozenset({"postgresql", "postgres"})
_SEGMENTS = frozenset({"s3", "gs", "az"})

# Their locks and their memory maps do not reach from one host to another, or not reliably.
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "lustre"}) | {
    "beegfs", "gpfs", "ocfs2", "gfs2", "glusterfs", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs",
    "fuse.gcsfuse", "fuse.ceph", "fuse.juicefs",
}  # fmt: skip


def check(ledger: str | None, segments: str | None, role: str, workers: int) -> Role:
    """Check that the settings of the stores fit together; return the role.

    Raises:
        ConfigError: what is wrong, and what is allowed.
    """
    if role not in ROLES:
        raise ConfigError(f"role {shown(role)}: all, api and worker are allowed")
    if ledger is not None and _scheme(ledger) not in _LEDGERS:
        raise ConfigError(
            "ledger: a URL such as postgresql://user@host/database is allowed; without one it is "
            "SQLite in the data directory"
        )
    if segments is not None and _scheme(segments) not in _SEGMENTS:
        raise ConfigError(
            f"segments {shown(segments)}: a URL such as s3://bucket/path, gs://bucket/path or "
            "az://container/path is allowed; without one they are in the data directory"
        )
    if role != "all" and ledger is None:
        raise ConfigError(
            f"role {role}: needs a ledger that processes can share (ledger = postgresql://...) and "
            "segments in an object store; on one machine, --workers starts more processes"
        )
    if (ledger is None) != (segments is None):
        raise ConfigError(
            "ledger and segments go together: both of them URLs (postgresql://... and s3://..., "
            "gs://... or az://...), or both in the data directory"
        )
    if ledger is not None and workers > 1:
        raise ConfigError(
            f"workers {workers}: with a ledger on PostgreSQL, start as many processes with "
            "--role worker"
        )
    return role


def _scheme(url: str) -> str:
    try:
        return urlsplit(url).scheme
    except ValueError:
        return ""


def open_shared(ledger: str, segments: str, clock: Clock) -> tuple[Ledger, Segments]:
    """Open what many machines share.

    Raises:
        ConfigError: a URL or its settings cannot be used, or an extra is not installed.
        StoreError: the database cannot be reached.
    """
    # Their libraries are extras, and half a second to load.
    from batchyard.ledger.postgres import PostgresLedger  # noqa: PLC0415
    from batchyard.segments.objects import ObjectSegments  # noqa: PLC0415

    store = ObjectSegments(segments)
    return PostgresLedger(ledger, clock), store


def open_left(ledger: str, segments: str, clock: Clock) -> tuple[LeftBatches, Segments]:
    """Open what many machines share, to take a batch out; raises as `open_shared` does."""
    from batchyard.ledger.left import LeftBatches  # noqa: PLC0415
    from batchyard.segments.objects import ObjectSegments  # noqa: PLC0415

    store = ObjectSegments(segments)
    return LeftBatches(ledger, clock), store


def check_file_system(data: Path, mounts: Callable[[], str] | None = None) -> None:
    """Refuse a data directory on a network file system, where SQLite would lose data.

    Args:
        data: the directory, which is there.
        mounts: returns what is mounted, as Linux tells it; that of this machine if None.

    Raises:
        ConfigError: it is on one.
    """
    try:
        text = (mounts or Path("/proc/self/mountinfo").read_text)()
    except OSError:  # another system than Linux, which does not tell
        return
    kind = file_system_of(os.path.realpath(data), text)
    if kind in _NETWORK:
        raise ConfigError(
            f"data directory {data} is on a network file system ({kind}), where SQLite cannot keep "
            "its promises; use a local disk, or a ledger on PostgreSQL with segments in an object "
            "store"
        )


def file_system_of(path: str, mounts: str) -> str | None:
    """Return the type of the file system that a path is on, by the text of `mountinfo`."""
    found: tuple[int, str] | None = None
    for line in mounts.splitlines():
        head, dash, tail = line.partition(" - ")
        fields = head.split()
        if not dash or len(fields) < 5 or not tail:
            continue
        point = fields[4].encode().decode("unicode_escape").rstrip("/")
        is_below = path == point or path.startswith(f"{point}/")
        if is_below and (found is None or len(point) >= found[0]):  # the last one covers the others
            found = len(point), tail.split()[0]
    return None if found is None else found[1]
