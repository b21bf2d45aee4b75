"""From the body of a create call to a requests segment, never whole in memory.

While the body arrives, a thread splits and checks it (`arriving.py`) and writes the requests in the
order of their arrival. If that is the dispatch order, which it is for one model without caches or
with one, the segment is there when the body is. Beside it, the body is spooled to a file without a
name, so that a body of any other form can be looked at whole, over a mapping of that file.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import tempfile
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from batchyard import limits, segments, strict, wire
from batchyard.dispatch.prefix import are_in_order, order_keys
from batchyard.dispatch.routes import Routes, dispatch_order
from batchyard.errors import DiskFull, InvalidRequest, StoreError, is_disk_full
from batchyard.segments.requests import (
    Records,
    Reordered,
    plan_shards,
    sizes_of,
    with_checksums,
)
from batchyard.server.arriving import Arriving, OddBodyError
from batchyard.server.guard import body_chunks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from starlette.requests import Request

    from batchyard.model import ShardPlan
    from batchyard.segments import Draft, Segments
    from batchyard.segments.requests import Identified
    from batchyard.server.disk import Room
    from batchyard.wire import Entry


@dataclass(frozen=True, slots=True)
class Upload:
    """A body on disk."""

    file: IO[bytes]
    digest: bytes
    """SHA-256."""
    arrival: Arrival | None = None
    """What was made of it on the way; None when nothing was to be made."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of an upload."""

    shards: Sequence[ShardPlan]

    @property
    def requests(self) -> int:
        """Return how many there are."""
        return sum(shard.requests for shard in self.shards)


@asynccontextmanager
async def spooled(
    request: Request, directory: Path, room: Room, arrival: Arrival | None = None
) -> AsyncIterator[Upload]:
    """Receive the body of a request into a file that is gone afterwards.

    Args:
        request: of which nothing was read yet.
        directory: for the file.
        room: for it on the disk.
        arrival: is given the body as it comes.

    Raises:
        InvalidRequest, TooLarge: it is coded, too slow, too large, …
        Overloaded: there is no room for it.
        StoreError: the disk failed; DiskFull when there is no room.
    """
    try:
        with room, tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            spool = _Spool(file, room, arrival)
            try:
                async for chunk in body_chunks(request, limits.BATCH_BODY_BYTES_MAX):
                    room.arrive(len(chunk))
                    await spool.add(chunk)
            finally:
                await spool.rest()
            yield Upload(file, spool.finish(), arrival)
    except OSError as error:  # also of the close, which writes what is left
        kind = DiskFull if is_disk_full(error) else StoreError
        raise kind(f"cannot spool a body: {error.strerror}") from error
    finally:
        if arrival is not None and arrival.has_begun:
            await asyncio.to_thread(arrival.abandon)


class _Spool:
    """Writes and digests a body in pieces: those of a large one in a thread, as the next arrive."""

    def __init__(self, file: IO[bytes], room: Room, arrival: Arrival | None) -> None:
        self._file = file
        self._room = room
        self._arrival = arrival
        self._digest = hashlib.sha256()
        self._chunks: list[bytes] = []
        self._length = 0
        self._writing: asyncio.Future[None] | None = None
        self._writing_length = 0

    async def add(self, chunk: bytes) -> None:
        """Take a chunk in; waits while the disk is a piece behind.

        Raises:
            OSError, StoreError: it could not be written, or one before it.
        """
        self._chunks.append(chunk)
        self._length += len(chunk)
        if self._length >= limits.SPOOL_PIECE_BYTES:
            piece, self._chunks = self._chunks, []
            length, self._length = self._length, 0
            if self._writing is not None:
                await asyncio.shield(self._writing)
                self._room.wrote(self._writing_length)
            self._writing_length = length
            self._writing = asyncio.ensure_future(asyncio.to_thread(self._take, piece))

    async def rest(self) -> None:
        """Wait until no thread is at the file, which may be closed then."""
        if self._writing is not None:
            await asyncio.wait((self._writing,))
            self._writing.exception()  # `finish` raises it, unless there is another error already

    def finish(self) -> bytes:
        """Write what is left, and return the digest of all.

        Raises:
            OSError, StoreError: it could not be written, or what came before it.
        """
        if self._writing is not None:
            self._writing.result()
        self._write(self._chunks)
        if self._arrival is not None:
            self._arrival.last = self._chunks
        return self._digest.digest()

    def _take(self, chunks: list[bytes]) -> None:
        self._write(chunks)
        if self._arrival is not None:
            self._arrival.add(chunks)

    def _write(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            self._digest.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[self._file.write(view) :]


class Arrival:
    """The requests segment of one batch, which is written while its body arrives."""

    def __init__(self, batch_id: str, store: Segments, spool: Path) -> None:
        self.last: Sequence[bytes] = ()
        """The end of the body, which `accept` takes in."""
        self._name = segments.requests_name(batch_id)
        self._batch_id = batch_id
        self._store = store
        self._spool = spool
        self._arriving: Arriving | None = Arriving()
        self._draft: Draft | None = None
        self._settled = 0
        # Who is cancelled while a thread is here abandons it, and must not close a file under it.
        self._turn = threading.Lock()

    @property
    def has_begun(self) -> bool:
        """Whether there is something to abandon."""
        return self._draft is not None

    def add(self, chunks: Sequence[bytes]) -> None:
        """Take a part of the body in. Blocks.

        Raises:
            StoreError: it could not be written; DiskFull when there is no room.
        """
        with self._turn:
            if self._arriving is None:
                return
            try:
                self._add(self._arriving, chunks)
            except OddBodyError:
                self._give_up()

    def _add(self, arriving: Arriving, chunks: Sequence[bytes]) -> None:
        records = arriving.feed(chunks)
        if records:
            self._draft = self._draft or self._store.draft(self._name, self._spool)
            self._draft.write(records)
            if arriving.size - self._settled >= limits.SETTLE_BYTES:
                self._settled = arriving.size
                # What will be written once more, in another order, need not come to the disk.
                if arriving.are_in_order():
                    self._draft.settle()

    def accept(self, routes: Routes) -> Accepted | None:
        """Write the requests segment, durable on return; None when it must be made otherwise.

        Blocks.

        Raises:
            StoreError: it could not be written; DiskFull when there is no room.
        """
        with self._turn:
            arriving = self._arriving
            if arriving is None:
                return None
            try:
                records = arriving.feed(self.last) + arriving.finish()
            except OddBodyError:
                self._give_up()
                return None
            draft = self._draft = self._draft or self._store.draft(self._name, self._spool)
            draft.write(records)
            stored = arriving.stored
            sizes = [each.size for each in stored]
            order, shards = _planned(stored, sizes, routes.pools_of(arriving.models), arriving.keys)
            if order == list(range(len(order))):
                return self._kept(draft, arriving.size, shards)
            accepted = _put(self._store, self._name, Reordered(stored, draft.view(), order, shards))
            self._draft = None
            draft.abandon()
            return accepted

    def _kept(self, draft: Draft, size: int, shards: Sequence[ShardPlan]) -> Accepted:
        """Make the draft the segment, as it is."""
        if size > limits.SPOOL_PIECE_BYTES:
            draft.settle()  # while we read
        accepted = Accepted(with_checksums(shards, draft.view()))
        self._draft = None  # whatever happens now, its directory stays
        try:
            draft.commit()
        finally:
            draft.abandon()
        return accepted

    def abandon(self) -> None:
        """Remove what was written, when it has not become a batch. Blocks."""
        with self._turn:
            self._give_up()

    def _give_up(self) -> None:
        self._arriving = None
        if self._draft is not None:
            self._draft.abandon()
            self._draft = None
            self._store.delete_batch(self._batch_id)


def accept(upload: Upload, batch_id: str, routes: Routes, store: Segments) -> Accepted:
    """Split an upload and write its requests segment, durable on return. Blocks.

    Raises:
        InvalidRequest: the envelope is wrong; nothing was written.
        StoreError: the segment could not be written.
    """
    if upload.arrival is not None:
        accepted = upload.arrival.accept(routes)
        if accepted is not None:
            return accepted
    entries = entries_of(upload)
    sizes = sizes_of(entries)
    order, shards = _planned(entries, sizes, routes.pools(entries), order_keys(entries))
    return _put(store, segments.requests_name(batch_id), Records(entries, sizes, order, shards))


def _planned(
    entries: Sequence[Identified], sizes: Sequence[int], pools: Sequence[str], keys: Sequence[bytes]
) -> tuple[list[int], list[ShardPlan]]:
    """Return the dispatch order of requests and their shards; see `plan_shards`."""
    apart = None if are_in_order(keys) else keys
    order = dispatch_order(pools, apart)
    return order, plan_shards(entries, sizes, pools, order, apart)


def _put(store: Segments, name: str, records: Records) -> Accepted:
    store.put(name, records.chunks())
    return Accepted(records.shards())


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
