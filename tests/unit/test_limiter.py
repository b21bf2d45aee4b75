"""What a limiter learns from answers, and the ceilings that it never exceeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits, wire
from batchyard.dispatch import hints
from batchyard.dispatch.ceilings import Bucket, Ceilings, Limit
from batchyard.dispatch.limiter import Limiter, Signal
from batchyard.dispatch.pace import Pace

if TYPE_CHECKING:
    from batchyard.dispatch.window import Permit

    Used = tuple[int, int]


def fill(limiter: Limiter, now_s: float) -> list[Permit]:
    """Start as many calls as may start now."""
    permits = []
    while limiter.wait_s(now_s) <= 0.0:
        permits.append(limiter.start(now_s))
    return permits


def begin(limiter: Limiter) -> list[Permit]:
    """Start calls as in its first moment, when none is answered."""
    return [permit for tenth in range(3) for permit in fill(limiter, tenth / 10.0)]


def end(limiter: Limiter, permits: list[Permit], now_s: float, signal: Signal) -> None:
    for permit in permits:
        limiter.end(permit, now_s, signal)


def test_a_healthy_upstream_has_all_its_slots_within_some_round_trips() -> None:
    limiter = Limiter(2_000)
    now_s, flown = 0.0, []
    for _ in range(10):
        permits = fill(limiter, now_s)
        flown.append(len(permits))
        now_s += 0.2
        end(limiter, permits, now_s, Signal.TAKEN)
    assert flown[0] == limits.WINDOW_FIRST
    assert flown[-1] == 2_000


def test_the_window_doubles_each_second_while_answers_take_longer() -> None:
    limiter = Limiter(1_000)
    assert len(begin(limiter)) == limits.WINDOW_START
    flown = [len(fill(limiter, second + 0.2)) for second in range(5)]
    assert flown == [0, 64, 128, 256, 488]


@pytest.mark.parametrize("signal", [Signal.LIMITED, Signal.OVERLOADED])
def test_a_first_call_that_is_refused_ends_the_quick_beginning(signal: Signal) -> None:
    limiter = Limiter(1_000)
    permits = fill(limiter, 0.0)
    end(limiter, permits[8:], 0.05, signal)
    while limiter.wait_s(0.3) <= 0.0:
        limiter.start(0.3)
    assert limiter.in_flight <= len(permits)


@pytest.mark.parametrize("signal", [Signal.OVERLOADED, Signal.TIMEOUT])
def test_a_cohort_decreases_the_window_once(signal: Signal) -> None:
    limiter = Limiter(10)
    end(limiter, fill(limiter, 0.0), 1.0, signal)
    assert limiter.window.size == pytest.approx(7.0)


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("refused", [1, 2, 12, 24])
def test_a_cohort_that_meets_a_limit_decreases_to_what_it_accepted(refused: int, step: int) -> None:
    """With 429. In another order the rate only looks higher, until calls at it are refused."""
    limiter = Limiter(64)
    permits = begin(limiter)
    accepted = len(permits) - refused
    end(limiter, permits[accepted:][::step], 1.0, Signal.LIMITED)
    end(limiter, permits[:accepted], 1.0, Signal.TAKEN)
    assert limiter.window.size == accepted
    assert limiter.pace.rate == pytest.approx(accepted if step == 1 else len(permits) - 1)


def test_a_retry_after_holds_all_calls_unless_a_later_one_is_accepted() -> None:
    limiter = Limiter(4)
    refused, later = limiter.start(0.0), limiter.start(0.1)
    limiter.end(refused, 0.2, Signal.LIMITED, 3.0)
    assert limiter.wait_s(0.2) == pytest.approx(3.0)
    assert limiter.waits(0.2)[0].kind == "cooling_down"
    limiter.end(later, 0.3, Signal.TAKEN)
    assert limiter.wait_s(1.0) < 1.0


def test_single_calls_probe_ever_more_rarely_whether_a_long_retry_after_holds_for_all() -> None:
    limiter = Limiter(64)
    limiter.end(limiter.start(0.0), 0.0, Signal.LIMITED, 900.0)
    now_s, probes = 0.0, []
    while (now_s := now_s + limiter.wait_s(now_s)) < 900.0:
        (permit,) = fill(limiter, now_s)
        probes.append(now_s)
        limiter.end(permit, now_s, Signal.LIMITED, 900.0 - now_s)
    assert probes[:4] == [5.0, 15.0, 35.0, 75.0]
    assert len(probes) < 20
    assert limiter.wait_s(900.0) == 0.0, "then it is over"


def test_an_accepted_probe_ends_a_long_retry_after_and_the_next_probe_comes_sooner() -> None:
    limiter = Limiter(64)
    waits = []
    for begin_s in (0.0, 100.0, 200.0):
        limiter.end(limiter.start(begin_s), begin_s, Signal.LIMITED, 900.0)
        waits.append(limiter.wait_s(begin_s))
        (probe,) = fill(limiter, begin_s + waits[-1])
        limiter.end(probe, begin_s + 6.0, Signal.TAKEN)
        assert "cooling_down" not in [wait.kind for wait in limiter.waits(begin_s + 6.0)]
    assert waits == [5.0, 2.5, 1.25]


def test_a_storm_opens_the_breaker_and_single_calls_probe() -> None:
    limiter = Limiter(64)
    end(limiter, fill(limiter, 0.0), 1.0, Signal.FAILED)
    assert limiter.waits(1.0)[0].kind == "breaker_open"
    assert limiter.wait_s(1.0) == pytest.approx(limits.BREAKER_BASE_S)
    probes = fill(limiter, 2.0)
    assert len(probes) == 1
    end(limiter, probes, 3.0, Signal.UNREACHABLE)
    assert limiter.wait_s(3.0) == pytest.approx(2 * limits.BREAKER_BASE_S)
    probes = fill(limiter, 5.0)
    assert len(probes) == 1
    end(limiter, probes, 5.1, Signal.TAKEN)
    assert not limiter.is_limited
    begun = fill(limiter, 5.1)
    assert len(begun) == 1
    end(limiter, begun, 5.2, Signal.TAKEN)
    assert len(fill(limiter, 5.2)) == 2


def test_the_window_does_not_grow_while_answers_take_ever_longer() -> None:
    limiter = Limiter(1_000)
    end(limiter, begin(limiter), 0.2, Signal.TAKEN)
    slow = fill(limiter, 0.2)
    for permit in slow:
        limiter.end(permit, 10.0, Signal.TAKEN)
    size = limiter.window.size
    assert size < 1_000
    permits = fill(limiter, 10.0)
    end(limiter, permits, 19.9, Signal.TAKEN)
    assert limiter.window.size == size


def slow_down(limiter: Limiter) -> None:
    """Answer a round of calls at once, and the next after 20 s."""
    end(limiter, begin(limiter), 0.2, Signal.TAKEN)
    end(limiter, fill(limiter, 0.2), 20.1, Signal.TAKEN)
    assert limiter.window.drift.is_seen


def test_answers_that_became_longer_do_not_hold_back_calls_after_an_outage() -> None:
    limiter = Limiter(64)
    slow_down(limiter)
    end(limiter, fill(limiter, 20.1), 21.0, Signal.UNREACHABLE)
    end(limiter, fill(limiter, 22.0), 42.0, Signal.TAKEN)
    out = 0
    for second in range(42, 50):
        out += len(fill(limiter, float(second)))
        why = [wait.detail for wait in limiter.waits(float(second))]
        assert out == 64 or why == [f"starting again after an outage: {out} calls at once"]
    assert out == 64, "none has been answered since"


def test_answers_that_became_longer_hold_a_window_that_was_cut_for_a_while_only() -> None:
    """Calls take 20 s each: one at a time, 512 of them would take three hours."""
    limiter = Limiter(64)
    slow_down(limiter)
    now_s = 20.1
    while limiter.window.size > 2.0:
        failed, *others = fill(limiter, now_s)
        limiter.end(failed, now_s, Signal.OVERLOADED)
        end(limiter, others, now_s, Signal.NOTHING)
    out: list[tuple[float, Permit]] = []
    while limiter.in_flight < 32:
        out += [(now_s + 20.0, permit) for permit in fill(limiter, now_s)]
        now_s = min(now_s + limiter.wait_s(now_s), out[0][0])
        while out and out[0][0] <= now_s:
            limiter.end(out.pop(0)[1], now_s, Signal.TAKEN)
        assert now_s < 1_800.0, limiter.window.size


@pytest.mark.parametrize(("signal", "after_s"), [(Signal.OVERLOADED, 0.1), (Signal.TIMEOUT, 600.0)])
@pytest.mark.parametrize(("long", "failed"), [(1, 2), (40, 1)])
def test_calls_that_take_hours_do_not_hold_back_others_after_a_few_that_failed(
    signal: Signal, after_s: float, long: int, failed: int
) -> None:
    """Those that are out fill what is left of the window."""
    limiter = Limiter(64)
    for _ in range(long):
        limiter.start(0.0)
    now_s = 0.0
    for _ in range(failed):
        permit = limiter.start(now_s)
        now_s += after_s
        limiter.end(permit, now_s, signal)
    begin_s = now_s
    now_s += limiter.wait_s(now_s)
    assert now_s <= begin_s + max(10.0, after_s)
    assert fill(limiter, now_s)
    while limiter.in_flight < 64:  # these take hours as well
        now_s += limiter.wait_s(now_s)
        fill(limiter, now_s)
    assert now_s < begin_s + 64.0 * max(10.0, after_s)


def test_one_call_after_the_other_tries_whether_an_upstream_takes_more_than_it_has() -> None:
    """It refuses with 529 what is more than 40 calls, each of which takes hours."""
    limiter, now_s, refused = Limiter(64), 0.1, 0
    end(limiter, fill(limiter, 0.0)[40:50], now_s, Signal.OVERLOADED)
    limiter.in_flight -= 14  # they were refused as well
    while now_s < 3_600.0:
        if limiter.wait_s(now_s) <= 0.0:
            permits = fill(limiter, now_s)
            end(limiter, permits, now_s + 0.1, Signal.OVERLOADED)
            refused += len(permits)
        now_s += max(0.1, limiter.wait_s(now_s))
    assert 60 < refused < 400


def test_calls_in_flight_that_were_not_refused_are_no_more_than_an_upstream_takes() -> None:
    """One of the first is refused for no reason, and the others take hours."""
    limiter, now_s = Limiter(1_000), 0.2
    permits = begin(limiter)
    limiter.end(permits[30], now_s, Signal.LIMITED)
    for _ in range(100):
        assert limiter.wait_s(now_s) < 5.0
        now_s += limiter.wait_s(now_s)
        end(limiter, fill(limiter, now_s), now_s + 0.1, Signal.TAKEN)
        now_s += 0.1
    assert limiter.in_flight == 63


@pytest.mark.parametrize("more", [0, 1])
def test_a_first_burst_that_was_refused_costs_seconds_also_if_the_next_call_is_refused(
    more: int,
) -> None:
    """A bucket that is empty at the start may refuse the first calls that are paced, too."""
    pace = Pace()
    for number in range(1, 65):
        pace.sent(number, 0.0)
    for number in range(1, 65):
        pace.refused(number, 65, 0.0, 0.01, is_rate=number == 1)
    number, now_s = 65, 0.01
    while pace.rate is not None and pace.rate < 50.0:
        now_s += pace.wait_s(now_s)
        pace.sent(number, now_s)
        if number < 65 + more:
            pace.refused(number, number + 1, now_s, now_s, is_rate=True)
        number += 1
    assert now_s < 12.0


def test_a_call_from_before_a_rate_was_taken_over_measures_nothing_of_it() -> None:
    limiter = Limiter(64)
    permits = begin(limiter)
    limiter.pace.take_over(50.0, 0.2)
    limiter.end(permits[40], 0.3, Signal.LIMITED)
    assert limiter.pace.rate == pytest.approx(50.0 * 0.85)


def test_a_refusal_that_took_minutes_does_not_put_off_the_next_steps_for_as_long() -> None:
    pace = Pace()
    pace.take_over(10.0, 0.0)
    pace.refusal_s = 300.0
    number, now_s = 0, 0.0
    while pace.rate is not None and pace.rate < 40.0:
        now_s += max(0.001, pace.wait_s(now_s))
        pace.sent(number, now_s)
        number += 1
        assert now_s < 60.0


@given(
    per_minute=st.integers(1, 100_000),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60),
)
def test_requests_never_exceed_a_ceiling_in_any_minute(
    per_minute: int, steps: list[tuple[float, int]]
) -> None:
    """By more than the bucket holds: a second of it, at least one."""
    ceilings = Ceilings({"up": [Limit(("*",), requests=per_minute)]})
    pools = [Limiter(10**6, ceilings.of_pool("up", model)) for model in ("a", "b")]
    now_s, sent = 0.0, []
    for pause_s, calls in steps:
        now_s += pause_s
        for call in range(calls):
            limiter = pools[call % 2]
            if limiter.wait_s(now_s) <= 0.0:
                limiter.end(limiter.start(now_s), now_s, Signal.TAKEN)
                sent.append(now_s)
    for begin_s in sent:
        inside = sum(begin_s <= at_s <= begin_s + 60.0 for at_s in sent)
        assert inside <= per_minute + max(1.0, per_minute / 60.0) + 1e-6


@given(
    per_minute=st.integers(60, 10**7),
    calls=st.lists(st.tuples(st.floats(0, 20), st.integers(1, 200_000)), max_size=60),
)
def test_tokens_never_exceed_a_ceiling_by_more_than_one_request(
    per_minute: int, calls: list[tuple[float, int]]
) -> None:
    bucket = Bucket("tokens", per_minute)
    now_s, charged = 0.0, []
    for pause_s, amount in calls:
        now_s += pause_s
        if bucket.wait_s(now_s) <= 0.0:
            bucket.charge(now_s, amount)
            charged.append((now_s, amount))
    largest = max((amount for _, amount in charged), default=0)
    for begin_s, _ in charged:
        inside = sum(amount for at_s, amount in charged if begin_s <= at_s <= begin_s + 60.0)
        assert inside <= per_minute + max(1.0, per_minute / 60.0) + largest + 1e-3


# What the upstream may have taken nothing of, so that its tokens are given back.
UNUSED = {Signal.LIMITED, Signal.OVERLOADED, Signal.UNREACHABLE, Signal.BARRED, Signal.UNSENT}


class Watched:
    """Two pools that share a ceiling, what they were charged, and the calls that are out."""

    def __init__(self, slots: int, per_minute: tuple[int, int, int]) -> None:
        self.per_minute = per_minute
        of_pool = Ceilings({"up": [Limit(("*",), *per_minute)]}).of_pool
        self.pools = [Limiter(slots, of_pool("up", model)) for model in ("a", "b")]
        self.out: list[tuple[Limiter, Permit]] = []
        self.charged: list[tuple[float, float, float, float]] = []
        """When, and requests, input and output tokens; what was given back is below zero."""

    def start(self, limiter: Limiter, now_s: float, size: int, output_max: int) -> None:
        """Start a call, before which no time had all of the ceiling and a second of it."""
        for kind, per_minute in enumerate(self.per_minute):
            second, had = per_minute / 60.0, 0.0
            room = max(1.0, second) - 1.0 + 1e-6 * per_minute
            for at_s, *amounts in reversed(self.charged):
                had += amounts[kind]
                what = ("requests", "input tokens", "output tokens")[kind]
                assert had <= (now_s - at_s) * second + room, what
        permit = limiter.start(now_s, size, output_max)
        assert limiter.in_flight <= limiter.slots
        self.out.append((limiter, permit))
        self.charged.append((now_s, 1.0, *permit.tokens))

    def end(
        self, number: int, now_s: float, signal: Signal, after_s: float | None, used: Used | None
    ) -> None:
        limiter, permit = self.out.pop(number % len(self.out))
        limiter.end(permit, now_s, signal, after_s, used)
        is_unsent = used is None and signal is Signal.UNSENT
        tokens = used or ((0, 0) if signal in UNUSED else permit.tokens)
        more = (tokens[0] - permit.tokens[0], tokens[1] - permit.tokens[1])
        self.charged.append((now_s, -1.0 if is_unsent else 0.0, *more))
        assert [each.in_flight for each in self.pools] == [
            sum(limiter is each for limiter, _ in self.out) for each in self.pools
        ]


TOKENS = st.integers(0, 20_000)
USED = st.none() | st.tuples(TOKENS, TOKENS)
A_MINUTE = st.integers(1, 5_000) | st.integers(1, 10**6)
AFTER = st.none() | st.floats(0.0, 100.0)
ENDS = st.tuples(st.integers(0, 99), st.sampled_from(Signal), AFTER, USED)
STARTS = st.tuples(
    st.integers(1, 30),
    st.integers(0, 1),
    st.integers(0, 100) | st.integers(0, 50_000),
    st.integers(1, 100) | st.integers(1, 64_000),
)
STEPS = st.tuples(st.floats(0.0, 20.0), st.lists(STARTS, max_size=3), st.lists(ENDS, max_size=8))


@given(
    slots=st.integers(1, 100),
    per_minute=st.tuples(st.integers(1, 1_000), A_MINUTE, A_MINUTE),
    steps=st.lists(STEPS, max_size=20),
)
def test_whatever_answers_say_no_call_starts_beyond_the_slots_or_a_ceiling(
    slots: int,
    per_minute: tuple[int, int, int],
    steps: list[tuple[float, list[Any], list[Any]]],
) -> None:
    """Tokens are charged by an estimate; what a call used above it holds back later ones."""
    watched, now_s = Watched(slots, per_minute), 0.0
    for pause_s, starts, ends in steps:
        now_s += pause_s
        for calls, pool, size, output_max in starts:
            limiter = watched.pools[pool]
            for _ in range(calls):
                if limiter.wait_s(now_s) <= 0.0:
                    watched.start(limiter, now_s, size, output_max)
        for number, signal, after_s, used in ends[: len(watched.out)]:
            watched.end(number, now_s, signal, after_s, used)


@given(
    per_minute=st.integers(60, 100_000),
    steps=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 3), st.integers(1, 4)), max_size=40),
)
def test_workers_that_divide_a_ceiling_anew_never_exceed_it_together(
    per_minute: int, steps: list[tuple[float, int, int]]
) -> None:
    buckets = [Bucket("requests", per_minute) for _ in range(4)]
    for bucket in buckets[1:]:
        bucket.divide(0.0, 0.0)
    now_s, charged = 0.0, []
    for pause_s, first, workers in steps:
        now_s += pause_s
        those = [(first + n) % 4 for n in range(workers)]
        for number, bucket in enumerate(buckets):
            if number not in those:
                bucket.divide(0.0, now_s)
        for number in those:
            buckets[number].divide(1 / workers, now_s)
        for number in (*those, *range(4)):
            while buckets[number].wait_s(now_s) <= 0.0:
                buckets[number].charge(now_s, 1.0)
                charged.append(now_s)
    for begin_s in set(charged):
        inside = sum(begin_s <= at_s <= begin_s + 60.0 for at_s in charged)
        assert inside <= per_minute + per_minute / 60.0 + len(buckets) + 1e-6


def test_a_worker_that_had_no_part_of_a_ceiling_has_nothing_saved_up() -> None:
    bucket = Bucket("requests", 6_000)
    bucket.divide(0.0, 0.0)
    assert bucket.wait_s(50.0) == float("inf")
    bucket.divide(0.5, 100.0)
    bucket.charge(100.0, 1.0)
    assert bucket.wait_s(100.0) == pytest.approx(1 / 50)
    bucket.charge(100.0, 99.0)
    bucket.divide(1.0, 100.0)
    assert bucket.wait_s(100.0) == pytest.approx(1.0), "what is owed stays owed"


def test_an_estimate_is_corrected_by_what_was_used() -> None:
    ceilings = Ceilings({"up": [Limit(("*",), output_tokens=6_000)]})
    limiter = Limiter(10, ceilings.of_pool("up", "m"))
    permit = limiter.start(0.0, 1_000, 500)
    assert limiter.wait_s(0.0) == pytest.approx((500 - 100 + 1) / 100)
    limiter.end(permit, 0.0, Signal.TAKEN, None, (200, 50))
    assert limiter.wait_s(0.0) == 0.0
    refused = limiter.start(0.0, 1_000, 500)
    assert refused.tokens[1] == 50  # as earlier answers
    limiter.end(refused, 0.0, Signal.LIMITED)
    assert limiter.start(0.0, 1_000, 10).tokens[1] == 10  # at most max_tokens


def test_a_request_that_is_refused_as_bad_has_used_no_output_tokens() -> None:
    ceilings = Ceilings({"up": [Limit(("*",), input_tokens=6_000, output_tokens=400_000)]})
    limiter = Limiter(64, ceilings.of_pool("up", "m"))
    now_s, sent = 0.0, 0
    while now_s < 60.0:
        now_s += limiter.wait_s(now_s) + 0.001
        permit = limiter.start(now_s, 10, 64_000)
        now_s += 0.1
        limiter.end(permit, now_s, Signal.TAKEN, is_invalid=True)
        sent += 1
    assert sent > 590
    assert limiter.estimate.output is None, "nothing is learned from it"
    limiter.end(limiter.start(now_s, 1_000, 64_000), now_s, Signal.TAKEN, is_invalid=True)
    assert limiter.wait_s(now_s) == pytest.approx(2.0, abs=0.1), "its input may have been counted"


def test_a_ceiling_holds_for_its_models_and_for_the_pool_of_many() -> None:
    ceilings = Ceilings({"up": [Limit(("opus-*",), requests=60)]})
    assert ceilings.of_pool("up", "opus-5") == ceilings.of_pool("up", "*")
    assert ceilings.of_pool("up", "haiku") == ceilings.of_pool("other", "opus-5") == ()


# Headers --------------------------------------------------------------------------------------

NOW = 1_790_000_000_000_000


def of_requests(remaining: str, limit: str, reset: str) -> dict[str, str]:
    prefix = "anthropic-ratelimit-requests-"
    return {prefix + "remaining": remaining, prefix + "limit": limit, prefix + "reset": reset}


def test_a_bucket_that_is_nearly_empty_tells_its_refill() -> None:
    (hint,) = hints.read(of_requests("10", "1000", wire.rfc3339(NOW + 60_000_000)), lambda: NOW)
    assert (hint.kind, hint.remaining) == ("requests", 10)
    assert hint.refill == pytest.approx(990 / 60)
    limiter = Limiter(10)
    limiter.hint(hint, 0.0)
    limiter.start(0.0)
    limiter.start(0.0)
    assert 0.0 < limiter.wait_s(0.0) <= 2 / hint.refill


@pytest.mark.parametrize("bad", ["", "-1", "1e3", "nan", "٣", "9" * 40, "0x10", "7, 9", "+3"])
def test_bad_values_of_headers_are_ignored(bad: str) -> None:
    assert hints.read(of_requests(bad, "1000", wire.rfc3339(NOW + 1)), lambda: NOW) == []
    assert hints.read(of_requests("1", "1000", bad), lambda: NOW) == []


def test_a_reset_that_is_far_is_capped_and_one_that_is_past_ignored() -> None:
    (hint,) = hints.read(of_requests("0", "x", wire.rfc3339(NOW + 10**12)), lambda: NOW)
    assert hint.reset_s == limits.RETRY_AFTER_CAP_S
    assert hints.read(of_requests("0", "9", wire.rfc3339(NOW - 1)), lambda: NOW) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1.0), ("6m0s", 360.0), ("12ms", 0.012), ("1h2m3.5s", 3_723.5), ("1s500ms", 1.5)],
)
def test_the_other_family_of_headers_tells_durations(text: str, seconds: float) -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": text,
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "900",
        "x-ratelimit-reset-tokens": "1ms",
    }
    (hint,) = hints.read(headers, lambda: NOW)
    assert (hint.kind, hint.remaining) == ("requests", 0)
    assert hint.refill == pytest.approx(60 / seconds)
    assert hint.reset_s == pytest.approx(min(seconds, limits.RETRY_AFTER_CAP_S))


@pytest.mark.parametrize("text", ["", "s", "ms", "1", "-1s", "1s1m", "1.5m", "1e3s", "٣s", "1 s"])
def test_bad_durations_are_ignored(text: str) -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": text}
    assert hints.read(headers, lambda: NOW) == []


def test_of_several_buckets_that_are_nearly_empty_the_tightest_counts() -> None:
    limiter = Limiter(10)
    limiter.hint(hints.Hint("requests", 1.0, 0, 60.0), 0.0)
    limiter.estimate.learn(1_000, (100, 10))
    limiter.hint(hints.Hint("output-tokens", 1_000.0, 0, 30.0), 0.0)
    assert limiter.pace.known(0.0) == limiter.pace.known(59.0) == 1.0
    assert limiter.pace.known(61.0) is None


def test_workers_divide_what_the_upstream_tells() -> None:
    limiter = Limiter(10)
    limiter.part = 0.25
    limiter.hint(hints.Hint("requests", 8.0, 0, 60.0), 0.0)
    assert limiter.pace.known(0.0) == 2.0


@pytest.mark.parametrize(
    ("signal", "requests"), [(Signal.BARRED, 1.0), (Signal.UNSENT, 0.0), (Signal.LIMITED, 1.0)]
)
def test_a_call_that_used_nothing_is_not_charged(signal: Signal, requests: float) -> None:
    limit = Limit(("*",), requests=60, output_tokens=6_000)
    limiter = Limiter(10, Ceilings({"up": [limit]}).of_pool("up", "m"))
    permit = limiter.start(0.0, 1_000, 64_000)
    assert limiter.wait_s(0.0) > 600.0
    limiter.end(permit, 0.0, signal, tells=False)
    assert limiter.wait_s(0.0) == pytest.approx(requests)


def test_a_request_that_fails_again_while_others_are_taken_opens_no_breaker() -> None:
    limiter = Limiter(64)
    for second in range(2 * limits.BREAKER_FAILURES):
        limiter.end(limiter.start(float(second)), second + 0.5, Signal.FAILED, tells=False)
    assert not limiter.is_limited


def test_a_window_of_a_call_and_a_half_lets_a_second_one_go_beside_a_long_one() -> None:
    """Also below a concurrency that was refused."""
    limiter = Limiter(16)
    long = [limiter.start(0.0) for _ in range(6)]
    end(limiter, long[1:5], 1.0, Signal.TAKEN)
    limiter.window.take_over(2.0, 8, 2.0)
    limiter.end(long[5], 2.0, Signal.OVERLOADED)
    assert 1.0 < limiter.window.size < 2.0
    now_s = 2.0
    while (wait_s := limiter.wait_s(now_s)) > 0.0:
        now_s += wait_s
        assert now_s < 60.0
