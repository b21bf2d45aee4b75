"""The machine's clock, whose wall time may be set under our feet."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.clock import SystemClock, offset_of, steady_us

SECOND = 1_000_000
HOUR = 3_600 * SECOND


class Machine:
    """A wall clock that can be set, and a monotonic one that cannot."""

    def __init__(self) -> None:
        self.wall_us = 1_790_000_000 * SECOND
        self.up_s = 1_000.0

    def clock(self, offset_us: int | None = None) -> SystemClock:
        return SystemClock(lambda: self.wall_us, lambda: self.up_s, offset_us=offset_us)

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


@pytest.mark.parametrize(("first_h", "then_h"), [(25, 1_025), (25, -25), (-72, 25)])
def test_a_jump_that_becomes_another_one_stands_from_then_on(
    first_h: int, then_h: int, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()
    clock = machine.clock()
    with caplog.at_level(logging.WARNING):
        machine.wall_us += first_h * HOUR
        clock.now_us()
        machine.pass_s(149)
        assert clock.now_us() == machine.wall_us - first_h * HOUR
        machine.wall_us += (then_h - first_h) * HOUR
        for _ in range(149):
            assert clock.now_us() == machine.wall_us - then_h * HOUR
            machine.pass_s(1)
        machine.pass_s(2)
        assert clock.now_us() == machine.wall_us
    assert [message.split(":")[1] for message in caplog.messages] == [
        " not followed yet",
        " not followed yet",
        " followed now",
    ]


def test_a_jump_that_is_corrected_a_little_while_it_stands_is_the_same_jump() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall_us += 25 * HOUR
    clock.now_us()
    for _ in range(14):
        machine.pass_s(10)
        machine.wall_us += 200 * SECOND
        assert clock.now_us() < machine.wall_us - 24 * HOUR
    machine.pass_s(11)
    assert clock.now_us() == machine.wall_us


def test_a_clock_that_begins_while_the_wall_clock_is_wrong_has_the_time_of_an_older_one() -> None:
    machine = Machine()
    old = machine.clock()
    machine.pass_s(60)
    machine.wall_us += 25 * HOUR
    young = machine.clock(offset_of(old))
    for _ in range(100):
        machine.pass_s(1)
        assert young.now_us() == old.now_us() == machine.wall_us - 25 * HOUR
    machine.wall_us -= 25 * HOUR - 7 * SECOND
    assert young.now_us() == old.now_us() == machine.wall_us, "small corrections reach it, too"
    machine.wall_us += 25 * HOUR
    young.now_us()
    machine.pass_s(151)
    assert young.now_us() == machine.wall_us, "and what stands"


def test_the_time_of_leases_is_never_set() -> None:
    machine = Machine()
    one, two = machine.clock(), machine.clock(offset_us=0)
    for correction in (900, -1_800, 25 * 3_600, -72 * 3_600):
        machine.pass_s(60)
        machine.wall_us += correction * SECOND
        one.now_us()
        assert steady_us(one) == steady_us(two) == machine.up_s * SECOND


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
