"""The expiry of a batch, to the microsecond, also while the ledger does not answer."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from batchyard import limits
from sim.world import Chances, World

if TYPE_CHECKING:
    from pathlib import Path

_WINDOW_S = 10


async def _end(world: World, *, succeeded: int, expired: int) -> None:
    await world.clock.advance(3)
    world.check_alive()
    (sent,) = world.sent.values()
    await world.check_ended(sent)
    counts = (await world.batch_of(sent)).counts
    assert (counts.succeeded, counts.expired) == (succeeded, expired)
    await world.close()


@pytest.mark.parametrize("answers", [True, False], ids=["it answers", "another program holds it"])
def test_no_call_starts_at_the_expiry_or_after_it(root: Path, *, answers: bool) -> None:
    async def story() -> None:
        world = World(random.Random(1), root, 1, Chances(exactly_s=0.3), exact_calls=True)
        process = world.start()
        await world.clock.advance(0.05)
        await world.create(requests=60, window_s=_WINDOW_S)
        await world.clock.advance(_WINDOW_S - 2)
        if not answers:
            process.gate.clear()
        await world.clock.advance(1.9)
        before = world.calls
        await world.clock.advance(30)
        world.check_alive()
        assert world.calls <= before + 1, "one more in the last tenth of a second"
        process.gate.set()
        await _end(world, succeeded=world.calls, expired=60 - world.calls)

    asyncio.run(story())


def test_calls_end_when_their_grace_is_over_also_while_the_ledger_does_not_answer(
    root: Path,
) -> None:
    async def story() -> None:
        world = World(random.Random(1), root, 4, Chances(exactly_s=1_000.0), exact_calls=True)
        process = world.start()
        await world.create(requests=4, window_s=_WINDOW_S)
        await world.clock.advance(_WINDOW_S - 2)
        assert world.calls == 4
        process.gate.clear()
        await world.clock.advance(2 + limits.DRAIN_GRACE_S - 1)
        assert process.worker._slots.tasks, "they had no grace"
        await world.clock.advance(1 + 2 * limits.RENEW_INTERVAL_S)
        assert not process.worker._slots.tasks, "they go on"
        process.gate.set()
        await _end(world, succeeded=0, expired=4)

    asyncio.run(story())
