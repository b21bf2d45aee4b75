"""What order and priming do for a prompt cache, and what they cost in time.

    python bench/cache.py [--groups 40] [--each 50] [--latency 0.2] [--rounds 1]

Requests of several groups, each with a marked system prompt of its own, in a random order, against
the simulated model, whose cache behaves as the hosted one: an entry can be read when the answer
that writes it has begun. The same batch three times, each on a server of its own: in the order in
which it arrived, ordered by prefix, and ordered and primed, which is what the yard does. The other
two are the same program with that part taken out.
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

import yard

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_ORDER = "from batchyard.server import uploads; uploads.order_keys = lambda entries: None\n"
NO_PRIMING = "from batchyard.dispatch import loading; loading.shared_marks = lambda *_: ()\n"
START = "from batchyard.cli.main import main; main()"
WAYS = {
    "as they arrived": NO_ORDER + NO_PRIMING + START,
    "ordered": NO_PRIMING + START,
    "ordered and primed": START,
}
WORDS = "The yard keeps what it was given and answers when it is asked to do so. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=40)
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    print(
        f"cache     {options.groups} groups of {options.each} requests, answers begin after "
        f"{options.latency * 1000:.0f} ms (half as much to half as much again), 64 in flight; at "
        f"best {1 - 1 / options.each:.1%} of the cacheable tokens can be read"
    )
    usual = 0.0
    for name, program in WAYS.items():
        rounds = [_round(program, options, seed) for seed in range(options.rounds)]
        seconds = statistics.median(seconds for seconds, _ in rounds)
        _, report = rounds[0]
        usual = usual or seconds
        print(
            f"  {name:<20} read {report['hit_rate']:6.1%}   written "
            f"{report['tokens']['written_5m']:>9,} tokens   saved "
            f"${report['saved_micros'] / 1e6:7.4f}   {seconds:6.2f} s ({seconds / usual - 1:+.1%})"
        )


def _round(program: str, options: argparse.Namespace, seed: int) -> tuple[float, dict[str, Any]]:
    body = json.dumps({"requests": _requests(options.groups, options.each, seed)}).encode()
    with _serve(program, options.latency) as server:
        status, batch = server.request("POST", "/v1/messages/batches", body)
        assert status == 200, batch
        ended = yard.wait_ended(server, batch["id"])
        counts: Any = ended["request_counts"]
        assert counts["succeeded"] == options.groups * options.each, ended
        _, report = server.request("GET", f"/v1/messages/batches/{batch['id']}/cache")
    return (_time(ended["ended_at"]) - _time(ended["created_at"])).total_seconds(), report


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
