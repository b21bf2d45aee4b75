"""SIGKILL at random moments under load, again and again, on one data directory.

Two clients create batches and now and then cancel or delete one, and keep a journal of what was
acknowledged. In the end everything in the journal must be true, and after many of the kills all
that `batchyard check` knows. The server is forked from a process that has it loaded, which makes a
start much quicker.

    BATCHYARD_CRASH_KILLS=3000 .venv/bin/pytest -s tests/crash/test_random_kills.py

`BATCHYARD_CRASH_SEED` repeats a run as far as the machine allows: the load and the kind of each
moment are the same, the moment itself is not.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from crash.checking import assert_holds
from crash.forking import ForkedYard, Zygote
from crash.load import SEED, Journal, Latency, assert_kept, clients_on, figures
from helpers_upstream import Upstream
from helpers_yard import Yard, poll

if TYPE_CHECKING:
    from pathlib import Path

KILLS_USUAL = 120
KILLS = int(os.environ.get("BATCHYARD_CRASH_KILLS", KILLS_USUAL))
SLOTS = 16
CHECK_EVERY = max(10, KILLS // 75)
"""A check reads all there is, and that grows: so many kills have one, the first five each."""
# An answer that came so long before a kill must have been written. Loose: the machine may be busy.
WRITTEN_AFTER_S = 10.0


def until_kill(rng: random.Random, yard: Yard, upstream: Upstream, journal: Journal) -> str:
    """Start the server and wait for a random moment; return the kind of it."""
    kind = rng.choice(["starting", "time", "time", "calls", "calls", "create"])
    yard.launch()
    journal.up.set()
    if kind == "starting":
        time.sleep(rng.random() * 0.8)  # the moment itself: nothing is waited for
        return kind
    yard.wait_ready()
    if kind == "time":
        time.sleep(rng.random() * 0.4)
    elif kind == "calls":
        goal = len(upstream.calls) + rng.randrange(1, 400)
        upstream.wait_until(lambda: len(upstream.calls) >= goal, "more calls")
    else:
        before = journal.acknowledged
        poll(lambda: journal.acknowledged > before, lambda: "no create was acknowledged")
    return kind


@pytest.mark.timeout(900 + 10 * KILLS)
def test_nothing_acknowledged_is_lost_at_any_moment(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    journal = Journal()
    kinds: Counter[str] = Counter()
    kills: list[tuple[float, float]] = []
    with Upstream(Latency(SEED)) as upstream, Zygote() as zygote:
        yard = ForkedYard(zygote, tmp_path / "data", upstream.url, slots=SLOTS)
        with clients_on(yard, upstream, journal) as assert_well:
            for number in range(KILLS):
                kinds[until_kill(rng, yard, upstream, journal)] += 1
                before = time.monotonic()
                yard.kill()
                journal.up.clear()
                upstream.wait_until(lambda: not upstream.in_flight, "the connections are gone")
                kills.append((before, time.monotonic()))
                if number < 5 or number % CHECK_EVERY == 0:
                    assert_holds(yard.data)
                assert_well()
        assert_kept(yard, journal)
        report = {
            "kills": KILLS,
            "moments": dict(kinds),
            **figures(upstream, journal),
            **repeats(upstream, kills),
            "lost": 0,
            "duplicated": 0,
        }
        print(f"\ncrash figures: {report}")
        assert report["repeated"] <= KILLS * SLOTS + report["answered, not yet written"]
        assert report["written at the latest after s"] < WRITTEN_AFTER_S


def repeats(upstream: Upstream, kills: list[tuple[float, float]]) -> dict[str, Any]:
    """Tell which calls were made again, and why."""
    in_flight = upstream.abandoned
    unwritten = 0
    latest = 0.0
    for times in upstream.answered.values():
        for answered in times[:-1]:
            before = next(before for before, after in kills if answered <= after)
            if answered >= before:
                in_flight += 1  # answered to a process that was dying
            else:
                unwritten += 1
                latest = max(latest, before - answered)
    return {
        "in flight at a kill": in_flight,
        "answered, not yet written": unwritten,
        "written at the latest after s": round(latest, 3),
    }
