"""What is left of an open batch in a shared ledger, for an operator who takes it out.

PostgreSQL only, over a connection of its own: on one machine that is done on the file, while no
yard works on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batchyard.errors import BatchyardError
from batchyard.ledger.backlog import attach

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.clock import Clock
    from batchyard.ledger.sql import Transaction


class LeftShard(NamedTuple):
    """A shard that is not done."""

    shard: int
    offset: int
    """Of its bytes in the requests."""
    length: int
    crc: int | None
    requests: int


class Left(NamedTuple):
    """What is left of a batch."""

    cancel_us: int | None
    expires_us: int
    shards: Sequence[LeftShard]


class _ChangedError(BatchyardError):
    """A shard is done, or calls of one are in flight: nothing is taken out."""


class LeftBatches:
    """The open batches of a ledger."""

    def __init__(self, url: str, clock: Clock) -> None:
        """Connect; raises as `backlog.attach` does."""
        self._connection = attach(url, clock, reads=False)

    async def find(self, batch_id: str) -> Left | None:
        """Return what is left of a batch; None if there is no such open batch.

        Raises:
            Overloaded: the database is away.
            StoreError: it does not answer this.
        """

        def run(t: Transaction) -> Left | None:
            bound = {"batch": batch_id}
            row = t.one("left_batch", bound)
            if row is None:
                return None
            shards = [LeftShard(*each.values()) for each in t.all("left_shards", bound)]
            return Left(row["cancel_us"], row["expires_us"], shards)

        return await self._connection.run(run, hurried=True)

    async def others(self, batch_id: str, limit: int) -> list[str]:
        """Return some other batches that have segments; raises as `find` does."""
        bound = {"batch": batch_id, "limit": limit}

        def run(t: Transaction) -> list[str]:
            return [row["id"] for row in t.all("left_others", bound)]

        return await self._connection.run(run, hurried=True)

    async def take_out(self, batch_id: str, shards: int, now_us: int) -> bool:
        """Forget an open batch but for its place in the list.

        Whoever holds a shard of it has lost it: no row is there that a commit could change.

        Args:
            batch_id: which.
            shards: how many of it are not done.
            now_us: the time.

        Returns:
            False, and nothing is changed, if that is another number by now, or if a worker has
            told of calls in flight.

        Raises:
            Overloaded: the database is away; it may be repeated.
            StoreError: it failed.
        """

        def run(t: Transaction) -> bool:
            bound = {"batch": batch_id}
            if t.change("left_forget", bound) != shards:
                if t.again and t.one("left_batch", bound) is None:
                    return True
                raise _ChangedError
            t.change("shards_delete", bound)
            gone = t.one("left_take", bound)
            if gone is None:
                raise _ChangedError
            t.change("deleted_put", {**gone, "id": batch_id, "now": now_us})
            t.change("creates_of_batch_delete", bound)
            t.change("accounts_of_batch_delete", bound)
            return True

        try:
            return await self._connection.run(run, hurried=True)
        except _ChangedError:
            return False

    async def close(self) -> None:
        """Let go of the connection."""
        await self._connection.close()
