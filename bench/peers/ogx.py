"""OGX (formerly Llama Stack): a server that has Message Batches, the closest peer.

Its batch object is in SQLite; requests and results are in memory until the batch ends. It refuses
more than 1,000 requests, so more are made into several batches, all created at once. Requests go to
its vLLM provider, which passes Messages through as they are.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from peers import locked
from peers.system import Started, free_port, launched, wait_ready
from peers.wire import BATCHES, MessageBatches
from peers.work import MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from peers.work import Work


MOST = 1_000


def batched(size: int) -> list[slice]:
    return [slice(start, start + MOST) for start in range(0, size, MOST)]


class Ogx(MessageBatches):
    name = "OGX"
    version = locked.version("ogx", "ogx")
    durability = "memory only"

    @property
    def setting(self) -> str:
        return f"{super().setting}, batches of {MOST:,}"

    def missing(self) -> str | None:
        return locked.missing("ogx")

    def prepare(self, work: Work) -> bytes:
        model = f"vllm/{MODEL}"  # it takes models by provider
        return b"\n".join(work.messages(model, part) for part in batched(work.size))

    def create(self, started: Started, prepared: bytes) -> list[str]:
        bodies = prepared.split(b"\n")
        return [started.request("POST", BATCHES, body)["id"] for body in bodies]

    @contextlib.contextmanager
    def start(self, upstream: int, folder: Path) -> Iterator[Started]:
        port = free_port()
        config = folder / "ogx.json"  # YAML, of which JSON is a part
        config.write_text(json.dumps(self._config(folder, port, upstream)))
        command = [locked.program("ogx", "ogx"), "run", str(config), "--insecure"]
        with launched(command, folder, log="ogx.log") as process:
            started = Started([process], port)
            wait_ready(started, BATCHES)
            yield started

    def _config(self, folder: Path, port: int, upstream: int) -> dict[str, Any]:
        """Return the smallest configuration with Message Batches, as its `starter` has it."""
        messages: dict[str, Any] = {"kvstore": {"namespace": "message_batches", "backend": "kv"}}
        if self.in_flight:
            messages["max_concurrent_requests_per_batch"] = self.in_flight
        vllm: dict[str, Any] = {
            "base_url": f"http://127.0.0.1:{upstream}/v1",
            "max_tokens": 4096,
            "api_token": "any",
        }
        if self.timeout_s:
            vllm["network"] = {"timeout": self.timeout_s}
        tables = {"inference": "inference_store", "conversations": "openai_conversations"}
        tables |= {"prompts": "prompts", "connectors": "connectors"}
        return {
            "version": 2,
            "distro_name": "bench",
            "apis": ["inference", "messages"],
            "providers": {
                "inference": [
                    {"provider_id": "vllm", "provider_type": "remote::vllm", "config": vllm}
                ],
                "messages": [
                    {
                        "provider_id": "builtin",
                        "provider_type": "inline::builtin",
                        "config": messages,
                    }
                ],
            },
            "storage": {
                "backends": {
                    "kv": {"type": "kv_sqlite", "db_path": str(folder / "kv.db")},
                    "sql": {"type": "sql_sqlite", "db_path": str(folder / "sql.db")},
                },
                "stores": {"metadata": {"namespace": "registry", "backend": "kv"}}
                | {name: {"table_name": table, "backend": "sql"} for name, table in tables.items()},
            },
            "registered_resources": {
                "models": [
                    {
                        "model_id": MODEL,
                        "provider_id": "vllm",
                        "provider_model_id": MODEL,
                        "model_type": "llm",
                        "metadata": {},
                    }
                ]
            },
            "server": {"port": port, "host": "127.0.0.1"},
        }
