"""Who waits at a gate is let through: in order, none forgotten, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits
from batchyard.dispatch.cap import Cap
from batchyard.dispatch.ceilings import Ceilings, Limit
from batchyard.dispatch.gate import Gate, Gates
from batchyard.dispatch.limiter import Signal
from batchyard.upstream import Reply
from sim.caching import CacheWorld
from sim.limited import LoopClock, run_virtually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from batchyard.ledger import News

MESSAGE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Yes?"}],
}

NAMES = ["up/a", "up/ab", "up/b", "up/a2", "up/c"]


def tell(story: Callable[[Gate], Awaitable[None]], *, per_minute: int = 60, slots: int = 8) -> None:
    """Let a story happen at a gate that lets one call through each second."""

    async def run() -> None:
        ceilings = Ceilings({"up": [Limit(("*",), requests=per_minute)]})
        await story(Gates(LoopClock(), ceilings).of("up/model", slots))

    run_virtually(run())


def now_s() -> float:
    return asyncio.get_running_loop().time()


class Caller:
    """Calls that note when they were let through."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.through: list[tuple[str, float]] = []

    async def first(self, name: str) -> None:
        await self.gate.wait()
        self._start(name)

    async def again(self, name: str, stopped: asyncio.Event) -> None:
        await self.gate.wait_again(stopped)
        if not stopped.is_set():
            self._start(name)

    def _start(self, name: str) -> None:
        self.through.append((name, now_s()))
        self.gate.end(self.gate.start(b"{}"), Signal.TAKEN)


def test_calls_go_through_in_the_order_in_which_they_came_and_repeated_ones_before() -> None:
    async def story(gate: Gate) -> None:
        caller, never = Caller(gate), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "c", "d"):
                group.create_task(caller.first(name))
            await asyncio.sleep(0.5)
            group.create_task(caller.again("e", never))
        names = [name for name, _ in caller.through]
        assert names == ["a", "e", "b", "c", "d"]
        moments = [moment for _, moment in caller.through]
        assert moments == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0], abs=0.01)
        assert gate.waiting == 0

    tell(story)


def test_one_that_is_given_up_while_it_waits_passes_its_turn_on() -> None:
    async def story(gate: Gate) -> None:
        caller = Caller(gate)
        tasks = [asyncio.ensure_future(caller.first(name)) for name in ("a", "b", "c")]
        await asyncio.sleep(0.5)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [name for name, _ in caller.through] == ["a", "c"]
        assert caller.through[-1][1] == pytest.approx(1.0, abs=0.01)
        assert gate.waiting == 0

    tell(story)


@pytest.mark.parametrize("turns", range(6))
def test_a_turn_is_passed_on_by_one_that_is_given_up_just_when_it_comes(turns: int) -> None:
    """So many turns of the loop after the end of its wait: before, at, or after its wake-up."""

    async def story(gate: Gate) -> None:
        loop = asyncio.get_running_loop()
        caller = Caller(gate)
        tasks = [asyncio.ensure_future(caller.first(name)) for name in ("a", "b", "c")]
        await asyncio.sleep(0.5)

        def give_up(left: int) -> None:
            if left:
                loop.call_soon(give_up, left - 1)
            else:
                tasks[1].cancel()

        loop.call_at(1.0, give_up, turns)
        await asyncio.gather(*tasks, return_exceptions=True)
        through = dict(caller.through)
        assert through["c"] == pytest.approx(2.0 if "b" in through else 1.0, abs=0.01)
        assert gate.waiting == 0

    tell(story)


def test_a_stopped_shard_is_not_waited_for() -> None:
    async def story(gate: Gate) -> None:
        caller, stopped = Caller(gate), asyncio.Event()
        await caller.first("a")
        task = asyncio.ensure_future(caller.again("b", stopped))
        await asyncio.sleep(0.25)
        stopped.set()
        await task
        assert now_s() == pytest.approx(0.25)
        assert gate.waiting == 0
        await caller.first("c")
        assert caller.through[-1] == ("c", pytest.approx(1.0, abs=0.01))

    tell(story)


def test_closing_lets_first_calls_through_at_once() -> None:
    async def story(gate: Gate) -> None:
        tasks = [asyncio.ensure_future(gate.wait()) for _ in range(5)]
        gate.end(gate.start(b"{}"), Signal.LIMITED, retry_after_s=900.0)
        late = asyncio.ensure_future(gate.wait())
        await asyncio.sleep(1.0)
        gate.close()
        await asyncio.gather(*tasks, late)
        assert now_s() == pytest.approx(1.0)

    tell(story)


@pytest.mark.parametrize("seed", range(5))
def test_no_wake_up_is_lost_whatever_is_refused_given_up_or_stopped(seed: int) -> None:
    """Every call that is not given up gets through in the end, and none is counted as waiting."""
    rng = random.Random(seed)

    async def story(gate: Gate) -> None:
        ended: list[bool] = []

        async def call() -> None:
            await asyncio.sleep(rng.uniform(0.0, 30.0))
            stopped = asyncio.Event()
            await gate.wait()
            for tries in range(rng.randint(1, 4)):
                if tries:
                    await gate.wait_again(stopped)
                permit = gate.start(b"{}")
                try:
                    await asyncio.sleep(rng.uniform(0.0, 3.0))
                except BaseException:
                    gate.end(permit, Signal.NOTHING)
                    raise
                signal = rng.choice(list(Signal))
                gate.end(permit, signal, retry_after_s=rng.choice([None, 0.0, 2.0]))
            gate.pass_on()
            ended.append(True)

        tasks = [asyncio.ensure_future(call()) for _ in range(100)]
        given_up = rng.sample(tasks, 30)
        for task in given_up:
            asyncio.get_running_loop().call_later(rng.uniform(0.0, 60.0), task.cancel)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.BREAKER_CAP_S * 400):
                await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.done() for task in tasks), "a wake-up was lost"
        assert len(ended) >= 70
        assert (gate.waiting, gate.limiter.in_flight) == (0, 0)

    tell(story, per_minute=60_000, slots=16)


def test_who_waits_leaves_room_for_others_and_goes_on_only_when_there_is_room_again() -> None:
    """Of a process that may make one call, one model may have one each second, one is free."""
    through: list[tuple[str, float]] = []

    async def call(cap: Cap, gate: Gate, name: str, seconds: float) -> None:
        cap.fill()
        await gate.wait()
        through.append((name, now_s()))
        permit = gate.start(b"{}")
        await asyncio.sleep(seconds)
        gate.end(permit, Signal.TAKEN)
        cap.empty()
        cap.on_room()

    async def run() -> None:
        cap = Cap(1)
        gates = Gates(LoopClock(), Ceilings({"up": [Limit(("slow",), requests=60)]}), cap)
        slow, free = gates.of("up/slow", 8), gates.of("up/free", 8)

        def pass_on() -> None:
            free.pass_on()
            slow.pass_on()

        cap.on_room = pass_on
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(call(cap, slow, "slow", 0.1))
            for _ in range(2):
                group.create_task(call(cap, free, "free", 5.0))
            await asyncio.sleep(0.5)
            assert (cap.slots, cap.calls) == (3, 1)
            free.rest()
            assert (cap.slots, cap.calls) == (3, 1), "another one is woken in its place"
            free.go_on()
            assert not free.is_open, "which is not given back"
        assert (cap.slots, cap.calls) == (0, 0)

    run_virtually(run())
    moments = [("slow", 0.0), ("free", 0.1), ("free", 5.1), ("slow", 10.1)]
    assert through == [(name, pytest.approx(at_s, abs=0.01)) for name, at_s in moments]


class CoarseClock(LoopClock):
    """Sleeps a little longer: in virtual time the last bit of a sum could be waited for forever."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds + 1e-6)


def test_what_one_model_gives_back_of_a_shared_ceiling_wakes_the_calls_of_another() -> None:
    """All slots of it wait, and the ceiling was charged for hours."""

    async def run() -> None:
        gates = Gates(CoarseClock(), Ceilings({"up": [Limit(("*",), output_tokens=600)]}))
        long, quick = gates.of("up/long", 8), gates.of("up/quick", 8)
        permit = long.start(b"{}", 64_000)
        caller = Caller(quick)
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b"):
                group.create_task(caller.first(name))
            await asyncio.sleep(2.0)
            assert quick.waiting == 2
            (wait,) = gates.waits("up/quick")
            assert wait.detail == "output_tokens_per_minute = 600 is reached"
            assert wait.until_s == pytest.approx(6_399.1)
            long.end(permit, Signal.TAKEN, used=(9, 5))
        assert caller.through == [(name, pytest.approx(2.0, abs=0.01)) for name in ("a", "b")]
        gates.close()

    run_virtually(run())


@pytest.mark.parametrize("latencies_s", [(0.3, 3.1), (30.0, 0.2), (1.05, 2.07, 7.3)])
def test_models_that_share_a_ceiling_have_turns(latencies_s: tuple[float, ...]) -> None:
    """Each has more to send than it may, and calls of another length."""
    taken = [0] * len(latencies_s)

    async def slot(gate: Gate, number: int) -> None:
        while True:
            if not gate.is_open:
                await gate.wait()
            permit = gate.start(b"{}")
            taken[number] += 1
            await asyncio.sleep(latencies_s[number])
            gate.end(permit, Signal.TAKEN)

    async def run() -> None:
        gates = Gates(CoarseClock(), Ceilings({"up": [Limit(("*",), requests=60)]}))
        tasks = [
            asyncio.ensure_future(slot(gates.of(f"up/{number}", 64), number))
            for number in range(len(taken))
            for _ in range(64)
        ]
        await asyncio.sleep(600.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gates.close()

    run_virtually(run())
    assert sum(taken) == pytest.approx(601, abs=1)
    assert max(taken) - min(taken) <= 1


def test_a_model_that_waits_for_something_else_lets_the_others_go_first() -> None:
    """It stands first in line for the ceiling when another worker gets its other slots."""

    async def run() -> None:
        gates = Gates(CoarseClock(), Ceilings({"up": [Limit(("*",), requests=60)]}))
        gate = gates.of("up/full", 8)
        full, other = Caller(gate), Caller(gates.of("up/other", 8))
        permit = gate.start(b"{}")
        async with asyncio.TaskGroup() as group:
            group.create_task(full.first("a"))
            await asyncio.sleep(0.25)
            group.create_task(other.first("b"))
            group.create_task(other.first("c"))
            gate.limiter.slots = 1
            await asyncio.sleep(5.0)
            gate.end(permit, Signal.TAKEN)
        moments = [("b", 1.0), ("c", 2.0)]
        assert other.through == [(name, pytest.approx(at_s, abs=0.01)) for name, at_s in moments]
        assert full.through == [("a", pytest.approx(5.25, abs=0.01))]
        gates.close()

    run_virtually(run())


def test_one_that_is_woken_and_makes_no_call_has_its_turn_until_the_gate_is_passed_on() -> None:
    async def run() -> None:
        gates = Gates(CoarseClock(), Ceilings({"up": [Limit(("*",), requests=60)]}))
        gate, other = gates.of("up/slow", 8), Caller(gates.of("up/other", 8))
        Caller(gate)._start("first")
        async with asyncio.TaskGroup() as group:
            woken = group.create_task(gate.wait())
            await asyncio.sleep(0.25)
            group.create_task(other.first("a"))
            await woken
            assert now_s() == pytest.approx(1.0, abs=0.01)
            assert gate.is_open
            assert not other.gate.is_open
            await asyncio.sleep(2.0)
            assert other.through == []
            gate.pass_on()
        assert other.through == [("a", pytest.approx(3.0, abs=0.01))]
        gates.close()

    run_virtually(run())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("calls_max", [3, 1_000])
def test_no_wake_up_is_lost_among_models_that_share_ceilings(seed: int, calls_max: int) -> None:
    """Some share two of them, each with others; calls are given up, refused, and not made."""
    rng = random.Random(seed)
    cap = Cap(calls_max)
    limit = [Limit(("a*",), requests=300), Limit(("*b",), requests=200, output_tokens=9_000)]
    ended: list[str] = []

    async def call(gates: Gates, name: str) -> None:
        gate = gates.of(name, 4)
        await asyncio.sleep(rng.uniform(0.0, 20.0))
        cap.fill()
        try:
            if not gate.is_open:
                await gate.wait()
            for tries in range(rng.randint(0, 3)):
                while tries and not gate.may_repeat:
                    await gate.wait_again(asyncio.Event())
                permit = gate.start(b"{}", rng.choice([1, 3_000]))
                signal = Signal.NOTHING
                try:
                    await asyncio.sleep(rng.uniform(0.0, 3.0))
                    signal = rng.choice(list(Signal))
                finally:
                    gate.end(permit, signal, used=(1, 1) if signal is Signal.TAKEN else None)
            ended.append(name)
        finally:
            cap.empty()
            for each in NAMES:
                gates.of(each, 4).pass_on()

    async def run() -> None:
        gates = Gates(CoarseClock(), Ceilings({"up": limit}), cap)
        cap.on_room = lambda: [gates.of(each, 4).pass_on() for each in NAMES]
        tasks = [asyncio.ensure_future(call(gates, rng.choice(NAMES))) for _ in range(120)]
        for task in rng.sample(tasks, 30):
            asyncio.get_running_loop().call_later(rng.uniform(0.0, 60.0), task.cancel)
        await asyncio.wait(tasks, timeout=limits.BREAKER_CAP_S * 400)
        assert all(task.done() for task in tasks), "a wake-up was lost"
        assert len(ended) >= 90
        assert (cap.slots, cap.calls) == (0, 0)
        assert {gates.of(each, 4).waiting for each in NAMES} == {0}
        gates.close()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "no timer is left"

    run_virtually(run())


def test_the_log_says_once_that_calls_wait_and_once_that_they_no_longer_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story(gate: Gate) -> None:
        caller = Caller(gate)
        for _ in range(3):
            gate.end(gate.start(b"{}"), Signal.UNREACHABLE)
            gate.tell("connection refused\n")
        await caller.first("a")
        await caller.first("b")

    with caplog.at_level(logging.INFO, logger="batchyard.dispatch.gate"):
        tell(story, per_minute=60_000)
    assert [record.getMessage() for record in caplog.records] == [
        r"waiting pool=up/model: connection refused\n",
        "recovered pool=up/model",
    ]


def test_requests_that_are_answered_as_bad_use_up_no_output_tokens(root: Path) -> None:
    async def story() -> None:
        world = CacheWorld(root, slots=8, latency=0.5)
        ceilings = Ceilings({"sim": [Limit(("*",), output_tokens=400_000)]})
        world.worker._gates._ceilings = ceilings
        refusal = b'{"type":"error","error":{"type":"invalid_request_error","message":"No."}}'
        world.model.instead = lambda call, number: Reply(400, refusal)
        await world.create([{**MESSAGE, "max_tokens": 64_000}] * 100)
        await world.clock.advance(60)
        assert len(world.model.calls) == 100, "else six a minute"
        await world.close()

    asyncio.run(story())


def test_a_ceiling_holds_when_many_calls_have_waited_for_news_together(root: Path) -> None:
    """The ledger does not answer for a while; then all who may send look at the gate again."""

    async def story() -> None:
        world = CacheWorld(root, slots=200, latency=10.0, workers=2)
        for worker in world._workers:
            worker._gates._ceilings = Ceilings({"sim": [Limit(("*",), requests=60)]})
        batch = await world.create([MESSAGE] * 1_000)
        await world.clock.advance(120)
        news, answers = world.ledger.news, asyncio.Event()

        async def late() -> News:
            await answers.wait()
            return await news()

        world.ledger.news = late  # type: ignore[method-assign]
        await world.clock.advance(60)
        answers.set()
        await world.clock.advance(120)
        times = [at_s for at_s, _ in world.model.calls]
        most = max(sum(began <= at_s < began + 60 for at_s in times) for began in times)
        assert 50 <= most <= 60 + 2 * 2, "beside the limit each worker may have one more"
        for worker in world._workers:
            worker.cancel(batch.id)
        await world.cancel(batch)
        await world.clock.advance(70)
        await world.close()

    asyncio.run(story())
