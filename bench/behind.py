"""Small batches behind a large one: how long they wait.

    python bench/behind.py [--requests 100000] [--latency 0.2] [--rounds 1]
                           [--systems batchyard ogx aibrix]

A large batch is being worked on. Then somebody hands in one request; when it is done, 20 batches of
50. Told are the seconds until all results of each have been read, and how evenly the 20 were
served. Each tenant has a workspace of its own where a system knows any; the yard is also measured
with all of them in one. What the upstream was given at once tells at whose cost it went.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yard
from peers import services
from peers.ours import Yard
from peers.system import PeerError, fresh_folder
from peers.work import SEED, Work

if TYPE_CHECKING:
    from peers.system import Service, Started

ONE = Work(1)
SMALL = Work(50)
SMALLS = 20
BEGUN = 500
"""Calls of the large batch before the others come."""
LONGEST_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--latency", type=float, default=0.2)
    services.add_systems(parser)
    options = parser.parse_args()
    large = Work(options.requests)
    about = {
        "kind": "behind",
        "requests": large.size,
        "small": SMALL.size,
        "smalls": SMALLS,
        "latency_ms": round(options.latency * 1000),
        "seed": SEED,
    }
    systems = [services.SERVICES[name]() for name in options.systems]
    if "batchyard" in options.systems:
        systems.insert(1, Yard(has_tenants=False))

    def run(system: Service) -> dict[str, Any]:
        return _behind(system, large, options.latency)

    services.each(f"behind-{large.size}", about, systems, run, options.rounds)


def _behind(system: Service, large: Work, latency_s: float) -> dict[str, Any]:
    with (
        fresh_folder() as folder,
        yard.stub(latency_s, "--count") as upstream,
        system.start(upstream, Path(folder)) as started,
    ):
        system.tenant = "a"
        alone_s = _wait(system, started, ONE)
        before = yard.told(upstream, "calls")["calls"]
        system.create(started, system.prepare(large))
        yard.wait_calls(upstream, before + BEGUN)
        system.tenant = "b"
        one_s = _wait(system, started, ONE)
        system.tenant = "c"
        with ThreadPoolExecutor(SMALLS) as pool:
            smalls = list(pool.map(lambda _: _wait(system, started, SMALL), range(SMALLS)))
        sent = yard.told(upstream, "calls")["calls"] - before
        most = yard.told(upstream, "most")["most"]
    return {
        "alone_s": round(alone_s, 2),
        "one_s": round(one_s, 2),
        "small_s": round(statistics.median(smalls), 2),
        "small_most_s": round(max(smalls), 2),
        "evenness": round(sum(smalls) ** 2 / (SMALLS * sum(value**2 for value in smalls)), 3),
        "is_large_done": sent >= large.size,
        "most_in_flight": most,
    }


def _wait(system: Service, started: Started, work: Work) -> float:
    """Hand in work and wait for it; return the seconds until its results have been read."""
    begun = time.perf_counter()
    results = system.finish(started, system.create(started, system.prepare(work)))
    seconds = time.perf_counter() - begun
    if seconds > LONGEST_S:
        raise PeerError(f"done after {seconds:.0f} s")
    system.check(work, results)
    return seconds


if __name__ == "__main__":
    main()
