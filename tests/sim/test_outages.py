"""An upstream that was away for a moment is used in full again soon, however long calls take."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from batchyard import limits
from batchyard.dispatch.ceilings import Ceilings
from batchyard.dispatch.gate import Gates
from batchyard.dispatch.limiter import Signal
from batchyard.dispatch.retry import delay_s
from sim.limited import LoopClock, run_virtually

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchyard.dispatch.gate import Gate

AT_S = 1_000.0  # when the outage begins


@dataclass
class Away:
    """An upstream that is away for a while, and slots that call it as a worker does."""

    gate: Gate
    takes_s: float
    away_s: float
    """How long it is away; calls in flight break then."""
    signal: Signal = Signal.UNREACHABLE
    fails_after_s: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    sent: int = 0
    live: set[asyncio.Future[bool]] = field(default_factory=set)
    """Calls that are being answered."""

    async def run(self, slots: int, end_s: float, look: Callable[[float], bool]) -> None:
        """Call until that time after the outage began, or until a look says that it is enough."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._slot()) for _ in range(slots)]
        await asyncio.sleep(AT_S)
        assert len(self.live) == slots
        self.sent = 0
        for call in list(self.live):
            call.set_result(False)
        while loop.time() < AT_S + end_s and not look(loop.time() - AT_S):
            await asyncio.sleep(1.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.gate.close()

    async def _slot(self) -> None:
        never = asyncio.Event()
        while True:
            if not self.gate.is_open:
                await self.gate.wait()
            tries = 0
            while True:
                while tries and not self.gate.may_repeat:
                    await self.gate.wait_again(never)
                tries += 1
                if await self._call():
                    break
                is_gated = self.gate.limiter.breaker.until_s is not None
                delay = delay_s(tries, None, self.rng, left_s=1e9, is_gated=is_gated)
                assert delay is not None
                await asyncio.sleep(delay)

    async def _call(self) -> bool:
        loop = asyncio.get_running_loop()
        permit = self.gate.start(b"")
        self.sent += 1
        if AT_S <= loop.time() < AT_S + self.away_s:
            await asyncio.sleep(self.fails_after_s)
            self.gate.end(permit, self.signal)
            return False
        call = loop.create_future()
        self.live.add(call)
        seconds = self.takes_s * self.rng.uniform(0.8, 1.2)
        timer = loop.call_later(seconds, lambda: call.done() or call.set_result(True))
        is_answered = await call
        timer.cancel()
        self.live.discard(call)
        self.gate.end(permit, Signal.TAKEN if is_answered else Signal.FAILED)
        return is_answered


def gate(slots: int) -> Gate:
    return Gates(LoopClock(), Ceilings()).of("up/model", slots)


@pytest.mark.parametrize(
    ("slots", "takes_s"), [(64, 300.0), (64, 60.0), (8, 900.0), (2_000, 300.0)], ids=str
)
def test_all_slots_are_filled_again_within_a_minute_after_a_short_outage(
    slots: int, takes_s: float
) -> None:
    full: list[float] = []
    reasons: list[str] = []

    async def run() -> None:
        away = Away(gate(slots), takes_s, away_s=5.0)

        def look(passed_s: float) -> bool:
            reasons.extend(wait.detail for wait in away.gate.limiter.waits(AT_S + passed_s))
            if passed_s > 5.0 and len(away.live) == slots:
                full.append(passed_s)
            return bool(full)

        await away.run(slots, 3_600.0, look)

    run_virtually(run())
    assert full, "never"
    assert full[0] < 60.0
    assert any("single calls try" in reason for reason in reasons)
    assert "starting again after an outage: 2 calls at once" in reasons
    assert not any("refused or too slow" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("signal", "after_s", "most"),
    [(Signal.FAILED, 60.0, 200), (Signal.TIMEOUT, 600.0, 200), (Signal.UNREACHABLE, 0.01, 200)],
    ids=lambda each: getattr(each, "name", str(each)),
)
def test_an_outage_with_late_failures_costs_few_calls(
    signal: Signal, after_s: float, most: int
) -> None:
    """A call that is out longer than a moment is taken for one that is answered only once."""
    sent: list[int] = []

    async def run() -> None:
        away = Away(gate(64), 30.0, away_s=3_600.0, signal=signal, fails_after_s=after_s)
        await away.run(64, 3_600.0, lambda passed_s: False)
        sent.append(away.sent)

    run_virtually(run())
    assert sent[0] < most


def test_a_probe_that_hangs_does_not_hold_the_others_back() -> None:
    waits: list[float] = []

    async def run() -> None:
        limiter = gate(64).limiter
        for _ in range(limits.BREAKER_FAILURES):  # after which a probe out for long tells nothing
            limiter.end(limiter.start(0.0), 600.0, Signal.TIMEOUT)
        now_s = 600.0
        while len(waits) < 4:
            waits.append(limiter.wait_s(now_s))
            now_s += waits[-1]
            limiter.start(now_s)
        assert limiter.waits(now_s)[0].until_s == now_s + limits.BREAKER_CAP_S

    run_virtually(run())
    assert waits == [limits.BREAKER_BASE_S, *[limits.BREAKER_CAP_S] * 3]


def test_a_failure_of_a_call_from_before_the_outage_is_not_that_of_a_probe() -> None:
    async def run() -> None:
        limiter = gate(64).limiter
        old = limiter.start(0.0)
        for _ in range(limits.BREAKER_FAILURES):
            limiter.end(limiter.start(0.0), 1.0, Signal.UNREACHABLE)
        limiter.start(2.0)
        limiter.end(old, 3.0, Signal.FAILED)
        assert limiter.wait_s(3.0) == limits.BREAKER_CAP_S - 1.0, "the probe is out"

    run_virtually(run())
