"""An upstream that refuses us: whom that holds up, and whom not. A worker in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits, wire
from batchyard.upstream import Failure, FailureKind, Reply
from sim.caching import CacheWorld, grouped

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


# How many of a hundred are refused, and where they stand.
MIXTURES = {"few": (5, "even"), "most": (80, "even"), "first": (50, "first"), "last": (50, "last")}


def mixed(number: int, share: int, where: str) -> list[bool]:
    """Return which of so many requests are refused."""
    if where == "even":
        return [n * share // 100 != (n + 1) * share // 100 for n in range(number)]
    bad = [n < number * share // 100 for n in range(number)]
    return bad if where == "first" else bad[::-1]


@pytest.mark.parametrize("slots", [4, 64])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_requests_that_are_refused_hold_up_neither_their_own_batch_nor_another(
    root: Path, mixture: str, slots: int
) -> None:
    number = 16 * slots
    bad = mixed(number, *MIXTURES[mixture])

    async def told(world: CacheWorld) -> None:
        world.model.instead = refusing(b"Forbidden", FORBIDDEN)
        made = [requests(1, "Forbidden" if each else "Yes?")[0] for each in bad]
        own = await world.create(made)
        await world.clock.advance(10)
        other = await world.create(requests(slots), workspace="x")
        assert await world.end(other, within_s=2 * PAUSE_S) < 2 * PAUSE_S
        assert world.kinds(other) == {"succeeded": slots}
        good = {f"r{n}" for n in range(number) if not bad[n]}
        while not good <= {custom_id for _, custom_id in world.model.calls}:
            assert world.clock.monotonic_s() - world.model.calls[0][0] < 8 * PAUSE_S
            await world.clock.advance(1)
        await world.cancel(own)
        await world.end(own)
        assert world.kinds(own).get("succeeded") == len(good)

    story(root, told, slots)


def test_one_that_is_refused_does_not_keep_those_waiting_that_share_its_prefix(root: Path) -> None:
    async def told(world: CacheWorld) -> None:
        world.model.instead = lambda call, _: FORBIDDEN if call.custom_id == "r0" else None
        batch = await world.create(grouped(1, 100))
        await world.clock.advance(limits.ATTEMPTS_MAX * PAUSE_S)
        await world.end(batch)
        assert world.kinds(batch) == {"succeeded": 99, "errored": 1}
        good = [at_s for at_s, custom_id in world.model.calls if custom_id != "r0"]
        assert max(good) - min(good) < 10

    story(root, told)


def test_with_one_slot_too_the_others_are_sent(root: Path) -> None:
    async def told(world: CacheWorld) -> None:
        world.model.instead = refusing(b"Forbidden", FORBIDDEN)
        batch = await world.create(requests(2, "Forbidden") + requests(50))
        await world.clock.advance(4 * PAUSE_S)
        called = {custom_id for _, custom_id in world.model.calls}
        assert len(called) == 52
        await world.clock.advance(limits.ATTEMPTS_MAX * PAUSE_S)
        await world.end(batch)
        assert world.kinds(batch) == {"succeeded": 50, "errored": 2}

    story(root, told, slots=1)


@pytest.mark.parametrize("reply", [NO_KEY, FORBIDDEN], ids=["key", "account"])
def test_a_key_that_one_of_two_doors_takes_for_longer_costs_no_request(
    root: Path, reply: Reply
) -> None:
    async def told(world: CacheWorld) -> None:
        began_s = world.clock.monotonic_s()

        def instead(_: Call, number: int) -> Outcome | None:
            since_s = world.clock.monotonic_s() - began_s
            return reply if since_s > 25 or (since_s > 5 and number % 2) else None

        world.model.instead = instead
        batch = await world.create(requests(40 * SLOTS))
        await world.clock.advance(25)
        before = len(world.model.calls)
        await world.clock.advance(20 * PAUSE_S)
        assert len(world.model.calls) - before < 1_024 + 40 * SLOTS
        world.model.instead = lambda *_: None
        await world.end(batch)
        assert world.kinds(batch) == {"succeeded": 40 * SLOTS}

    story(root, told)


def test_what_was_refused_ends_with_its_batch(root: Path) -> None:
    """Canceled with those that were never sent; expired with what the upstream had said."""

    async def told(world: CacheWorld) -> None:
        world.model.instead = refusing(b"Yes", NO_KEY)
        late = await world.create(requests(3), window_s=100)
        unwanted = await world.create(requests(SLOTS), workspace="x")
        await world.clock.advance(2)
        await world.cancel(unwanted)
        assert await world.end(unwanted) < 5
        assert world.kinds(unwanted) == {"canceled": SLOTS}
        await world.end(late)
        assert world.kinds(late) == {"errored": 3}

    story(root, told)


def test_a_call_that_is_canceled_while_it_connects_tells_nothing_of_the_upstream(
    root: Path,
) -> None:
    """And was no call."""

    async def told(world: CacheWorld) -> None:
        answer = world.model._answer

        async def connecting(call: Call) -> Outcome:
            await world.clock.sleep(0.3)
            if call.wanted is not None and not call.wanted():
                return Failure(FailureKind.UNWANTED, "given up before it was sent")
            return await answer(call)

        world.model._answer = connecting  # type: ignore[method-assign]
        unwanted = await world.create(requests(SLOTS))
        await world.clock.advance(0.1)
        await world.cancel(unwanted)
        await world.clock.advance(0.3)
        batch = await world.create(requests(SLOTS), workspace="x")
        await world.clock.advance(0.1)
        pools = (await world.ledger.progress(batch.id)).pools
        assert world.worker.troubles(pools) == {}
        assert world.worker.explain(batch.id, pools) == []
        assert await world.end(unwanted, batch) < 5
        assert world.kinds(batch) == {"succeeded": SLOTS}
        account = await world.worker.account(unwanted.id)
        assert account is not None
        assert (account.calls, account.repeated, dict(account.reasons)) == (0, 0, {})

    story(root, told)


def test_a_call_that_is_made_again_without_a_stream_is_counted(root: Path) -> None:
    async def told(world: CacheWorld) -> None:
        streams = Failure(FailureKind.NO_STREAM, "it holds what cannot be folded")
        world.model.instead = lambda call, _: streams if call.plain is None else None
        batch = await world.create(requests(5))
        await world.end(batch)
        assert world.kinds(batch) == {"succeeded": 5}
        account = await world.worker.account(batch.id)
        assert account is not None
        assert (account.calls, account.repeated) == (10, 5)
        assert dict(account.reasons) == {"no_stream": 5}

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


@pytest.mark.parametrize("reply", [NO_KEY, FORBIDDEN, NO_CREDIT], ids=["key", "403", "credit"])
@pytest.mark.parametrize("bad", [1, 5])
def test_where_only_refused_requests_are_left_one_tries_at_a_time_until_they_are_taken(
    root: Path, bad: int, reply: Reply
) -> None:
    """More often than the tries that each of them has, which costs none of these."""

    async def told(world: CacheWorld) -> None:
        world.model.instead = refusing(b"Refused", reply)
        batch = await world.create(requests(50) + requests(bad, "Refused"))
        await world.clock.advance(2 * PAUSE_S)
        before = len(world.model.calls)
        await world.clock.advance(20 * PAUSE_S)
        tries = world.model.calls[before:]
        assert 18 <= len(tries) <= 20
        turns = [custom_id for _, custom_id in tries]
        assert all(len(set(turns[n : n + bad])) == bad for n in range(15)), "not in turn"
        world.model.instead = lambda *_: None
        assert await world.end(batch, within_s=2 * PAUSE_S) < PAUSE_S + 5
        assert world.kinds(batch) == {"succeeded": 50 + bad}

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
