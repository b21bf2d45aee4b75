"""SIGKILL of single workers, of the server and of all, and workers that freeze, under load.

The journal of `load` is kept: in the end everything in it must be true, and whenever
no process is left, every invariant that `batchyard check` knows.

    BATCHYARD_CRASH_KILLS=300 .venv/bin/pytest -s tests/crash/test_kill_workers.py
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from crash.checking import assert_holds
from crash.load import SEED, Journal, Latency, assert_kept, clients_on, figures
from helpers_upstream import Upstream
from helpers_workers import SHORT, is_alive, pids_of, wait_free, wait_workers, workers_yard
from helpers_yard import poll

if TYPE_CHECKING:
    from pathlib import Path

    from helpers_yard import Yard

KILLS = int(os.environ.get("BATCHYARD_CRASH_KILLS", "10"))
SLOTS = 16
WORKERS = 2
FROZEN_S = 3.0  # longer than a lease
KINDS = ("worker", "worker", "worker", "server", "all", "frozen")


def strike(kind: str, rng: random.Random, yard: Yard) -> None:
    """Do one kind of harm."""
    pids = pids_of(yard)
    if kind in {"worker", "frozen"}:
        victim = rng.choice(pids)
        if kind == "worker":
            os.kill(victim, signal.SIGKILL)
            poll(lambda: not is_alive(victim), yard.read_log)  # it is nobody's next victim
            return
        os.kill(victim, signal.SIGSTOP)
        time.sleep(FROZEN_S)  # the moment itself: nothing is waited for
        os.kill(victim, signal.SIGCONT)
        return
    if kind == "all":
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    yard.kill()
    wait_free(yard.data)
    assert_holds(yard.data)


@pytest.mark.timeout(900 + 15 * KILLS)
def test_nothing_acknowledged_is_lost_whichever_process_dies(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    journal = Journal()
    kinds: Counter[str] = Counter()
    # Each kind at least once, in an order that follows from the seed.
    plan = rng.sample(sorted(set(KINDS)), 4) + rng.choices(KINDS, k=max(0, KILLS - 4))
    with Upstream(Latency(SEED)) as upstream:
        yard = workers_yard(
            tmp_path / "data", upstream.url, slots=SLOTS, workers=WORKERS, bounds=SHORT
        )
        with clients_on(yard, upstream, journal) as assert_well:
            for kind in plan:
                if yard.process is None:
                    yard.start()
                wait_workers(yard, WORKERS)
                goal = len(upstream.calls) + rng.randrange(1, 300)
                poll(lambda goal=goal: len(upstream.calls) >= goal, yard.read_log)
                kinds[kind] += 1
                strike(kind, rng, yard)
                assert_well()
        wait_free(yard.data)
        assert_kept(yard, journal)
        report = figures(upstream, journal)
        print(f"\ncrash figures of workers: {report | {'harms': dict(kinds)}}")
        # In flight at the moment, and what was answered in the last milliseconds.
        assert report["repeated"] <= len(plan) * 4 * SLOTS
