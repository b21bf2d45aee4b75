"""The yard beside other systems, same requests, same upstream, in the same run.

    python bench/compare.py [--requests 1000] [--latency 0 [--p99 0]] [--rounds 5]
                            [--systems NAME ...]

All systems of a command run at the same time in front of one stub, and take turns round after
round: the system on core 0, the stub on core 1. The clock goes from the first byte sent until all
results have been read. Each system does a batch of 50 first, which is not counted. With `--p99`
latencies are log-normal, with `--latency` for the median; each request has its own, whoever asks.
"""

from __future__ import annotations

import argparse
import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yard
from peers import record
from peers.aibrix import AIBrix
from peers.litellm import Executor
from peers.ogx import Ogx
from peers.ours import Yard
from peers.script import SdkScript
from peers.system import IN_FLIGHT, Measured, PeerError, Started, System, fresh_folder, measure
from peers.work import SEED, Work
from upstream import latency_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    StartUpstream = Callable[[], contextlib.AbstractContextManager[int]]

# Each with the same number of requests in flight; those that have another default also with it.
SYSTEMS: dict[str, Sequence[System]] = {
    "batchyard": (Yard(),),
    "script": (SdkScript(),),
    "ogx": (Ogx(), Ogx(None)),
    "litellm": (Executor(), Executor(None)),
    "aibrix": (AIBrix(), AIBrix(None)),
}
WARM = Work(50)
ROUNDS_OF = {60.0: 3, 300.0: 1}
"""How often at most what takes longer than so many seconds is run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--p99", type=float, default=0.0, help="0: all answers take as long")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--no-defaults", action="store_true", help="only with 64 in flight")
    options = parser.parse_args()
    systems = [
        system
        for name in options.systems
        for system in SYSTEMS[name]
        if not (options.no_defaults and system.in_flight is None)
    ]
    work = Work(options.requests)
    about: dict[str, Any] = {
        "kind": "run",
        "requests": work.size,
        "bytes": len(work.messages()),
        "latency_ms": round(options.latency * 1000),
        "seed": SEED,
    }
    name = f"run-{work.size}-{options.latency * 1000:.0f}ms"
    start = partial(yard.stub, options.latency)
    if options.p99:
        spread = options.latency, options.p99
        name += f"-{options.p99 * 1000:.0f}ms"
        start = partial(yard.upstream, "--median", spread[0], "--p99", spread[1])
        each_s = [latency_s(mark.encode(), *spread) for mark in sorted(work.ids())]
        about |= {"kind": "spread", "p99_ms": round(options.p99 * 1000)}
        about["ideal_s"] = round(max(sum(each_s) / IN_FLIGHT, *each_s), 3)
    for rows in compare(systems, work, start, options.rounds):
        record.write(name, about, rows)
    print(f"raw: {name}.json")


def compare(
    systems: Sequence[System], work: Work, start: StartUpstream, rounds: int
) -> Iterator[list[record.Row]]:
    """Run the work on each system, in turns; yield all rows after each run."""
    rows = {system: record.Row.of(system) for system in systems}
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(start())
        running: dict[System, Started] = {}
        for system in systems:
            folder = Path(stack.enter_context(fresh_folder()))
            reason = system.missing()
            if reason is None:
                try:
                    running[system] = stack.enter_context(system.start(upstream, folder))
                    measure(system, running[system], WARM)
                except PeerError as error:
                    reason = str(error)[-500:]
            if reason:
                rows[system].failure = reason
                print(f"{system.name}, {system.setting}: left out: {reason}", flush=True)
        for number in range(rounds):
            for system, started in running.items():
                row = rows[system]
                longest = max((run["seconds"] for run in row.runs), default=0)
                enough = [most for seconds, most in ROUNDS_OF.items() if longest > seconds]
                if row.failure or number >= min(enough, default=rounds):
                    continue
                try:
                    run = measure(system, started, work)
                except PeerError as error:
                    row.failure = str(error)[-500:]
                    print(f"{system.name}, {system.setting}: failed: {row.failure}", flush=True)
                    continue
                row.runs.append(vars(run))
                _show(system, work, run)
                yield list(rows.values())


def _show(system: System, work: Work, run: Measured) -> None:
    print(
        f"{system.name:<28} {system.setting:<24} {work.size / run.seconds:>9,.0f} requests/s  "
        f"{run.cpu_s / work.size * 1000:6.2f} CPU s per 1,000  {run.private_mb:6.0f} MB  "
        f"load {run.load:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
