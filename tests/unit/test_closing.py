"""The pauses of an upstream that counts calls by fixed times."""

from __future__ import annotations

import pytest

from batchyard.dispatch.closing import Closing


def closed(calls: int = 50, refused: int = 3, rate: float | None = None) -> Closing:
    """Return one after so many calls within half a second, and some refused after them."""
    closing = Closing()
    closing.begin(0, 0.0)
    for number in range(calls, calls + refused):
        closing.refused(number, 0.5, rate)
    return closing


@pytest.mark.parametrize(("refused", "is_closed"), [(2, False), (3, True)])
def test_several_refusals_in_a_row_mean_that_nothing_is_accepted(
    refused: int, is_closed: bool
) -> None:
    assert closed(refused=refused).is_closed == is_closed


def test_a_row_ends_with_a_call_that_was_not_refused() -> None:
    closing = closed(refused=2)
    closing.refused(53, 0.6, 9.0)
    assert not closing.is_closed


def test_a_refusal_that_comes_late_is_one_of_the_row() -> None:
    closing = closed(refused=2)
    closing.refused(49, 0.5, 9.0)
    assert not closing.is_closed
    closing.refused(52, 0.6, 9.0)
    assert closing.is_closed


def test_also_a_pause_at_the_very_beginning_is_looked_at_soon() -> None:
    closing = closed(calls=0)
    assert closing.is_closed
    assert closing.pause_s(0.7) == pytest.approx(0.1)
    closing.sent(3, 0.7, 0.02)
    assert closing.taken(3) == 0.0, "nothing was accepted until then"


def test_what_was_accepted_until_it_opens_again_is_the_rate() -> None:
    closing = closed()
    assert closing.sent(53, 1.0, 0.02) is None
    assert closing.taken(53) == pytest.approx(50.0)
    assert not closing.is_closed


def test_a_call_that_is_not_refused_for_a_while_was_accepted() -> None:
    """An answer may take minutes, and a refusal does not."""
    closing = closed()
    assert closing.sent(53, 1.0, 0.02) is None
    assert closing.sent(54, 1.05, 0.02) is None
    assert closing.sent(55, 1.1, 0.02) == pytest.approx(50.0)


def test_a_call_that_is_refused_says_that_it_is_closed_still() -> None:
    closing = closed()
    closing.sent(53, 0.7, 0.02)
    closing.refused(53, 0.7, 9.0)
    assert closing.sent(54, 1.0, 0.02) is None
    assert closing.taken(54) == pytest.approx(50.0)


def test_a_call_that_is_refused_for_its_own_sake_was_not_accepted_either() -> None:
    closing = closed(refused=2)
    closing.refused_alone(52)
    assert not closing.is_closed, "one more that tells is needed"
    closing.refused(53, 0.6, 9.0)
    assert closing.is_closed
    closing.sent(54, 0.7, 0.02)
    closing.refused_alone(54)
    assert closing.sent(55, 0.9, 0.02) is None
    assert closing.sent(56, 1.0, 0.02) is None
    assert closing.taken(55) == pytest.approx(50.0 / 0.9)


def test_a_call_from_before_the_pause_says_nothing() -> None:
    closing = closed()
    closing.sent(53, 1.0, 0.02)
    assert closing.taken(49) is None
    assert closing.is_closed


def test_from_one_pause_to_the_next_it_is_measured_anew() -> None:
    closing = closed()
    closing.sent(53, 1.0, 0.02)
    closing.taken(53)
    for number in (73, 74, 75):
        closing.refused(number, 1.5, 40.0)
    closing.sent(76, 2.0, 0.02)
    assert closing.taken(76) == pytest.approx(20.0)


def test_calls_do_not_go_on_faster_than_before_they_were_refused() -> None:
    closing = closed(rate=30.0)
    closing.sent(53, 1.0, 0.02)
    assert closing.taken(53) == pytest.approx(30.0)


def test_a_bucket_that_fills_is_no_pause() -> None:
    closing = closed()
    closing.sent(53, 0.55, 0.02)
    assert closing.taken(53) is None
    assert not closing.is_closed


@pytest.mark.parametrize(("now_s", "pause_s"), [(0.5, 0.1), (0.9, 0.2), (2.5, 1.0), (99.0, 5.0)])
def test_one_looks_the_more_rarely_the_longer_it_lasts(now_s: float, pause_s: float) -> None:
    assert closed().pause_s(now_s) == pytest.approx(pause_s)


def test_time_in_which_nobody_had_calls_to_make_does_not_count() -> None:
    closing = closed()
    closing.idle(0.5)
    closing.sent(53, 1.5, 0.02)
    assert closing.taken(53) == pytest.approx(50.0)
