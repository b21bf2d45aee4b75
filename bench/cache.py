"""What order and priming do for a prompt cache, and what they cost in time.

    python bench/cache.py [--groups 40] [--each 50] [--latency 0.2] [--rounds 5]
                          [--write]

Requests of several groups, each with a marked system prompt of its own, in a random order, against
the simulated model, whose cache behaves as the hosted one: an entry can be read when the answer
that writes it has begun. The same batch three times, each on a server of its own: in the order in
which it arrived, ordered by prefix, and ordered and primed, which is what the yard does. The other
two are the same program with that part taken out. The three take turns, with another random order
in each round; times are compared by their medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import raw
import yard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Run = dict[str, float]

WITHOUT = """
def without(name, instead, *modules):
    for module in modules:
        assert hasattr(module, name), f"{module.__name__} uses {name} no more: it is elsewhere"
        setattr(module, name, instead)
"""
NO_ORDER = """
from batchyard.server import arriving, uploads
without("order_keys", lambda entries: [b""] * len(entries), arriving, uploads)
"""
NO_PRIMING = """
from batchyard.dispatch import loading
without("shared_marks", lambda *_: (), loading)
"""
START = "from batchyard.cli.main import main; main()"
WAYS = {
    "as they arrived": WITHOUT + NO_ORDER + NO_PRIMING + START,
    "ordered": WITHOUT + NO_PRIMING + START,
    "ordered and primed": START,
}
WORDS = "The yard keeps what it was given and answers when it is asked to do so. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=40)
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=5)
    raw.add_write(parser)
    options = parser.parse_args()
    print(
        f"cache     {options.groups} groups of {options.each} requests, answers begin after "
        f"{options.latency * 1000:.0f} ms (half as much to half as much again), 64 in flight; at "
        f"best {1 - 1 / options.each:.1%} of the cacheable tokens can be read"
    )
    found: dict[str, list[Run]] = {name: [] for name in WAYS}
    for seed in range(options.rounds):
        for name, program in WAYS.items():
            found[name].append(_round(program, options, seed))
    seconds_of = {name: _median(runs, "seconds") for name, runs in found.items()}
    arrived, ordered, primed = seconds_of.values()
    for name, runs in found.items():
        print(
            f"  {name:<20} read {_spread(runs, 'hit_rate', lambda share: f'{share:.1%}')}   "
            f"written {_median(runs, 'written_tokens'):,.0f} tokens   "
            f"saved ${_median(runs, 'saved_usd'):.4f}   "
            f"{_spread(runs, 'seconds', lambda seconds: f'{seconds:.2f}')} s"
        )
    print(
        f"  time of ordered and primed: {primed / arrived - 1:+.1%} against as they arrived, "
        f"{primed / ordered - 1:+.1%} against ordered alone (medians of {options.rounds})"
    )
    if options.write:
        about = {"groups": options.groups, "each": options.each, "latency_s": options.latency}
        rows = [{"way": name, "runs": runs} for name, runs in found.items()]
        raw.keep("cache", about, rows=rows)


def _median(runs: Sequence[Run], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def _spread(runs: Sequence[Run], name: str, form: Callable[[float], str]) -> str:
    values = [run[name] for run in runs]
    return f"{form(_median(runs, name))} ({form(min(values))} to {form(max(values))})"


def _round(program: str, options: argparse.Namespace, seed: int) -> Run:
    body = json.dumps({"requests": _requests(options.groups, options.each, seed)}).encode()
    with _serve(program, options.latency) as server:
        status, batch = server.request("POST", "/v1/messages/batches", body)
        assert status == 200, batch
        ended = yard.wait_ended(server, batch["id"])
        counts: Any = ended["request_counts"]
        assert counts["succeeded"] == options.groups * options.each, ended
        _, report = server.request("GET", f"/v1/messages/batches/{batch['id']}/cache")
    told: Any = report
    return {
        "seconds": (_time(ended["ended_at"]) - _time(ended["created_at"])).total_seconds(),
        "hit_rate": told["hit_rate"],
        "written_tokens": told["tokens"]["written_5m"],
        "saved_usd": told["saved_micros"] / 1e6,
        "load": raw.load(),
    }


def _time(text: object) -> datetime:
    return datetime.fromisoformat(str(text))


def _requests(groups: int, each: int, seed: int) -> list[dict[str, Any]]:
    control = {"type": "ephemeral"}
    made = [
        {
            "custom_id": f"g{group}-{number}",
            "params": {
                "model": "claude-opus-5-5",
                "max_tokens": 64,
                "system": [
                    {"type": "text", "text": f"{group}. {WORDS * 60}", "cache_control": control}
                ],
                "messages": [{"role": "user", "content": f"Question {number}?"}],
            },
        }
        for group in range(groups)
        for number in range(each)
    ]
    random.Random(seed).shuffle(made)
    return made


@contextlib.contextmanager
def _serve(program: str, latency_s: float) -> Iterator[yard.Running]:
    with tempfile.TemporaryDirectory(prefix="batchyard-bench-") as data:
        upstream = f"sim=simulated:?latency={latency_s}&jitter=0.5&words=20"
        command = [sys.executable, "-c", program, "serve", "--port", "0"]
        command += ["--data", f"{data}/data", "--upstream", upstream]
        with (
            (Path(data) / "log").open("w") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        ):
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            try:
                yield yard.Running(int(ready["url"].rpartition(":")[2]), process)
            finally:
                process.terminate()


if __name__ == "__main__":
    main()
