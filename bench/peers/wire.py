"""The Message Batches wire, as the yard and OGX serve it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from peers.system import HttpService, PeerError, Started, pauses

if TYPE_CHECKING:
    from peers.work import Work

BATCHES = "/v1/messages/batches"


class MessageBatches(HttpService):
    """A server of the Message Batches API."""

    def prepare(self, work: Work) -> bytes:
        return work.messages()

    def create(self, started: Started, prepared: bytes) -> list[str]:
        return [started.request("POST", BATCHES, prepared, **self.headers())["id"]]

    def results(self, started: Started, batch: str) -> list[str]:
        path = f"{BATCHES}/{batch}"
        for _ in pauses():
            if started.request("GET", path, **self.headers())["processing_status"] == "ended":
                break
        return [f"{path}/results"]

    def cancel(self, started: Started, batches: list[str]) -> None:
        for batch in batches:
            with contextlib.suppress(PeerError):
                started.read("POST", f"{BATCHES}/{batch}/cancel", **self.headers())

    def succeeded(self, line: dict[str, Any]) -> bool:
        return bool(line["result"]["type"] == "succeeded")
