"""One connection to the ledger's file, in one thread; each call is one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from batchyard import crash
from batchyard.errors import DamagedError, DiskFull, StoreError
from batchyard.ledger.sqlite_file import (
    SQL,
    connect,
    failure_of,
    found_no_room,
    found_no_room_to_open,
    note_failure,
)
from batchyard.ledger.sqlite_log import Log

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from batchyard.ledger.contact import Contact

    Row = Mapping[str, Any]
    Bound = Mapping[str, Any]

log = logging.getLogger(__name__)

T = TypeVar("T")
Query = Callable[["Transaction"], T]

_NOTHING: dict[str, Any] = {}

# How often a transaction is begun again that another program, such as a backup or a shell, does not
# let begin. Each try waits for the time of `PRAGMA busy_timeout`, five seconds.
_BEGINS_MAX = 60


class Transaction:
    """A transaction that is under way; see `sql.Transaction`."""

    again = False  # whether it was committed is known, or the process ends

    def __init__(self, db: sqlite3.Connection) -> None:
        self.execute = db.execute
        self.db = db

    def all(self, name: str, bound: Bound = _NOTHING) -> Sequence[Row]:
        """Run a statement; return its rows."""
        return self.db.execute(SQL[name], bound).fetchall()

    def one(self, name: str, bound: Bound = _NOTHING) -> Row | None:
        """Run a statement; return its first row."""
        row: Row | None = self.db.execute(SQL[name], bound).fetchone()
        return row

    def change(self, name: str, bound: Bound) -> int:
        """Run a statement; return how many rows it changed."""
        return self.db.execute(SQL[name], bound).rowcount

    def each(self, name: str, bounds: Sequence[Bound]) -> None:
        """Run a statement with each of these."""
        self.db.executemany(SQL[name], bounds)

    def one_of_each(self, name: str, bounds: Sequence[Bound]) -> Sequence[Row | None]:
        """Run a statement with each of these; return the first row of each."""
        return [self.one(name, bound) for bound in bounds]


class Connection:
    """One connection in one thread; each call is one transaction."""

    def __init__(
        self, threads: Executor, make_room: Callable[[], bool], contact: Contact | None = None
    ) -> None:
        self._threads = threads
        self._make_room = make_room
        self._contact = contact
        self._db: sqlite3.Connection | None = None
        self._begin = "BEGIN IMMEDIATE"
        self._gate: int | None = None
        """A descriptor of the directory; who writes holds a lock on it."""
        self._path: Path | None = None
        self._written: Path | None = None
        """The file, if this one writes to it."""
        self._log: Log | None = None
        """Of that file."""
        self._failed = asyncio.Event()
        self._error: StoreError | None = None
        """What the first query that failed raised; known in the thread before it is raised."""

    def open(
        self, path: Path, *, read_only: bool, joins: bool = False, shared: bool = False
    ) -> None:
        """Connect, blocking; see `sqlite_file.connect`.

        Args:
            path: of the file.
            read_only: whether nothing will be written.
            joins: whether another process of the yard works on it.
            shared: whether several processes write.
        """
        self._path = path
        if read_only:
            self._begin = "BEGIN"
        else:
            self._written = path
        if shared:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self._gate = os.open(path.parent, flags)

        def opened() -> sqlite3.Connection:
            return connect(path, read_only=read_only, joins=joins, make_room=self._make_room)

        def run() -> sqlite3.Connection:
            with self._alone():
                try:
                    return opened()
                except (sqlite3.OperationalError, StoreError) as error:
                    if not found_no_room_to_open(error, path) or not self._make_room():
                        raise
                return opened()

        self._db = self._threads.submit(run).result()
        if not read_only:
            self._log = Log(path)

    async def run(self, query: Query[T], *, hurried: bool = False) -> T:
        """Run `query` in a transaction of its own and return when it is durable.

        Args:
            query: what to do.
            hurried: does not matter: the file is never away.

        Raises:
            DiskFull: it did not happen.
            StoreError: whether it happened is unknown; `failure` raises it too.
        """
        if self._db is None:  # a request that is still under way when the process ends
            raise StoreError("the ledger is closed")
        loop = asyncio.get_running_loop()
        try:
            try:
                return await loop.run_in_executor(self._threads, self._run, query)
            except DiskFull:
                if not self._make_room():
                    raise
            return await loop.run_in_executor(self._threads, self._run, query)
        except (DamagedError, DiskFull):
            raise
        except StoreError:
            if self._error is not None:  # else it was closed meanwhile
                self._failed.set()
            raise

    @property
    def has_failed(self) -> bool:
        """Whether a query has failed, so that what is on the disk is unknown.

        Also one in another process of the yard: what the log holds stays there for the next start.
        """
        if self._error is not None or self._gate is None or self._written is None:
            return self._error is not None
        return failure_of(self._written).exists()

    async def failure(self) -> None:
        """Wait until a query has failed, and raise it."""
        await self._failed.wait()
        assert self._error is not None
        raise self._error

    def _run(self, query: Query[T]) -> T:
        db = self._db  # which a close may take away meanwhile
        if db is None:  # closed while it waited for its turn
            raise StoreError("the ledger is closed")
        if self._error is not None:  # what was queued behind the query that failed
            raise StoreError(str(self._error))
        for left in reversed(range(_BEGINS_MAX)):
            with self._alone():
                try:
                    answer = self._transact(db, query)
                    crash.point("ledger_committed")
                    if self._log is not None and self._log.is_long() and not self.has_failed:
                        self._log.checkpoint(db)
                except (sqlite3.Error, OSError) as error:
                    code = getattr(error, "sqlite_errorcode", 0)
                    if code & 0xFF == sqlite3.SQLITE_BUSY and left and self._has_not_begun:
                        log.warning("the ledger waits: another program holds its file")
                        continue
                    self._error = StoreError(f"the ledger failed: {error}")
                    if self._written is not None:  # before another process may write
                        note_failure(self._written, str(self._error), self._make_room)
                    raise self._error from error
            return answer
        raise AssertionError("the last try returns or raises")

    def _transact(self, db: sqlite3.Connection, query: Query[T]) -> T:
        self._has_not_begun = True
        contact, changes = self._contact, db.total_changes
        began_s = 0.0 if contact is None else contact.clock.monotonic_s()
        try:
            with db:  # commits, or rolls back on any exception
                db.execute(self._begin)
                if self._begin != "BEGIN":  # a read may be done again at any point
                    self._has_not_begun = False
                answer = query(Transaction(db))
                crash.point("ledger_before_commit")
        except sqlite3.Error as error:  # here alone: after the commit it would have happened
            assert self._path is not None
            if not found_no_room(error, self._path):
                raise
            if contact is not None:
                contact.broke()
            raise DiskFull(f"the ledger has no room: {error}") from error
        if contact is not None and db.total_changes > changes:
            contact.wrote(began_s)
        return answer

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        """Hold off the other processes of the yard. The lock ends with this process."""
        if self._gate is None:
            yield
            return
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    async def close(self) -> None:
        """Close the connection and end the thread."""
        db, self._db = self._db, None

        def run(db: sqlite3.Connection) -> None:
            with self._alone():  # the last one folds the log into the file
                db.close()
            if self._log is not None:
                self._log.close()
            if self._gate is not None:
                os.close(self._gate)

        if db is not None:
            await asyncio.get_running_loop().run_in_executor(self._threads, run, db)
        self._threads.shutdown(wait=False)
