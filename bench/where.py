"""Where the processor time of dispatch goes: shares of the samples that py-spy takes.

    python bench/where.py [--requests 100000] [--rate 200]

The batch is that of dispatch.py: upstream 0 ms, 64 in flight, the yard on one core. A sample is of
a thread that runs, and counts for the innermost function: one of C (the kernel, the event loop) for
the Python function that called it. A thread that waits for the disk counts as running.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import yard

PY_SPY = yard.HERE.parent / ".bench" / "where" / "bin" / "py-spy"

# The innermost frame, in `function (file:line)`, and of what it is; the first that fits.
AREAS = (
    (r"^Runner\.run |^run \(uvloop", "event loop, and receiving from the kernel"),
    (r"^Connection\._send_now \(batchyard/upstream", "sending: one call of the kernel each"),
    (r"\(batchyard/upstream/", "HTTP client: heads, bodies, kept connections"),
    (r"\(batchyard/(dispatch/(loading|opening)|segments/requests|validate/)", "opening shards"),
    (r"\(batchyard/(dispatch/recorder|segments/)", "recording: writes and syncs, in threads"),
    (r"\(batchyard/ledger/", "ledger: commits, most of it the disk"),
    (r"\(batchyard/(result|price)\.py", "reading answers, writing result lines"),
    (r"\(batchyard/dispatch/", "slots, turns, limits, judging answers"),
    (r"\(batchyard/", "other parts of the yard"),
)


def area(frame: str) -> str:
    for pattern, name in AREAS:
        if re.search(pattern, frame):
            return name
    return "threads and futures of the standard library"


def is_idle(frame: str) -> bool:
    """A thread of a pool that waits for work is taken for running at times."""
    return frame.startswith("_worker (concurrent/futures/thread.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=2_500)
    parser.add_argument("--rate", type=int, default=200, help="samples a second")
    options = parser.parse_args()
    if not PY_SPY.exists():
        parser.error(f"{PY_SPY} is not there; `make bench-where` installs it")
    body = yard.body(options.requests, options.size)
    with (
        tempfile.TemporaryDirectory() as place,
        yard.stub(0.0) as port,
        yard.yard(f"stub=http://127.0.0.1:{port}", one_core=True) as server,
    ):
        _, batch = server.request("POST", "/v1/messages/batches", body)
        raw = Path(place) / "raw"
        pid = str(server.process.pid)
        sampling = ["taskset", "-c", "1", str(PY_SPY), "record", "--pid", pid, "--output", str(raw)]
        sampling += ["--rate", str(options.rate), "--format", "raw", "--duration", "unlimited"]
        with subprocess.Popen(sampling, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as spy:
            ended = yard.wait_ended(server, batch["id"])
            spy.send_signal(2)
            said = spy.communicate(timeout=60)[1].decode()
        if not raw.exists():
            parser.error(f"py-spy took no samples: {said.strip()}")
        samples = Counter[str]()
        for line in raw.read_text().splitlines():
            frames, _, count = line.rpartition(" ")
            frame = frames.rpartition(";")[2]
            if frame and not is_idle(frame):
                samples[area(frame)] += int(count)
    assert ended["request_counts"]["succeeded"] == options.requests, ended
    whole = samples.total()
    print(f"where  {options.requests:,} requests, upstream 0 ms, 64 in flight: {whole:,} samples")
    for name, count in samples.most_common():
        print(f"{count / whole:6.0%}  {name}")


if __name__ == "__main__":
    main()
