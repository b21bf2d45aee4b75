"""What happened while a call waited for its connection decides whether it is made."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from batchyard.upstream import Failure, FailureKind
from sim.world import Chances, World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from batchyard.upstream import Call, Outcome


class Shared(World):
    """A world whose worker is one of several."""

    def _of_process(self) -> dict[str, Any]:
        return {"store": self.store, "owner": "one"}


def _connect_first(world: World, connect: Callable[[], Awaitable[None]]) -> None:
    """Let each call wait for its connection, and ask then, as the HTTP client does."""
    upstream = world.upstreams["one"]
    send = upstream.send

    async def connecting(call: Call) -> Outcome:
        await connect()
        assert call.wanted is not None
        if not call.wanted():
            return Failure(FailureKind.UNWANTED, "given up before it was sent")
        return await send(call)

    upstream.send = connecting  # type: ignore[method-assign]


def test_no_call_starts_at_the_expiry_or_after_it_that_had_to_connect_first(root: Path) -> None:
    async def story() -> None:
        world = World(random.Random(1), root, 4, Chances(exactly_s=0.2), exact_calls=True)
        _connect_first(world, lambda: world.clock.sleep(0.7))
        world.start()
        await world.clock.advance(0.5)
        sent = await world.create(requests=60, window_s=5)
        await world.clock.advance(8)
        world.check_alive()
        await world.check_ended(sent)
        counts = (await world.batch_of(sent)).counts
        assert (counts.succeeded, counts.expired) == (world.calls, 60 - world.calls)
        assert 4 < world.calls < 60
        await world.close()

    asyncio.run(story())


@pytest.mark.parametrize("canceled", [True, False], ids=["canceled meanwhile", "nothing was"])
def test_a_worker_that_was_frozen_while_it_connected_looks_for_cancels_before_it_sends(
    root: Path, *, canceled: bool
) -> None:
    async def story() -> None:
        world = Shared(random.Random(1), root, 1, Chances(exactly_s=0.2), exact_calls=True)
        process = world.start()
        sent = await world.create(requests=1)
        has_stood = asyncio.Event()

        async def stand_still() -> None:
            if has_stood.is_set():
                return
            has_stood.set()
            process.gate.clear()
            if canceled:
                now_us, batch = world.clock.now_us(), sent.batch
                found = await world.ledger.cancel(batch.workspace, batch.id, now_us)
                sent.cancel_us = found.cancel_us
            await world.clock.sleep(1)
            process.gate.set()

        _connect_first(world, stand_still)
        await world.clock.advance(5)
        world.check_alive()
        assert has_stood.is_set()
        await world.check_ended(sent)
        counts = (await world.batch_of(sent)).counts
        assert (world.calls, counts.succeeded, counts.canceled) == (
            (0, 0, 1) if canceled else (1, 1, 0)
        )
        account = await process.worker.account(sent.batch.id)
        assert account is not None
        assert (account.calls, account.repeated) == (world.calls, 0)
        await world.close()

    asyncio.run(story())
