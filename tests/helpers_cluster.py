"""A Ray cluster as other processes, and `batchyard cluster` on it."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from helpers_many import SHORT
from helpers_workers import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO, Self

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-ray" / "bin" / "python"
START_S = 240.0
"""For a process that imports Ray and starts or joins a cluster, on a busy machine."""

# A busy machine must not take a lease for lost.
LEASE_US = 8_000_000
# What Ray notices after a minute, it notices sooner.
QUICK_RAY = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "60",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A local cluster would write a token into the home of whoever runs the tests.
    "RAY_AUTH_MODE": "disabled",
    # Processes in stock would take the cores of this machine.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    # What serves a client is forked by a process that uses gRPC, and would at times die of it.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}


def environment(
    more: Mapping[str, str], bounds: Mapping[str, object] = MappingProxyType({})
) -> dict[str, str]:
    """Return the environment of a process: without that of the tests, with short bounds."""
    left_out = ("BATCHYARD", "ANTH", "AWS_", "RAY_", "PYTHON")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    both = json.dumps({**SHORT, "limits:LEASE_US": LEASE_US, **bounds})
    ours = {"PYTHONPATH": str(BOUNDS), "BATCHYARD_TEST_BOUNDS": both}
    return kept | QUICK_RAY | ours | dict(more)


def read_line(stream: IO[bytes] | None, log: Path) -> dict[str, Any]:
    """Return the next JSON line of a process."""
    assert stream is not None
    ready, _, _ = select.select([stream], [], [], START_S)
    line = stream.readline() if ready else b""
    assert line, f"no answer: {log.read_text('utf-8', 'replace')[-6_000:]}"
    found: dict[str, Any] = json.loads(line)
    return found


class RayCluster:
    """A head and two nodes; see `cluster/nodes.py`. The nodes know no key of any store."""

    def __init__(self, root: Path, *, cpus: int = 2) -> None:
        assert PYTHON.exists(), "these tests need .venv-ray: `make test` sets it up"
        self.root = root
        self._log = root / "nodes.log"
        # Its sockets lie below, and their names may not be long.
        self._folder = tempfile.mkdtemp(prefix="yard-ray-", dir="/tmp")
        self.client_port = _free_port()
        options = json.dumps({"client_port": self.client_port, "cpus": cpus})
        script = Path(__file__).with_name("cluster") / "nodes.py"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(PYTHON), str(script), options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment({"RAY_TMPDIR": self._folder}),
                bufsize=0,
            )
        try:
            hello = read_line(self._process.stdout, self._log)
        except BaseException:
            self.__exit__()
            raise
        self.address: str = hello["address"]
        self.nodes: list[str] = hello["nodes"]

    def do(self, what: str, **arguments: object) -> None:
        """Do something to it; see `cluster/nodes.py`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        self.nodes = read_line(self._process.stdout, self._log).get("nodes", [])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()
            shutil.rmtree(self._folder, ignore_errors=True)


class Launcher:
    """One `batchyard cluster up` process."""

    def __init__(self, root: Path, shared: Mapping[str, str], config: str, *options: str) -> None:
        """Describe it.

        Args:
            root: for its log and settings.
            shared: environment that leads to the stores.
            config: settings, TOML.
            *options: of the command.
        """
        self._shared = dict(shared)
        self._file = root / "cluster.toml"
        self._file.write_text(config)
        self.log = root / "cluster.log"
        self._options = options
        self.hello: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the process."""
        command = ["up", "--config", str(self._file), *self._options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(PYTHON), "-m", "batchyard", "cluster", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(self._shared, {"cluster.fleet:LOOK_INTERVAL_S": 0.2}),
                start_new_session=True,
                bufsize=0,
            )

    def __enter__(self) -> Self:
        self.launch()
        assert self._process is not None
        try:
            self.hello = read_line(self._process.stdout, self.log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        assert process is not None
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal, as `kill` does, or as a terminal does to the whole group."""
        assert self._process is not None
        (os.killpg if group else os.kill)(self._process.pid, number)

    def wait(self) -> int:
        """Wait for its end; return its exit code."""
        assert self._process is not None
        return self._process.wait(START_S)

    def read_log(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def working(self) -> set[str]:
        """Return the workers that work, by what it has logged."""
        began = re.findall(r" working worker=(\S+)", self.read_log())
        ended = re.findall(r" (?:left|ended|killed) worker=([^\s:]+)", self.read_log())
        return set(began) - set(ended)

    def wait_working(self, number: int, *, but: Sequence[str] = ()) -> set[str]:
        """Wait until so many workers work, none of them among `but`; return their names."""
        end_s = time.monotonic() + START_S
        while len(found := self.working() - set(but)) != number:
            assert time.monotonic() < end_s, f"{found}: {self.read_log()[-4_000:]}"
            time.sleep(0.05)
        return found


def status(address: str, shared: Mapping[str, str], *options: str) -> dict[str, Any]:
    """Return what `batchyard cluster status --json` says."""
    done = run("status", "--address", address, "--json", *options, shared=shared)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(*arguments: str, shared: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a `batchyard cluster` command to its end."""
    return subprocess.run(
        [str(PYTHON), "-m", "batchyard", "cluster", *arguments],
        capture_output=True, text=True, timeout=START_S, env=environment(shared), check=False,
    )  # fmt: skip


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
