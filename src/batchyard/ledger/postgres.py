"""The ledger on PostgreSQL: any number of processes, on any number of hosts.

Leases are in the time of the database, whatever the clocks of the hosts say. When the database is
away, workers keep their calls, and their renewals and commits wait; clients are told to come again.
Nobody takes a lease that has ended, or slots that were had by one, before it has had the database
for a whole lease without a break: who held it has had the time to renew it. Durable means what the
server means by it: `synchronous_commit` on, and for a failover without loss a synchronous standby.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from batchyard import limits
from batchyard.errors import ConfigError, Overloaded, StoreError
from batchyard.ledger.contact import Contact
from batchyard.ledger.sql import SqlLedger

try:
    import psycopg

    from batchyard.ledger.postgres_connection import Connection, settings_of
    from batchyard.ledger.postgres_schema import prepare
except ImportError as error:  # pragma: no cover - the extra is installed where it is tested
    raise ConfigError(
        "a ledger on PostgreSQL needs the extra: pip install 'batchyard[postgres]'"
    ) from error

if TYPE_CHECKING:
    from batchyard.clock import Clock

SCHEMES = frozenset({"postgresql", "postgres"})


class PostgresLedger(SqlLedger):
    """The ledger of any number of processes."""

    is_concurrent = True
    poll_s = limits.SHARED_POLL_S
    renew_s = limits.SHARED_RENEW_INTERVAL_S

    def __init__(self, url: str, clock: Clock, *, database_time: bool = True) -> None:
        """Connect, and make or migrate the tables.

        Args:
            url: `postgresql://user@host/database`.
            clock: of waits, and what leases are asked for in.
            database_time: whether leases are in the time of the database, and taken back only
                after a whole one with it. Not so in a simulation, where time is what callers say.

        Raises:
            ConfigError: the URL, the database or its version is not usable.
            StoreError: it cannot be reached.
        """
        contact = Contact(clock)
        settings = settings_of(url)
        where = shown_url(url)
        self._writer: Connection = Connection(
            settings, clock, contact, reads=False, database_time=database_time
        )
        self._reader: Connection = Connection(
            settings, clock, contact, reads=True, database_time=database_time
        )
        super().__init__(self._writer, self._reader, contact if database_time else None)
        try:
            self._writer.open(lambda db: prepare(db, where))
            self._reader.open()
        except BaseException as error:
            for connection in (self._writer, self._reader):
                connection.abort()
            if not isinstance(error, psycopg.Error):
                raise
            text = " ".join(str(error).split())
            raise StoreError(f"cannot open the ledger {where}: {text}") from None

    async def begin_sweep(self, lease_now: int, lease_us: int) -> bool:
        """Return whether no other process has begun one; see the protocol."""
        if self._contact is not None:  # also who is not to sweep now: the next may be its
            await self._contact.keep(self._writer, lease_now)
        bound = {"lease_now": lease_now, "lease_us": lease_us}
        return await self._writer.run(lambda t: t.change("sweep_begin", bound) == 1)

    async def release(self, owner: str, *, has_died: bool = False, has_left: bool = False) -> None:
        """Give back everything that this owner holds; if the database is away, leases run out."""
        with contextlib.suppress(Overloaded):
            await super().release(owner, has_died=has_died, has_left=has_left)

    async def spare(self, owner: str) -> None:
        """Count nothing as failed that this owner holds, if the database is there."""
        with contextlib.suppress(Overloaded):
            await super().spare(owner)

    async def failure(self) -> None:
        """Wait for ever: a database that is away comes back."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Close both connections."""
        await self._reader.close()
        await self._writer.close()


def shown_url(url: str) -> str:
    """Return an address for a message: without password and options."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "postgresql:"
    user = f"{parts.username}@" if parts.username else ""
    return f"{parts.scheme}://{user}{host}{port}{parts.path}"
