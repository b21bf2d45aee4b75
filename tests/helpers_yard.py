"""The yard as a real process, and a raw HTTP client for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from helpers_upstream import DEADLINE_S, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

T = TypeVar("T")

KEY = "sk-test-key"
HEADERS = {
    "x-api-key": KEY,
    "anthropic-version": "2023-06-01",
    "content-type": "application/json",
}
BATCHES = "/v1/messages/batches"

# No waiting for real delays: the same code, smaller numbers.
QUICK = {
    "limits:BACKOFF_BASE_S": 0.01,
    "limits:BACKOFF_CAP_S": 0.05,
    "limits:UPSTREAM_PAUSE_S": 0.05,
    "limits:BREAKER_BASE_S": 0.01,
    "limits:BREAKER_CAP_S": 0.05,
}


@dataclass(frozen=True)
class Answer:
    """A whole HTTP response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def lines(self) -> list[Any]:
        """Return the objects of a JSONL body, which must be clean."""
        assert not self.body or self.body.endswith(b"\n")
        return [json.loads(line) for line in self.body.split(b"\n")[:-1]]


class Yard:
    """One `batchyard serve` process on one data directory; start it again after a stop or kill."""

    def __init__(
        self,
        data: Path,
        upstream: str,
        *,
        bounds: Mapping[str, object] | None = None,
        slots: int | None = None,
        lifeline: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Describe a yard.

        Args:
            data: its data directory; log and configuration lie beside it.
            upstream: URL of its one upstream.
            bounds: `module:NAME` of constants to change, for `helpers_serve.py`.
            slots: requests in flight per pool; the default of the program otherwise.
            lifeline: end when standard input closes.
            environment: added to that of the process.
        """
        self.data = data
        self.log = data.with_name(data.name + ".log")
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.port = 0
        self.starts = 0
        self._upstream = upstream
        self._bounds = bounds
        self._slots = slots
        self._lifeline = lifeline
        self._environment = environment or {}

    def command(self) -> list[str]:
        if self._bounds:
            script = Path(__file__).with_name("helpers_serve.py")
            program = [str(script), json.dumps(dict(self._bounds))]
        else:
            program = ["-m", "batchyard"]
        command = [sys.executable, *program, "serve", "--port", "0", "--data", str(self.data)]
        if self._slots is None:
            command += ["--upstream", f"up={self._upstream}"]
        else:
            config = self.data.with_name(self.data.name + ".toml")
            config.write_text(
                f'[[upstream]]\nname = "up"\nurl = "{self._upstream}"\nslots = {self._slots}\n'
            )
            command += ["--config", str(config)]
        return [*command, "--lifeline"] if self._lifeline else command

    def start(self) -> Self:
        """Start the process and wait until it is ready."""
        self.launch()
        return self.wait_ready()

    def launch(self) -> None:
        """Start the process."""
        assert self.process is None
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("BATCHYARD", "ANTH"))}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.PIPE if self._lifeline else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=inherited | dict(self._environment),
                bufsize=0,
            )

    def wait_ready(self) -> Self:
        """Wait for the first line of a process that was launched."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline() if has_more(self.process.stdout) else b""
        if not line:
            code = self._reap(kill=True)
            raise AssertionError(f"the yard did not start ({code}): {self.read_log()[-4_000:]}")
        hello = json.loads(line)
        assert hello["pid"] == self.process.pid
        assert hello["data"] == str(self.data)
        self.url = hello["url"]
        self.port = int(self.url.rpartition(":")[2])
        self.starts += 1
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process is not None:
            self.kill()

    def stop(self) -> int:
        """Send SIGTERM; return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> int:
        """Send SIGKILL; return the exit code."""
        return self._reap(kill=True)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end of the process."""
        return self._reap(kill=False)

    def close_input(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()

    def _reap(self, *, kill: bool) -> int:
        process, self.process = self.process, None
        assert process is not None
        if kill:
            # From now on the port may be anybody's: a client that goes on would speak to them.
            self.port = 0
            process.kill()
        try:
            return process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the yard did not end: {self.read_log()[-4_000:]}") from None
        finally:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def read_log(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    # HTTP -------------------------------------------------------------------------------------

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] = HEADERS,
    ) -> Answer:
        """Make one request on a connection of its own."""
        connection = self.connect()
        try:
            connection.connect()
            # A body that is refused unread breaks the pipe; the answer is there all the same.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body=body, headers=dict(headers))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=HEADERS | headers)

    def post(self, path: str, body: object, headers: Mapping[str, str] = HEADERS) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, headers)

    # Batches ----------------------------------------------------------------------------------

    def create(self, requests: Sequence[Mapping[str, object]], **headers: str) -> dict[str, Any]:
        answer = self.post(BATCHES, {"requests": requests}, HEADERS | headers)
        assert answer.status == 200, answer.body
        batch: dict[str, Any] = answer.json()
        return batch

    def batch(self, batch_id: str) -> dict[str, Any]:
        answer = self.get(f"{BATCHES}/{batch_id}")
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json()
        return found

    def progress(self, batch_id: str) -> dict[str, Any]:
        answer = self.get(f"{BATCHES}/{batch_id}/progress")
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json()
        return found

    def wait_ended(self, batch_id: str) -> dict[str, Any]:
        """Poll until a batch has ended; return it."""

        def ended() -> dict[str, Any] | None:
            batch = self.batch(batch_id)
            return batch if batch["processing_status"] == "ended" else None

        return poll(ended, lambda: f"{batch_id} has not ended: {self.progress(batch_id)}")

    def wait_progress(
        self, batch_id: str, what: Callable[[dict[str, Any]], object]
    ) -> dict[str, Any]:
        """Poll until something is true of the progress of a batch; return that."""

        def found() -> dict[str, Any] | None:
            told = self.progress(batch_id)
            return told if what(told) else None

        return poll(found, lambda: str(self.progress(batch_id)))

    def results(self, batch_id: str) -> dict[str, Any]:
        """Return the results of an ended batch by custom_id, each of which must be there once."""
        answer = self.get(f"{BATCHES}/{batch_id}/results")
        assert answer.status == 200, answer.body
        lines = answer.lines()
        found = {line["custom_id"]: line["result"] for line in lines}
        assert len(found) == len(lines), "a custom_id has two results"
        return found

    def run(self, prompts: Sequence[str], **headers: str) -> dict[str, Any]:
        """Create a batch of these prompts and return its results when it has ended."""
        batch = self.create([request(prompt) for prompt in prompts], **headers)
        self.wait_ended(batch["id"])
        return self.results(batch["id"])

    def files(self) -> list[str]:
        """Return the files below segments and spool."""
        found = []
        for part in ("segments", "spool"):
            root = self.data / part
            found += [str(p.relative_to(self.data)) for p in root.rglob("*") if not p.is_dir()]
        return sorted(found)


def has_more(pipe: IO[bytes]) -> bool:
    """Wait until there is something to read, or its end; whether there is."""
    waiting = select.poll()  # `select` takes no descriptor above 1,023
    waiting.register(pipe, select.POLLIN)
    return bool(waiting.poll(DEADLINE_S * 1_000))


def poll(what: Callable[[], T], why: Callable[[], str]) -> T:
    """Return the first true value of `what`."""
    end = time.monotonic() + DEADLINE_S
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"never happened: {why()}")
        time.sleep(0.01)


def request(prompt: str, custom_id: str | None = None, **params: object) -> dict[str, object]:
    """Return one request of a batch; its id is the prompt's name."""
    return {
        "custom_id": custom_id or prompt.partition("|")[0],
        "params": {
            "model": "scripted",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": prompt}],
        }
        | params,
    }


def answer_text(result: dict[str, Any]) -> str:
    """Return the text of a succeeded result."""
    assert result["type"] == "succeeded", result
    text: str = result["message"]["content"][0]["text"]
    return text


def assert_answered(results: Mapping[str, Any], prompts: Iterable[str]) -> None:
    """Check that each prompt has its own answer, and nothing else is there."""
    expected = {prompt.partition("|")[0]: text_of(prompt) for prompt in prompts}
    assert {name: answer_text(result) for name, result in results.items()} == expected
