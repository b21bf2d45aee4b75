"""What every system under test has in common: processes that cost, and a way to run work."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peers.work import Work

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".bench"
START_S = 120.0
RUN_S = 1_200.0
IN_FLIGHT = 64
SCRIPT_LOG = "script.log"
# Ended by a signal, a benchmark still ends what it started.
signal.signal(signal.SIGTERM, signal.default_int_handler)


class PeerError(Exception):
    """A system did not start, or did not do the work."""


@dataclass
class Started:
    """A system that is ready for work."""

    processes: list[subprocess.Popen[str]]
    port: int = 0

    def cpu_s(self) -> float:
        """Return the processor time of the processes and all their descendants, dead ones too."""
        ticks = 0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(int(value) for value in stat[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    def private_bytes(self) -> int:
        """Return the memory of all processes that is not page cache."""
        return 1024 * self._total("status", "RssAnon")

    def written_bytes(self) -> int:
        """Return what the processes have written to files, as the kernel accounts it."""
        return self._total("io", "write_bytes")

    def _total(self, file: str, field: str) -> int:
        """Return the sum of a number that the kernel tells of each process."""
        total = 0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
                    if line.startswith(field):
                        total += int(line.split()[1])
        return total

    def _tree(self) -> list[int]:
        found = [process.pid for process in self.processes]
        for pid in found:  # grows meanwhile
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += [int(child) for child in children.read_text().split()]
        return found

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
        """Make a call; return what the JSON answer holds."""
        return json.loads(self.read(method, path, body, **headers))

    def read(self, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
        with self.open(path, method, body, **headers) as response:
            return response.read()

    @contextlib.contextmanager
    def open(
        self, path: str, method: str = "GET", body: bytes = b"", **headers: str
    ) -> Iterator[HTTPResponse]:
        """Make a call; yield the response, of which nothing of the body has been read."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=RUN_S)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body=body or None, headers=yard.HEADERS | named)
            response = connection.getresponse()
            if response.status not in {200, 206}:
                raise PeerError(f"{method} {path}: {response.status} {response.read()[:300]!r}")
            yield response
        finally:
            connection.close()


class System(ABC):
    """A system under test, and one way to set it up."""

    name: str
    version: str
    durability: str

    def __init__(self, in_flight: int | None = IN_FLIGHT) -> None:
        self.in_flight = in_flight  # None: as it comes

    @property
    def setting(self) -> str:
        return f"{self.in_flight} in flight" if self.in_flight else "defaults"

    def missing(self) -> str | None:
        """Return why the system cannot be run here, or None."""
        return None

    @abstractmethod
    def start(self, upstream: int, folder: Path) -> contextlib.AbstractContextManager[Started]:
        """Start it on core 0, in front of the stub at a port, with its data in a folder."""

    @abstractmethod
    def prepare(self, work: Work) -> bytes:
        """Return the work in the dialect of the system."""

    @abstractmethod
    def run(self, started: Started, prepared: bytes) -> bytes:
        """Do the work; return all results, one JSON object per line."""

    @abstractmethod
    def succeeded(self, line: dict[str, Any]) -> bool:
        """Tell whether a line of the results is a success."""

    def check(self, work: Work, results: bytes) -> None:
        """Raise PeerError unless there is exactly one success for each request."""
        lines = [json.loads(line) for line in results.splitlines() if line]
        if sum(self.succeeded(line) for line in lines) != work.size:
            raise PeerError(f"{self.name}: not all succeeded, as in {str(lines[:1])[:500]}")
        if len(lines) != work.size or {line["custom_id"] for line in lines} != work.ids():
            raise PeerError(f"{self.name}: {len(lines)} results for {work.size} requests")


class Service(System):
    """A system that takes batches, and answers while it works on them."""

    timeout_s: int | None = None
    """How long an answer of the upstream may take; None: as it comes."""
    tenant = "a"
    """Who hands work over, for systems that know tenants."""

    @abstractmethod
    def create(self, started: Started, prepared: bytes) -> list[str]:
        """Hand the work over; return the ids of the batches that it became."""

    @abstractmethod
    def finish(self, started: Started, batches: list[str]) -> bytes:
        """Wait until batches have ended; return all results."""

    @abstractmethod
    def cancel(self, started: Started, batches: list[str]) -> None:
        """Ask that batches be canceled; one that has ended is left alone."""

    def run(self, started: Started, prepared: bytes) -> bytes:
        return self.finish(started, self.create(started, prepared))


class HttpService(Service):
    """One whose results are read over HTTP."""

    @abstractmethod
    def results(self, started: Started, batch: str) -> list[str]:
        """Wait until a batch has ended; return the paths of its results."""

    def headers(self) -> dict[str, str]:
        """Return headers that name the tenant."""
        return {}

    def finish(self, started: Started, batches: list[str]) -> bytes:
        return b"\n".join(
            started.read("GET", path, **self.headers())
            for batch in batches
            for path in self.results(started, batch)
        )


@dataclass
class Measured:
    """One run: the clock goes from the first byte sent until all results have been read."""

    seconds: float
    cpu_s: float
    private_mb: float
    written_mb: float
    load: float = field(default_factory=lambda: os.getloadavg()[0])


def measure(system: System, started: Started, work: Work) -> Measured:
    """Do the work once.

    Raises:
        PeerError: The system did not do it, or is gone.
    """
    prepared = system.prepare(work)
    with sampled(started) as samples:
        written = started.written_bytes()
        cpu, begun = started.cpu_s(), time.perf_counter()
        try:
            results = system.run(started, prepared)
        except (OSError, HTTPException) as error:
            raise PeerError(repr(error)) from error
        seconds = time.perf_counter() - begun
        cpu = started.cpu_s() - cpu
    written = started.written_bytes() - written
    system.check(work, results)
    private_mb, written_mb = round(max(samples) / 1e6, 1), round(written / 1e6, 2)
    return Measured(round(seconds, 4), round(cpu, 3), private_mb, written_mb)


@contextlib.contextmanager
def sampled(started: Started) -> Iterator[list[int]]:
    """Sample the private memory of a system, in bytes, while the block runs."""
    samples, stop = [started.private_bytes()], threading.Event()

    def sample() -> None:
        while not stop.wait(0.1):
            samples.append(started.private_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def fresh_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="batchyard-bench-", ignore_cleanup_errors=True)


def pauses() -> Iterator[None]:
    """Wait between two polls: as long as costs the result 2 % at most, and the system little."""
    begun = time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < RUN_S:
        yield
        time.sleep(min(max(0.01, 0.02 * elapsed), 0.5))
    raise PeerError(f"no end after {RUN_S:.0f} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def launched(
    command: list[str], folder: Path, *, log: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a program on core 0 in a folder; it is killed at the end of the block."""
    with (
        (folder / log).open("a") as err,
        subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if log == SCRIPT_LOG else err,
            stderr=err,
            text=True,
            env=os.environ | {"HOME": str(folder)} | environment,
        ) as process,
    ):
        yard.core(process, 0)
        try:
            yield process
        finally:
            process.kill()


def wait_ready(started: Started, path: str) -> None:
    """Wait until a call is answered with 200."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < START_S:
        if started.processes[0].poll() is not None:
            raise PeerError(f"it ended with {started.processes[0].returncode}")
        with contextlib.suppress(OSError, HTTPException, PeerError):
            started.read("GET", path)
            return
        time.sleep(0.05)
    raise PeerError(f"not ready after {START_S:.0f} s")


@contextlib.contextmanager
def script(command: list[str], folder: Path, **environment: str) -> Iterator[Started]:
    """Run a program that does the work itself.

    It prints a line when it is ready, and one after each piece of work. A piece of work is a line
    with two paths: where to read and where to write.
    """
    with launched(command, folder, log=SCRIPT_LOG, **environment) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise PeerError((folder / SCRIPT_LOG).read_text()[-2_000:])
        yield Started([process])


def run_script(started: Started, prepared: Path, results: Path) -> bytes:
    begin_script(started, prepared, results)
    return end_script(started, results)


def begin_script(started: Started, prepared: Path, results: Path) -> None:
    process = started.processes[0]
    assert process.stdin is not None
    results.unlink(missing_ok=True)
    process.stdin.write(f"{prepared} {results}\n")
    process.stdin.flush()


def end_script(started: Started, results: Path) -> bytes:
    process = started.processes[0]
    assert process.stdout is not None
    if not process.stdout.readline():
        raise PeerError("the program ended")
    return results.read_bytes()
