"""A server is killed (SIGKILL) when half of a batch has been sent, and started again at once.

    python bench/kill.py [--requests 10000] [--latency 0.02] [--at 0.5] [--rounds 1]
                         [--systems batchyard aibrix]

The stub counts the calls for each request, so what was called twice is known. OGX and LiteLLM's
executor have nothing to come back to: their requests were in the memory of the killed process.
Redis, which AIBrix keeps its state in, is not killed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yard
from peers import aibrix, record
from peers.ours import Yard
from peers.system import PeerError, Service, fresh_folder
from peers.work import SEED, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from peers.system import Started

    Start = Callable[[int], contextlib.AbstractContextManager[Started]]


@contextlib.contextmanager
def _ours(folder: Path) -> Iterator[Start]:
    yield lambda upstream: Yard().start(upstream, folder)


@contextlib.contextmanager
def _aibrix(folder: Path) -> Iterator[Start]:
    with aibrix.redis(folder) as (_, port):
        yield lambda upstream: aibrix.service(upstream, folder, port)


SYSTEMS: dict[str, tuple[Service, Any]] = {
    "batchyard": (Yard(), _ours),
    "aibrix": (aibrix.AIBrix(), _aibrix),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--at", type=float, default=0.5, help="share sent before the kill")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    work = Work(options.requests)
    about = {
        "kind": "kill",
        "requests": work.size,
        "at": options.at,
        "latency_ms": round(options.latency * 1000),
        "seed": SEED,
    }
    for name in options.systems:
        system, place = SYSTEMS[name]
        row = record.Row.of(system)
        row.failure = system.missing()
        if row.failure is None:
            try:
                for _ in range(options.rounds):
                    row.runs.append(_kill(system, place, work, options))
                    print(f"{system.name}: {row.runs[-1]}", flush=True)
            except PeerError as error:
                row.failure = str(error)[-500:]
        if row.failure:
            print(f"{system.name}: {row.failure}", flush=True)
        raw = f"kill-{work.size}-at-{options.at * 100:.0f}-{name}"
        print(f"raw: {record.write(raw, about, [row]).name}")


def _kill(system: Service, place: Any, work: Work, options: argparse.Namespace) -> dict[str, Any]:
    share, latency_s = options.at, options.latency
    with (
        fresh_folder() as folder,
        yard.stub(latency_s, "--count") as upstream,
        place(Path(folder)) as start,
    ):
        with start(upstream) as started:  # leaving the block is the kill
            batches = system.create(started, system.prepare(work))
            sent = yard.wait_calls(upstream, work.size * share)
        begun = time.perf_counter()
        with start(upstream) as started:
            ready = time.perf_counter() - begun
            results = system.finish(started, batches)
            end = time.perf_counter() - begun
        calls = yard.told(upstream, "calls")
    ids = [json.loads(line)["custom_id"] for line in results.splitlines() if line]
    return {
        "sent_at_kill": sent,
        "ready_s": round(ready, 2),
        "end_s": round(end, 2),
        "missing": len(work.ids() - set(ids)),
        "doubled": len(ids) - len(set(ids)),
        "repeated_calls": calls["calls"] - calls["marks"],
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
