"""How fast results are sent: the yard beside nginx, which sends the same bytes with sendfile.

    python bench/download.py [--requests 100000] [--answer 20000] [--rounds 5]

The server on one core, the reader on the other. The results are in the page cache for both. The
reader counts bytes and keeps none.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yard
from peers import record
from peers.ours import Yard
from peers.system import (
    PeerError,
    Started,
    free_port,
    fresh_folder,
    launched,
    sampled,
    wait_ready,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = """
daemon off;
worker_processes 1;
user root;
pid {folder}/nginx.pid;
error_log {folder}/nginx.error.log;
events {{}}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  server {{
    listen 127.0.0.1:{port};
    root {folder}/files;
  }}
}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--answer", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ours = Yard()
    rows = [
        record.Row(ours.name, ours.version, "defaults", ours.durability),
        record.Row("nginx", _nginx_version(), "sendfile, one worker", "a file"),
    ]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(fresh_folder()))
        upstream = stack.enter_context(yard.stub(0.0, "--answer", str(options.answer)))
        started = stack.enter_context(ours.start(upstream, folder))
        path = _results(started, options.requests)
        (folder / "files").mkdir()
        size = _save(started, path, folder / "files" / "results")
        print(f"{size / 1e9:.2f} GB of results")
        places = [(rows[0], started, path)]
        if shutil.which("nginx"):
            places.append((rows[1], stack.enter_context(_nginx(folder)), "/results"))
        else:
            rows[1].failure = "nginx is not there: install the package nginx-light"
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        for _ in range(options.rounds):
            for row, server, address in places:
                row.runs.append(_read(server, address, size))
                print(f"{row.system:<12} {row.runs[-1]}", flush=True)
    about = {"kind": "download", "requests": options.requests, "bytes": size}
    print(f"raw: {record.write('download', about, rows).name}")
    speeds = [statistics.median(run["mb_per_s"] for run in row.runs) for row in rows if row.runs]
    if len(speeds) == len(rows):
        print(f"{speeds[0] / speeds[1]:.2f} of nginx")


def _results(started: Started, requests: int) -> str:
    server = yard.Running(started.port, started.processes[0])
    _, batch = server.request("POST", "/v1/messages/batches", yard.body(requests, 150))
    yard.wait_ended(server, batch["id"])
    return f"/v1/messages/batches/{batch['id']}/results"


def _save(started: Started, path: str, target: Path) -> int:
    """Read results into a file; return their bytes."""
    with started.open(path) as response, target.open("wb") as file:
        shutil.copyfileobj(response, file, 1 << 20)
    return target.stat().st_size


def _read(started: Started, path: str, size: int) -> dict[str, float]:
    """Read all bytes of an answer from the socket."""
    names = yard.HEADERS | {"host": f"127.0.0.1:{started.port}", "connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in names.items())
    into, total = bytearray(1 << 20), 0
    connection = socket.create_connection(("127.0.0.1", started.port))
    with connection, sampled(started) as samples:
        cpu, begun = started.cpu_s(), time.perf_counter()
        connection.sendall(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        while count := connection.recv_into(into):
            total += count
        seconds = time.perf_counter() - begun
        cpu = started.cpu_s() - cpu
    if not size <= total <= size * 1.01 + 10_000:  # head, and sizes of chunks
        raise PeerError(f"{total} bytes came, not {size}")
    return {
        "seconds": round(seconds, 3),
        "mb_per_s": round(size / seconds / 1e6),
        "cpu_s": round(cpu, 2),
        "above_idle_mb": round((max(samples) - samples[0]) / 1e6, 1),
        "load": os.getloadavg()[0],
    }


@contextlib.contextmanager
def _nginx(folder: Path) -> Iterator[Started]:
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port))
    (folder / "files" / "ready").write_text("{}")
    command = ["nginx", "-c", str(config), "-p", str(folder)]
    with launched(command, folder, log="nginx.log") as process:
        started = Started([process], port)
        wait_ready(started, "/ready")
        try:
            yield started
        finally:
            process.terminate()  # its worker ends with it; a kill would leave that behind
            process.wait()


def _nginx_version() -> str:
    if not shutil.which("nginx"):
        return "-"
    told = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False).stderr
    return told.strip().rpartition("/")[2]


if __name__ == "__main__":
    main()
