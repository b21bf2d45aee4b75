"""A worker in virtual time on one small batch, over any ledger."""

from __future__ import annotations

import asyncio
import contextlib
import random
import zlib
from typing import TYPE_CHECKING, Any

from batchyard import segments
from batchyard.dispatch.routes import Route, Routes
from batchyard.dispatch.worker import Worker
from batchyard.model import ShardPlan
from batchyard.segments.requests import head_of
from batchyard.testing.clock import ManualClock
from store.making import NOW, make_batch, make_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from batchyard.ledger import Ledger
    from batchyard.segments.directory import DirectorySegments
    from batchyard.upstream import Upstream

PARAMS = b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}'


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

    async def create(self) -> None:
        """Create the batch, of requests `r0`, `r1`, ..."""
        number = self.batch.requests
        names = [f"r{n}" for n in range(number)]
        data = b"".join(head_of(name, len(PARAMS)) + PARAMS + b"\n" for name in names)
        self.store.put(segments.requests_name(self.batch.id), [data])
        shard = ShardPlan(
            index=0, pool="up/m", offset=0, length=len(data), requests=number, crc=zlib.crc32(data)
        )
        assert await self.ledger.create(self.batch, [shard], make_key("a")) is None

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
