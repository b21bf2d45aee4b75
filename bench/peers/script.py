"""The script that a user would write: the official client in its newest generation, on asyncio."""

from __future__ import annotations

import contextlib
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers.system import Started, System, run_script, script

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peers.work import Work

PROGRAM = Path(__file__).with_name("programs") / "sdk_script.py"


class SdkScript(System):
    name = "script with the official SDK"
    version = version("anthropic")
    durability = "a file; starts anew"

    @contextlib.contextmanager
    def start(self, upstream: int, folder: Path) -> Iterator[Started]:
        self.folder = folder
        address = f"http://127.0.0.1:{upstream}"
        command = [sys.executable, str(PROGRAM), address, str(self.in_flight)]
        with script(command, folder) as started:
            yield started

    def prepare(self, work: Work) -> bytes:
        (self.folder / "requests.json").write_bytes(work.messages())
        return b""

    def run(self, started: Started, prepared: bytes) -> bytes:
        return run_script(started, self.folder / "requests.json", self.folder / "answers.jsonl")

    def succeeded(self, line: dict[str, Any]) -> bool:
        return bool(line["message"]["stop_reason"] == "end_turn")
