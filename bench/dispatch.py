"""How fast a batch runs when the upstream is not the limit: requests/s, CPU s per 1,000, memory.

    python bench/dispatch.py [--requests 10000] [--latency 0] [--rounds 3] [--write]

The result is durable: every line is written and synced, every shard committed, the batch ended. The
yard runs on one core, the upstream on another.
"""

from __future__ import annotations

import argparse
import statistics
import time

import raw
import yard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=2_500)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3)
    raw.add_write(parser)
    options = parser.parse_args()
    body = yard.body(options.requests, options.size)
    runs = []
    with (
        yard.stub(options.latency) as port,
        yard.yard(f"stub=http://127.0.0.1:{port}", one_core=True) as server,
        yard.Sampled(server, 0.05) as memory,
    ):
        idle = server.cost()
        for _ in range(options.rounds):
            _, batch = server.request("POST", "/v1/messages/batches", body)
            before, started = server.cost(), time.perf_counter()
            ended = yard.wait_ended(server, batch["id"])
            seconds = time.perf_counter() - started
            assert ended["request_counts"]["succeeded"] == options.requests, ended
            cpu = server.cost().cpu_s - before.cpu_s
            runs.append({"seconds": round(seconds, 4), "cpu_s": round(cpu, 2), "load": raw.load()})
        above_idle = max(memory) - idle.rss_anon
    rates = [options.requests / run["seconds"] for run in runs]
    cpu_s = statistics.median(run["cpu_s"] for run in runs)
    print(
        f"dispatch  {options.requests:,} requests of {options.size} bytes, upstream "
        f"{options.latency * 1000:.0f} ms, 64 in flight: median {statistics.median(rates):,.0f} "
        f"requests/s ({min(rates):,.0f} to {max(rates):,.0f}), "
        f"{cpu_s / options.requests * 1_000:.3f} CPU s per 1,000, peak {above_idle / 1e6:.0f} MB "
        "above idle"
    )
    if options.write:
        latency_ms = round(options.latency * 1_000)
        about = {
            "requests": options.requests,
            "request_bytes": options.size,
            "latency_ms": latency_ms,
        }
        name = f"dispatch-{options.requests}-{latency_ms}ms"
        raw.keep(name, about, runs=runs, above_idle_mb=round(above_idle / 1e6, 1))


if __name__ == "__main__":
    main()
