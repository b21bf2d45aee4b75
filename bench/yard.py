"""Start what a benchmark needs on loopback, and read what it cost: no benchmark of its own."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
HEADERS = {
    "x-api-key": "bench",
    "anthropic-version": "2023-06-01",
    "content-type": "application/json",
}


@dataclass
class Cost:
    """Seconds of processor time, and bytes."""

    cpu_s: float
    rss_anon: int


@dataclass
class Running:
    """A server process that listens."""

    port: int
    process: subprocess.Popen[str]

    def request(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, object]]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request(method, path, body=body, headers=HEADERS)  # type: ignore[arg-type]
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        return response.status, answer

    def cost(self) -> Cost:
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        fields = {
            line.split(":")[0]: int(line.split()[1]) * 1024
            for line in status.splitlines()
            if line.startswith("RssAnon")
        }
        ticks = int(stat[11]) + int(stat[12])
        return Cost(ticks / os.sysconf("SC_CLK_TCK"), fields["RssAnon"])


def peak_rss(pid: int | str) -> int:
    """Return the most memory that a process ever held, in bytes: shared and file pages included.

    What `getrusage` tells begins with the memory of the parent.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not tell")


class Sampled:
    """Sample something about a server from a thread while the block runs."""

    def __init__(self, server: Running, interval_s: float = 0.005) -> None:
        self.server = server
        self.samples: list[float] = []
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def sample(self) -> float:
        """Return the private memory of the server in bytes."""
        return self.server.cost().rss_anon

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.samples.append(self.sample())

    def __enter__(self) -> list[float]:
        self._thread.start()
        return self.samples

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def core(process: subprocess.Popen[str], number: int) -> None:
    """Keep a process on one core, where there are several."""
    if len(os.sched_getaffinity(0)) > number:
        os.sched_setaffinity(process.pid, {sorted(os.sched_getaffinity(0))[number]})


@contextlib.contextmanager
def stub(latency_s: float = 0.0, *options: str) -> Iterator[int]:
    """Run the loopback upstream; yield its port."""
    with _listening("stub.py", "--latency", str(latency_s), *options) as port:
        yield port


def told(port: int, what: str) -> Any:
    """Return what the loopback upstream tells at this path: `calls`, `most` or `told`."""
    with urlopen(f"http://127.0.0.1:{port}/{what}") as answer:
        return json.load(answer)


def wait_calls(port: int, least: float) -> int:
    """Wait until the loopback upstream has been called so often; return how often it was."""
    while (calls := int(told(port, "calls")["calls"])) < least:
        time.sleep(0.005)
    return calls


@contextlib.contextmanager
def upstream(*options: object) -> Iterator[int]:
    """Run the loopback upstream that behaves as real ones do; yield its port."""
    with _listening("upstream.py", *map(str, options)) as port:
        yield port


@contextlib.contextmanager
def _listening(program: str, *options: str) -> Iterator[int]:
    command = [sys.executable, str(HERE / program), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        core(process, 1)
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@contextlib.contextmanager
def yard(upstream: str, *, one_core: bool = False, slots: int | None = None) -> Iterator[Running]:
    """Run `batchyard serve` on a fresh data directory, with so many slots or those it has."""
    with tempfile.TemporaryDirectory(prefix="batchyard-bench-") as data:
        command = [sys.executable, "-m", "batchyard", "serve", "--port", "0", "--data", data]
        if slots is None:
            command += ["--upstream", upstream]
        else:
            config = Path(data) / "batchyard.toml"
            name, _, url = upstream.partition("=")
            config.write_text(f'[[upstream]]\nname = "{name}"\nurl = "{url}"\nslots = {slots}\n')
            command += ["--config", str(config)]
        with (
            (Path(data) / "log").open("w") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        ):
            assert process.stdout is not None
            if one_core:
                core(process, 0)  # before it starts threads: they inherit it
            ready = json.loads(process.stdout.readline())
            try:
                yield Running(int(ready["url"].rpartition(":")[2]), process)
            finally:
                process.terminate()


def body(requests: int, size: int) -> bytes:
    """Return a create body of `requests` requests of about `size` bytes each, part Chinese."""
    overhead = 130
    filler = "项目说明 read me. " * (max(size - overhead, 20) // 23)
    entry = (
        '{"custom_id":"doc-%06d","params":{"model":"bench","max_tokens":256,'
        '"messages":[{"role":"user","content":"' + filler + '"}]}}'
    )
    return ('{"requests":[' + ",".join(entry % i for i in range(requests)) + "]}").encode()


def wait_ended(server: Running, batch_id: object) -> dict[str, object]:
    """Poll a batch until it has ended."""
    while True:
        _, batch = server.request("GET", f"/v1/messages/batches/{batch_id}")
        if batch["processing_status"] == "ended":
            return batch
        time.sleep(0.05)


def machine() -> str:
    """Describe the machine in a line."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    cores = len(Path("/proc/cpuinfo").read_text().split("processor\t")) - 1
    return f"{cores} cores, {model}, Python {platform.python_version()}"
