"""From the body of a create call to a requests segment, never whole in memory.

The body is spooled to a file without a name, so a crash leaves nothing; split over a mapping of it;
and written out again in dispatch order by a thread.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from batchyard import limits, segments, strict, wire
from batchyard.dispatch.routes import Routes, dispatch_order
from batchyard.errors import DiskFull, InvalidRequest, StoreError
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
    digest = hashlib.sha256()
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=limits.DISK_CHUNK_BYTES) as file:
            async for chunk in body_chunks(request, limits.BATCH_BODY_BYTES_MAX):
                file.write(chunk)
                digest.update(chunk)
            file.flush()
            yield Upload(file, digest.digest())
    except OSError as error:  # also of the close, which writes what is left
        kind = DiskFull if error.errno in {errno.ENOSPC, errno.EDQUOT} else StoreError
        raise kind(f"cannot spool a body: {error.strerror}") from error


def accept(upload: Upload, batch_id: str, routes: Routes, store: Segments) -> Accepted:
    """Split an upload and write its requests segment, durable on return. Blocks.

    Raises:
        InvalidRequest: the envelope is wrong; nothing was written.
        StoreError: the segment could not be written.
    """
    entries = entries_of(upload)
    pools = routes.pools(entries)
    order = dispatch_order(pools)
    sizes = sizes_of(entries)
    shards = plan_shards(entries, sizes, pools, order)
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
