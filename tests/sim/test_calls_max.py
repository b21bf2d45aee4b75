"""The calls that one process may make at once, over all models."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from batchyard.upstream import Failure, FailureKind, Reply
from sim.caching import CacheWorld, error_body

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.upstream import Call, Outcome

_CALLS_MAX = 32
_NO_CALL: dict[str, Outcome] = {
    "away": Failure(FailureKind.CONNECT, "no"),
    "told to wait": Reply(429, error_body("rate_limit_error"), retry_after="20"),
    "down": Reply(529, error_body("overloaded_error")),
}


def _requests(number: int, model: str) -> list[dict[str, object]]:
    messages = [{"role": "user", "content": "Yes?"}]
    return [{"model": model, "max_tokens": 9, "messages": messages}] * number


@pytest.mark.parametrize("gated", [False, True], ids=["calls", "slots that wait"])
def test_a_model_that_comes_later_has_calls_as_soon_as_some_end(root: Path, gated: bool) -> None:
    async def story() -> None:
        world = CacheWorld(root, slots=32, latency=1.0, calls_max=32)
        first = await world.create(_requests(4_000, "first"))
        await world.clock.advance(3.0)
        if gated:  # all of its slots wait at the gate, and make no call
            world.worker._pools["sim/first"].gate.limiter.pace.hint("requests", 1.0, float("inf"))
        second = await world.create(_requests(40, "second"), workspace="another")
        await world.clock.advance(0.05)
        progress = await world.ledger.progress(second.id)
        waits = world.worker.explain(second.id, progress.pools)
        told = [(wait.reason, wait.detail[:9]) for wait in waits]
        assert ("limited", "all calls") in told
        await world.end(second, within_s=6.0)
        await world.cancel(first)
        await world.end(first)
        await world.close()

    asyncio.run(story())


@pytest.mark.parametrize("trouble", _NO_CALL)
def test_slots_that_wait_take_no_calls_from_another_model_and_get_them_back(
    root: Path, trouble: str
) -> None:
    async def story() -> None:
        world = CacheWorld(root, slots=_CALLS_MAX, latency=1.0, calls_max=_CALLS_MAX)
        sent = 0

        def instead(call: Call, _: int) -> Outcome | None:
            nonlocal sent
            is_first = b'"first"' in call.params
            sent += is_first
            return None if is_first else outcome

        outcome: Outcome | None = _NO_CALL[trouble]
        world.model.instead = instead
        first = await world.create(_requests(8_000, "first"))
        await world.clock.advance(10.0)
        before = sent
        await world.clock.advance(30.0)
        alone = sent - before
        second = await world.create(_requests(100, "second"), workspace="another")
        await world.clock.advance(30.0)
        before = sent
        await world.clock.advance(30.0)
        assert sent - before > 0.95 * alone
        outcome = None
        await world.end(second, within_s=75.0)
        assert world.kinds(second) == {"succeeded": 100}
        assert world.model.at_once == _CALLS_MAX
        await world.cancel(first)
        await world.end(first)
        await world.close()

    asyncio.run(story())
