"""The Message Batches wire, as the yard and OGX serve it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peers.system import Started, System, pauses

if TYPE_CHECKING:
    from peers.work import Work

BATCHES = "/v1/messages/batches"


class MessageBatches(System):
    """A server of the Message Batches API."""

    def prepare(self, work: Work) -> bytes:
        return work.messages()

    def run(self, started: Started, prepared: bytes) -> bytes:
        return finish(started, started.request("POST", BATCHES, prepared)["id"])

    def succeeded(self, line: dict[str, Any]) -> bool:
        return bool(line["result"]["type"] == "succeeded")


def finish(started: Started, batch: str) -> bytes:
    """Wait for the end of a batch; return its results."""
    for _ in pauses():
        if started.request("GET", f"{BATCHES}/{batch}")["processing_status"] == "ended":
            break
    return started.read("GET", f"{BATCHES}/{batch}/results")
