"""LiteLLM: the executor of batches for servers that have none, in process; and its pass-through.

The pass-through hands Message Batches on to another service. It runs nothing, so only accepting a
batch can be compared.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers import locked
from peers.system import (
    Service,
    Started,
    begin_script,
    end_script,
    free_port,
    launched,
    script,
    wait_ready,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peers.work import Work

RUNNER = Path(__file__).with_name("programs") / "litellm_runner.py"
KEY = "sk-batchyard-bench-0123456789abcdef"
# Without it, the package asks a public host for its list of prices.
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}


class Executor(Service):
    name = "LiteLLM executor"
    version = locked.version("litellm", "litellm")
    durability = "memory only"

    def missing(self) -> str | None:
        return locked.missing("litellm")

    @contextlib.contextmanager
    def start(self, upstream: int, folder: Path) -> Iterator[Started]:
        self.folder = folder
        command = [locked.program("litellm", "python"), str(RUNNER)]
        command.append(f"http://127.0.0.1:{upstream}/v1")
        command += [str(self.in_flight)] if self.in_flight else []
        with script(command, folder, **QUIET) as started:
            yield started

    def prepare(self, work: Work) -> bytes:
        (self.folder / "requests.jsonl").write_bytes(work.lines())
        return b""

    def create(self, started: Started, prepared: bytes) -> list[str]:
        begin_script(started, self.folder / "requests.jsonl", self._results)
        return [str(self._results)]

    def finish(self, started: Started, batches: list[str]) -> bytes:
        return end_script(started, self._results)

    def cancel(self, started: Started, batches: list[str]) -> None:
        sign = self.folder / "cancel"
        sign.touch()
        while sign.exists():  # it removes it when it has done so
            time.sleep(0.002)

    @property
    def _results(self) -> Path:
        return self.folder / "results.jsonl"

    def succeeded(self, line: dict[str, Any]) -> bool:
        return bool((line.get("response") or {}).get("status_code") == 200)


@contextlib.contextmanager
def pass_through(upstream: int, folder: Path) -> Iterator[Started]:
    """Start the proxy with one worker; it hands `/anthropic/...` on to the stub."""
    port = free_port()
    config = folder / "litellm.json"
    config.write_text(json.dumps({"model_list": [], "general_settings": {"master_key": KEY}}))
    command = [locked.program("litellm", "litellm"), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    settings = QUIET | {
        "ANTHROPIC_API_BASE": f"http://127.0.0.1:{upstream}",
        "ANTHROPIC_API_KEY": "any",
        "PATH": str(Path(command[0]).parent) + ":/usr/bin:/bin",
    }
    with launched(command, folder, log="litellm.log", **settings) as process:
        started = Started([process], port)
        wait_ready(started, "/health/liveliness")
        yield started
