"""Prompt caches that hit: whole batches against the simulated cache, in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from batchyard import limits
from batchyard.clock import steady_us
from batchyard.dispatch import loading
from batchyard.upstream import Failure, FailureKind, Outcome, Reply
from sim.caching import MODEL, CacheWorld, block, error_body, grouped, shared

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from batchyard.upstream import Call


def _tell(
    root: Path,
    story: Callable[[CacheWorld], Awaitable[None]],
    *,
    slots: int = 64,
    latency: float = 2.0,
) -> None:
    async def run() -> None:
        world = CacheWorld(root, slots=slots, latency=latency)
        await story(world)
        await world.close()

    asyncio.run(run())


def _one_group(each: int, *, ttl: str = "5m") -> list[dict[str, object]]:
    return grouped(1, each, ttl=ttl)


def test_nearly_all_cacheable_tokens_of_many_groups_are_read(root: Path) -> None:
    """The bar, and that it costs next to no time: 64 slots, 2 s for an answer."""

    async def story(world: CacheWorld) -> None:
        batch = await world.create(grouped(40, 50))
        seconds = await world.end(batch)
        assert world.kinds(batch) == {"succeeded": 2_000}
        assert len(world.model.calls) == 2_000
        assert world.share_read(batch) >= 0.97
        assert seconds < 1.05 * (2_000 / 64 * 2.0 + 3.0), "the last answer takes up to 3 s"

    _tell(root, story)


def test_order_and_priming_read_more_than_either_order_without_it_in_as_much_time(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, tuple[float, float]] = {}

    def measure(name: str, *, in_order: bool) -> None:
        async def story(world: CacheWorld) -> None:
            batch = await world.create(grouped(10, 40), in_order=in_order)
            seconds = await world.end(batch)
            found[name] = world.share_read(batch), seconds

        _tell(root / name, story, slots=16)

    measure("primed", in_order=True)
    monkeypatch.setattr(loading, "shared_marks", lambda *_: ())
    measure("grouped", in_order=True)
    measure("as they arrived", in_order=False)
    share, seconds = found["primed"]
    assert share > max(found["grouped"][0], found["as they arrived"][0]) + 0.01, found
    assert seconds < 1.05 * min(found["grouped"][1], found["as they arrived"][1]), found


def test_requests_that_share_a_shorter_prefix_wait_for_that(root: Path) -> None:
    """A mark on the shared part, and one on the part that is different in each request."""

    async def story(world: CacheWorld) -> None:
        own = shared(7, repeats=40)
        batch = await world.create(
            [
                {
                    "model": MODEL,
                    "max_tokens": 20,
                    "system": [block(shared(1))],
                    "messages": [{"role": "user", "content": [block(f"Text {n}. {own}")]}],
                }
                for n in range(60)
            ]
        )
        await world.end(batch)
        usages = [usage for _, _, usage in world.lines(batch)]
        assert sum(usage.cache_read_tokens > 0 for usage in usages) == 59

    _tell(root, story)


def test_a_prefix_that_is_too_short_is_not_waited_for(root: Path) -> None:
    async def story(world: CacheWorld) -> None:
        made = grouped(1, 8, model="claude-haiku-4-5")
        for each in made:
            each["system"] = [block("Be brief.")]
        batch = await world.create(made)
        await world.end(batch)
        assert {moment for moment, _ in world.model.calls} == {0.0}

    _tell(root, story, latency=5.0)


def test_with_one_group_its_requests_wait_for_its_primer_only(root: Path) -> None:
    async def story(world: CacheWorld) -> None:
        batch = await world.create([*_one_group(10), {"model": MODEL, "max_tokens": 5,
            "messages": [{"role": "user", "content": "Free"}]}])  # fmt: skip
        await world.end(batch)
        moments = sorted(moment for moment, _ in world.model.calls)
        assert moments[:2] == [0.0, 0.0], "what has no mark does not wait"
        assert len(set(moments[2:])) == 1, "all others go at once"
        assert 1.0 <= moments[2] <= 3.0
        assert world.share_read(batch) == pytest.approx(0.9)

    _tell(root, story)


def test_after_an_entry_has_lapsed_one_request_writes_it_again(root: Path) -> None:
    async def story(world: CacheWorld) -> None:
        for wait_s, written in ((0, 1), (240, 0), (360, 1)):
            await world.clock.advance(wait_s)
            batch = await world.create(_one_group(12))
            await world.end(batch)
            usages = [usage for _, _, usage in world.lines(batch)]
            assert sum(usage.cache_write_tokens > 0 for usage in usages) == written

    _tell(root, story)


def test_batches_of_a_workspace_share_what_is_written_and_other_workspaces_do_not(
    root: Path,
) -> None:
    async def story(world: CacheWorld) -> None:
        made = [await world.create(_one_group(10)) for _ in range(2)]
        other = await world.create(_one_group(10), workspace="v")
        await world.end(*made, other)
        usages = [usage for batch in made for _, _, usage in world.lines(batch)]
        assert sum(usage.cache_write_tokens > 0 for usage in usages) == 1
        assert world.share_read(other) == pytest.approx(0.9)

    _tell(root, story)


def _first_fails(how: Outcome, times: int = 1) -> Callable[[Call, int], Outcome | None]:
    return lambda call, number: how if number < times else None


@pytest.mark.parametrize(
    "how",
    [
        Reply(400, error_body("invalid_request_error")),
        Reply(429, error_body("rate_limit_error"), retry_after="1"),
        Reply(500, error_body("api_error")),
        Reply(529, error_body("overloaded_error"), retry_after="1"),
        Failure(FailureKind.BROKEN, "gone"),
        Reply(200, b"{}"),
    ],
    ids=["400", "429", "500", "529", "broken", "empty"],
)
def test_when_a_primer_fails_another_one_writes_and_nobody_waits_for_long(
    root: Path, how: Outcome
) -> None:
    async def story(world: CacheWorld) -> None:
        world.model.instead = _first_fails(how)
        batch = await world.create(_one_group(20))
        await world.end(batch)
        ids = [custom_id for _, custom_id in world.model.calls]
        by_others = [moment for moment, name in world.model.calls if name != ids[0]]
        assert max(by_others) < 20.0, "the others waited for a primer that waits"
        usages = [usage for _, kind, usage in world.lines(batch) if kind == "succeeded"]
        assert sum(usage.cache_write_tokens > 0 for usage in usages) == 1

    _tell(root, story)


def test_nobody_waits_for_a_primer_that_fails_again_and_again(root: Path) -> None:
    async def story(world: CacheWorld) -> None:
        failing = Reply(500, error_body("api_error"))
        world.model.instead = lambda call, number: failing if call.custom_id == "r0" else None
        batch = await world.create(_one_group(20))
        await world.end(batch)
        assert world.kinds(batch) == {"errored": 1, "succeeded": 19}
        calls = world.model.calls
        own = [moment for moment, name in calls if name == "r0"]
        others = [moment for moment, name in calls if name != "r0"]
        assert len(own) == limits.ATTEMPTS_MAX
        assert max(others) < own[-1] - 10, "they waited until it had failed for good"
        assert world.share_read(batch) == pytest.approx(18 / 19)

    _tell(root, story)


@pytest.mark.parametrize(
    "how",
    [
        Reply(503, error_body("api_error")),
        Reply(429, error_body("rate_limit_error")),
        Reply(429, error_body("rate_limit_error"), retry_after="1"),
    ],
    ids=["503", "429", "429-in-1-s"],
)
def test_a_storm_of_failures_costs_no_more_writes_than_groups_and_little_time(
    root: Path, how: Outcome
) -> None:
    async def story(world: CacheWorld) -> None:
        world.model.instead = _first_fails(how, 12)
        batch = await world.create(grouped(4, 25))
        assert await world.end(batch) < 60.0
        usages = [usage for _, _, usage in world.lines(batch)]
        assert sum(usage.cache_write_tokens > 0 for usage in usages) <= 4 + 2

    _tell(root, story)


def test_a_wrong_key_holds_a_group_and_it_is_written_once_when_the_key_is_right(
    root: Path,
) -> None:
    async def story(world: CacheWorld) -> None:
        refused = Reply(401, error_body("authentication_error"))
        world.model.instead = lambda *_: refused if world.clock.monotonic_s() < 50 else None
        batch = await world.create(_one_group(20))
        await world.end(batch)
        assert world.kinds(batch) == {"succeeded": 20}
        assert world.share_read(batch) == pytest.approx(0.95)

    _tell(root, story, slots=4)


def test_an_answer_that_does_not_begin_is_waited_for_so_long_and_no_longer(root: Path) -> None:
    async def story(world: CacheWorld) -> None:
        world.model.instead = lambda call, number: 200.0 if number == 0 else None
        batch = await world.create(_one_group(10))
        await world.end(batch)
        moments = sorted(moment for moment, _ in world.model.calls)
        assert moments[1] == pytest.approx(limits.PRIMER_ANSWER_S, abs=1.5)
        assert moments[1] == moments[-1]

    _tell(root, story)


def test_what_waits_for_a_primer_is_canceled_and_expires_as_anything_else(root: Path) -> None:
    async def story(world: CacheWorld) -> None:
        world.model.instead = lambda call, number: 25.0
        canceled = await world.create(_one_group(5))
        await world.clock.advance(3)
        await world.cancel(canceled)
        await world.end(canceled)
        assert world.kinds(canceled) == {"canceled": 4, "succeeded": 1}
        world.model.instead = lambda call, number: 25.0
        expired = await world.create(_one_group(5, ttl="1h"), window_s=10, workspace="v")
        await world.end(expired)
        assert world.kinds(expired) == {"expired": 4, "succeeded": 1}

    _tell(root, story)


def test_the_rest_of_a_group_goes_on_when_the_batch_of_its_primer_is_canceled(
    root: Path,
) -> None:
    async def story(world: CacheWorld) -> None:
        world.model.instead = lambda call, number: 1_000.0 if number == 0 else None
        first = await world.create(_one_group(3))
        await world.clock.advance(1)
        second = await world.create(_one_group(5))
        await world.clock.advance(1)
        assert len(world.model.calls) == 1
        await world.cancel(first)
        await world.end(second, within_s=limits.PRIMER_ANSWER_S + 10)
        assert world.kinds(second) == {"succeeded": 5}
        await world.end(first)

    _tell(root, story)


def test_a_shard_that_is_lost_takes_its_primer_with_it_and_the_group_goes_on(root: Path) -> None:
    async def story(world: CacheWorld) -> None:
        world.model.instead = lambda call, number: 20.0 if number == 0 else None
        batch = await world.create(_one_group(6))
        await world.clock.advance(1.5)
        assert len(world.model.calls) == 1
        # As after a long stop of the machine: the lease is over before it was renewed.
        assert await world.ledger.take_back(steady_us(world.clock) + limits.DAY_US, but="")
        world.worker.wake()
        await world.end(batch, within_s=60)
        assert world.kinds(batch) == {"succeeded": 6}

    _tell(root, story)


def test_a_few_slots_are_kept_full_by_many_groups(root: Path) -> None:
    async def story(world: CacheWorld) -> None:
        batch = await world.create(grouped(30, 20))
        seconds = await world.end(batch)
        ideal_s = 600 * 2.0 / 8
        assert seconds < 1.05 * ideal_s + 3.0
        assert world.share_read(batch) == pytest.approx(0.95)

    _tell(root, story, slots=8)
