"""A worker in virtual time on one small batch, over any ledger."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import zlib
from typing import TYPE_CHECKING, Any

from batchyard import segments
from batchyard.dispatch.routes import Route, Routes
from batchyard.dispatch.worker import Worker
from batchyard.model import ShardPlan
from batchyard.segments.requests import head_of
from batchyard.testing.clock import ManualClock
from helpers_upstream import DEADLINE_S
from store.making import NOW, make_batch, make_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from batchyard.ledger import Ledger
    from batchyard.model import Batch
    from batchyard.segments.directory import DirectorySegments
    from batchyard.upstream import Upstream

PARAMS = b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}'


async def create(ledger: Ledger, store: DirectorySegments, batch: Batch, shards: int = 1) -> None:
    """Create a batch of requests `r0`, `r1`, ..., in shards of equal size."""
    each = batch.requests // shards
    plans, pieces, offset = [], list[bytes](), 0
    for index in range(shards):
        names = [f"r{index * each + n}" for n in range(each)]
        data = b"".join(head_of(name, len(PARAMS)) + PARAMS + b"\n" for name in names)
        plans.append(
            ShardPlan(
                index=index, pool="up/m", offset=offset, length=len(data), requests=each,
                crc=zlib.crc32(data),
            )
        )  # fmt: skip
        pieces.append(data)
        offset += len(data)
    store.put(segments.requests_name(batch.id), pieces)
    assert await ledger.create(batch, plans, make_key(batch.id)) is None


async def until(what: Callable[[], Awaitable[object]], step: Callable[[], Awaitable[None]]) -> None:
    """Take steps until something is true: as many as it needs where threads are slow."""
    end_s = time.monotonic() + DEADLINE_S
    while not await what():
        assert time.monotonic() < end_s, "it never happened"
        await step()


class Working:
    """A worker, its clock, and a batch of one shard that it works on when both are there."""

    def __init__(
        self,
        ledger: Ledger,
        store: DirectorySegments,
        upstream: Upstream,
        *,
        requests: int,
        slots: int,
        owner: str | None = None,
    ) -> None:
        self.ledger, self.store = ledger, store
        self.clock = ManualClock(NOW)
        self.batch = make_batch("a", requests=requests)
        upstreams: Any = {"up": upstream}
        self.worker = Worker(
            ledger=ledger,
            store=store,
            upstreams=upstreams,
            routes=Routes([Route("up")]),
            slots={"up": slots},
            clock=self.clock,
            rng=random.Random(1),
            owner=owner,
        )

    async def create(self, shards: int = 1) -> None:
        """Create the batch, of requests `r0`, `r1`, ..."""
        await create(self.ledger, self.store, self.batch, shards)

    async def quiet(self) -> None:
        """Wait for what the worker does with the ledger, in threads, while time stands still."""
        while not self.worker._activity.is_quiet:
            await asyncio.sleep(0.001)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let the worker work; it is cut off at the end."""
        task = asyncio.create_task(self.worker.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
