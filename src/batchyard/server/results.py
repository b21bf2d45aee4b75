"""The results of an ended batch, streamed as they lie on disk: no parsing, no merge.

The length is announced, so a transfer that is cut is always noticed; on an error in the middle the
connection is aborted. A reader that is gone, or reads nothing for a while, is let go.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.dispatch.ending import read_manifest
from batchyard.errors import NotFound
from batchyard.server.batches import find
from batchyard.server.streaming import while_connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from batchyard.model import Extent
    from batchyard.server.yard import Yard

WRITE_IDLE_S = 60.0
_CHUNK_BYTES = limits.MIB


class Results:
    """The results endpoint, an ASGI application of its own."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def respond(self, request: Request) -> ResultsResponse:
        """Return the stream of result lines."""
        batch = await find(self._yard, request)
        if batch.ended_us is None or batch.archived_us is not None:
            raise NotFound(
                f"Message Batch {batch.id} has no available results.", should_retry=False
            )
        extents = await asyncio.to_thread(read_manifest, self._yard.store, batch.id)
        return ResultsResponse(self._yard, extents)


class ResultsResponse:
    """One response, sent piece by piece."""

    def __init__(self, yard: Yard, extents: Sequence[Extent]) -> None:
        self._store = yard.store
        self._extents = extents

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        length = sum(extent.length for extent in self._extents)
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", b"application/x-jsonl"),
                    (b"content-length", str(length).encode()),
                ],
            }
        )
        async for chunk in self._chunks():
            body = {"type": "http.response.body", "body": chunk, "more_body": True}
            try:
                async with asyncio.timeout(WRITE_IDLE_S):
                    await send(body)
            except TimeoutError:
                return  # a reader that reads nothing is let go
        await send({"type": "http.response.body", "body": b""})

    async def _chunks(self) -> AsyncIterator[bytes]:
        for extent in self._extents:
            for offset in range(0, extent.length, _CHUNK_BYTES):
                size = min(_CHUNK_BYTES, extent.length - offset)
                yield await asyncio.to_thread(self._store.read, extent.segment, offset, size)
