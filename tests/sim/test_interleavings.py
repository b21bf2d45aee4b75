"""Every order of replies, cancel, expiry and lease loss on a batch of five requests.

The events of a story happen in every order that there is. Real ledger, segments and workers; the
upstream answers when an event says so. What must be true is looked at after every event, and the
end is held against what must have come of it.

By default replies come in the order of the calls, so that their orders among themselves are one:
336 orders, at three paces, each in another layout. `BATCHYARD_SIM_ORDERS=all` takes every reply for
itself: 40,320 orders of eight events, at every pace in every layout, some hours.
`BATCHYARD_SIM_PART=2/8` runs the second eighth of them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import uvloop

from batchyard import limits
from batchyard.clock import steady_us
from batchyard.upstream import Call, Outcome, Reply
from sim.world import Chances, Process, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchyard.model import Billing
    from sim.world import Sent

ALL = os.environ.get("BATCHYARD_SIM_ORDERS") == "all"
PART = os.environ.get("BATCHYARD_SIM_PART", "1/1")

REQUESTS = 5
Event = Literal["reply", "cancel", "expire", "lose"]
NOTICE_S = 1.1
"""A worker that has lost its shard knows it by then: it has tried to renew."""
Order = tuple[str, ...]
"""Events; `reply` is the oldest call there is, `r3` that of one request."""
Layout = tuple[int, int]
"""Requests in a shard, slots of a worker."""

LAYOUTS: tuple[Layout, ...] = ((5, 5), (2, 2), (5, 1))
# Seconds between two events. Results are written after 5 ms, synced and committed within a second:
# the events come all at once, or with all written down in between, or with all of it committed.
PACES = (0.0, 0.02, 1.2)
CASES = list(itertools.product(LAYOUTS, PACES) if ALL else zip(LAYOUTS, PACES, strict=True))


@dataclass
class HeldUpstream:
    """Answers a call when it is told to."""

    world: World
    name: str = "one"
    billing: Billing = "simulated"
    fetches_urls: bool = True
    unset_key: str | None = None
    waiting: list[tuple[str, asyncio.Future[None]]] = field(default_factory=list)
    early: set[str] = field(default_factory=set)
    """Requests whose reply is there before their call."""
    met: int = 0
    """Calls that found their reply there."""

    async def send(self, call: Call) -> Outcome:
        name = json.loads(call.params)["messages"][0]["content"]
        self.world.on_call(name)
        self.met += name in self.early
        if name not in self.early:
            answer = asyncio.get_running_loop().create_future()
            self.waiting.append((name, answer))
            await answer
        message = {
            "type": "message",
            "content": [{"type": "text", "text": name}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 3, "output_tokens": 2},
        }
        return Reply(200, json.dumps(message).encode())

    @property
    def open(self) -> list[str]:
        """Return the calls that wait for their answer."""
        return [name for name, answer in self.waiting if not answer.done()]

    def reply(self, name: str | None = None) -> bool:
        """Answer the oldest call there is, or those for one request; return whether there was one.

        For one request the next calls are answered too, at once.
        """
        self.waiting = [(n, a) for n, a in self.waiting if not a.done()]
        chosen = self.waiting[:1] if name is None else [w for w in self.waiting if w[0] == name]
        for _, answer in chosen:
            answer.set_result(None)
        if name is not None:
            self.early.add(name)
        return bool(chosen)

    def forward(self, request: object) -> Any:
        raise NotImplementedError

    async def close(self) -> None:
        pass


@dataclass
class Story:
    """One order of events, at one pace."""

    world: World
    pace_s: float
    expires_s: float
    upstream: HeldUpstream
    first: Process
    sent: Sent
    second: Process | None = None
    replied: int = 0
    """Calls of a living attempt that were answered when they waited for it."""
    calls_at_cancel: int | None = None
    lost_s: float | None = None

    @classmethod
    async def begin(cls, root: Path, layout: Layout, pace_s: float) -> Story:
        per_shard, slots = layout
        world = World(random.Random(1), root, slots, Chances(), exact_calls=False)
        upstream = HeldUpstream(world)
        world.upstreams = {"one": upstream, "two": upstream}  # type: ignore[dict-item]
        first = world.start()
        # Not before its event: later than all others take.
        window_s = round(2 + 9 * pace_s)
        sent = await world.create(requests=REQUESTS, shard=per_shard, window_s=window_s)
        await world.clock.advance(0.1)
        assert world.calls == min(slots, REQUESTS)
        return cls(world, pace_s, window_s, upstream, first, sent)

    @property
    def answered(self) -> int:
        """Return how many calls of a living attempt were answered, early ones among them."""
        return self.replied + self.upstream.met

    async def happen(self, event: str) -> None:
        world = self.world
        match event:
            case "cancel":
                await world.cancel(self.sent)
                self.calls_at_cancel = world.calls
            case "expire":
                assert world.clock.monotonic_s() < self.expires_s
                await world.clock.advance(self.expires_s + 1.1 - world.clock.monotonic_s())
            case "lose":
                # As after a long stop of the machine: the lease is over before it was renewed.
                # The first worker learns it at its next renewal or commit, and works on until then.
                far = steady_us(world.clock) + limits.DAY_US
                await world.ledger.take_back(far, but="")
                self.second = world.start()
                self.lost_s = world.clock.monotonic_s()
            case "reply":
                self.replied += self.upstream.reply()
            case name:
                self.replied += self.upstream.reply(f"{self.sent.batch.id}/{name}")
        await world.clock.advance(self.pace_s)
        world.check_alive()
        if self.calls_at_cancel is not None:
            assert world.calls == self.calls_at_cancel, "a call started after the cancel"
        if self.lost_s is not None and world.clock.monotonic_s() > self.lost_s + NOTICE_S:
            names = self.upstream.open
            assert len(set(names)) == len(names), "two workers send the same request"

    async def end(self) -> None:
        """End what no event has ended, by an answer or by time; judge the whole."""
        world = self.world
        ends_s = world.clock.monotonic_s() + limits.DRAIN_GRACE_S + 10
        step_s = 0.2
        while await world.open_batches():
            assert world.clock.monotonic_s() < ends_s, "the batch does not end"
            if self.pace_s or not ALL:  # else the grace of what is in flight has to end it
                self.replied += self.upstream.reply()
            await world.clock.advance(step_s)
            step_s = min(step_s * 1.5, 20.0)
            world.check_alive()
        await world.check_ended(self.sent)
        counts = (await world.batch_of(self.sent)).counts
        assert counts.errored == 0
        if self.second is None:
            assert counts.succeeded == self.answered, "an answer is not what it was"
        else:
            assert counts.succeeded <= self.answered
        # A late answer, to a call of whoever does not know yet that it is too late.
        while self.upstream.reply():
            await world.clock.advance(0.1)
        await world.check_ended(self.sent)


async def tell(root: Path, order: Order, layout: Layout, pace_s: float) -> None:
    story = await Story.begin(root, layout, pace_s)
    lost_after: int | None = None
    for event in order:
        if event == "lose":
            lost_after = story.answered
        await story.happen(event)
    await story.end()
    if lost_after is not None and pace_s > 0:
        counts = (await story.world.batch_of(story.sent)).counts
        assert counts.succeeded >= lost_after, "what was written was not adopted"
    await story.world.close()


def orders(events: Order) -> Iterator[Order]:
    """Yield every order, equal events being the same."""
    if ALL:
        numbers = itertools.count()
        events = tuple(f"r{next(numbers)}" if each == "reply" else each for each in events)
        yield from itertools.permutations(events)
        return
    yield from _distinct(sorted(events))


def _distinct(events: list[str]) -> Iterator[Order]:
    if not events:
        yield ()
    for event in dict.fromkeys(events):
        rest = events.copy()
        rest.remove(event)
        for order in _distinct(rest):
            yield event, *order


def mine(found: Iterator[Order]) -> Iterator[Order]:
    """Yield the part of all orders that this run is to take."""
    number, parts = map(int, PART.split("/"))
    return itertools.islice(found, number - 1, None, parts)


@pytest.mark.timeout(36_000 if ALL else 900)
@pytest.mark.parametrize(("layout", "pace_s"), CASES)
def test_every_order_of_cancel_expiry_replies_and_lease_loss_gives_each_request_one_result(
    layout: Layout, pace_s: float, memory: Path
) -> None:
    events = ("reply",) * REQUESTS + ("cancel", "expire", "lose")
    told = 0
    for order in mine(orders(events)):
        with tempfile.TemporaryDirectory(dir=memory) as place:
            try:
                uvloop.run(tell(Path(place), order, layout, pace_s))
            except BaseException as error:
                error.add_note(f"{order} at a pace of {pace_s} s, {layout=}")
                raise
        told += 1
    assert PART != "1/1" or told == (40_320 if ALL else 336)  # 8!, or 8! / 5!
    print(f"\ninterleavings: {told} orders of 8 events, {layout=}, {pace_s=}: 0 violations")
