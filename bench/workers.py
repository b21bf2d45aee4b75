"""What a second worker process brings: requests/s with 1 and 2 workers, side by side.

    python bench/workers.py [--requests 10000] [--rounds 3] [--slots 256]

Each round measures each number of workers once, in turns, with an upstream that answers at once and
one that takes 20 ms. Everything is durable. The upstream shares the cores with the workers: on a
machine of two cores, two workers leave it none of its own, and the row shows that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yard

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def serve(port: int, slots: int, workers: int) -> Iterator[yard.Running]:
    """Run a yard with so many workers."""
    with tempfile.TemporaryDirectory(prefix="batchyard-bench-") as data:
        config = Path(data) / "batchyard.toml"
        config.write_text(
            f'[[upstream]]\nname = "stub"\nurl = "http://127.0.0.1:{port}"\nslots = {slots}\n'
        )
        command = [sys.executable, "-m", "batchyard", "serve", "--port", "0", "--data", data]
        command += ["--config", str(config), "--workers", str(workers)]
        with (
            (Path(data) / "log").open("w") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        ):
            assert process.stdout is not None
            if workers == 1:
                yard.core(process, 0)  # as each of several has a core of its own
            ready = json.loads(process.stdout.readline())
            try:
                yield yard.Running(int(ready["url"].rpartition(":")[2]), process)
            finally:
                process.terminate()


def measure(port: int, options: argparse.Namespace, workers: int) -> float:
    """Return the requests a second of one batch, after a short one that starts everything."""
    with serve(port, options.slots, workers) as server:
        for requests in (1_500, options.requests):
            body = yard.body(requests, options.size)
            _, batch = server.request("POST", "/v1/messages/batches", body)
            started = time.perf_counter()
            ended = yard.wait_ended(server, batch["id"])
            seconds = time.perf_counter() - started
            assert ended["request_counts"]["succeeded"] == requests, ended
    return options.requests / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=2_500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=256)
    options = parser.parse_args()
    for latency_s in (0.0, 0.02):
        rates: dict[int, list[float]] = {1: [], 2: []}
        with yard.stub(latency_s) as port:
            for _ in range(options.rounds):
                for workers, found in rates.items():
                    found.append(measure(port, options, workers))
        shown = ", ".join(
            f"{workers} worker{'s' if workers > 1 else ''} {statistics.median(found):,.0f} "
            f"({min(found):,.0f} to {max(found):,.0f})"
            for workers, found in rates.items()
        )
        ratio = statistics.median(rates[2]) / statistics.median(rates[1])
        print(
            f"workers   {options.requests:,} requests, upstream {latency_s * 1000:.0f} ms, "
            f"{options.slots} slots, requests/s: {shown}; ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
