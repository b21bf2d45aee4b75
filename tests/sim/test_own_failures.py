"""Requests that fail for their own sake: whom that holds up, and whom not. In virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits
from batchyard.fairness import Share, Shares
from batchyard.upstream import Failure, FailureKind, Reply
from sim.caching import CacheWorld
from sim.test_refusals import error, refusing, requests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batchyard.upstream import Call, Outcome

SLOTS = 4
BROKEN = error(500, "api_error")
FOREVER = {
    "429": error(429, "rate_limit_error"),
    "429 with a time": Reply(429, error(429, "rate_limit_error").body, retry_after="20"),
    "529": error(529, "overloaded_error"),
    "500": BROKEN,
    "time-out": Failure(FailureKind.TIMEOUT, "no answer"),
    "broken": Failure(FailureKind.BROKEN, "reset"),
}


def story(
    root: Path, told: Callable[[CacheWorld], Any], slots: int = 64, shares: Shares | None = None
) -> None:
    async def run() -> None:
        given = {} if shares is None else {"shares": shares}
        world = CacheWorld(root, slots=slots, latency=0.5, **given)
        await told(world)
        await world.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("kind", "share"), [("500", 2), ("500", 10), ("500", 30), ("broken", 10), ("time-out", 2)]
)
def test_requests_that_always_fail_cost_the_others_next_to_nothing(
    root: Path, kind: str, share: int
) -> None:
    """2,000 on 64 slots of half a second are 16 s; and the last try comes after two minutes."""

    async def told(world: CacheWorld) -> None:
        world.model.instead = refusing(b"Bad", FOREVER[kind])
        made = [requests(1, "Bad" if n % 100 < share else "Yes?")[0] for n in range(2_000)]
        batch = await world.create(made)
        bad = 20 * share
        assert await world.end(batch, within_s=300.0) < 300.0
        assert world.kinds(batch) == {"succeeded": 2_000 - bad, "errored": bad}
        good = {f"r{n}" for n in range(2_000) if n % 100 >= share}
        begun = [at_s for at_s, custom_id in world.model.calls if custom_id in good]
        assert max(begun) - min(begun) < 60.0
        assert len(world.model.calls) == 2_000 - bad + bad * limits.ATTEMPTS_MAX

    story(root, told)


@pytest.mark.parametrize("bad", [4, 40])
@pytest.mark.parametrize("kind", FOREVER)
def test_requests_that_fail_for_ever_hold_no_slot(root: Path, kind: str, bad: int) -> None:
    """Each waits by itself, so another batch is called at once, on an upstream that is free."""

    async def told(world: CacheWorld) -> None:
        world.model.instead = refusing(b"Bad", FOREVER[kind])
        warm = await world.create(requests(20))
        await world.end(warm)
        first = await world.create(requests(bad, "Bad"))
        await world.clock.advance(4.0)
        other = await world.create(requests(50), workspace="x")
        # The first refusal of each tells of a limit, as far as anybody can know.
        within_s = 600.0 if kind.startswith("429") and bad > SLOTS else 60.0
        assert await world.end(other, within_s=within_s) < within_s
        await world.cancel(first)
        await world.end(first)

    story(root, told, slots=SLOTS)


def test_after_a_burst_of_refusals_that_name_a_long_time_all_slots_are_used(root: Path) -> None:
    """What was told to wait waits without a slot, also where all were told so at once."""

    async def told(world: CacheWorld) -> None:
        begun_s = world.clock.monotonic_s()
        reply = Reply(429, error(429, "rate_limit_error").body, retry_after="300")

        def at_first(call: Call, _: int) -> Outcome | None:
            return reply if world.clock.monotonic_s() < begun_s + 3.0 else None

        world.model.instead = at_first
        batch = await world.create(requests(2_000))
        await world.clock.advance(60.0)
        assert world.model.at_once >= 48
        assert len({custom_id for _, custom_id in world.model.calls}) > 1_500
        await world.cancel(batch)
        await world.end(batch)

    story(root, told)


def test_what_waits_aside_takes_nothing_of_the_share_of_its_workspace(root: Path) -> None:
    async def told(world: CacheWorld) -> None:
        reply = Reply(429, error(429, "rate_limit_error").body, retry_after="300")
        world.model.instead = refusing(b"Bad", reply)
        warm = await world.create(requests(20))
        await world.end(warm)
        first = await world.create(requests(2, "Bad"))
        await world.clock.advance(2.0)
        other = await world.create(requests(40))
        assert await world.end(other, within_s=60.0) < 60.0
        await world.cancel(first)
        await world.end(first)

    story(root, told, slots=10, shares=Shares({"w": Share(most=0.2)}))


def test_a_long_storm_of_failures_uses_up_the_tries_of_none(root: Path) -> None:
    """Each call that tries is that of another request: two hours make some 240 calls."""

    async def told(world: CacheWorld) -> None:
        begun_s = world.clock.monotonic_s()

        def storm(call: Call, _: int) -> Outcome | None:
            return BROKEN if world.clock.monotonic_s() < begun_s + 7_200.0 else None

        world.model.instead = storm
        batch = await world.create(requests(400))
        await world.end(batch, within_s=9_000.0)
        assert world.kinds(batch) == {"succeeded": 400}
        assert len(world.model.calls) < 400 + 300

    story(root, told, slots=8)


@pytest.mark.parametrize("times", [1, 3])
def test_an_upstream_that_takes_each_request_when_it_comes_again_is_found_to_work(
    root: Path, times: int
) -> None:
    async def told(world: CacheWorld) -> None:
        met: dict[str, int] = {}

        def at_first(call: Call, _: int) -> Outcome | None:
            met[call.custom_id] = met.get(call.custom_id, 0) + 1
            return FOREVER["529"] if met[call.custom_id] <= times else None

        world.model.instead = at_first
        batch = await world.create(requests(200))
        await world.end(batch, within_s=900.0)
        assert world.kinds(batch) == {"succeeded": 200}

    story(root, told, slots=8)


@pytest.mark.parametrize("failing", [range(300, 500, 10), range(0, 8_000, 7)])
def test_what_failed_once_is_not_sent_last_of_a_large_batch(root: Path, failing: range) -> None:
    """Nor is what is left of its shard: 8,000 on 64 slots of half a second are a minute."""

    async def told(world: CacheWorld) -> None:
        names = {f"r{n}" for n in failing}
        met: set[str] = set()

        def once(call: Call, _: int) -> Outcome | None:
            if call.custom_id in met or call.custom_id not in names:
                return None
            met.add(call.custom_id)
            return BROKEN

        world.model.instead = once
        batch = await world.create(requests(8_000))
        await world.end(batch)
        assert world.kinds(batch) == {"succeeded": 8_000}
        begun: dict[str, list[float]] = {}
        for at_s, custom_id in world.model.calls:
            begun.setdefault(custom_id, []).append(at_s)
        assert max(begun[name][1] - begun[name][0] for name in names) < 20.0

    story(root, told)
