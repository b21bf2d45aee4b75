"""From the body of a create call to a requests segment, never whole in memory.

The body is spooled to a file without a name, so a crash leaves nothing; split over a mapping of it;
and written out again in dispatch order by a thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from batchyard import limits, segments, strict, wire
from batchyard.dispatch.prefix import order_keys
from batchyard.dispatch.routes import Routes, dispatch_order
from batchyard.errors import DiskFull, InvalidRequest, StoreError, is_disk_full
from batchyard.segments.requests import Records, plan_shards, sizes_of
from batchyard.server.guard import body_chunks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from starlette.requests import Request

    from batchyard.model import ShardPlan
    from batchyard.segments import Segments
    from batchyard.wire import Entry


@dataclass(frozen=True, slots=True)
class Upload:
    """A body on disk."""

    file: IO[bytes]
    digest: bytes
    """SHA-256."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of an upload."""

    requests: int
    shards: Sequence[ShardPlan]


@asynccontextmanager
async def spooled(request: Request, directory: Path) -> AsyncIterator[Upload]:
    """Receive the body of a request into a file that is gone afterwards.

    Raises:
        InvalidRequest, TooLarge: it is coded, too slow, too large, …
        StoreError: the disk failed; DiskFull when there is no room.
    """
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            spool = _Spool(file)
            try:
                async for chunk in body_chunks(request, limits.BATCH_BODY_BYTES_MAX):
                    await spool.add(chunk)
            finally:
                await spool.rest()
            yield Upload(file, spool.finish())
    except OSError as error:  # also of the close, which writes what is left
        kind = DiskFull if is_disk_full(error) else StoreError
        raise kind(f"cannot spool a body: {error.strerror}") from error


class _Spool:
    """Writes and digests a body in pieces: those of a large one in a thread, as the next arrive."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._chunks: list[bytes] = []
        self._length = 0
        self._writing: asyncio.Future[None] | None = None

    async def add(self, chunk: bytes) -> None:
        """Take a chunk in; waits while the disk is a piece behind.

        Raises:
            OSError: it could not be written, or one before it.
        """
        self._chunks.append(chunk)
        self._length += len(chunk)
        if self._length >= limits.SPOOL_PIECE_BYTES:
            piece, self._chunks, self._length = self._chunks, [], 0
            if self._writing is not None:
                await asyncio.shield(self._writing)
            self._writing = asyncio.ensure_future(asyncio.to_thread(self._write, piece))

    async def rest(self) -> None:
        """Wait until no thread is at the file, which may be closed then."""
        if self._writing is not None:
            await asyncio.wait((self._writing,))
            self._writing.exception()  # `finish` raises it, unless there is another error already

    def finish(self) -> bytes:
        """Write what is left, and return the digest of all.

        Raises:
            OSError: it could not be written, or what came before it.
        """
        if self._writing is not None:
            self._writing.result()
        self._write(self._chunks)
        return self._digest.digest()

    def _write(self, chunks: list[bytes]) -> None:
        piece = b"".join(chunks)
        self._digest.update(piece)
        view = memoryview(piece)
        while view:
            view = view[self._file.write(view) :]


def accept(upload: Upload, batch_id: str, routes: Routes, store: Segments) -> Accepted:
    """Split an upload and write its requests segment, durable on return. Blocks.

    Raises:
        InvalidRequest: the envelope is wrong; nothing was written.
        StoreError: the segment could not be written.
    """
    entries = entries_of(upload)
    pools = routes.pools(entries)
    keys = order_keys(entries)
    order = dispatch_order(pools, keys)
    sizes = sizes_of(entries)
    shards = plan_shards(entries, sizes, pools, order, keys)
    records = Records(entries, sizes, order, shards)
    store.put(segments.requests_name(batch_id), records.chunks())
    return Accepted(len(entries), records.shards())


def entries_of(upload: Upload) -> list[Entry]:
    """Split an upload into its requests, which are views into it. Blocks.

    Raises:
        InvalidRequest: the envelope is wrong, or the JSON of a request could be read in two ways.
    """
    upload.file.seek(0, 2)
    if upload.file.tell() == 0:
        raise InvalidRequest("The request body is not valid JSON: it is empty")
    # Not closed by hand: the requests, and the traceback of an error, hold views into it, and to
    # close it under them would fail. It goes with the last of them.
    body = mmap.mmap(upload.file.fileno(), 0, access=mmap.ACCESS_READ)
    entries = wire.split(memoryview(body))
    for index, entry in enumerate(entries):
        problem = strict.problem(bytes(entry.params))
        if problem is not None:
            raise InvalidRequest(f"requests.{index}.params{problem}")
    return entries
