"""The clock that can be turned, alone."""

from __future__ import annotations

import asyncio

import pytest

from batchyard.emulator.clock import TurnableClock
from batchyard.errors import InvalidRequest

HOUR = 3_600.0
SLACK_US = 60_000_000  # what may really pass while a test runs


async def calm() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_turn_passes_at_once_and_exactly() -> None:
    async def run() -> None:
        clock = TurnableClock()
        before, wall = clock.monotonic_s(), clock.now_us()
        await clock.advance(25 * HOUR, calm)
        assert 25 * HOUR <= clock.monotonic_s() - before < 25 * HOUR + 60
        assert 0 <= clock.now_us() - wall - 25 * 3_600_000_000 < SLACK_US

    asyncio.run(run())


def test_sleepers_wake_in_the_order_of_their_times_whatever_the_turn() -> None:
    async def run() -> None:
        clock = TurnableClock()
        woken: list[tuple[int, float]] = []

        async def sleeper(hours: int) -> None:
            await clock.sleep(hours * HOUR)
            woken.append((hours, clock.monotonic_s()))

        tasks = [asyncio.create_task(sleeper(hours)) for hours in (9, 1, 24, 5, 30)]
        await calm()
        await clock.advance(25 * HOUR, calm)
        assert [hours for hours, _ in woken] == [1, 5, 9, 24]
        for hours, at in woken:
            assert hours * HOUR <= at < hours * HOUR + HOUR, "woken at its own time"
        tasks[-1].cancel()

    asyncio.run(run())


def test_what_a_woken_sleeper_starts_happens_within_the_same_turn() -> None:
    async def run() -> None:
        clock = TurnableClock()
        rounds = 0

        async def rounds_of_an_hour() -> None:
            nonlocal rounds
            while True:
                await clock.sleep(HOUR)
                rounds += 1

        task = asyncio.create_task(rounds_of_an_hour())
        await calm()
        await clock.advance(10 * HOUR, calm)
        assert 9 <= rounds <= 10
        task.cancel()

    asyncio.run(run())


def test_it_runs_by_itself_and_faster_if_wished() -> None:
    async def run() -> None:
        clock = TurnableClock()
        clock.set_speed(100_000)
        await clock.sleep(30 * 60)  # 18 ms of the machine
        assert clock.monotonic_s() >= 30 * 60

    asyncio.run(run())


def test_another_speed_holds_for_those_who_sleep_already() -> None:
    async def run() -> None:
        clock = TurnableClock(speed=0.001)
        task = asyncio.create_task(clock.sleep(HOUR))
        await calm()
        clock.set_speed(1_000_000)
        await asyncio.wait_for(task, 60)

    asyncio.run(run())


def test_a_cancelled_sleeper_is_forgotten() -> None:
    async def run() -> None:
        clock = TurnableClock()
        task = asyncio.create_task(clock.sleep(HOUR))
        other = asyncio.create_task(clock.sleep(2 * HOUR))
        await calm()
        task.cancel()
        await calm()
        await clock.advance(3 * HOUR, calm)
        await asyncio.wait_for(other, 60)

    asyncio.run(run())


def test_two_turns_at_once_add_up() -> None:
    async def run() -> None:
        clock = TurnableClock()
        await asyncio.gather(clock.advance(HOUR, calm), clock.advance(HOUR, calm))
        assert 2 * HOUR <= clock.monotonic_s() < 2 * HOUR + 60

    asyncio.run(run())


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
def test_time_never_goes_back_nor_too_far(seconds: float) -> None:
    with pytest.raises(InvalidRequest, match="advance"):
        asyncio.run(TurnableClock().advance(seconds, calm))


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), 1e7])
def test_a_speed_is_above_0_and_at_most_a_million(speed: float) -> None:
    async def run() -> None:
        TurnableClock().set_speed(speed)

    with pytest.raises(InvalidRequest, match="speed"):
        asyncio.run(run())
