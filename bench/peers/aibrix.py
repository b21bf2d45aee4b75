"""AIBrix batch: files and batches in the other dialect, state in Redis, objects in local files.

Redis is the one of Debian with its own settings; it runs on the same core as the service, and its
processor time and memory count. By default AIBrix finds its concurrency itself, from 8 on. It
refuses more than 50,000 requests, so more are made into several batches, all created at once.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers import locked
from peers.system import HttpService, PeerError, Started, free_port, launched, pauses, wait_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peers.work import Work

LAUNCH = Path(__file__).with_name("programs") / "aibrix_launch.py"
MOST = 50_000  # requests of a batch
BOUNDARY = "batchyardbench"
KIND = f"multipart/form-data; boundary={BOUNDARY}"


class AIBrix(HttpService):
    name = "AIBrix with Redis"
    version = locked.version("aibrix", "aibrix")
    durability = "survives a kill of the service"

    def missing(self) -> str | None:
        if shutil.which("redis-server") is None:
            return "redis-server is not there: bench/peers/get-redis"
        return locked.missing("aibrix")

    @contextlib.contextmanager
    def start(self, upstream: int, folder: Path) -> Iterator[Started]:
        with redis(folder) as (process, port), service(upstream, folder, port) as started:
            started.processes.append(process)
            yield started

    def prepare(self, work: Work) -> bytes:
        return work.lines()

    def create(self, started: Started, prepared: bytes) -> list[str]:
        """Upload files, and make a batch of each."""
        lines = prepared.splitlines(keepends=True)
        parts = [b"".join(lines[at : at + MOST]) for at in range(0, len(lines), MOST)]
        return [self.create_one(started, part) for part in parts]

    def create_one(self, started: Started, part: bytes) -> str:
        """Upload a file, and make a batch of it."""
        file = started.request("POST", "/v1/files", form(part), content_type=KIND)
        batch: dict[str, Any] = {
            "input_file_id": file["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        client: dict[str, Any] = {}
        if self.in_flight:
            client = {"max_concurrency": self.in_flight, "adaptive_concurrency": False}
        if self.timeout_s:
            client["request_timeout_seconds"] = self.timeout_s
        if client:
            batch["aibrix"] = {"client": client}
        return str(started.request("POST", "/v1/batches", json.dumps(batch).encode())["id"])

    def results(self, started: Started, batch: str) -> list[str]:
        shown: dict[str, Any] = {}
        for _ in pauses():
            shown = started.request("GET", f"/v1/batches/{batch}")
            if shown["status"] in {"completed", "cancelled"}:
                break
            if shown["status"] in {"failed", "expired"}:
                raise PeerError(f"{shown['status']}: {shown.get('errors')}")
        files = [shown[name] for name in ("output_file_id", "error_file_id") if shown.get(name)]
        return [f"/v1/files/{file}/content" for file in files]

    def cancel(self, started: Started, batches: list[str]) -> None:
        for batch in batches:
            started.read("POST", f"/v1/batches/{batch}/cancel")

    def succeeded(self, line: dict[str, Any]) -> bool:
        return bool((line.get("response") or {}).get("status_code") == 200)


def form(lines: bytes) -> bytes:
    """Return the body of an upload of these requests."""
    part = '--{}\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    start = part.format(BOUNDARY, "purpose", "") + "batch\r\n"
    start += part.format(BOUNDARY, "file", '; filename="requests.jsonl"')
    return start.encode() + lines + f"\r\n--{BOUNDARY}--\r\n".encode()


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[tuple[Any, int]]:
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    with launched(command, folder, log="redis.log") as process:
        yield process, port


@contextlib.contextmanager
def service(upstream: int, folder: Path, redis_port: int) -> Iterator[Started]:
    port = free_port()
    settings = {
        "STORAGE_TYPE": "local",
        "STORAGE_LOCAL_PATH": str(folder / "objects"),
        "METASTORE_TYPE": "redis",
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(redis_port),
        "LOG_PATH": str(folder / "aibrix.python.log"),
        "LOG_LEVEL": "WARNING",
    }
    command = [locked.program("aibrix", "python"), str(LAUNCH), str(port)]
    command.append(f"http://127.0.0.1:{upstream}")
    with launched(command, folder, log="aibrix.log", **settings) as process:
        started = Started([process], port)
        wait_ready(started, "/readyz")
        yield started
