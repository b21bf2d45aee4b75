"""How much work is open: what waits in each pool, and what each worker has taken up.

Read over a connection of its own that writes nothing, in a time that does not grow with the
backlog: what waits is counted up to a number of shards. PostgreSQL only: on one machine nobody
needs to know from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchyard.errors import ConfigError, StoreError
from batchyard.ledger.contact import Contact
from batchyard.ledger.open_work import Backlog, Taken, Waiting
from batchyard.ledger.postgres import shown_url
from batchyard.ledger.postgres_connection import Connection, settings_of

if TYPE_CHECKING:
    import psycopg

    from batchyard.clock import Clock
    from batchyard.ledger.sql import Transaction

SHARDS_COUNTED_MAX = 20_000
"""Of one pool."""

_EXISTS = b"SELECT to_regclass('batchyard_ledger') IS NOT NULL AS is_there"


class BacklogReader:
    """Reads the backlog of a ledger."""

    def __init__(self, url: str, clock: Clock) -> None:
        """Connect.

        Args:
            url: of the ledger, `postgresql://user@host/database`.
            clock: of waits.

        Raises:
            ConfigError: the URL is not usable, or there is no ledger.
            StoreError: the database cannot be reached.
        """
        self._connection = attach(url, clock, reads=True)

    async def read(self) -> Backlog:
        """Return the open work.

        Raises:
            Overloaded: the database is away.
            StoreError: it does not answer this.
        """
        return await self._connection.run(_read, hurried=True)

    async def close(self) -> None:
        """Let go of the connection."""
        await self._connection.close()


def attach(url: str, clock: Clock, *, reads: bool) -> Connection:
    """Connect to a ledger that is there, and leave its tables as they are.

    Args:
        url: of the ledger.
        clock: of waits.
        reads: whether nothing is written.

    Raises:
        ConfigError: the URL is not usable, or there is no ledger.
        StoreError: the database cannot be reached.
    """
    import psycopg  # noqa: PLC0415 - an extra: the import above has told who lacks it

    where = shown_url(url)

    def check(db: psycopg.Connection[dict[str, Any]]) -> None:
        row = db.execute(_EXISTS).fetchone()
        if row is None or not row["is_there"]:
            raise ConfigError(f"ledger {where}: no yard has used this database yet")

    connection = Connection(
        settings_of(url), clock, Contact(clock), reads=reads, database_time=True
    )
    try:
        connection.open(check)
    except BaseException as error:
        connection.abort()
        if not isinstance(error, psycopg.Error):
            raise
        text = " ".join(str(error).split())
        raise StoreError(f"cannot open the ledger {where}: {text}") from None
    return connection


def _read(t: Transaction) -> Backlog:
    waiting = [Waiting(**row) for row in t.all("backlog_apart")]
    for ready in t.all("pools_ready"):
        bound = {"pool": ready["pool"], "limit": SHARDS_COUNTED_MAX}
        row = t.one("backlog_waiting", bound)
        assert row is not None  # it is made of sums
        if row["shards"]:
            more = row["shards"] >= SHARDS_COUNTED_MAX
            waiting.append(Waiting(pool=ready["pool"], is_more=more, **row))
    return Backlog(
        waiting=tuple(waiting),
        taken=tuple(Taken(**row) for row in t.all("backlog_running")),
    )
