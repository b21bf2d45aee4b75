"""Refusals that mean nothing, told from those of a limit."""

from __future__ import annotations

import random

from batchyard.dispatch.limiter import Limiter, Signal
from batchyard.dispatch.strays import Strays


def takes(strays: Strays, number: int) -> None:
    """Let a call be accepted."""
    strays.sent()
    strays.taken(number, 10.0)


def is_one(strays: Strays, number: int, now_s: float = 10.0) -> bool:
    """Let a call be refused; return whether that is a stray."""
    strays.sent()
    return strays.is_one(number, now_s)


def begun(*gaps: int) -> Strays:
    strays = Strays()
    found = [strays.unexplained(gap, float(second)) for second, gap in enumerate(gaps)]
    assert found == [False] * (len(gaps) - 1) + [True]
    return strays


def test_a_trial_begins_with_the_third_refusal_that_nothing_explains() -> None:
    assert begun(20, 30, 50).share == 1 / 30


def test_refusals_close_to_the_last_decrease_are_those_of_a_limit() -> None:
    strays = Strays()
    assert not any(strays.unexplained(7, float(second)) for second in range(20))


def falling(apart: list[int], rates: list[float], *, steps: int = 1_000) -> Strays:
    """Note decreases, of which each so many-th comes after a step upward."""
    strays = Strays()
    for number, rate in enumerate(rates, start=1):
        gap, is_step = apart[(number - 1) % len(apart)], number % steps == 0
        if strays.fell(gap, rate, float(number), is_step=is_step):
            break
    return strays


def test_refusals_as_frequent_at_a_fourth_of_the_rate_are_those_of_no_limit() -> None:
    rates = [100.0 * 0.85**number for number in range(30)]
    assert falling([2, 6], rates).share == 1.4 / 5


def test_refusals_that_go_on_without_steps_upward_are_those_of_no_limit() -> None:
    assert falling([2, 6, 7], [3.0] * 11).share == 0.0
    assert falling([2, 6, 7], [3.0] * 12).share == 1.4 / 6


def test_refusals_that_go_on_after_steps_upward_are_those_of_a_limit() -> None:
    assert falling([9], [3.0] * 60, steps=3).share == 0.0
    assert falling([9], [3.0] * 60, steps=4).share == 1.4 / 10


def test_a_limit_far_below_the_rate_refuses_most_calls_and_is_believed() -> None:
    rates = [100.0 * 0.85**number for number in range(60)]
    assert falling([0, 1, 0, 4], rates).share == 0.0


def test_a_limit_that_falls_now_and_then_is_believed() -> None:
    rates = [100.0 * 0.85**number for number in range(60)]
    assert falling([3, 2, 4, 40, 3, 5], rates).share == 0.0


def test_old_refusals_prove_nothing() -> None:
    strays = Strays()
    assert not any(strays.unexplained(100, 40.0 * turn) for turn in range(10))


def test_strays_as_frequent_as_before_are_borne_for_long() -> None:
    strays, rng = begun(30, 30, 30), random.Random(1)
    for number in range(20_000):
        if rng.random() < 1 / 30:
            assert is_one(strays, number)
        else:
            takes(strays, number)


def test_frequent_strays_stand_their_trial() -> None:
    """Nearly always: each that fails costs half a minute at a few calls a second."""
    stood = 0
    for seed in range(200):
        strays, rng = falling([2, 6, 7], [3.0] * 12), random.Random(seed)
        for number in range(1_000):
            if rng.random() >= 0.2:
                takes(strays, number)
            elif not is_one(strays, number):
                break
        stood += strays.share > 0.0
    assert stood >= 195


def test_a_trial_fails_when_a_third_of_the_calls_is_refused_and_the_next_comes_later() -> None:
    strays = begun(30, 30, 30)
    refused = 0
    for number in range(100):
        if number % 3:
            takes(strays, number)
        else:
            refused += 1
            if not is_one(strays, number):
                break
    assert refused <= 10
    assert strays.share == 0.0
    assert not any(strays.unexplained(30, 11.0 + turn) for turn in range(13))
    assert strays.unexplained(30, 26.0)


def test_each_trial_that_fails_makes_the_next_one_come_later() -> None:
    strays, now_s, waits = Strays(), 0.0, []
    for _ in range(5):
        began_s = now_s
        while not strays.unexplained(30, now_s):
            now_s += 1.0
        waits.append(now_s - began_s)
        while is_one(strays, 0, now_s):
            pass
    assert waits == [2.0, 15.0, 30.0, 60.0, 120.0]


def test_strays_that_no_longer_come_are_forgotten() -> None:
    strays = begun(10, 10, 10)
    for number in range(199):
        takes(strays, number)
    assert strays.share > 0.0
    for number in range(199, 201):
        takes(strays, number)
    assert strays.share == 0.0


def test_strays_that_were_thought_to_be_more_frequent_are_not_forgotten_by_chance() -> None:
    strays = falling([2], [3.0] * 12)
    assert strays.share == 1.0 / 3.0
    for number in range(300):
        if number % 10:
            takes(strays, number)
        else:
            assert is_one(strays, number)
    for number in range(300, 480):
        takes(strays, number)
    assert strays.share > 0.0, "of one in ten, 60 calls bring none at times"
    for number in range(480, 486):
        takes(strays, number)
    assert strays.share == 0.0


def stood() -> Strays:
    """Strays, one of ten calls, that have stood a trial of 300 calls."""
    strays = begun(10, 10, 10)
    for number in range(300):
        if number % 10:
            takes(strays, number)
        else:
            assert is_one(strays, number)
            assert strays.is_check_due(10.0) == (number >= 200)
    return strays


def test_strays_that_do_not_come_when_less_is_sent_are_those_of_a_limit() -> None:
    strays = stood()
    calls = strays.check(300, 10.0)
    assert calls == 163, "of which 16 would be strays, and three may be"
    for number in range(280, 300):
        takes(strays, number)  # it was sent before
    for number in range(300, 460):
        assert strays.is_checking
        assert not strays.is_check_due(1_000.0), "there is one"
        takes(strays, number)
    assert not strays.share
    assert not any(strays.unexplained(30, 11.0 + turn) for turn in range(55))


def test_strays_that_come_all_the_same_are_checked_ever_more_seldom() -> None:
    strays, now_s, waits = stood(), 10.0, []
    for _ in range(4):
        began_s = now_s
        while not strays.is_check_due(now_s):
            now_s += 1.0
        waits.append(now_s - began_s)
        strays.check(300, now_s)
        assert not strays.is_confirmed(299), "it was sent before"
        found = [strays.is_confirmed(number) for number in range(300, 304)]
        assert found == [False, False, False, True]
    assert waits == [0.0, 30.0, 60.0, 120.0]


def test_a_stray_after_the_calls_of_a_check_of_which_few_were_refused_is_of_a_limit() -> None:
    strays = stood()
    calls = strays.check(300, 10.0)
    for number in range(300, 303):
        assert is_one(strays, number)
        assert not strays.is_confirmed(number)
    assert is_one(strays, 299 + calls), "and four refusals end it the other way"
    assert not is_one(strays, 300 + calls)
    assert not strays.share


def test_strays_too_few_to_matter_are_not_checked() -> None:
    strays = begun(100, 100, 100)
    for number in range(1_000):
        takes(strays, number)
        if number % 100 == 99:
            assert is_one(strays, number)
            assert not strays.is_check_due(10.0)


def test_a_stray_holds_no_other_call_back_whatever_time_it_names() -> None:
    limiter = Limiter(64)
    limiter.strays = begun(30, 30, 30)
    limiter.end(limiter.start(0.0), 0.1, Signal.LIMITED, 30.0)
    assert limiter.wait_s(0.1) == 0.0
    assert not limiter.is_limited


def healthy(calls: int) -> Limiter:
    limiter = Limiter(64)
    for _ in range(calls):
        limiter.end(limiter.start(0.0), 0.1, Signal.TAKEN)
    return limiter


def refuse(limiter: Limiter, now_s: float) -> None:
    limiter.end(limiter.start(now_s), now_s, Signal.LIMITED, 30.0)


def test_single_refusals_that_name_a_time_hold_nobody_back_where_calls_are_accepted() -> None:
    limiter = healthy(20)
    for second in range(4):
        refuse(limiter, float(second))
        assert limiter.wait_s(float(second)) == 0.0
        assert not limiter.is_limited
        for _ in range(5):
            limiter.end(limiter.start(float(second)), second + 0.5, Signal.TAKEN)


def test_of_three_refusals_in_succession_the_last_is_obeyed_by_all() -> None:
    limiter = healthy(20)
    refuse(limiter, 1.0)
    refuse(limiter, 1.1)
    assert limiter.wait_s(1.1) == 0.0
    refuse(limiter, 1.2)
    assert limiter.wait_s(1.2) == 5.0, "a single call tries then"
    assert limiter.waits(1.2)[0].kind == "cooling_down"


def test_the_first_refusal_is_obeyed_where_next_to_nothing_was_accepted_yet() -> None:
    limiter = healthy(1)
    refuse(limiter, 1.0)
    assert limiter.wait_s(1.0) == 5.0


def test_a_burst_of_which_one_call_is_refused_and_later_ones_accepted_tells_of_no_limit() -> None:
    limiter = Limiter(256)
    permits = [limiter.start(0.0) for _ in range(64)]
    limiter.end(permits[20], 0.01, Signal.LIMITED, 30.0)
    assert limiter.wait_s(0.01) == 5.0
    assert limiter.window.wall == 20
    limiter.end(permits[10], 0.2, Signal.TAKEN)
    assert limiter.is_limited, "it was sent before the refused one"
    limiter.end(permits[40], 0.3, Signal.TAKEN)
    assert not limiter.is_limited
    assert limiter.wait_s(0.3) == 1.0, "as in slow start, with 61 in flight"


def test_a_burst_of_which_most_calls_are_refused_tells_of_a_limit_though_later_ones_pass() -> None:
    limiter = Limiter(256)
    permits = [limiter.start(0.0) for _ in range(64)]
    for permit in permits[20:60]:
        limiter.end(permit, 0.01, Signal.LIMITED, 30.0)
    limiter.end(permits[61], 0.3, Signal.TAKEN)
    assert limiter.wait_s(0.3) > 0.0 or limiter.pace.rate is not None
    assert limiter.is_limited


def test_a_concurrency_at_which_a_later_call_is_accepted_is_no_wall() -> None:
    limiter = Limiter(256)
    permits = [limiter.start(0.0) for _ in range(64)]
    limiter.end(permits[20], 0.01, Signal.LIMITED)
    assert limiter.window.wall == 20
    limiter.end(permits[50], 0.3, Signal.TAKEN)
    assert limiter.window.wall == 50
    assert limiter.window.size == 50.0
