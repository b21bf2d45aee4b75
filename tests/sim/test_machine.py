"""Hypothesis looks for a story that breaks a promise, and shortens what it finds.

Real ledger, segments, workers and keeper in one thread, under a clock that is turned. After every
step all that must be true is looked at; at the end everything ends, and `batchyard check` is run.

`BATCHYARD_SIM_EXAMPLES=2000` tries more stories, `BATCHYARD_SIM_STEPS=60` longer ones.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from batchyard import limits
from batchyard.clock import steady_us
from sim.world import Chances, World

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sim.world import Process, Sent

T = TypeVar("T")

EXAMPLES = int(os.environ.get("BATCHYARD_SIM_EXAMPLES", "40"))
STEPS = int(os.environ.get("BATCHYARD_SIM_STEPS", "20"))
PROCESSES_MAX = 3
# No time; a flush; a sync; renewals; a lease and more; the grace of what is in flight and more.
TURNS_S = (0.0, 0.001, 0.02, 0.6, 1.1, 3.0, 35.0, 70.0)
LAST_S = 50_000.0
FIGURES: Counter[str] = Counter()
CHANCES = {
    "answers": Chances(slowest_s=0.0),
    "is slow": Chances(slowest_s=20.0),
    "fails": Chances(error_500=0.4, busy_429=0.3, garbage=0.2, broken=0.3, slowest_s=1.0),
    "refuses": Chances(refused_400=0.6, denied_401=0.2, slowest_s=1.0),
    "is stuck": Chances(stuck=0.7, slowest_s=1.0),
}
numbers = st.integers(0, 99)


class Machine(RuleBasedStateMachine):
    """A world in which anything may happen at any time."""

    @initialize(
        seed=st.integers(0, 1_000),
        slots=st.sampled_from([1, 3, 16]),
        upstream=st.sampled_from(sorted(CHANCES)),
    )
    def begin(self, seed: int, slots: int, upstream: str) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="batchyard-sim-")
        self._runner = asyncio.Runner()

        async def make() -> World:
            root = Path(self._place.name) / "data"
            return World(random.Random(seed), root, slots, Chances(), exact_calls=False)

        self.world = self._do(make())
        self.upstream(upstream)
        self._do(self._start())

    def _do(self, story: Coroutine[object, object, T]) -> T:
        return self._runner.run(story)

    async def _start(self) -> None:
        self.world.start()

    def _any(self, number: int) -> Sent:
        sent = list(self.world.sent.values())
        return sent[number % len(sent)]

    def _process(self, number: int) -> Process:
        return self.world.processes[number % len(self.world.processes)]

    def _has_batches(self) -> bool:
        return bool(self.world.sent)

    # What may happen -----------------------------------------------------------------------------

    @rule(
        requests=st.sampled_from([1, 2, 5, 12]),
        shard=st.sampled_from([1, 2, 5, 500]),
        window_s=st.sampled_from([1, 20, 300, 86_400]),
    )
    def create(self, requests: int, shard: int, window_s: int) -> None:
        self._do(self.world.create(requests=requests, shard=shard, window_s=window_s))

    @precondition(_has_batches)
    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        self._do(self.world.cancel(self._any(number)))

    @precondition(_has_batches)
    @rule(number=numbers)
    def delete(self, number: int) -> None:
        """Only what has ended can be deleted."""
        sent = self._any(number)

        async def delete() -> None:
            batch = await self.world.batch_of(sent)
            if batch.ended_us is not None:
                await self.world.delete(sent)
            else:
                now = self.world.clock.now_us()
                assert not await self.world.ledger.delete(batch.workspace, batch.id, now)

        self._do(delete())

    @rule(seconds=st.sampled_from(TURNS_S))
    def turn_the_clock(self, seconds: float) -> None:
        self._do(self.world.clock.advance(seconds))

    @rule(upstream=st.sampled_from(sorted(CHANCES)))
    def upstream(self, upstream: str) -> None:
        for scripted in self.world.upstreams.values():
            scripted.chances = CHANCES[upstream]

    @precondition(lambda self: len(self.world.processes) < PROCESSES_MAX)
    @rule()
    def start(self) -> None:
        self._do(self._start())

    @rule(number=numbers)
    def crash(self, number: int) -> None:
        """One process ends in the middle of whatever it does; another comes."""

        async def crash() -> None:
            await self.world.kill(self._process(number))
            self.world.start()

        self._do(crash())

    @rule(power_cut=st.booleans())
    def crash_all(self, power_cut: bool) -> None:
        async def crash() -> None:
            await self.world.restart(power_cut=power_cut)
            self.world.start()

        self._do(crash())

    @rule(number=numbers)
    def leave(self, number: int) -> None:
        process = self._process(number)
        process.gate.set()

        async def leave() -> None:
            await self.world.leave(process)
            if not self.world.processes:
                self.world.start()

        self._do(leave())

    @rule(number=numbers)
    def freeze(self, number: int) -> None:
        self._process(number).gate.clear()

    @rule(number=numbers)
    def thaw(self, number: int) -> None:
        self._process(number).gate.set()

    @rule()
    def lose_leases(self) -> None:
        """As if the machine had stood still for longer than they last."""
        world = self.world

        async def lose() -> None:
            await world.ledger.take_back(steady_us(world.clock) + limits.DAY_US, but="")

        self._do(lose())

    # What must be true ---------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        world = self.world
        world.check_alive()
        # A frozen worker learns late what it has lost; its calls until then are not judged.
        if not all(process.gate.is_set() for process in world.processes):
            world.frozen_until_us = world.clock.now_us() + 70 * limits.SECOND_US

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self._do(self._let_end())
        finally:
            self._runner.close()
            self._place.cleanup()

    async def _let_end(self) -> None:
        world = self.world
        for process in world.processes:
            process.gate.set()
        self.upstream("answers")
        step_s = 0.5
        while await world.open_batches():
            assert world.clock.monotonic_s() < LAST_S, "a batch does not end"
            await world.clock.advance(step_s)
            world.check_alive()
            step_s = min(step_s * 1.3, 30.0)
        for sent in world.sent.values():
            await world.check_ended(sent)
        await world.close()
        FIGURES.update(stories=1, calls=world.calls, looks=world.watch.looks)


@pytest.mark.timeout(900 + 2 * EXAMPLES)
def test_no_story_that_hypothesis_finds_breaks_a_promise() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize="BATCHYARD_SIM_EXAMPLES" not in os.environ,
            database=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
    print(f"\nmachine figures: {dict(FIGURES)}, 0 violations")
