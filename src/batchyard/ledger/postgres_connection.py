"""One connection to PostgreSQL, in one thread; it comes back when it was lost.

Nothing of the session is used (no prepared statements, no locks, no settings), so that any pooler
may stand between. Each query is run again after a lost connection. When the connection broke at the
commit, whether it happened is unknown: the query is told so, and finds out (`again`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.rows import dict_row

from batchyard import crash, limits
from batchyard.clock import steady_us
from batchyard.errors import ConfigError, DiskFull, Overloaded, StoreError
from batchyard.ledger.dialect import postgres_statement, statements

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from batchyard.clock import Clock
    from batchyard.ledger.contact import Contact

    Row = Mapping[str, Any]
    Bound = Mapping[str, Any]

log = logging.getLogger(__name__)

T = TypeVar("T")

_DEFAULTS = {
    "application_name": "batchyard",
    "connect_timeout": str(limits.LEDGER_CONNECT_TIMEOUT_S),
    # A host that vanished is noticed, whatever the system's own patience.
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    # Not the one that led before a failover.
    "target_session_attrs": "read-write",
}
_NOTHING: dict[str, Any] = {}
# Of the transaction, not of the session: what a frozen process has locked is free again.
_BEGIN = (
    f"BEGIN; SET LOCAL idle_in_transaction_session_timeout = {round(limits.LEDGER_IDLE_S * 1_000)}"
).encode()
# The answers of a server that has rolled back for the sake of others, and would take it now.
_RETRIED = (errors.SerializationFailure, errors.DeadlockDetected)
# A server that only follows, such as the one that led before a failover.
_AWAY = (psycopg.OperationalError, psycopg.InterfaceError, errors.ReadOnlySqlTransaction)
# What will not become right by waiting.
_REFUSED = (
    errors.InvalidPassword,
    errors.InvalidAuthorizationSpecification,
    errors.InvalidCatalogName,
    errors.InsufficientPrivilege,
)


class _LostError(Exception):
    """The connection is gone, or the transaction was rolled back and can be run again."""

    def __init__(self, cause: psycopg.Error, *, is_unknown: bool, is_gone: bool) -> None:
        super().__init__(str(cause))
        self.is_unknown = is_unknown
        """Whether the transaction may have been committed."""
        self.is_gone = is_gone


def settings_of(url: str) -> dict[str, Any]:
    """Return the settings of a URL, with ours where it has none.

    Raises:
        ConfigError: it is none. The message does not repeat it: it may hold a password.
    """
    try:
        found = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        raise ConfigError(
            "ledger: not a URL of a PostgreSQL database, such as postgresql://user@host/database"
        ) from None
    return _DEFAULTS | found


class Transaction:
    """A transaction that is under way; see `sql.Transaction`."""

    def __init__(
        self,
        db: psycopg.Connection[dict[str, Any]],
        texts: Mapping[str, bytes],
        host_now: int,
        *,
        again: bool,
    ) -> None:
        self.again = again
        self._db = db
        self._texts = texts
        self._common = {"host_now": host_now}
        self.has_written = False

    def all(self, name: str, bound: Bound = _NOTHING) -> Sequence[Row]:
        """Run a statement; return its rows."""
        return self._db.execute(self._texts[name], {**bound, **self._common}).fetchall()

    def one(self, name: str, bound: Bound = _NOTHING) -> Row | None:
        """Run a statement; return its first row."""
        return self._db.execute(self._texts[name], {**bound, **self._common}).fetchone()

    def change(self, name: str, bound: Bound) -> int:
        """Run a statement; return how many rows it changed."""
        count = self._db.execute(self._texts[name], {**bound, **self._common}).rowcount
        self.has_written |= count > 0
        return count

    def each(self, name: str, bounds: Sequence[Bound]) -> None:
        """Run a statement with each of these, in one go."""
        self._together(name, bounds)

    def one_of_each(self, name: str, bounds: Sequence[Bound]) -> Sequence[Row | None]:
        """Run a statement with each of these, in one go; return the first row of each."""
        cursor = self._together(name, bounds)
        found: list[Row | None] = []
        for _ in bounds:
            found.append(cursor.fetchone())
            cursor.nextset()
        return found

    def _together(self, name: str, bounds: Sequence[Bound]) -> psycopg.Cursor[dict[str, Any]]:
        """Run a statement with each of these, all in one message.

        Not in a pipeline: its statements reach the server one by one, and as long as it waits for
        the end of a pipeline it does not count the transaction as idle. Of a process that is
        frozen in between, the locks would stay.
        """
        cursor = psycopg.ClientCursor(self._db)
        text = self._texts[name]
        parts = [cursor.mogrify(text, {**bound, **self._common}) for bound in bounds]
        if parts:
            cursor.execute(";".join(parts).encode(self._db.info.encoding))
        return cursor


class Connection:
    """One connection in one thread; see `sql.Connection`."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        clock: Clock,
        contact: Contact,
        *,
        reads: bool,
        database_time: bool,
    ) -> None:
        """Prepare; `open` connects.

        Args:
            settings: of the database.
            clock: of waits, and of this process.
            contact: of this process with the database.
            reads: whether nothing is written: a statement by itself is transaction enough.
            database_time: whether leases are in the time of the database.
        """
        self._settings = settings
        self._clock = clock
        self._contact = contact
        self._reads = reads
        self._texts = {
            name: postgres_statement(text, own_clock=database_time).encode()
            for name, text in statements().items()
        }
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._db: psycopg.Connection[dict[str, Any]] | None = None
        self._back: asyncio.Event | None = None
        """Set when a connection that was lost is there again."""
        self._reaching: asyncio.Task[None] | None = None
        self._pause_s = 0.0
        """Before the next try to connect."""
        self._closed = False

    def open(
        self, prepare: Callable[[psycopg.Connection[dict[str, Any]]], None] | None = None
    ) -> None:
        """Connect, blocking.

        Raises:
            ConfigError: the database does not let us in, or `prepare` refuses it.
            psycopg.Error: it cannot be reached.
        """

        def run() -> None:
            self._connect()
            if prepare is not None and self._db is not None:
                prepare(self._db)

        try:
            self._threads.submit(run).result()
        except _REFUSED as error:
            raise ConfigError(f"ledger: {_line(error)}") from None

    async def run(self, query: Callable[[Any], T], *, hurried: bool = False) -> T:
        """Run a query; see `sql.Connection`."""
        if not hurried:
            return await self._until_done(query)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + limits.LEDGER_AWAY_WAIT_S

        def in_time(transaction: Any) -> T:
            # The client has been told to come again, and may have, elsewhere: what is committed
            # after that has locked its rows before.
            answer = query(transaction)
            if loop.time() >= until_s:
                raise _overloaded()
            return answer

        try:
            async with asyncio.timeout_at(until_s):
                return await self._until_done(in_time)
        except TimeoutError:
            raise _overloaded() from None

    async def _until_done(self, query: Callable[[Any], T]) -> T:
        loop = asyncio.get_running_loop()
        again = False
        while True:
            if self._back is not None:
                await self._back.wait()
            if self._closed:
                raise StoreError("the ledger is closed")
            try:
                answer = await loop.run_in_executor(self._threads, self._run, query, again)
            except _LostError as error:
                again = again or error.is_unknown
                if error.is_gone:
                    self._reach_again(error)
            else:
                self._pause_s = 0.0
                return answer

    def _run(self, query: Callable[[Any], T], again: bool) -> T:  # noqa: FBT001 - for the executor
        db = self._db
        if db is None or db.closed:
            gone = psycopg.OperationalError("the connection is closed")
            raise _LostError(gone, is_unknown=False, is_gone=True)
        is_unknown = False
        began_s = self._clock.monotonic_s()
        transaction = Transaction(db, self._texts, steady_us(self._clock), again=again)
        try:
            if not self._reads:
                db.execute(_BEGIN)
            answer = query(transaction)
            if not self._reads:
                crash.point("ledger_before_commit")
                is_unknown = True
                db.commit()
                crash.point("ledger_committed")
                if transaction.has_written:
                    self._contact.wrote(began_s)
        except psycopg.Error as error:
            raise self._judged(db, error, is_unknown=is_unknown, again=again) from error
        except BaseException:
            with contextlib.suppress(psycopg.Error):
                db.rollback()
            raise
        return answer

    def _judged(
        self,
        db: psycopg.Connection[dict[str, Any]],
        error: psycopg.Error,
        *,
        is_unknown: bool,
        again: bool,
    ) -> Exception:
        with contextlib.suppress(psycopg.Error):
            db.rollback()  # finds out, too, whether the connection is there
        if isinstance(error, _RETRIED):
            return _LostError(error, is_unknown=False, is_gone=False)
        if isinstance(error, errors.DiskFull) and not again:
            self._contact.broke()
            return DiskFull(f"the ledger has no room: {_line(error)}")
        if isinstance(error, _AWAY) or db.closed:
            with contextlib.suppress(psycopg.Error):
                db.close()
            return _LostError(error, is_unknown=is_unknown, is_gone=True)
        return StoreError(f"the ledger failed: {_line(error)}")

    def _reach_again(self, why: Exception) -> None:
        """Begin to connect again, unless that is under way."""
        self._contact.broke()
        if self._back is None and not self._closed:
            log.warning("the ledger is away: %s", _line(why))
            self._back = asyncio.Event()
            self._reaching = asyncio.get_running_loop().create_task(self._reach(self._back))

    async def _reach(self, back: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # At once when it was well until now; one that lets us in and then fails is left alone.
            await self._clock.sleep(self._pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            longer_s = max(2 * self._pause_s, limits.LEDGER_RECONNECT_S)
            self._pause_s = min(longer_s, limits.LEDGER_RECONNECT_MAX_S)
            try:
                await loop.run_in_executor(self._threads, self._connect)
            except psycopg.Error as error:
                log.debug("the ledger is away: %s", _line(error))
            else:
                break
        self._contact.broke()
        log.warning("the ledger is there again")
        self._back = None
        back.set()

    def _connect(self) -> None:
        if self._db is not None:
            with contextlib.suppress(psycopg.Error):
                self._db.close()
        self._db = psycopg.connect(
            **self._settings,
            autocommit=True,
            prepare_threshold=None,
            row_factory=dict_row,
        )

    async def close(self) -> None:
        """Close the connection and end the thread."""
        self._closed = True
        if self._reaching is not None:
            self._reaching.cancel()
        if self._back is not None:
            self._back.set()
        await asyncio.get_running_loop().run_in_executor(self._threads, self._drop)
        self._threads.shutdown(wait=False)

    def abort(self) -> None:
        """Close what `open` has made, blocking."""
        self._threads.submit(self._drop).result()
        self._threads.shutdown(wait=False)

    def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(psycopg.Error):
                db.close()


def _overloaded() -> Overloaded:
    return Overloaded(
        "The database of this server is away or overloaded; try again",
        retry_after_s=limits.LEDGER_AWAY_RETRY_AFTER_S,
    )


def _line(error: Exception) -> str:
    """Return an error on one line."""
    return " ".join(str(error).split())
