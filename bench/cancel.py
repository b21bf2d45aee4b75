"""A batch is canceled when a part of it has been sent: when it ends, and what is kept.

    python bench/cancel.py [--requests 10000] [--latency 0.02] [--at 0.3] [--rounds 1]
                           [--systems batchyard ogx litellm aibrix]

The clock goes from the request to cancel until all results have been read. An answer that the
upstream gave and that is in no result is paid and lost. The stub counts calls, so those that began
after the cancel had been acknowledged are known.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yard
from peers import services
from peers.litellm import Executor
from peers.system import PeerError, fresh_folder
from peers.work import SEED, Work

if TYPE_CHECKING:
    from peers.system import Service

# Its executor is no server, but knows how to cancel.
SYSTEMS = services.SERVICES | {"litellm": Executor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--at", type=float, default=0.3, help="share sent before the cancel")
    services.add_systems(parser, SYSTEMS)
    options = parser.parse_args()
    work = Work(options.requests)
    about = {
        "kind": "cancel",
        "requests": work.size,
        "at": options.at,
        "latency_ms": round(options.latency * 1000),
        "seed": SEED,
    }
    systems = [SYSTEMS[name]() for name in options.systems]

    def run(system: Service) -> dict[str, Any]:
        return _cancel(system, work, options.at, options.latency)

    services.each(f"cancel-{work.size}", about, systems, run, options.rounds)


def _cancel(system: Service, work: Work, share: float, latency_s: float) -> dict[str, Any]:
    with (
        fresh_folder() as folder,
        yard.stub(latency_s, "--count") as upstream,
        system.start(upstream, Path(folder)) as started,
    ):
        batches = system.create(started, system.prepare(work))
        yard.wait_calls(upstream, work.size * share)
        begun = time.perf_counter()
        system.cancel(started, batches)
        acknowledged = time.perf_counter() - begun
        sent = yard.told(upstream, "calls")["calls"]
        results = system.finish(started, batches)
        seconds = time.perf_counter() - begun
        calls = yard.told(upstream, "calls")["calls"]
    lines = [json.loads(line) for line in results.splitlines() if line]
    if len(lines) != len({line["custom_id"] for line in lines}):
        raise PeerError("a request has two results")
    kept = sum(map(system.succeeded, lines))
    return {
        "acknowledged_s": round(acknowledged, 3),
        "seconds": round(seconds, 2),
        "results": len(lines),
        "kept": kept,
        "calls": calls,
        "calls_after": calls - sent,
        "paid_and_lost": calls - kept,
    }


if __name__ == "__main__":
    main()
