"""How many slow requests one process holds at once: the most at once, requests/s, and memory.

    python bench/inflight.py [--slots 10000] [--latency 20] [--requests 60000] [--write]

Everything is durable. The most at once is what the upstream has counted. Calls are 64 at once soon
and double each second, so 10,000 are reached after eight; the upstream takes longer than that, or
the first calls would have ended before the last of the slots are used. The ideal is `slots`
requests in each time that the upstream takes; the beginning is why a batch stays below it.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import time

import raw
import yard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=10_000)
    parser.add_argument("--latency", type=float, default=20.0)
    parser.add_argument("--requests", type=int, default=60_000)
    parser.add_argument("--size", type=int, default=2_500)
    raw.add_write(parser)
    options = parser.parse_args()
    descriptors(3 * options.slots)
    body = yard.body(options.requests, options.size)
    with (
        yard.stub(options.latency) as port,
        yard.yard(f"stub=http://127.0.0.1:{port}", slots=options.slots) as server,
        yard.Sampled(server, 0.1) as memory,
    ):
        idle = server.cost()
        _, batch = server.request("POST", "/v1/messages/batches", body)
        before, started = server.cost(), time.perf_counter()
        ended = yard.wait_ended(server, batch["id"])
        seconds = time.perf_counter() - started
        assert ended["request_counts"]["succeeded"] == options.requests, ended
        run = {
            "seconds": round(seconds, 2),
            "cpu_s": round(server.cost().cpu_s - before.cpu_s, 2),
            "most_at_once": yard.told(port, "most")["most"],
            "peak_rss_mb": round(yard.peak_rss(server.process.pid) / 1e6, 1),
            "private_mb": round(max(memory) / 1e6, 1),
            "above_idle_mb": round((max(memory) - idle.rss_anon) / 1e6, 1),
            "load": raw.load(),
        }
    _show(options, run)
    if options.write:
        about = {"slots": options.slots, "latency_s": options.latency}
        about |= {"requests": options.requests, "request_bytes": options.size}
        raw.keep(f"inflight-{options.slots}", about, runs=[run])


def _show(options: argparse.Namespace, run: dict[str, float]) -> None:
    rate, ideal = options.requests / run["seconds"], options.slots / options.latency
    print(
        f"inflight  {options.requests:,} requests, upstream {options.latency:g} s, "
        f"most at once {run['most_at_once']:,} of {options.slots:,} slots, {rate:,.0f} requests/s "
        f"of {ideal:,.0f}, {run['cpu_s'] / options.requests * 1_000:.3f} CPU s per 1,000, peak RSS "
        f"{run['peak_rss_mb']:.0f} MB, of it private {run['private_mb']:.0f} MB "
        f"({run['above_idle_mb']:.0f} MB above idle)"
    )


def descriptors(wanted: int) -> None:
    """Let this process and its children open so many files, as root; else as many as they may.

    The yard begins no more calls than nine sixteenths of them, and so can write what it begins.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, wanted), max(most, wanted)))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main()
