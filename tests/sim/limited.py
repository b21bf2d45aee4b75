"""Slots that call an upstream with limits, through the real gate and limiter, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from batchyard import limits
from batchyard.dispatch.ceilings import Ceilings
from batchyard.dispatch.gate import Gates
from batchyard.dispatch.limiter import Signal
from batchyard.dispatch.retry import backoff_s

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from batchyard.dispatch.gate import Gate

Says = Literal["exactly", "in whole seconds", "never"]
"""How a refusal tells when to come again."""


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer as soon as nothing else is ready."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._now_s = max(self._now_s, self._scheduled[0].when())
        super()._run_once()


class LoopClock:
    """A clock that goes with the loop."""

    def now_us(self) -> int:
        return 1_790_000_000_000_000 + round(self.monotonic_s() * limits.SECOND_US)

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def even(rng: random.Random) -> float:
    return rng.uniform(0.7, 1.3)


def run_virtually(story: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(story)


@dataclass
class Allowed:
    """An upstream that allows so many calls a second, or the concurrency that brings as many."""

    kind: Literal["rate", "window", "sliding", "concurrency", "nothing"]
    """What is limited; where nothing is, calls may be refused all the same. A window counts the
    calls of each time of `burst_s`, a sliding one those of the last."""
    phases: Sequence[float]
    """What it allows, in calls a second, one after the other; 0.0 where it does not look."""
    phase_s: float = 100.0
    burst_s: float = 0.2
    """How many seconds of it the bucket holds; at least one call."""
    latency_s: float = 0.2
    spread: Callable[[random.Random], float] = even
    """Returns how many times the latency an answer takes, 1.0 on average."""
    refusal_s: float = 0.01
    works_s: tuple[float, float] = (1.0, 1.0)
    """Of so many seconds there are calls to make in the first ones, so many."""
    is_full: bool = False
    """Whether the bucket is, at first; else it holds one call."""
    stray: float = 0.0
    """Share of calls that are refused for no reason."""
    stray_rng: random.Random = field(default_factory=lambda: random.Random(1))
    _level: float = field(default=1.0, init=False)
    _at_s: float = 0.0
    _busy: int = 0
    _log: deque[float] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if self.is_full:
            self._level = max(1.0, self.phases[0] * self.burst_s)

    @property
    def end_s(self) -> float:
        return self.phase_s * len(self.phases)

    def limit(self, now_s: float) -> float:
        return self.phases[min(int(now_s / self.phase_s), len(self.phases) - 1)]

    def admit(self, now_s: float) -> float | None:
        """Return None for a call that is taken, else the seconds until it could be."""
        if self.stray and self.stray_rng.random() < self.stray:
            return 1.0
        if self.kind == "nothing":
            return None
        limit = self.limit(now_s)
        if self.kind == "concurrency":
            if self._busy >= round(limit * self.latency_s):
                return 1.0
            self._busy += 1
            return None
        if self.kind == "window":
            return self._admit_by_window(limit, now_s)
        if self.kind == "sliding":
            return self._admit_sliding(limit, now_s)
        most = max(1.0, limit * self.burst_s)
        self._level = min(most, self._level + (now_s - self._at_s) * limit)
        self._at_s = now_s
        if self._level < 1.0:
            return (1.0 - self._level) / limit
        self._level -= 1.0
        return None

    def _admit_by_window(self, limit: float, now_s: float) -> float | None:
        end_s = (now_s // self.burst_s + 1.0) * self.burst_s
        if end_s != self._at_s:
            self._at_s, self._level = end_s, limit * self.burst_s
        if self._level < 1.0:
            return end_s - now_s
        self._level -= 1.0
        return None

    def _admit_sliding(self, limit: float, now_s: float) -> float | None:
        while self._log and self._log[0] <= now_s - self.burst_s:
            self._log.popleft()
        if len(self._log) >= limit * self.burst_s:
            return self._log[0] + self.burst_s - now_s
        self._log.append(now_s)
        return None

    async def answer(self, rng: random.Random) -> None:
        """Wait as long as an answer takes."""
        await asyncio.sleep(self.latency_s * self.spread(rng))

    def leave(self) -> None:
        self._busy -= self.kind == "concurrency"


@dataclass
class Traffic:
    """Slots that call such an upstream as a worker does, and what comes of it."""

    allowed: Allowed
    gate: Gate
    says_when: Says
    rng: random.Random
    sent: int = 0
    refused: int = 0
    taken: list[float] = field(default_factory=list)

    async def run(self, slots: int) -> None:
        loop = asyncio.get_running_loop()
        end_s = self.allowed.end_s
        tasks = [loop.create_task(self._slot(end_s)) for _ in range(slots)]
        await asyncio.sleep(end_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.gate.close()

    async def _slot(self, end_s: float) -> None:
        loop = asyncio.get_running_loop()
        never = asyncio.Event()
        period_s, works_s = self.allowed.works_s
        while loop.time() < end_s:
            if (rest_s := loop.time() % period_s) >= works_s:
                await asyncio.sleep(period_s - rest_s)
            if not self.gate.is_open:
                await self.gate.wait()
            tries = 0
            while True:
                if tries:
                    while not self.gate.may_repeat:
                        await self.gate.wait_again(never)
                tries += 1
                permit = self.gate.start(b"")
                self.sent += 1
                wait_s = self.allowed.admit(loop.time())
                if wait_s is None:
                    await self.allowed.answer(self.rng)
                    self.allowed.leave()
                    self.gate.end(permit, Signal.TAKEN)
                    self.taken.append(loop.time())
                    break
                await asyncio.sleep(self.allowed.refusal_s)
                after = wait_s if self.says_when == "exactly" else float(math.ceil(wait_s))
                after = None if self.says_when == "never" else after
                self.gate.end(permit, Signal.LIMITED, retry_after_s=after)
                self.refused += 1
                await asyncio.sleep(backoff_s(tries, after, self.rng))

    def goodput(self, begin_s: float, end_s: float) -> float:
        """Return the share of what was allowed within a phase that was used."""
        taken = sum(begin_s <= at_s < end_s for at_s in self.taken)
        return taken / ((end_s - begin_s) * self.allowed.limit(begin_s))

    def share_of_slots(self, slots: int, begin_s: float, end_s: float) -> float:
        """Return the share of what so many slots could do that was done."""
        taken = sum(begin_s <= at_s < end_s for at_s in self.taken)
        return taken / ((end_s - begin_s) * slots / self.allowed.latency_s)

    def longest_stall_s(self) -> float:
        """Return the longest time without an accepted call."""
        moments = [0.0, *self.taken, self.allowed.end_s]
        return max(after - before for before, after in itertools.pairwise(moments))


def run(allowed: Allowed, says_when: Says, slots: int, seed: int) -> Traffic:
    """Let slots call for as long as the upstream has phases."""
    found: list[Traffic] = []

    async def story() -> None:
        gate = Gates(LoopClock(), Ceilings()).of("up/model", slots)
        found.append(Traffic(allowed, gate, says_when, random.Random(seed)))
        await found[0].run(slots)

    run_virtually(story())
    return found[0]
