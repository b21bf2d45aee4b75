"""How long the largest batch takes to be accepted durably, and what it costs in memory.

    python bench/create.py [--rounds 3] [--write]

100,000 requests, 256 MB. Beside it a raw copy of the same bytes to disk with a sync, in the same
run: the floor that the disk sets.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import raw
import yard

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUESTS = 100_000
BYTES = 256 * 1024 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    raw.add_write(parser)
    options = parser.parse_args()
    body = yard.body(REQUESTS, BYTES // REQUESTS + 40)
    assert 0.95 * BYTES < len(body) <= BYTES, len(body)
    # An upstream that refuses connections: nothing is dispatched while we measure.
    runs, gets = [], []
    for _ in range(options.rounds):
        with yard.yard("away=http://127.0.0.1:9") as server:
            idle = server.cost()
            with yard.Sampled(server) as samples, Gets(server) as latencies:
                started = time.perf_counter()
                status, answer = server.request("POST", "/v1/messages/batches", body)
                seconds = time.perf_counter() - started
            assert status == 200, answer
        gets += latencies
        run = {
            "seconds": round(seconds, 3),
            "copy_s": round(_floor(body), 3),
            "above_idle_mb": round((max(samples) - idle.rss_anon) / 1e6, 1),
            "gets": len(latencies),
            "gets_p99_ms": _p99_ms(latencies),
        }
        runs.append(run | {"load": raw.load()})
    _show(body, runs, gets)
    if options.write:
        about = {"requests": REQUESTS, "bytes": len(body)}
        found = {"gets": len(gets), "gets_p99_ms": _p99_ms(gets)}
        raw.keep(f"create-{REQUESTS}", about, runs=runs, **found)


def _show(body: bytes, runs: Sequence[dict[str, float]], gets: Sequence[float]) -> None:
    seconds = [run["seconds"] for run in runs]
    copy_s = statistics.median(run["copy_s"] for run in runs)
    print(
        f"create    {REQUESTS:,} requests, {len(body) / 2**20:.0f} MiB: median "
        f"{statistics.median(seconds):.2f} s to 200 ({min(seconds):.2f} to {max(seconds):.2f}), "
        f"{statistics.median(seconds) / copy_s:.1f} times a copy with sync "
        f"({copy_s:.2f} s), peak {max(run['above_idle_mb'] for run in runs):.0f} MB above idle "
        f"beside the page cache, GETs meanwhile p99 {_p99_ms(gets):.0f} ms of {len(gets)}"
    )


def _p99_ms(times_s: Sequence[float]) -> float:
    return round(sorted(times_s)[int(len(times_s) * 0.99)] * 1000, 1)


def _floor(body: bytes) -> float:
    with tempfile.TemporaryFile() as file:
        started = time.perf_counter()
        file.write(body)
        file.flush()
        os.fdatasync(file.fileno())
        return time.perf_counter() - started


class Gets(yard.Sampled):
    """Time small GETs on one connection, in seconds."""

    def __init__(self, server: yard.Running) -> None:
        super().__init__(server, 0.002)
        self._connection = HTTPConnection("127.0.0.1", server.port)

    def sample(self) -> float:
        started = time.perf_counter()
        self._connection.request("GET", "/v1/messages/batches?limit=1", headers=yard.HEADERS)
        self._connection.getresponse().read()
        return time.perf_counter() - started

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._connection.close()


if __name__ == "__main__":
    main()
