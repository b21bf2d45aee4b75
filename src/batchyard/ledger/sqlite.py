"""The ledger on SQLite: one file, one connection that writes, one that reads.

Durability is `synchronous=FULL` in WAL mode: a transaction that has returned survives a power cut.
Each connection lives in a thread of its own. Where several processes of a yard write, each
transaction, opening and closing holds a lock on the directory: waiting for it costs nothing, a
process that dies lets go of it, and no checkpoint ever meets the write of another process, which
keeps clear of the WAL-reset bug of SQLite before 3.51.3.

Invariant: an error of the store is never retried. It surfaces as StoreError, the process ends, and
the next start recovers from what is on disk.
"""

from __future__ import annotations

import sqlite3
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.disk import no_room
from batchyard.errors import StoreError
from batchyard.ledger.contact import Contact
from batchyard.ledger.sql import SqlLedger, read_news
from batchyard.ledger.sqlite_connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batchyard.clock import Clock
    from batchyard.ledger import News
    from batchyard.ledger.sqlite_connection import Transaction


def _one_thread() -> Executor:
    return ThreadPoolExecutor(1, thread_name_prefix="ledger")


class SqliteLedger(SqlLedger):
    """The ledger of one machine. The caller holds the lock on its directory."""

    poll_s = limits.NEWS_POLL_S
    renew_s = limits.RENEW_INTERVAL_S

    def __init__(
        self,
        path: Path,
        threads: Callable[[], Executor] = _one_thread,
        make_room: Callable[[], bool] = no_room,
        *,
        shared: bool = False,
        joins: bool = False,
        clock: Clock | None = None,
    ) -> None:
        """Open or create the file and take back all work: no other process can hold any.

        Args:
            path: of the file.
            threads: makes what each of the two connections runs in, for a simulation that must not
                depend on how threads are scheduled.
            make_room: asked once when the disk is full; whether it is worth another try.
            shared: whether several processes of this yard write.
            joins: whether another of them has opened it, so that nothing is taken back.
            clock: what leases are asked for in, where they are taken back only after a whole one
                in which this process could write. None where time is what callers say.

        Raises:
            ConfigError: the file is not a ledger, or of a version that this program does not know.
            StoreError: it cannot be read or written.
        """
        self._news: tuple[int, News] | None = None
        contact = None if clock is None else Contact(clock)
        self._writer: Connection = Connection(threads(), make_room, contact)
        self._reader: Connection = Connection(threads(), make_room)
        super().__init__(self._writer, self._reader, contact)
        try:
            self._writer.open(path, read_only=False, joins=joins, shared=shared)
            self._reader.open(path, read_only=True)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot open the ledger {path}: {error}") from error

    async def begin_sweep(self, lease_now: int, lease_us: int) -> bool:
        """Return that this process is to keep house: the one server of all."""
        return True

    async def news(self) -> News:
        """Return what other processes have done; looks only when something was written."""

        def run(t: Transaction) -> News:
            changes = t.execute("PRAGMA data_version").fetchone()[0]
            if self._news is None or self._news[0] != changes:
                self._news = changes, read_news(t)
            return self._news[1]

        return await self._reader.run(run)

    async def failure(self) -> None:
        """Wait until writing has failed, and raise it."""
        await self._writer.failure()

    async def close(self) -> None:
        """Close both connections. The last one folds the log into the file, if it may write.

        After a failure nothing is written any more: what the log holds is for the next start.
        """
        connections = (self._reader, self._writer)
        for connection in reversed(connections) if self._writer.has_failed else connections:
            await connection.close()
