"""Slots fill whatever the spread of answers, and not where an upstream queues: in virtual time."""

from __future__ import annotations

import asyncio
import math
import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from batchyard import limits
from batchyard.dispatch.ceilings import Ceilings
from batchyard.dispatch.gate import Gates
from sim.limited import Allowed, LoopClock, Traffic, even, run_virtually

if TYPE_CHECKING:
    from collections.abc import Callable


def exponential(rng: random.Random) -> float:
    return rng.expovariate(1.0)


def lognormal(rng: random.Random) -> float:
    return rng.lognormvariate(-(1.5**2) / 2, 1.5)


def pareto(rng: random.Random) -> float:
    return rng.paretovariate(1.5) / 3.0


def half_short(rng: random.Random) -> float:
    return rng.choice((0.05, 1.95)) * rng.uniform(0.9, 1.1)


def few_long(rng: random.Random) -> float:
    return (9.1 if rng.random() < 0.1 else 0.1) * rng.uniform(0.9, 1.1)


SEEDS = max(1, int(os.environ.get("BATCHYARD_LIMITS_SEEDS", "6")) // 6)
SPREADS = [even, exponential, lognormal, pareto, half_short, few_long]


@dataclass
class Queueing(Allowed):
    """An upstream that works on so many calls at once, and lets the others wait in a line."""

    servers: int = 100
    _free: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.servers)

    async def answer(self, rng: random.Random) -> None:
        async with self._free:
            await super().answer(rng)


def in_flight(allowed: Allowed, slots: int, seed: int) -> list[int]:
    """Return the calls in flight, second by second."""
    found: list[int] = []

    async def watch(traffic: Traffic) -> None:
        while True:
            await asyncio.sleep(1.0)
            found.append(traffic.gate.limiter.in_flight)

    async def story() -> None:
        gate = Gates(LoopClock(), Ceilings()).of("up/model", slots)
        traffic = Traffic(allowed, gate, "never", random.Random(seed))
        watching = asyncio.create_task(watch(traffic))
        await traffic.run(slots)
        watching.cancel()

    run_virtually(story())
    return found


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("slots", "latency_s"), [(512, 30.0), (1_000, 1.0), (256, 0.2)])
def test_the_natural_spread_of_answers_is_not_taken_for_overload(
    spread: Callable[[random.Random], float], slots: int, latency_s: float, seed: int
) -> None:
    """At least 90 % of the slots are used after ten seconds, ever after."""
    allowed = Allowed(
        "nothing", [0.0], phase_s=20.0 + latency_s, latency_s=latency_s, spread=spread
    )
    busy = in_flight(allowed, slots, seed)
    assert slots > limits.WINDOW_START, "or there is nothing to see"
    assert min(busy[10:]) >= 0.9 * slots, busy


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("spread", [even, exponential, lognormal, half_short])
def test_an_upstream_that_queues_does_not_get_all_calls_at_once(
    spread: Callable[[random.Random], float], seed: int
) -> None:
    """It works on 100 at once, in 0.2 s; of 5,000 slots less than half are ever used."""
    allowed = Queueing("nothing", [0.0], phase_s=20.0, latency_s=0.2, spread=spread)
    busy = in_flight(allowed, 5_000, seed)
    assert 100 <= max(busy) < 2_500, busy


def test_answers_that_stay_longer_are_the_usual_ones_after_a_while() -> None:
    """Short answers come first, then long ones: after some minutes all slots are used."""
    answers = 0

    def longer(rng: random.Random) -> float:
        nonlocal answers
        answers += 1
        return 0.01 if answers < 128 else rng.uniform(0.9, 1.1)

    allowed = Allowed("nothing", [0.0], phase_s=200.0, latency_s=2.0, spread=longer)
    assert min(in_flight(allowed, 1_000, 1)[-50:]) >= 900


def test_the_drift_test_uses_times_with_a_mean_of_one() -> None:
    rng = random.Random(3)
    for spread in SPREADS:
        mean = math.fsum(spread(rng) for _ in range(20_000)) / 20_000
        assert mean == pytest.approx(1.0, rel=0.2), spread.__name__
