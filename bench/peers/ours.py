"""The yard, as `batchyard serve` starts it: nothing is set but the address of the upstream."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING

import raw

from peers.system import IN_FLIGHT, PeerError, Started, launched
from peers.wire import MessageBatches

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path


class Yard(MessageBatches):
    name = "batchyard"
    version = raw.commit()
    durability = "survives power cuts"

    def __init__(self, *, has_tenants: bool = True) -> None:
        super().__init__()
        self._has_tenants = has_tenants

    @property
    def setting(self) -> str:
        tenants = "" if self._has_tenants else ", one workspace"
        return f"defaults ({IN_FLIGHT} in flight){tenants}"

    def headers(self) -> dict[str, str]:
        if not self._has_tenants:
            return {}
        return {"anthropic-workspace-id": f"wrkspc_{self.tenant}"}

    @contextlib.contextmanager
    def start(self, upstream: int, folder: Path) -> Iterator[Started]:
        command = [sys.executable, "-m", "batchyard", "serve", "--data", str(folder / "data")]
        command += ["--port", "0", *self._upstream(upstream, folder)]
        log = folder / "yard.log"
        before = log.stat().st_size if log.exists() else 0
        with launched(command, folder, log=log.name) as process:
            yield Started([process], _port(process, log, before))

    def _upstream(self, port: int, folder: Path) -> list[str]:
        url = f"http://127.0.0.1:{port}"
        if self.timeout_s is None:
            return ["--upstream", f"stub={url}"]
        config = folder / "batchyard.toml"
        config.write_text(
            f'[[upstream]]\nname = "stub"\nurl = "{url}"\ntimeout = {self.timeout_s}\n'
        )
        return ["--config", str(config)]


def _port(process: subprocess.Popen[str], log: Path, before: int) -> int:
    """Wait for the ready line; return the port in it."""
    while process.poll() is None:
        for line in log.read_bytes()[before:].splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return int(json.loads(line)["url"].rpartition(":")[2])
        time.sleep(0.005)
    raise PeerError(log.read_text()[-2_000:])
