"""What refusals measure of a bucket that refills."""

from __future__ import annotations

import pytest

from batchyard.dispatch.refill import Refill


def test_what_was_accepted_between_two_refusals_came_in_meanwhile() -> None:
    refill = Refill()
    refill.refused(10, 1.0)
    between = refill.refused(61, 2.0)
    assert (between.taken, between.seconds, between.is_exact) == (50, 1.0, True)


def test_after_a_pause_it_may_have_been_saved_up_unless_that_is_long_ago() -> None:
    refill = Refill()
    refill.refused(10, 1.0)
    refill.resume(11, 3.0)
    assert not refill.refused(61, 4.0).is_exact
    refill.resume(62, 6.0)
    between = refill.refused(562, 16.0)
    assert (between.taken, between.seconds, between.is_exact) == (500, 10.0, True)


def test_a_run_of_refusals_bounds_what_is_allowed_ever_lower() -> None:
    refill = Refill()
    assert refill.most == float("inf")
    bounds = []
    for number in range(5):
        refill.refused(number, number * 0.5)
        bounds.append(refill.most)
    assert bounds == pytest.approx([float("inf"), 4.0, 2.0, 4 / 3, 1.0])


def test_a_refusal_that_is_answered_late_was_no_accepted_call() -> None:
    refill = Refill()
    refill.refused(0, 0.0)
    refill.refused(4, 0.5)
    before = refill.most
    assert not refill.refused(2, 0.25).is_exact
    assert refill.most < before


def test_calls_of_the_same_moment_measure_nothing() -> None:
    refill = Refill()
    refill.refused(0, 1.0)
    assert not refill.refused(40, 1.0).is_exact


def test_the_first_refusal_measures_nothing() -> None:
    assert not Refill().refused(40, 1.0).is_exact


def test_refusals_close_to_one_another_measure_the_rate_together() -> None:
    refill = Refill()
    refill.refused(0, 0.0)
    refill.refused(11, 0.5)
    assert refill.over_several() is None, "of ten calls"
    refill.refused(22, 1.0)
    assert refill.over_several() == pytest.approx(20.0)
    refill.refused(20, 0.9)
    assert refill.over_several() == pytest.approx(19.0), "that one was answered late"
    refill.refused(100, 5.0)
    assert refill.over_several() is None, "the bucket may have been full meanwhile"


def test_what_was_measured_long_ago_or_before_a_pause_does_not_count() -> None:
    refill = Refill()
    for number in range(4):
        refill.refused(10 * number, 25.0 * number)
    assert refill.over_several() is None
    for number in range(4):
        refill.refused(100 + 10 * number, 100.0 + number)
    assert refill.over_several() == pytest.approx(9.0)
    refill.resume(200, 105.0)
    refill.refused(201, 105.1)
    assert refill.over_several() is None
