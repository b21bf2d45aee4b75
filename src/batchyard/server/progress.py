"""Live progress of a batch: an extension, for the run and for people.

`GET /v1/messages/batches/{id}/progress` answers JSON, or, when `text/event-stream` is accepted, an
event a second until the batch has ended. The compatible object keeps the API's frozen counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response, StreamingResponse

from batchyard import wire
from batchyard.server.batches import find

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from batchyard.model import Batch
    from batchyard.server.yard import Yard

_EVENT_INTERVAL_S = 1.0


class Progress:
    """The progress endpoint."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def respond(self, request: Request) -> Response:
        """Return how far a batch is."""
        batch = await find(self._yard, request)
        if "text/event-stream" in request.headers.get("accept", ""):
            return StreamingResponse(self._events(batch), media_type="text/event-stream")
        return Response(wire.encode(await self._object(batch)), media_type="application/json")

    async def _events(self, batch: Batch) -> AsyncIterator[bytes]:
        while True:
            progress = await self._object(batch)
            yield b"event: progress\ndata: %b\n\n" % wire.encode(progress)
            if progress["processing_status"] == "ended":
                return
            await self._yard.clock.sleep(_EVENT_INTERVAL_S)
            again = await self._yard.ledger.get(batch.workspace, batch.id)
            if again is None:
                return
            batch = again

    async def _object(self, batch: Batch) -> dict[str, object]:
        """Return the progress of the wire.

        `requests` is the size of the batch, `results` how many of them have a result, of which
        `counts` tells the kinds; `in_flight` have been taken up and have no result yet. `billing`
        is what the calls cost: `standard` (the list price), `batch` (half of it) or `simulated`
        (nothing). `tokens` are the sums of an ended batch. `paused` says, by pool, why requests of
        this batch wait for their upstream.
        """
        shards = shards_done = in_flight = 0
        waiting: dict[str, str] = {}
        counts, tokens = batch.counts, batch.tokens
        if batch.ended_us is None:
            progress = await self._yard.ledger.progress(batch.id)
            counts = progress.counts
            shards, shards_done = progress.shards, progress.shards_done
            in_flight = progress.inflight
            waiting = self._yard.worker.troubles(progress.pools)
        if not shards:  # an open batch has some: it ended, maybe since it was read
            batch = await self._yard.ledger.get(batch.workspace, batch.id) or batch
            counts = batch.counts
        return {
            "id": batch.id,
            "type": "message_batch_progress",
            "processing_status": batch.status,
            "requests": batch.requests,
            "results": counts.total,
            "counts": {
                "succeeded": counts.succeeded,
                "errored": counts.errored,
                "canceled": counts.canceled,
                "expired": counts.expired,
            },
            "in_flight": in_flight,
            "shards": shards,
            "shards_done": shards_done,
            "billing": batch.billing,
            "tokens": {
                "input": tokens.input,
                "output": tokens.output,
                "cache_write": tokens.cache_write,
                "cache_read": tokens.cache_read,
            },
            "paused": waiting,
        }
