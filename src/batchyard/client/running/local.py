"""The embedded yard of `--local`: a server process that lives no longer than this run.

Its standard input is a pipe that we hold: when this process ends, however it ends, the server sees
the end of the pipe and stops. Its data stays under the output folder, so the next start goes on.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from batchyard.client.problems import Detached, InputError, NeedsAttention
from batchyard.clock import SystemClock
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from batchyard.clock import Clock

KEY = "local"  # a yard without keys takes any
BEHIND = "server-of-the-run"  # the upstream of a yard that stands before the server of a run
CLAUDE = "claude=https://api.anthropic.com"
SIMULATED = "sim=simulated:"
START_TIMEOUT_S = 30.0
BUSY_TIMEOUT_S = 60.0  # an earlier yard may still finish the calls that it had in flight
STOP_TIMEOUT_S = 10.0
HOSTED = "api.anthropic.com"
RESTARTS_MAX = 3  # within one run; a server that ends more often has a reason in its log
_BUSY = 3  # exit code of a server whose data directory is in use
_TAIL_LINES = 8


@dataclass(frozen=True, slots=True)
class Address:
    """Where a yard listens."""

    url: str
    pid: int


class _Ready(msgspec.Struct):
    url: str
    pid: int


def default_upstreams() -> tuple[str, ...]:
    """Return the upstream to use when none was named: with a key the real one, else a simulated."""
    return (CLAUDE,) if os.environ.get("ANTHROPIC_API_KEY") else (SIMULATED,)


def is_simulated(upstreams: Sequence[str]) -> bool:
    """Whether all upstreams are simulated, so nothing is charged and reports are placeholders."""
    return bool(upstreams) and all(
        upstream.partition("=")[2].startswith("simulated:") for upstream in upstreams
    )


def is_hosted(upstreams: Sequence[str]) -> bool:
    """Whether all upstreams are the hosted API, which has a batch price of its own."""
    return bool(upstreams) and all(_host(upstream) == HOSTED for upstream in upstreams)


def check_upstreams(upstreams: Sequence[str]) -> None:
    """Refuse what no server would start with, before anything is shown or written.

    The options of `simulated:` are the server's business.

    Raises:
        InputError: one is not NAME=URL, or its key is not set.
    """
    for upstream in upstreams:
        name, _, url = upstream.partition("=")
        is_simulated = url.startswith("simulated:")
        if not name or not (is_simulated or _host(upstream)):
            raise InputError(
                f"--upstream {shown(upstream)} is not like NAME=https://host, NAME=http://host "
                "or NAME=simulated:"
            )
        own = _key_variable(name)
        keys = ("ANTHROPIC_API_KEY", own)
        if _host(upstream) == HOSTED and not any(map(os.environ.get, keys)):
            raise InputError(f"--upstream {shown(name)} needs a key: set {' or '.join(keys)}")


def _key_variable(name: str) -> str:
    return f"BATCHYARD_UPSTREAM_{name.upper().replace('-', '_')}_KEY"


def _host(upstream: str) -> str | None:
    """Return the host of an http(s) upstream, None when it is nothing like that."""
    try:
        parts = urlsplit(upstream.partition("=")[2])
    except ValueError:
        return None
    return parts.hostname if parts.scheme in {"http", "https"} else None


def find_running(data: Path) -> Address | None:
    """Return the address of the yard that works on `data` right now, None when there is none."""
    try:
        ready = msgspec.json.decode((data / "server.json").read_bytes(), type=_Ready)
        os.kill(ready.pid, 0)
    except (OSError, msgspec.DecodeError):
        return None
    return Address(ready.url, ready.pid)


class LocalYard:
    """A server process of our own."""

    def __init__(
        self,
        data: Path,
        log: Path,
        upstreams: Sequence[str],
        *,
        clock: Clock | None = None,
        key: str | None = None,
    ) -> None:
        """Describe one that does not run yet.

        Args:
            data: its directory.
            log: a file for what it says.
            upstreams: `NAME=URL`.
            clock: of waits.
            key: for the upstream `BEHIND`; None takes that of the environment.
        """
        self._key = key or os.environ.get("ANTHROPIC_API_KEY")
        self._clock = clock or SystemClock()
        self._data = data
        self._log = log
        self._upstreams = tuple(upstreams)
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._restarts = 0

    def start(self, pause: Callable[[float], bool], say: Callable[[str], None]) -> str:
        """Start the server and return its address.

        Args:
            pause: waits for seconds; returns True when the run is to be left.
            say: gets a sentence when there is something to wait for.

        Raises:
            NeedsAttention: it did not start; the message ends with the tail of its log.
            Detached: the run was left while another server held the data.
        """
        deadline_s = self._clock.monotonic_s() + BUSY_TIMEOUT_S
        has_said = False
        while True:
            self._data.mkdir(parents=True, exist_ok=True)
            process = self._spawn()
            line = _first_line(process, START_TIMEOUT_S)
            try:
                ready = msgspec.json.decode(line, type=_Ready)
            except msgspec.DecodeError:
                code = self._give_up(process)
            else:
                self._process, self._url = process, ready.url
                return ready.url
            if code != _BUSY or self._clock.monotonic_s() > deadline_s:
                raise NeedsAttention(self._explain(code))
            if not has_said:
                say("an earlier local server finishes its calls in flight; waiting for it")
                has_said = True
            if pause(0.5):
                raise Detached("detached")

    def locate(self, pause: Callable[[float], bool], say: Callable[[str], None]) -> str:
        """Return the address of now; a server that has ended is started again, a few times.

        Its data directory is the same, so it goes on with the batches that it had.

        Args:
            pause: as of `start`.
            say: as of `start`.

        Raises:
            NeedsAttention: it ended too often, or does not start.
            Detached: the run was left.
        """
        process = self._process
        code = None if process is None else process.poll()
        if process is None or code is None:
            return self._url
        if self._restarts == RESTARTS_MAX:
            raise NeedsAttention(
                f"the local server ended {RESTARTS_MAX + 1} times (exit code {code}); nothing is "
                f"lost, the same command tries again; its log is {self._log}"
            )
        self._restarts += 1
        say(
            f"the local server ended (exit code {code}); starting it again "
            f"({self._restarts} of {RESTARTS_MAX}), log {self._log}"
        )
        self._give_up(process)
        return self.start(pause, say)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Let the server end; return whether it has. It drains the calls in flight first."""
        process, self._process = self._process, None
        if process is None:
            return True
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            # Popen warns about a child that outlives its object; this one may, and ends by itself.
            process.returncode = 0
            return False
        return True

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [
            sys.executable, "-m", "batchyard", "serve", "--data", str(self._data),
            "--port", "0", "--lifeline",
        ]  # fmt: skip
        for upstream in self._upstreams:
            command += ["--upstream", upstream]
        environment = dict(os.environ)
        if self._key:
            environment.setdefault(_key_variable(BEHIND), self._key)
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own program
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for us alone
            )

    def _give_up(self, process: subprocess.Popen[bytes]) -> int:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _explain(self, code: int) -> str:
        try:
            text = self._log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        tail = "\n".join(f"  {line}" for line in text.splitlines()[-_TAIL_LINES:])
        return (
            f"the local server did not start (exit code {code}, log {self._log})\n{tail}".rstrip()
        )


def _first_line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    """Return the first line of the process's output, empty when there is none in time.

    What follows is read and dropped by a thread, to which the pipe belongs from then on: whoever
    closed it elsewhere would wait for that thread, and so for the end of the process.
    """
    assert process.stdout is not None
    output = process.stdout
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        line = output.readline() if selector.select(timeout_s) else b""
    threading.Thread(target=_drop, args=(output,), daemon=True).start()
    return line


def _drop(output: IO[bytes]) -> None:
    with output, contextlib.suppress(OSError):
        while output.read1(65_536):  # type: ignore[attr-defined] # a buffered reader
            pass
