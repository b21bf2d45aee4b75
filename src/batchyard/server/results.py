"""The results of an ended batch, streamed as they lie on disk: no parsing, no merge.

A transfer that is cut is always noticed: it comes in chunks, the last of which says so. Not every
client notices that less came than was announced. On an error in the middle the connection is
closed. A reader that is gone, or reads nothing for a while, is let go. The bytes never change, so a
range continues a cut transfer.
"""

from __future__ import annotations

import asyncio
import zlib
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

from batchyard.checksum import BLOCK_BYTES, is_block
from batchyard.dispatch.ending import read_manifest
from batchyard.errors import DamagedError, NotFound, RangeNotSatisfiable
from batchyard.server import byte_range
from batchyard.server.batches import find
from batchyard.server.byte_range import Span
from batchyard.server.guard import error_response
from batchyard.server.streaming import while_connected

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from batchyard.model import Extent
    from batchyard.segments import Segments
    from batchyard.server.yard import Yard

WRITE_IDLE_S = 60.0
_GZIP_LEVEL = 1  # the next levels cost twice the time for a tenth of the size
_GZIP_WBITS = 31  # zlib's code for a gzip header and trailer
_GZIP_BYTES_MIN = 1_024
_BUFFER_BYTES = 2 * BLOCK_BYTES  # two of them: one is filled while the other is sent


class Results:
    """The results endpoint, an ASGI application of its own."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def respond(self, request: Request) -> ASGIApp:
        """Return the stream of result lines, or the part of it that a range names."""
        batch = await find(self._yard, request)
        if batch.ended_us is None or batch.archived_us is not None:
            raise NotFound(
                f"Message Batch {batch.id} has no available results.", should_retry=False
            )
        try:
            extents = await asyncio.to_thread(self._begin, batch.id)
        except DamagedError:
            await find(self._yard, request)  # it was deleted meanwhile: 404
            raise
        length = sum(extent.length for extent in extents)
        span = byte_range.read(request.headers.get("range"), length)
        if request.headers.get("if-range") not in {None, f'"{batch.id}"'}:
            span = None
        if span is not None and span.is_empty:
            error = RangeNotSatisfiable(f"range: the results have {length} bytes")
            response = error_response(error, request.state.request_id)
            response.headers["content-range"] = f"bytes */{length}"
            return response
        gzip = (
            span is None
            and length >= _GZIP_BYTES_MIN
            and _accepts_gzip(request.headers.get("accept-encoding", ""))
        )
        return ResultsResponse(self._yard.store, extents, batch.id, span, gzip=gzip)

    def _begin(self, batch_id: str) -> Sequence[Extent]:
        """Return the extents, when the first bytes are there and whole. Blocks."""
        extents = read_manifest(self._yard.store, batch_id)
        if extents:
            read_block(self._yard.store, extents[0], 0)
        return extents


class ResultsResponse:
    """One response, sent piece by piece."""

    def __init__(
        self,
        store: Segments,
        extents: Sequence[Extent],
        tag: str,
        span: Span | None,
        *,
        gzip: bool,
    ) -> None:
        self._store = store
        self._extents = extents
        self._tag = tag.encode()
        self._length = sum(extent.length for extent in extents)
        self._span = span
        self._gzip = gzip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        status = 200 if self._span is None else 206
        await send({"type": "http.response.start", "status": status, "headers": self._headers()})
        chunks = self._chunks(self._span or Span(0, self._length))
        async with aclosing(_gzipped(chunks) if self._gzip else chunks) as body:
            async for chunk in body:
                message = {"type": "http.response.body", "body": chunk, "more_body": True}
                try:
                    async with asyncio.timeout(WRITE_IDLE_S):
                        await send(message)
                except TimeoutError:
                    return  # a reader that reads nothing is let go
        await send({"type": "http.response.body", "body": b""})

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"content-type", b"application/x-jsonl"),
            (b"accept-ranges", b"bytes"),
            (b"vary", b"accept-encoding"),
        ]
        if self._gzip:  # other bytes, so another tag
            return [*headers, (b"etag", b'"%b-gzip"' % self._tag), (b"content-encoding", b"gzip")]
        headers.append((b"etag", b'"%b"' % self._tag))
        span = self._span
        if span is not None:
            what = b"bytes %d-%d/%d" % (span.start, span.end - 1, self._length)
            headers += [
                (b"content-range", what),
                (b"content-length", b"%d" % (span.end - span.start)),
            ]
        return headers

    async def _chunks(self, span: Span) -> AsyncGenerator[memoryview]:
        """Yield the bytes of a span, each part until the next one is asked for.

        A thread reads and checks the next ones meanwhile; what is wrong with those does not keep
        these from being sent.
        """
        size = min(_BUFFER_BYTES, self._length)
        free, other = memoryview(bytearray(size)), memoryview(bytearray(size))
        filling: asyncio.Task[memoryview] | None = None
        try:
            for group in _groups(_blocks(self._extents, span)):
                filled = None if filling is None else await filling
                filling = asyncio.create_task(asyncio.to_thread(self._fill, free, group))
                free, other = other, free
                for chunk in _cut(filled):
                    yield chunk
            if filling is not None:
                for chunk in _cut(await filling):
                    yield chunk
        finally:
            if filling is not None:
                filling.cancel()

    def _fill(self, buffer: memoryview, group: Sequence[_Block]) -> memoryview:
        """Read blocks into a buffer, and return what of it is to be sent. Blocks.

        Raises:
            DamagedError: one is not what was written.
        """
        at = 0
        for block in group:
            into = buffer[at : at + block.length]
            self._store.read_into(block.extent.segment, block.offset, into)
            check_block(into, block.extent, block.offset)
            at += block.length
        return buffer[group[0].start : at - block.length + block.end]


class _Block(NamedTuple):
    """A block of an extent, from `offset` on, of which the bytes `start` to `end` are asked for."""

    extent: Extent
    offset: int
    length: int
    start: int
    end: int


def _blocks(extents: Sequence[Extent], span: Span) -> Iterator[_Block]:
    """Yield the blocks that hold a span of the whole body; the span may cut the first and last."""
    begin = 0  # of the extent, in the whole body
    for extent in extents:
        start = max(0, span.start - begin)
        end = min(extent.length, span.end - begin)
        first = start - start % BLOCK_BYTES if start < end else end
        for offset in range(first, end, BLOCK_BYTES):
            length = min(BLOCK_BYTES, extent.length - offset)
            yield _Block(extent, offset, length, max(0, start - offset), min(length, end - offset))
        begin += extent.length


def _cut(filled: memoryview | None) -> Iterator[memoryview]:
    """Yield what is sent at a time: small enough for a slow reader."""
    if filled is not None:
        for at in range(0, len(filled), BLOCK_BYTES):
            yield filled[at : at + BLOCK_BYTES]


def _groups(blocks: Iterator[_Block]) -> Iterator[list[_Block]]:
    """Yield as many blocks at a time as go into a buffer."""
    group: list[_Block] = []
    length = 0
    for block in blocks:
        if length + block.length > _BUFFER_BYTES:
            yield group
            group, length = [], 0
        group.append(block)
        length += block.length
    if group:
        yield group


def read_block(store: Segments, extent: Extent, offset: int) -> bytes:
    """Read one block of an extent. Blocks.

    Raises:
        DamagedError: it is not what was written.
    """
    block = store.read(extent.segment, offset, min(BLOCK_BYTES, extent.length - offset))
    check_block(block, extent, offset)
    return block


def check_block(block: bytes | memoryview, extent: Extent, offset: int) -> None:
    """Compare one block of an extent with its checksum.

    Raises:
        DamagedError: it is not what was written.
    """
    if not is_block(block, offset // BLOCK_BYTES, extent.blocks):
        raise DamagedError(f"segment {extent.segment} is damaged in the mebibyte at {offset}")


def _accepts_gzip(header: str) -> bool:
    """Whether an `Accept-Encoding` names gzip, and not with a weight of 0."""
    for item in header.lower().split(","):
        coding, _, parameters = item.partition(";")
        if coding.strip() == "gzip":
            weight = parameters.replace(" ", "").removeprefix("q=")
            return weight == "" or weight.strip("0.") != ""
    return False


async def _gzipped(chunks: AsyncGenerator[memoryview]) -> AsyncGenerator[bytes]:
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WBITS)
    async with aclosing(chunks) as whole:
        async for chunk in whole:
            packed = await asyncio.to_thread(packer.compress, chunk)
            if packed:
                yield packed
    yield packer.flush()
