"""What is used of limits of many kinds, and what is refused on the way: in virtual time.

    make limits                 about two minutes on one core
    python tests/sim/courses.py [seeds]

One course tells little, since a call sooner or later changes what comes after it. Whoever changes
how limits are learned compares the means and the worst of these before and after.
"""

from __future__ import annotations

import random
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from sim.limited import Allowed, Says, run

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOTS = 64
MOVES = (50.0, 200.0, 20.0)
SAYS: tuple[Says, ...] = ("never", "exactly", "in whole seconds")


class Course(NamedTuple):
    """How one went."""

    used: float
    """Of what was possible, in the part of it that counts."""
    refused: float
    """Of all calls."""


def counted(seed: int) -> Iterator[tuple[str, Course]]:
    """Calls of a fixed time, after the first minute."""
    for kind, seconds, limit in [
        ("window", 1.0, 50.0),
        ("window", 10.0, 50.0),
        ("sliding", 1.0, 50.0),
        ("sliding", 10.0, 50.0),
        ("sliding", 10.0, 8.0),
    ]:
        for says in SAYS[::2]:
            allowed = Allowed(kind, [limit], phase_s=200.0, burst_s=seconds)
            traffic = run(allowed, says, SLOTS, seed)
            name = f"{kind} of {seconds:g} s, {limit:g} calls/s"
            yield name, Course(traffic.goodput(60.0, 200.0), traffic.refused / traffic.sent)


def strays(seed: int) -> Iterator[tuple[str, Course]]:
    """Refusals for no reason: alone, in the first minute and later, and beside a limit."""
    for share in (0.01, 0.03, 0.1, 0.15, 0.2, 0.25):
        rng = random.Random(seed)
        allowed = Allowed(
            "nothing", [0.0], phase_s=180.0, latency_s=0.5, stray=share, stray_rng=rng
        )
        traffic = run(allowed, "never", SLOTS, seed)
        refused = traffic.refused / traffic.sent
        for when, begin_s, end_s in (("first minute", 0.0, 60.0), ("later", 60.0, 180.0)):
            used = traffic.share_of_slots(SLOTS, begin_s, end_s)
            yield f"{share:.0%} for no reason, {when}", Course(used, refused)
    for latency_s, slots in [(3.0, 500), (10.0, 128)]:
        rng = random.Random(seed)
        allowed = Allowed(
            "nothing",
            [0.0],
            phase_s=300.0,
            latency_s=latency_s,
            refusal_s=0.01,
            stray=0.1,
            stray_rng=rng,
        )
        traffic = run(allowed, "never", slots, seed)
        used = traffic.share_of_slots(slots, 120.0, 300.0)
        name = f"10% for no reason, {slots} slots, answers of {latency_s:g} s"
        yield name, Course(used, traffic.refused / traffic.sent)
    for limit in (50.0, 200.0):
        allowed = Allowed("rate", [limit], stray=0.03, stray_rng=random.Random(seed))
        traffic = run(allowed, "never", SLOTS, seed)
        name = f"{limit:g} calls/s, 3% for no reason"
        yield name, Course(traffic.goodput(20.0, 100.0), traffic.refused / traffic.sent)


def moving(seed: int) -> Iterator[tuple[str, Course]]:
    """A limit that moves: the worst of three phases after half a minute, and a minute from cold."""
    for kind, burst_s in [("rate", 0.2), ("rate", 1.0), ("concurrency", 1.0)]:
        for says in SAYS[:2]:
            traffic = run(Allowed(kind, MOVES, burst_s=burst_s), says, SLOTS, seed)
            used = min(
                traffic.goodput(begin + 30.0, begin + 100.0) for begin in (0.0, 100.0, 200.0)
            )
            name = f"{kind} that moves, bucket of {burst_s:g} s"
            yield name, Course(used, traffic.refused / traffic.sent)
    rng = random.Random(seed)
    for says in SAYS:
        allowed = Allowed(
            "rate",
            MOVES,
            phase_s=20.0,
            burst_s=rng.choice([0.3, 0.5, 0.7, 1.0]),
            latency_s=rng.uniform(0.12, 0.3),
            refusal_s=rng.uniform(0.002, 0.05),
        )
        traffic = run(allowed, says, SLOTS, seed)
        used = sum(at_s < 60.0 for at_s in traffic.taken) / (20.0 * sum(MOVES))
        yield "rate that moves, a minute in all", Course(used, traffic.refused / traffic.sent)


def steady(seed: int) -> Iterator[tuple[str, Course]]:
    """A limit that stands still: any, low, near what the slots can do, with slow answers."""
    rng = random.Random(seed)
    limit, latency_s = 500.0 ** rng.random(), 0.01 * 200.0 ** rng.random()
    allowed = Allowed(
        "rate",
        [limit],
        phase_s=70.0,
        burst_s=0.2 * 25.0 ** rng.random(),
        latency_s=latency_s,
        refusal_s=min(latency_s, 0.05),
    )
    slots = max(SLOTS, round(limit * latency_s * rng.choice([1.5, 5.0])))
    traffic = run(allowed, rng.choice(SAYS), slots, seed)
    yield "any limit", Course(traffic.goodput(30.0, 70.0), traffic.refused / traffic.sent)
    for limit in (0.83, 2.0, 4.0, 15.0):
        allowed = Allowed("rate", [limit], phase_s=600.0, burst_s=1.2, latency_s=0.3)
        traffic = run(allowed, rng.choice(SAYS), SLOTS, seed)
        used = traffic.goodput(60.0, 600.0)
        yield f"{limit:g} calls/s", Course(used, traffic.refused / traffic.sent)
    for latency_s, slots in [(0.25, SLOTS), (3.0, 500)]:
        limit = rng.uniform(0.75, 0.97) * slots / latency_s
        allowed = Allowed("rate", [limit], phase_s=120.0, burst_s=0.3, latency_s=latency_s)
        traffic = run(allowed, rng.choice(SAYS), slots, seed)
        used = traffic.goodput(20.0, 120.0)
        yield f"near what {slots} slots can do", Course(used, traffic.refused / traffic.sent)
    for limit, latency_s, slots in [(0.83, 120.0, 64), (1.0, 60.0, 32), (5.0, 60.0, 400)]:
        allowed = Allowed("rate", [limit], phase_s=5_400.0, burst_s=1.0, latency_s=latency_s)
        traffic = run(allowed, SAYS[seed % 2], slots, seed)
        possible = min(limit, slots / latency_s) * 3_600.0
        used = sum(at_s >= 1_800.0 for at_s in traffic.taken) / possible
        yield "answers of minutes", Course(used, traffic.refused / traffic.sent)


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    print(f"{'limit':<46}{'used: mean':>11}{'worst':>8}{'refused: mean':>16}{'worst':>8}")
    for kind in (counted, strays, moving, steady):
        found: dict[str, list[Course]] = {}
        for seed in range(seeds):
            for name, course in kind(seed):
                found.setdefault(name, []).append(course)
        for name, courses in found.items():
            used, refused = zip(*courses, strict=True)
            print(
                f"{name:<46}{statistics.fmean(used):>11.1%}{min(used):>8.1%}"
                f"{statistics.fmean(refused):>16.2%}{max(refused):>8.2%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
