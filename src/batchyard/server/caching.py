"""What prompt caching has done for an ended batch: an extension.

`GET /v1/messages/batches/{id}/cache` is computed on demand: the prefixes from the requests segment,
the tokens from the result lines, both read in pieces by a thread. One report at a time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import Response

from batchyard import wire
from batchyard.errors import DamagedError, InvalidRequest, NotFound
from batchyard.server.batches import find
from batchyard.server.cache_report import Report

if TYPE_CHECKING:
    from starlette.requests import Request

    from batchyard.server.yard import Yard


class Caching:
    """The cache report endpoint."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self._turn = asyncio.Lock()

    async def respond(self, request: Request) -> Response:
        """Return what of the prompts of a batch was read from caches, and why others could not."""
        batch = await find(self._yard, request)
        if batch.ended_us is None:
            raise InvalidRequest(
                f"Message Batch {batch.id} has not ended. Its cache report can be read when "
                "processing_status is ended.",
                should_retry=False,
            )
        if batch.archived_us is not None:
            raise NotFound(
                f"Message Batch {batch.id} has no available results.", should_retry=False
            )
        report = Report(batch.id, batch.requests, batch.billing)
        async with self._turn:
            steps = report.steps(self._yard.store)
            try:
                while await asyncio.to_thread(next, steps, None) is not None:
                    pass
            except DamagedError:
                await find(self._yard, request)  # it was deleted meanwhile: 404
                raise
        return Response(wire.encode(report.object()), media_type="application/json")
