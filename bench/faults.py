"""An upstream that fails: what still succeeds, after how many calls, and what it costs in time.

    python bench/faults.py [--requests 2000] [--latency 0.2] [--timeout 10] [--rounds 1]
                           [--systems batchyard ogx aibrix]

Of the calls, 5 % are answered with 500, 2 % with a reset connection and 0.5 % never; 1 % of the
requests are such as the upstream never takes (400). All systems give an answer up after the same
time. The same work is done without faults first, for the cost in time. The raw result has the ids
of the requests that must be errored, and of those that are.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import upstream
import yard
from peers import services
from peers.system import PeerError, fresh_folder
from peers.work import SEED, Work

if TYPE_CHECKING:
    from peers.system import Service


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--timeout", type=int, default=10, help="seconds for an answer")
    services.add_systems(parser)
    options = parser.parse_args()
    work = Work(options.requests)
    about = {
        "kind": "faults",
        "requests": work.size,
        "latency_ms": round(options.latency * 1000),
        "timeout_s": options.timeout,
        "seed": SEED,
    }
    systems = [services.SERVICES[name]() for name in options.systems]
    for system in systems:
        system.timeout_s = options.timeout

    def run(system: Service) -> dict[str, Any]:
        usual, _, _ = _do(system, work, options.latency)
        return _told(system, work, usual, *_do(system, work, options.latency, "--faults"))

    services.each(f"faults-{work.size}", about, systems, run, options.rounds)


def _do(
    system: Service, work: Work, latency_s: float, *faults: str
) -> tuple[float, bytes, dict[str, list[float]]]:
    """Do the work; return the seconds it took, the results, and what the upstream did."""
    with (
        fresh_folder() as folder,
        yard.upstream("--median", latency_s, *faults) as port,
        system.start(port, Path(folder)) as started,
    ):
        begun = time.perf_counter()
        results = system.finish(started, system.create(started, system.prepare(work)))
        seconds = time.perf_counter() - begun
        return seconds, results, yard.told(port, "told")


def _told(
    system: Service,
    work: Work,
    usual_s: float,
    seconds: float,
    results: bytes,
    calls: dict[str, list[float]],
) -> dict[str, Any]:
    lines = [json.loads(line) for line in results.splitlines() if line]
    told = {line["custom_id"] for line in lines}
    if len(lines) != len(told) or told != work.ids():
        raise PeerError(f"{len(lines)} results for {len(told)} of {work.size} requests")
    errored = {line["custom_id"] for line in lines if not system.succeeded(line)}
    invalid = {name for name in work.ids() if upstream.is_invalid(name.encode())}
    succeeded = work.size - len(errored)
    return {
        "seconds": round(seconds, 1),
        "usual_s": round(usual_s, 1),
        "possible": work.size - len(invalid),
        "succeeded": succeeded,
        "invalid": len(invalid),
        "invalid_succeeded": len(invalid - errored),
        "lost": len(errored - invalid),
        "calls": sum(map(len, calls.values())),
        "wasted": len(calls["accepted"]) - succeeded,
        "errored_expected": sorted(invalid),
        "errored_told": sorted(errored),
    }


if __name__ == "__main__":
    main()
