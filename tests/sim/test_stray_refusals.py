"""Single 429s that name a time to wait cost the others nothing: a worker in virtual time."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import wire
from batchyard.upstream import Reply
from sim.caching import CacheWorld

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batchyard.upstream import Call, Outcome

SLOTS = 16
REQUESTS = 1_600
SHARE = 0.02
WAIT_S = 5


def refusal(seconds: int) -> Reply:
    told = {"type": "rate_limit_error", "message": "too many requests"}
    return Reply(429, wire.encode({"type": "error", "error": told}), retry_after=str(seconds))


def requests(number: int) -> list[dict[str, Any]]:
    message = {"role": "user", "content": "Yes?"}
    return [{"model": "m", "max_tokens": 9, "messages": [message]} for _ in range(number)]


def strays(seed: int, refused: dict[str, list[float]], now_s: Callable[[], float]) -> Any:
    """Return what refuses a small share of the calls, and notes whose and when."""
    rng = random.Random(seed)

    def instead(call: Call, _: int) -> Outcome | None:
        if rng.random() >= SHARE:
            return None
        refused.setdefault(call.custom_id, []).append(now_s())
        return refusal(WAIT_S)

    return instead


def seconds(root: Path, latency_s: float, seed: int | None, *, workers: int = 1) -> float:
    """Return after how long 90 % of a batch were accepted, with strays where a seed is given.

    The last ones would tell nothing of the speed: some of them may have been told to wait.
    """
    found: list[float] = []

    async def story() -> None:
        world = CacheWorld(root, slots=SLOTS * workers, latency=latency_s, workers=workers)
        refused: dict[str, list[float]] = {}
        if seed is not None:
            world.model.instead = strays(seed, refused, world.clock.monotonic_s)
        batch = await world.create(requests(REQUESTS))
        await world.end(batch)
        assert world.kinds(batch) == {"succeeded": REQUESTS}
        assert SLOTS * workers * 0.9 <= world.model.at_once <= SLOTS * workers
        for custom_id, times in refused.items():
            calls = [at_s for at_s, of in world.model.calls if of == custom_id]
            for at_s in times:
                after = [each for each in calls if each > at_s]
                assert after[0] >= at_s + WAIT_S, "the request that was told to wait waits"
        if seed is not None:
            assert len(refused) > 15
        no = {(custom_id, at_s) for custom_id, times in refused.items() for at_s in times}
        taken = [at_s for at_s, custom_id in world.model.calls if (custom_id, at_s) not in no]
        found.append(taken[REQUESTS * 9 // 10])
        await world.close()

    asyncio.run(story())
    return found[0]


@pytest.mark.parametrize(("latency_s", "workers"), [(0.2, 1), (1.0, 1), (1.0, 2)])
def test_a_pool_with_strays_that_name_a_time_is_nearly_as_fast_as_without(
    tmp_path_factory: pytest.TempPathFactory, latency_s: float, workers: int
) -> None:
    """2 % of the calls are told to wait 5 s: at least 80 % of the speed without them."""
    places = [tmp_path_factory.mktemp(name) for name in ("without", "with")]
    without = seconds(places[0], latency_s, None, workers=workers)
    with_strays = seconds(places[1], latency_s, 3, workers=workers)
    assert with_strays < without / 0.8, (without, with_strays)


@pytest.mark.parametrize("has_strays", [False, True])
def test_a_limit_that_names_a_time_is_obeyed_by_the_pool_even_after_strays(
    root: Path, has_strays: bool
) -> None:
    """From 40 s on every call is refused until 70 s, and each is told when that is."""

    async def story() -> None:
        world = CacheWorld(root, slots=SLOTS, latency=0.5)
        now_s = world.clock.monotonic_s
        stray = strays(3, {}, now_s) if has_strays else lambda *_: None

        def instead(call: Call, number: int) -> Outcome | None:
            if 40.0 <= now_s() < 70.0:
                return refusal(round(70.0 - now_s()))
            return stray(call, number)

        world.model.instead = instead
        batch = await world.create(requests(REQUESTS + 600))
        await world.end(batch)
        assert world.kinds(batch) == {"succeeded": REQUESTS + 600}
        calls = [at_s for at_s, _ in world.model.calls if 40.0 <= at_s < 69.5]
        early = [at_s for at_s in calls if at_s < 42.0]
        assert SLOTS // 2 < len(early) <= 2 * SLOTS, "each slot had a call out"
        assert len(calls) - len(early) <= 3, ("single calls probe", calls)
        await world.close()

    asyncio.run(story())
