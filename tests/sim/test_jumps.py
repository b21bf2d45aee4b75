"""The wall clock of the machine is set while batches are open: nothing expires or ends by it."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from batchyard import limits
from batchyard.clock import SystemClock
from batchyard.dispatch.keeper import Keeper
from batchyard.testing.clock import ManualClock
from sim.world import Chances, World

if TYPE_CHECKING:
    from pathlib import Path


class SetClock(ManualClock):
    """Time of a machine whose wall clock is set, as the yard's own clock makes it out."""

    def __init__(self) -> None:
        super().__init__()
        self.off_s = 0.0
        self._system = SystemClock(self._wall_us, self.monotonic_s)

    def _wall_us(self) -> int:
        return super().now_us() + round(self.off_s * limits.SECOND_US)

    def now_us(self) -> int:
        return self._system.now_us()


@pytest.mark.parametrize("off_h", [25, 40 * 24, -72], ids=["a day on", "past 29 days", "back"])
def test_a_wall_clock_that_is_wrong_for_two_minutes_expires_and_archives_nothing(
    root: Path, off_h: int
) -> None:
    async def story() -> None:
        clock = SetClock()
        world = World(random.Random(1), root, 4, Chances(), exact_calls=True, clock=clock)
        world.start()
        ended = await world.create(requests=3)
        await clock.advance(10)
        world.chances.exactly_s = 100.0
        running = await world.create(requests=8)
        for off_s in (off_h * 3_600.0, 0.0):  # set, and set right again
            clock.off_s = off_s
            await clock.advance(130)
            world.check_alive()
        assert (await world.batch_of(ended)).archived_us is None
        while await world.open_batches():
            await clock.advance(5)
            world.check_alive()
        batch = await world.batch_of(running)
        assert batch.counts.succeeded == 8
        assert set(world.calls_of.values()) == {1}, "a lease was taken for over"
        for sent in (ended, running):
            await world.check_ended(sent)
        await world.close()

    asyncio.run(story())


@pytest.mark.parametrize("step_s", [35, 1_800])
def test_corrections_that_are_followed_at_once_end_no_lease_of_a_worker_that_lives(
    root: Path, step_s: int
) -> None:
    async def story() -> None:
        clock = SetClock()
        world = World(random.Random(1), root, 4, Chances(), exact_calls=False, clock=clock)
        world.chances.exactly_s = 300.0
        for _ in range(2):
            world.start()
        sent = await world.create(requests=8)
        await clock.advance(2)
        keeper = Keeper(world.ledger, world.store, clock, owner="")  # of all other processes
        for _ in range(40):  # more often than leases are renewed
            clock.off_s += step_s
            await clock.advance(0.4)
            await keeper.sweep()
            world.check_alive()
        while await world.open_batches():
            await clock.advance(5)
            world.check_alive()
        assert (await world.batch_of(sent)).counts.succeeded == 8
        assert set(world.calls_of.values()) == {1}, "a lease of a living worker was taken for over"
        await world.check_ended(sent)
        await world.close()

    asyncio.run(story())
