"""Answers that take longer than they used to, told from answers that differ."""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING

import pytest

from batchyard.dispatch.drift import Drift

if TYPE_CHECKING:
    from collections.abc import Callable


class Slots:
    """So many calls in flight all the time."""

    def __init__(self, slots: int, seed: int = 1) -> None:
        self.drift = Drift()
        self.now_s = 0.0
        self.seen = 0
        """Answers with which it was seen."""
        self._slots = slots
        self._rng = random.Random(seed)
        self._out: list[tuple[float, int]] = []
        self._number = 0

    def answer(self, calls: int, takes_s: Callable[[random.Random], float]) -> None:
        for _ in range(calls):
            while len(self._out) < self._slots:
                end_s = self.now_s + takes_s(self._rng)
                heapq.heappush(self._out, (end_s, self._number))
                self.drift.sent(self._number, self.now_s)
                self._number += 1
            self.now_s, number = heapq.heappop(self._out)
            self.drift.ended(number, self.now_s, is_taken=True)
            self.seen += self.drift.is_seen


def steady(seconds: float) -> Callable[[random.Random], float]:
    return lambda rng: seconds * rng.uniform(0.9, 1.1)


SPREADS: dict[str, Callable[[random.Random], float]] = {
    "steady": steady(1.0),
    "exponential": lambda rng: rng.expovariate(1.0),
    "lognormal": lambda rng: rng.lognormvariate(0.0, 1.5),
    "very wide": lambda rng: rng.lognormvariate(0.0, 3.0),
    "half short": lambda rng: rng.choice((0.01, 10.0)),
    "few long": lambda rng: 100.0 if rng.random() < 0.1 else 0.1,
    "few short": lambda rng: 0.1 if rng.random() < 0.25 else 10.0,
}


@pytest.mark.parametrize("slots", [4, 64, 300])
@pytest.mark.parametrize("spread", SPREADS)
def test_answers_that_differ_as_they_always_did_are_no_drift(spread: str, slots: int) -> None:
    called = Slots(slots)
    called.answer(6_000, SPREADS[spread])
    assert called.seen == 0


@pytest.mark.parametrize("slots", [4, 64, 300])
@pytest.mark.parametrize("spread", ["steady", "exponential"])
def test_answers_that_take_ten_times_as_long_are_a_drift_until_they_do_not(
    spread: str, slots: int
) -> None:
    called, takes_s = Slots(slots), SPREADS[spread]
    called.answer(500, takes_s)
    called.answer(slots + 200, lambda rng: 10.0 * takes_s(rng))
    assert called.drift.is_seen
    called.answer(slots + 200, takes_s)
    assert not called.drift.is_seen


def test_answers_of_one_length_are_a_drift_at_somewhat_more_than_twice_of_it() -> None:
    called = Slots(64)
    called.answer(500, steady(1.0))
    called.answer(500, steady(1.8))
    assert called.seen == 0
    called.answer(500, steady(2.5))
    assert called.drift.is_seen


def test_it_is_seen_after_a_few_answers_when_the_others_are_late_as_well() -> None:
    drift = Drift()
    for number in range(64):
        drift.sent(number, 0.0)
    for number in range(64):
        drift.ended(number, 0.1, is_taken=True)
    for number in range(64, 128):
        drift.sent(number, 1.0)
    for number in range(64, 80):
        assert not drift.is_seen
        drift.ended(number, 2.0, is_taken=True)
    assert drift.is_seen


def test_it_is_forgotten_when_answers_have_taken_longer_for_a_minute_and_many_calls() -> None:
    called = Slots(64)
    called.answer(500, steady(0.1))
    called.answer(2_000, steady(1.0))
    assert called.drift.is_seen, f"many calls, but only {called.now_s:.0f} s"
    called.answer(3_000, steady(1.0))
    assert not called.drift.is_seen


def test_it_is_measured_by_the_quickest_answers_that_there_were() -> None:
    called = Slots(64)
    called.answer(500, steady(10.0))
    called.answer(500, steady(1.0))
    assert called.seen == 0
    called.answer(500, steady(5.0))
    assert called.drift.is_seen


@pytest.mark.parametrize("refused", range(0, 65, 8))
def test_calls_that_are_refused_tell_nothing_and_hold_nothing_up(refused: int) -> None:
    drift, number = Drift(), 0
    for turn, takes_s in enumerate((0.1, 0.1, 1.0, 1.0, 1.0, 1.0)):
        begin_s = 100.0 * turn
        for each in range(number, number + 64):
            drift.sent(each, begin_s)
        for each in range(number, number + 64):
            is_taken = each >= number + refused
            drift.ended(each, begin_s + (takes_s if is_taken else 1e-3), is_taken=is_taken)
        number += 64
    assert drift.is_seen == (refused <= 32)
