"""An upstream that refuses us: whom that holds up, and whom not. A worker in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits, wire
from batchyard.upstream import Reply
from sim.caching import CacheWorld

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batchyard.upstream import Call, Outcome

SLOTS = 16
PAUSE_S = limits.UPSTREAM_PAUSE_S


def error(status: int, kind: str, message: str = "no") -> Reply:
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return Reply(status, wire.encode(body))


FORBIDDEN = error(403, "permission_error")
NO_KEY = error(401, "authentication_error")
NO_CREDIT = error(
    400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API."
)


def requests(number: int, word: str = "Yes?") -> list[dict[str, Any]]:
    message = {"role": "user", "content": word}
    return [{"model": "m", "max_tokens": 9, "messages": [message]} for _ in range(number)]


def refusing(word: bytes, reply: Reply) -> Callable[[Call, int], Outcome | None]:
    """Return what refuses each request that holds a word."""
    return lambda call, _: reply if word in call.params else None


def story(
    root: Path, told: Callable[[CacheWorld], Any], slots: int = SLOTS, workers: int = 1
) -> None:
    async def run() -> None:
        world = CacheWorld(root, slots=slots, latency=0.5, workers=workers)
        await told(world)
        await world.close()

    asyncio.run(run())


@pytest.mark.parametrize("bad", [1, SLOTS, 40 * SLOTS])
@pytest.mark.parametrize("workspace", ["w", "x"])
def test_requests_that_are_refused_hold_up_no_other_batch(
    root: Path, bad: int, workspace: str
) -> None:
    """However many they are, and though nothing else is there when they come."""

    async def told(world: CacheWorld) -> None:
        world.model.instead = refusing(b"Forbidden", FORBIDDEN)
        first = await world.create(requests(bad, "Forbidden"))
        await world.clock.advance(2 * PAUSE_S)
        good = await world.create(requests(50), workspace=workspace)
        assert await world.end(good, within_s=3 * PAUSE_S) < 3 * PAUSE_S
        assert world.kinds(good) == {"succeeded": 50}
        await world.cancel(first)
        await world.end(first)

    story(root, told)


def test_a_request_that_is_refused_while_others_are_taken_ends_as_errored(root: Path) -> None:
    async def told(world: CacheWorld) -> None:
        world.model.instead = refusing(b"Forbidden", FORBIDDEN)
        batch = await world.create(requests(400) + requests(1, "Forbidden") + requests(400))
        await world.end(batch, within_s=(limits.ATTEMPTS_MAX + 1) * (PAUSE_S + 2))
        assert world.kinds(batch) == {"succeeded": 800, "errored": 1}
        calls = [custom_id for _, custom_id in world.model.calls]
        assert calls.count("r400") == limits.ATTEMPTS_MAX

    story(root, told)


@pytest.mark.parametrize("reply", [NO_KEY, NO_CREDIT], ids=["key", "credit"])
def test_a_refused_account_is_tried_with_one_call_at_a_time_and_costs_no_request(
    root: Path, reply: Reply
) -> None:
    async def told(world: CacheWorld) -> None:
        world.model.instead = refusing(b"Yes", reply)
        batch = await world.create(requests(40 * SLOTS))
        await world.clock.advance(20 * PAUSE_S)
        calls = list(world.model.calls)
        assert SLOTS <= len(calls) <= SLOTS + 20, "after the first, one for each pause"
        tries = [custom_id for _, custom_id in calls[SLOTS:]]
        assert all(one != other for one, other in itertools.pairwise(tries))
        world.model.instead = lambda *_: None
        assert await world.end(batch) <= PAUSE_S + 5 + 40
        assert world.kinds(batch) == {"succeeded": 40 * SLOTS}

    story(root, told)


def test_a_key_that_is_taken_back_in_the_middle_costs_no_request(root: Path) -> None:
    async def told(world: CacheWorld) -> None:
        batch = await world.create(requests(40 * SLOTS))
        await world.clock.advance(5)
        world.model.instead = refusing(b"Yes", NO_KEY)
        before = len(world.model.calls)
        await world.clock.advance(30 * PAUSE_S)
        assert len(world.model.calls) - before <= 2 * SLOTS + 30
        world.model.instead = lambda *_: None
        await world.end(batch)
        assert world.kinds(batch) == {"succeeded": 40 * SLOTS}

    story(root, told)


def test_an_upstream_that_says_when_it_is_back_is_waited_for(root: Path) -> None:
    """A 503 that names a time is an order to wait, as 429 and 529 are."""
    unavailable = Reply(503, b"<html>maintenance</html>", retry_after="60")

    async def told(world: CacheWorld) -> None:
        world.model.instead = refusing(b"Yes", unavailable)
        batch = await world.create(requests(3))
        await world.clock.advance(60 * 20 * limits.ATTEMPTS_MAX)
        world.model.instead = lambda *_: None
        await world.end(batch)
        assert world.kinds(batch) == {"succeeded": 3}

    story(root, told)
