"""The machine's clock, whose wall time may be set under our feet."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.clock import SystemClock

SECOND = 1_000_000
HOUR = 3_600 * SECOND


class Machine:
    """A wall clock that can be set, and a monotonic one that cannot."""

    def __init__(self) -> None:
        self.wall_us = 1_790_000_000 * SECOND
        self.up_s = 1_000.0

    def clock(self) -> SystemClock:
        return SystemClock(lambda: self.wall_us, lambda: self.up_s)

    def pass_s(self, seconds: float) -> None:
        self.up_s += seconds
        self.wall_us += round(seconds * SECOND)


def test_small_corrections_are_followed_at_once() -> None:
    machine = Machine()
    clock = machine.clock()
    for correction in (0.5, -0.5, 900, -1_800):
        machine.pass_s(60)
        machine.wall_us += round(correction * SECOND)
        assert clock.now_us() == machine.wall_us


@pytest.mark.parametrize("hours", [25, -72, 24 * 365, -24 * 365 * 10])
def test_a_jump_that_is_taken_back_is_never_seen(
    hours: int, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()
    clock = machine.clock()
    with caplog.at_level(logging.WARNING):
        machine.wall_us += hours * HOUR
        for _ in range(60):
            machine.pass_s(1)
            assert clock.now_us() == machine.wall_us - hours * HOUR
        machine.wall_us -= hours * HOUR
        assert clock.now_us() == machine.wall_us
    (warning,) = caplog.messages
    assert "jumped" in warning


@pytest.mark.parametrize("hours", [25, -72])
def test_a_jump_that_stands_is_followed_after_some_minutes(
    hours: int, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()
    clock = machine.clock()
    with caplog.at_level(logging.WARNING):
        machine.wall_us += hours * HOUR
        clock.now_us()
        machine.pass_s(149)
        assert clock.now_us() == machine.wall_us - hours * HOUR
        machine.pass_s(2)
        assert clock.now_us() == machine.wall_us
        machine.pass_s(1)
        assert clock.now_us() == machine.wall_us
    assert len(caplog.messages) == 2


def test_a_machine_that_slept_is_believed_at_once() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.pass_s(30 * 3_600)  # the sleep counts
    assert clock.now_us() == machine.wall_us


def test_the_clock_of_this_machine_runs() -> None:
    clock = SystemClock()
    before, wall = clock.monotonic_s(), clock.now_us()
    assert clock.monotonic_s() >= before
    assert clock.now_us() >= wall


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(10 - HOUR, HOUR - 10)), max_size=30))
def test_without_jumps_the_time_is_the_machines(steps: list[tuple[float, int]]) -> None:
    machine = Machine()
    clock = machine.clock()
    for passed, correction in steps:
        machine.pass_s(passed)
        machine.wall_us += correction
        assert abs(clock.now_us() - machine.wall_us) <= 1
