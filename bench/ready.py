"""How soon a yard that was killed with much open work answers again.

    python bench/ready.py [--batches 10] [--requests 100000] [--rounds 5] [--write]

An upstream that never answers holds the work open. The yard is killed (SIGKILL) and started again,
round after round, on the same directory; beside it, in the same run, one without any work: the time
that the interpreter and its imports take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import raw
import yard

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCHES = "/v1/messages/batches"


def start(data: Path, upstream: int) -> tuple[yard.Running, float]:
    """Start a yard in front of the upstream at a port; return it and the seconds to its line."""
    command = [sys.executable, "-m", "batchyard", "serve", "--port", "0", "--data", str(data)]
    command += ["--upstream", f"silent=http://127.0.0.1:{upstream}"]
    with data.with_name(f"{data.name}.log").open("a") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    seconds = time.perf_counter() - started
    return yard.Running(int(ready["url"].rpartition(":")[2]), process), seconds


def rounds(data: Path, upstream: int, number: int, open_requests: int) -> list[dict[str, float]]:
    """Kill and start a yard again and again.

    Returns:
        Of each start the seconds to the ready line, to the first answer, and of processor time.
    """
    found = []
    server, _ = start(data, upstream)
    for _ in range(number):
        server.process.kill()
        server.process.communicate()
        begun = time.perf_counter()
        server, ready = start(data, upstream)
        status, page = server.request("GET", f"{BATCHES}?limit=100")
        run = {"ready_s": ready, "answered_s": time.perf_counter() - begun}
        run |= {"cpu_s": server.cost().cpu_s, "load": raw.load()}
        found.append({name: round(value, 3) for name, value in run.items()})
        assert status == 200, page
        rows = page["data"]
        assert isinstance(rows, list)
        assert sum(row["request_counts"]["processing"] for row in rows) == open_requests
        # The next kill finds work in flight again.
        while rows and not _is_working(server, rows):
            time.sleep(0.05)
    server.process.kill()
    server.process.communicate()
    return found


def _is_working(server: yard.Running, rows: Sequence[dict[str, object]]) -> bool:
    shown = (server.request("GET", f"{BATCHES}/{row['id']}/progress")[1] for row in rows)
    return any(progress["in_flight"] for progress in shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    raw.add_write(parser)
    options = parser.parse_args()
    silent = yard.stub(86_400)
    with silent as upstream, tempfile.TemporaryDirectory(prefix="batchyard-bench-") as name:
        full, empty = Path(name) / "full", Path(name) / "empty"
        server, _ = start(full, upstream)
        body = yard.body(options.requests, 150)
        for _ in range(options.batches):
            status, answer = server.request("POST", BATCHES, body)
            assert status == 200, answer
        server.process.kill()
        server.process.communicate()
        number = options.batches * options.requests
        open_work = rounds(full, upstream, options.rounds, number)
        nothing = rounds(empty, upstream, options.rounds, 0)
    print(
        f"ready     {options.rounds} starts after a kill with {number:,} open requests in "
        f"{options.batches} batches: {_shown(open_work)}; without work: {_shown(nothing)}"
    )
    if options.write:
        about = {"batches": options.batches, "requests": number}
        raw.keep(f"ready-{number}", about, runs=open_work, runs_without_work=nothing)


def _shown(runs: Sequence[dict[str, float]]) -> str:
    ready, answered, cpu = (
        statistics.median(run[name] for run in runs) for name in ("ready_s", "answered_s", "cpu_s")
    )
    most = max(run["answered_s"] for run in runs)
    return (
        f"median {ready:.2f} s to the ready line, {answered:.2f} s (at most {most:.2f}) to the "
        f"first answer, {cpu:.2f} s of it processor time"
    )


if __name__ == "__main__":
    main()
