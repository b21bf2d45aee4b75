"""PostgreSQL and an S3 server on loopback for the benchmarks: those that the tests start.

Both are durable as far as they can be: PostgreSQL syncs each commit, the S3 server keeps its
objects in memory, as nothing on this machine stands for a real one.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers_postgres import Postgres
from helpers_s3 import S3

if TYPE_CHECKING:
    from collections.abc import Iterator

_MIB = 2**20


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL server with room for a million rows."""
    server = Postgres(shared_buffers="256MB", max_wal_size="2GB")
    server.start()
    try:
        yield server
    finally:
        server.stop()


def wal_bytes(server: Postgres) -> int:
    """Return how many bytes of WAL the server has written since it was made."""
    import psycopg  # noqa: PLC0415 - an extra

    with psycopg.connect(server.url(), autocommit=True) as connection:
        row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    assert row is not None
    return int(row[0])


def written_bytes(pid: int | None = None) -> int:
    """Return how many bytes a process, this one otherwise, has passed to write calls."""
    for line in Path(f"/proc/{pid or 'self'}/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    raise AssertionError("the kernel does not count input and output")


__all__ = ["S3", "postgres", "wal_bytes", "written_bytes"]
