"""How often one request is called, in virtual time."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from batchyard import limits
from sim.world import Chances, World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


def _tell(root: Path, chances: Chances, story: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        world = World(random.Random(1), root, 4, chances, exact_calls=True)
        world.start()
        await story(world)
        await world.close()

    asyncio.run(run())


async def _end(world: World, *, errored: int) -> None:
    while await world.open_batches():
        await world.clock.advance(10)
        world.check_alive()
    (sent,) = world.sent.values()
    await world.check_ended(sent)
    assert (await world.batch_of(sent)).counts.errored == errored


def test_a_request_that_fails_each_time_is_called_eight_times(root: Path) -> None:
    async def story(world: World) -> None:
        await world.create(requests=3)
        await _end(world, errored=3)
        assert set(world.calls_of.values()) == {limits.ATTEMPTS_MAX}

    _tell(root, Chances(error_500=1.0), story)


def test_counting_begins_anew_with_each_start_of_the_yard(root: Path) -> None:
    async def story(world: World) -> None:
        await world.create(requests=1)
        while world.calls < 3:
            await world.clock.advance(1)
        before = world.calls
        await world.leave(world.processes[0])
        world.start()
        await _end(world, errored=1)
        assert world.calls == before + limits.ATTEMPTS_MAX

    _tell(root, Chances(error_500=1.0), story)


def test_a_key_that_is_refused_is_tried_each_half_minute_until_the_expiry(root: Path) -> None:
    async def story(world: World) -> None:
        await world.create(requests=1, window_s=3_600)
        await _end(world, errored=1)
        assert (
            3_600 / (limits.UPSTREAM_PAUSE_S + 6) < world.calls <= 3_600 / limits.UPSTREAM_PAUSE_S
        )

    _tell(root, Chances(denied_401=1.0), story)
