"""A limit that moves is followed, and any limit is found: in virtual time, event by event."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import Literal, get_args

import pytest

from sim.limited import Allowed, Says, run

PHASES = (50.0, 200.0, 20.0)
ADAPT_S = 30.0
"""How much of each phase is left out of the goodput: the time to find a new limit."""

SEEDS = int(os.environ.get("BATCHYARD_LIMITS_SEEDS", "6"))


@pytest.mark.parametrize("slots", [64, 500])
@pytest.mark.parametrize(
    ("allowed", "says_when"),
    [
        (Allowed("rate", PHASES, burst_s=0.2), "exactly"),
        (Allowed("rate", PHASES, burst_s=0.2), "never"),
        (Allowed("rate", PHASES, burst_s=1.0), "in whole seconds"),
        (Allowed("rate", PHASES, burst_s=1.0), "never"),
        (Allowed("concurrency", PHASES), "in whole seconds"),
        (Allowed("concurrency", PHASES), "never"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.kind}-{value.burst_s}",
)
def test_a_limit_that_moves_is_followed(allowed: Allowed, says_when: Says, slots: int) -> None:
    """50 a second, then 200, then 20: at least 95 % are used, and under 2 % of calls refused."""
    traffic = run(replace(allowed), says_when, slots, 7)
    begins = [phase * allowed.phase_s for phase in range(len(PHASES))]
    used = [traffic.goodput(begin + ADAPT_S, begin + allowed.phase_s) for begin in begins]
    assert min(used) >= 0.95, (used, traffic.refused / traffic.sent)
    assert max(used) <= 1.05, used
    assert traffic.refused / traffic.sent < 0.02, (used, traffic.refused, traffic.sent)


@pytest.mark.parametrize(
    ("burst_s", "latency_s", "slots", "seed"), [(0.5, 1.0, 400, 1), (1.0, 0.2, 64, 0)]
)
def test_a_limit_that_rises_is_used_soon_though_steps_had_failed_before(
    burst_s: float, latency_s: float, slots: int, seed: int
) -> None:
    """Four times as much is allowed for 20 s; most of that time's calls are made."""
    allowed = Allowed("rate", PHASES, phase_s=20.0, burst_s=burst_s, latency_s=latency_s)
    traffic = run(allowed, "exactly", slots, seed)
    assert traffic.goodput(20.0 + latency_s, 40.0 + latency_s) >= 0.85


@pytest.mark.parametrize("seed", range(SEEDS))
def test_of_a_minute_in_which_a_limit_moves_twice_nearly_all_is_used(seed: int) -> None:
    """From cold, 20 s each. Answers take equally long, so rate and concurrency are hard to tell."""
    rng = random.Random(seed)
    allowed = Allowed(
        "rate",
        PHASES,
        phase_s=20.0,
        burst_s=0.5,
        latency_s=0.2 * rng.uniform(0.97, 1.03),
        spread=lambda rng: rng.uniform(0.99, 1.03),
        refusal_s=rng.uniform(0.001, 0.01),
        is_full=True,
    )
    traffic = run(allowed, "never", 64, seed)
    used = len(traffic.taken) / (20.0 * sum(PHASES))
    assert used >= 0.95, (used, traffic.refused, traffic.sent)
    assert traffic.refused / traffic.sent < 0.02, (used, traffic.refused, traffic.sent)


@pytest.mark.parametrize("refuses_s", [10.0, 120.0])
def test_calls_go_out_as_before_soon_after_all_were_refused_for_a_while(refuses_s: float) -> None:
    """It takes nothing, and names no time; half a minute later 90 % of what it allows is used."""
    phases = (50.0, *[0.0001] * round(refuses_s / 10.0), *[50.0] * 6)
    traffic = run(Allowed("rate", phases, phase_s=10.0), "never", 64, 3)
    begin_s = 10.0 + refuses_s
    assert traffic.goodput(begin_s + ADAPT_S, begin_s + 60.0) >= 0.9


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("burst_s", [0.2, 0.5])
def test_a_small_bucket_that_asks_for_whole_seconds_is_used_as_one_that_names_no_time(
    burst_s: float, seed: int
) -> None:
    """Each second that all calls waited would lose more than the bucket holds."""
    traffic = run(Allowed("rate", PHASES, burst_s=burst_s), "in whole seconds", 64, seed)
    used = [traffic.goodput(begin + ADAPT_S, begin + 100.0) for begin in (0.0, 100.0, 200.0)]
    assert min(used) >= 0.9, used
    assert traffic.refused / traffic.sent < 0.02, (used, traffic.refused, traffic.sent)


@pytest.mark.parametrize("says_when", ["in whole seconds", "never"])
@pytest.mark.parametrize(
    ("kind", "window_s", "limit", "least", "refused"),
    [
        ("window", 1.0, 50.0, 0.7, 0.06),
        ("window", 1.0, 5.0, 0.9, 0.25),
        ("window", 10.0, 50.0, 0.9, 0.05),
        ("window", 10.0, 5.0, 0.8, 0.15),
        ("window", 60.0, 50.0, 0.95, 0.02),
        ("window", 60.0, 5.0, 0.95, 0.1),
        ("sliding", 1.0, 50.0, 0.8, 0.05),
        ("sliding", 10.0, 50.0, 0.8, 0.05),
        ("sliding", 10.0, 8.0, 0.7, 0.2),
    ],
)
def test_a_limit_that_counts_calls_of_a_time_is_used(
    kind: Literal["window", "sliding"],
    window_s: float,
    limit: float,
    least: float,
    refused: float,
    says_when: Says,
) -> None:
    """After so many calls in a second, ten or a minute nothing is accepted for a while."""
    allowed = Allowed(kind, [limit], phase_s=300.0, burst_s=window_s)
    traffic = run(allowed, says_when, 64, 1)
    assert traffic.goodput(60.0, allowed.end_s) >= least
    assert traffic.refused / traffic.sent < refused


@pytest.mark.parametrize("says_when", ["in whole seconds", "never"])
def test_a_rate_is_not_too_low_because_nobody_had_calls_to_make_for_a_while(
    says_when: Says,
) -> None:
    """Work for 6 of 12 s: half of what a window of a second allows is possible, or a bit more."""
    allowed = Allowed("window", [50.0], phase_s=200.0, burst_s=1.0, works_s=(12.0, 6.0))
    traffic = run(allowed, says_when, 64, 1)
    assert traffic.goodput(60.0, allowed.end_s) >= 0.4


@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_limit_is_found_and_nothing_ever_stalls(seed: int) -> None:
    """From 1 to 500 a second, in buckets of 0.2 to 5 s, with answers that take 10 ms to 2 s.

    At least 80 % are used within half a minute. Where refusals ask for more than one whole second,
    and the bucket holds less than that, each one that is obeyed costs more than the bucket can make
    up for: 70 % then.
    """
    rng = random.Random(seed)
    limit = 500.0 ** rng.random()
    latency_s = 0.01 * 200.0 ** rng.random()
    allowed = Allowed(
        "rate",
        [limit],
        phase_s=70.0,
        burst_s=0.2 * 25.0 ** rng.random(),
        latency_s=latency_s,
        refusal_s=min(latency_s, 0.05),
    )
    says_when: Says = rng.choice(get_args(Says))
    slots = max(64, round(limit * latency_s * rng.choice([1.5, 5.0])))
    traffic = run(allowed, says_when, slots, seed)
    used = traffic.goodput(ADAPT_S, allowed.end_s)
    stall_s = traffic.longest_stall_s()
    told = (
        round(limit, 1),
        allowed,
        says_when,
        slots,
        used,
        stall_s,
        traffic.refused,
        traffic.sent,
    )
    assert stall_s <= 5.0 + 2.0 * latency_s, told
    loses_seconds = says_when == "in whole seconds" and allowed.burst_s < 1.0
    assert used >= (0.7 if loses_seconds else 0.8), told


@pytest.mark.parametrize("seed", range(max(2, SEEDS // 3)))
@pytest.mark.parametrize(
    ("share", "slots", "latency_s"),
    [(0.03, 64, 0.2), (0.03, 64, 1.0), (0.03, 8, 1.0), (0.01, 64, 0.2), (0.001, 256, 0.5)],
)
def test_refusals_for_no_reason_cost_next_to_nothing(
    share: float, slots: int, latency_s: float, seed: int
) -> None:
    """At least 80 % of what the slots can do is done, the time to find it out included."""
    rng = random.Random(seed)
    allowed = Allowed(
        "nothing", [0.0], phase_s=60.0, latency_s=latency_s, stray=share, stray_rng=rng
    )
    traffic = run(allowed, "never", slots, seed)
    assert traffic.share_of_slots(slots, 0.0, allowed.end_s) >= 0.8
    assert traffic.refused > 3


@pytest.mark.parametrize("seed", range(max(2, SEEDS // 3)))
@pytest.mark.parametrize("share", [0.1, 0.15, 0.2])
def test_many_refusals_for_no_reason_leave_most_of_what_the_slots_can_do(
    share: float, seed: int
) -> None:
    """Of what is not refused, in the minutes after the first."""
    rng = random.Random(seed)
    allowed = Allowed("nothing", [0.0], phase_s=240.0, latency_s=0.3, stray=share, stray_rng=rng)
    traffic = run(allowed, "never", 64, seed)
    assert traffic.share_of_slots(64, 60.0, allowed.end_s) >= 0.7 * (1.0 - share)


@pytest.mark.parametrize("seed", range(max(2, SEEDS // 3)))
@pytest.mark.parametrize(
    ("share", "slots", "latency_s"), [(0.05, 300, 3.0), (0.1, 200, 3.0), (0.1, 64, 10.0)]
)
def test_refusals_for_no_reason_come_long_before_answers_and_mean_as_little(
    share: float, slots: int, latency_s: float, seed: int
) -> None:
    """Of what is not refused, after two minutes: calls that are not answered yet count as well."""
    allowed = Allowed(
        "nothing",
        [0.0],
        phase_s=240.0,
        latency_s=latency_s,
        refusal_s=0.01,
        stray=share,
        stray_rng=random.Random(seed),
    )
    traffic = run(allowed, "never", slots, seed)
    assert traffic.share_of_slots(slots, 120.0, allowed.end_s) >= 0.9


@pytest.mark.parametrize("says_when", ["exactly", "never"])
@pytest.mark.parametrize("seed", range(max(2, SEEDS // 3)))
def test_a_limit_just_below_what_the_slots_can_do_is_not_taken_for_refusals_for_no_reason(
    seed: int, says_when: Says
) -> None:
    """It refuses as few of them, at whatever rate above it they go out: all are used, too."""
    rng = random.Random(seed)
    latency_s = rng.uniform(0.2, 0.3)
    limit = rng.uniform(0.75, 0.97) * 64 / latency_s
    allowed = Allowed("rate", [limit], phase_s=120.0, burst_s=0.3, latency_s=latency_s)
    traffic = run(allowed, says_when, 64, seed)
    assert traffic.goodput(20.0, allowed.end_s) >= 0.98
    assert traffic.refused / traffic.sent < 0.02, (traffic.refused, traffic.sent)


@pytest.mark.parametrize(("limit", "refused"), [(2.0, 0.08), (4.0, 0.06), (8.0, 0.04)])
def test_a_low_limit_refuses_few_calls(limit: float, refused: float) -> None:
    """A refusal is one of few calls there, and says as much as one of many elsewhere."""
    allowed = Allowed("rate", [limit], phase_s=300.0, burst_s=1.0, latency_s=0.3, refusal_s=0.02)
    for seed in range(2):
        traffic = run(replace(allowed), "never", 64, seed)
        assert traffic.goodput(60.0, allowed.end_s) >= 0.97
        assert traffic.refused / traffic.sent < refused, (traffic.refused, traffic.sent)


@pytest.mark.parametrize("limit", [50.0, 200.0])
def test_a_limit_is_found_among_refusals_for_no_reason(limit: float) -> None:
    """Half of it is used at least, and no more refused than that share and a few percent."""
    rng = random.Random(5)
    allowed = Allowed("rate", [limit], phase_s=100.0, stray=0.03, stray_rng=rng)
    traffic = run(allowed, "never", 64, 5)
    assert traffic.goodput(20.0, allowed.end_s) >= 0.5
    assert traffic.refused / traffic.sent < 0.07


@pytest.mark.parametrize(
    ("says_when", "latency_s", "limit", "slots"),
    [("exactly", 120.0, 0.83, 64), ("never", 60.0, 1.0, 32), ("exactly", 60.0, 5.0, 400)],
)
def test_a_rate_is_found_though_each_answer_takes_minutes(
    says_when: Says, latency_s: float, limit: float, slots: int
) -> None:
    """A refusal comes at once; nobody waits for an answer to know that there was none."""
    allowed = Allowed("rate", [limit], phase_s=5_400.0, burst_s=1.0, latency_s=latency_s)
    traffic = run(allowed, says_when, slots, 3)
    possible = min(limit, slots / latency_s) * (allowed.end_s - 1_800.0)
    used = sum(at_s >= 1_800.0 for at_s in traffic.taken) / possible
    assert used >= 0.9
    assert traffic.refused / traffic.sent < 0.25, (traffic.refused, traffic.sent)
