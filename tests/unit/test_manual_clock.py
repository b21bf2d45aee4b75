from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from batchyard.testing.clock import ManualClock

if TYPE_CHECKING:
    from batchyard.clock import Clock

pytestmark = pytest.mark.anyio


async def test_time_stands_still_until_advanced() -> None:
    clock: Clock = ManualClock(now_us=1_000_000)
    await asyncio.sleep(0)
    assert (clock.now_us(), clock.monotonic_s()) == (1_000_000, 0.0)


async def test_wall_and_monotonic_time_advance_together() -> None:
    clock = ManualClock(now_us=1_000_000)
    await clock.advance(1.5)
    assert (clock.now_us(), clock.monotonic_s()) == (2_500_000, 1.5)


async def test_sleepers_wake_in_the_order_of_their_times_then_of_their_arrival() -> None:
    clock = ManualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic_s()))

    async with asyncio.TaskGroup() as group:
        for name, seconds in (("c", 3), ("a", 1), ("b", 2), ("b2", 2)):
            group.create_task(sleeper(name, seconds))
        await clock.advance(10)
    assert woken == [("a", 1), ("b", 2), ("b2", 2), ("c", 3)]
    assert clock.monotonic_s() == 10


async def test_a_sleeper_that_is_not_due_keeps_sleeping() -> None:
    clock = ManualClock()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(clock.sleep(5))
        await clock.advance(4.999999)
        assert not task.done()
        assert clock.sleeping == 1
        await clock.advance(0.000001)
        assert task.done()


async def test_a_woken_task_may_sleep_again_within_one_advance() -> None:
    clock = ManualClock()
    times = []

    async def ticker() -> None:
        for _ in range(3):
            await clock.sleep(2)
            times.append(clock.monotonic_s())

    async with asyncio.TaskGroup() as group:
        group.create_task(ticker())
        await clock.advance(6)
    assert times == [2, 4, 6]


async def test_sleep_of_nothing_returns_without_an_advance() -> None:
    clock = ManualClock()
    await clock.sleep(0)
    await clock.sleep(-1)
    assert clock.monotonic_s() == 0


async def test_a_cancelled_sleeper_is_passed_over() -> None:
    clock = ManualClock()
    task = asyncio.ensure_future(clock.sleep(1))
    await clock.wait_for_sleepers(1)
    task.cancel()
    await clock.advance(2)
    assert task.cancelled()
    assert clock.sleeping == 0


async def test_a_test_can_wait_until_somebody_sleeps() -> None:
    clock = ManualClock()
    async with asyncio.TaskGroup() as group:
        group.create_task(clock.sleep(1))
        group.create_task(clock.sleep(1))
        await clock.wait_for_sleepers(2)
        assert repr(clock) == "<ManualClock +0.000000 s, 2 sleeping>"
        await clock.advance(1)


async def test_time_never_goes_back() -> None:
    with pytest.raises(ValueError, match="never goes back"):
        await ManualClock().advance(-1)
