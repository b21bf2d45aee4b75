from __future__ import annotations

import asyncio

from batchyard.server.rates import Rates
from batchyard.testing.clock import ManualClock


def test_a_full_bucket_counts_down_and_says_when_it_is_full_again() -> None:
    clock = ManualClock()
    rates = Rates(clock, 60)
    first = rates.take("a")
    assert (first.limit, first.remaining, first.retry_after_s) == (60, 59, None)
    assert first.full_again_us == clock.now_us() + 1_000_000
    assert rates.take("a").remaining == 58


def test_the_call_over_the_limit_is_refused_until_there_is_a_token() -> None:
    async def run() -> None:
        clock = ManualClock()
        rates = Rates(clock, 6)
        assert [rates.take("a").retry_after_s for _ in range(6)] == [None] * 6
        refused = rates.take("a")
        assert refused.retry_after_s == 10
        assert refused.remaining == 0
        await clock.advance(9.5)
        assert rates.take("a").retry_after_s == 1
        await clock.advance(0.5)
        assert rates.take("a").retry_after_s is None
        assert rates.take("a").retry_after_s == 10

    asyncio.run(run())


def test_a_refused_call_costs_nothing() -> None:
    async def run() -> None:
        clock = ManualClock()
        rates = Rates(clock, 1)
        rates.take("a")
        for _ in range(100):
            assert rates.take("a").retry_after_s == 60
        await clock.advance(60)
        assert rates.take("a").retry_after_s is None

    asyncio.run(run())


def test_no_bucket_holds_more_than_a_minute() -> None:
    async def run() -> None:
        clock = ManualClock()
        rates = Rates(clock, 10)
        rates.take("a")
        await clock.advance(3_600)
        assert [rates.take("a").retry_after_s is None for _ in range(11)] == [True] * 10 + [False]

    asyncio.run(run())


def test_workspaces_have_buckets_of_their_own() -> None:
    rates = Rates(ManualClock(), 1)
    assert rates.take("a").retry_after_s is None
    assert rates.take("b").retry_after_s is None
    assert rates.take("a").retry_after_s == 60


def test_full_buckets_are_forgotten() -> None:
    async def run() -> None:
        clock = ManualClock()
        rates = Rates(clock, 60)
        for number in range(10_000):
            rates.take(f"w{number}")
        await clock.advance(60)
        rates.take("new")
        assert set(rates._full_at_s) == {"new"}

    asyncio.run(run())
