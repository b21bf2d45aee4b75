"""How much of a limit that moves is used, in real time.

    python bench/limits.py [--seconds 20] [--latency 0.2] [--retry-after] [--stray 0.03]
                           [--systems batchyard ogx aibrix] [--rounds 1] [--write]

The upstream allows 50 calls a second, then 200, then 20, from a bucket of half a second, and
refuses the others with 429. There are as many requests as it allows in that time. Told are, for
each of the three, the share of what was allowed that was used, over the second half and over the
whole time, when a limit that rose was used, and the share of calls that were refused.

With `--stray` there is no limit, but that share of the calls is refused for no reason: then the
share of what 64 slots can do is told. With `--retry-after` as well, each of them is told to wait
for five seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import raw
import yard
from peers import record, services
from peers.aibrix import AIBrix
from peers.system import IN_FLIGHT, fresh_folder
from peers.work import SEED, Work
from upstream import PHASES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peers.system import Service

FOLLOWED = 0.9  # of a limit that rose, in a second of time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each limit")
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--retry-after", action="store_true", help="tell when to come again")
    parser.add_argument("--stray", type=float, default=0.0, help="share refused for no reason")
    services.add_systems(parser, default=["batchyard"])
    raw.add_write(parser)
    options = parser.parse_args()
    systems = [services.SERVICES[name]() for name in options.systems]
    if "aibrix" in options.systems:
        systems.append(AIBrix(None))  # which finds the number of calls itself
    about: dict[str, Any] = {
        "requests": _size(options),
        "seconds": options.seconds,
        "latency_ms": round(options.latency * 1000),
        "says_when": options.retry_after,
        "seed": SEED,
    }
    name = "limits-stray" if options.stray else "limits"
    name += "-retry-after" if options.retry_after else ""
    if options.write and len(systems) > 1 and not options.stray:
        about["kind"] = "limits"
        services.each(name, about, systems, partial(measure, options=options), options.rounds)
        return
    rows = [record.Row.of(system) for system in systems]
    for _ in range(options.rounds):
        for system, row in zip(systems, rows, strict=True):
            row.runs.append(measure(system, options) | {"load": raw.load()})
            print(told(system, row.runs[-1], options), flush=True)
    if options.write:
        about["stray"] = options.stray
        record.write(f"{name}-alone" if len(systems) == 1 else name, about, rows)


def _size(options: argparse.Namespace) -> int:
    if options.stray:
        return round(IN_FLIGHT / options.latency * 3 * options.seconds)
    return round(sum(PHASES) * options.seconds)


def measure(system: Service, options: argparse.Namespace) -> dict[str, Any]:
    """Do the work; return what was used and what was refused."""
    work = Work(_size(options))
    limits = ["--stray", options.stray] if options.stray else ["--limits", options.seconds]
    says = ["--retry-after"] if options.retry_after else []
    with (
        fresh_folder() as folder,
        yard.upstream("--median", options.latency, *limits, *says) as port,
        system.start(port, Path(folder)) as started,
    ):
        begun = time.perf_counter()
        results = system.finish(started, system.create(started, system.prepare(work)))
        seconds = time.perf_counter() - begun
        upstream = yard.told(port, "told")
    lines = [json.loads(line) for line in results.splitlines() if line]
    accepted, refused = upstream.get("accepted", []), upstream.get("refused", [])
    succeeded = sum(map(system.succeeded, lines))
    return {
        "seconds": round(seconds, 1),
        "succeeded": succeeded,
        "errored": len(lines) - succeeded,
        "calls": len(accepted) + len(refused),
        "refused": len(refused),
        "phases": [_phase(accepted, number, options.seconds) for number in range(len(PHASES))],
        "followed_s": _followed(accepted, options.seconds),
        "used": round(_within(accepted, 0, 3 * options.seconds) / _size(options), 4),
    }


def _within(times_s: Sequence[float], begin_s: float, end_s: float) -> int:
    return sum(begin_s <= at_s < end_s for at_s in times_s)


def _phase(accepted: Sequence[float], number: int, seconds: float) -> dict[str, float]:
    """Return the shares of a limit that were used, of its whole time and of the second half."""
    begin_s, allowed = number * seconds, PHASES[number] * seconds
    whole = _within(accepted, begin_s, begin_s + seconds) / allowed
    half = _within(accepted, begin_s + seconds / 2, begin_s + seconds) / (allowed / 2)
    return {"whole": round(whole, 4), "half": round(half, 4)}


def _followed(accepted: Sequence[float], seconds: float) -> float | None:
    """Return how long after the limit rose most of it was used for a second; None if never."""
    for step in range(math.ceil(seconds * 10) - 10):
        begin_s = seconds + step / 10
        if _within(accepted, begin_s, begin_s + 1) >= FOLLOWED * PHASES[1]:
            return step / 10
    return None


def told(system: Service, run: dict[str, Any], options: argparse.Namespace) -> str:
    """Return a line about a run."""
    share = run["refused"] / run["calls"]
    if options.stray:
        return (
            f"limits    none, but {run['refused']:,} of {run['calls']:,} calls refused for no "
            f"reason: {run['used']:.0%} of what {IN_FLIGHT} slots can do"
        )
    phases = "  ".join(
        f"{limit:.0f}/s: {phase['half']:.0%} ({phase['whole']:.0%} from its first second on)"
        for limit, phase in zip(PHASES, run["phases"], strict=True)
    )
    follow = "never" if run["followed_s"] is None else f"in {run['followed_s']:.1f} s"
    name = "" if system.name == "batchyard" else f"{system.name}, {system.setting}: "
    return (
        f"limits    {name}{phases}; 200/s followed {follow}; {share:.1%} of {run['calls']:,} calls "
        f"refused, {run['errored']:,} requests errored"
    )


if __name__ == "__main__":
    main()
