"""How long the largest batch takes to be accepted durably, and what it costs in memory.

    python bench/create.py [--rounds 3]

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

import yard

REQUESTS = 100_000
BYTES = 256 * 1024 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    body = yard.body(REQUESTS, BYTES // REQUESTS + 40)
    assert 0.95 * BYTES < len(body) <= BYTES, len(body)
    # An upstream that refuses connections: nothing is dispatched while we measure.
    seconds, floors, anon, gets = [], [], [], []
    for _ in range(options.rounds):
        with yard.yard("away=http://127.0.0.1:9") as server:
            idle = server.cost()
            with yard.Sampled(server) as samples, Gets(server) as latencies:
                started = time.perf_counter()
                status, answer = server.request("POST", "/v1/messages/batches", body)
                seconds.append(time.perf_counter() - started)
            assert status == 200, answer
            anon.append(max(samples) - idle.rss_anon)
            gets += latencies
        floors.append(_floor(body))
    gets.sort()
    print(
        f"create    {REQUESTS:,} requests, {len(body) / 2**20:.0f} MiB: median "
        f"{statistics.median(seconds):.2f} s to 200 ({min(seconds):.2f} to {max(seconds):.2f}), "
        f"{statistics.median(seconds) / statistics.median(floors):.1f} times a copy with sync "
        f"({statistics.median(floors):.2f} s), peak {max(anon) / 1e6:.0f} MB above idle beside the "
        f"page cache, GETs meanwhile p99 {gets[int(len(gets) * 0.99)] * 1000:.0f} ms of {len(gets)}"
    )


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
