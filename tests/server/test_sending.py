"""The stream of results, piece by piece, around the borders of blocks and of buffers."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import random
import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import segments
from batchyard.checksum import BLOCK_BYTES, blocks_of
from batchyard.errors import DamagedError
from batchyard.model import Extent
from batchyard.segments.directory import DirectorySegments
from batchyard.server.byte_range import Span
from batchyard.server.results import ResultsResponse
from helpers_upstream import DEADLINE_S
from helpers_yard import BATCHES, HEADERS, request

if TYPE_CHECKING:
    from pathlib import Path

    from helpers_yard import Yard

BATCH = "msgbatch_01"
SIZES = [1, 700_000, BLOCK_BYTES - 1, BLOCK_BYTES, 5, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 9, 70]
"""Bytes of the extents."""
WHOLE = sum(SIZES)
EDGES = list(itertools.accumulate(SIZES))
CUTS = sorted({0, 1, *EDGES, *(edge - 1 for edge in EDGES), 2 * BLOCK_BYTES, 4 * BLOCK_BYTES + 1})


class Stored:
    """Extents of random bytes, each the beginning of a longer file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = DirectorySegments(root)
        self.extents: list[Extent] = []
        parts = []
        self.store.put(segments.requests_name(BATCH), [b"x"])
        for index, size in enumerate(SIZES):
            data = random.Random(index).randbytes(size)
            name = f"{segments.results_prefix(BATCH, index)}1.aa"
            appender = self.store.appender(name)
            appender.append([data, b"what was never committed"])
            appender.sync()
            appender.close()
            self.extents.append(Extent(name, size, blocks_of([data])))
            parts.append(data)
        self.body = b"".join(parts)

    def flip(self, place: int) -> None:
        """Flip a bit of one byte of the whole body, on disk; a second time puts it back."""
        for extent in self.extents:
            if place < extent.length:
                with (self.root / extent.segment).open("r+b") as file:
                    file.seek(place)
                    old = file.read(1)[0]
                    file.seek(place)
                    file.write(bytes([old ^ 16]))
                return
            place -= extent.length


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return Stored(tmp_path_factory.mktemp("segments"))


class Sent:
    """What an answer has sent. The memory of each part is spoiled when its time is over."""

    def __init__(self) -> None:
        self.body = b""
        self.parts: list[int] = []
        self.is_whole = False
        self.memory: set[int] = set()

    async def __call__(self, message: Any) -> None:
        if message["type"] != "http.response.body":
            return
        part = message.get("body", b"")
        await asyncio.sleep(0)  # the thread may fill the other buffer meanwhile
        self.body += part
        if part:
            self.parts.append(len(part))
            if isinstance(part, memoryview):
                self.memory.add(id(part.obj))
        self.is_whole = not message.get("more_body", False)


async def never() -> Any:
    await asyncio.Event().wait()


def send(stored: Stored, span: Span | None = None, *, packed: bool = False) -> Sent:
    sent = Sent()
    answer = ResultsResponse(stored.store, stored.extents, BATCH, span, gzip=packed)
    try:
        asyncio.run(answer({"type": "http"}, never, sent))
    except DamagedError:
        assert not sent.is_whole
    return sent


def test_the_whole_is_the_extents_one_after_the_other(stored: Stored) -> None:
    sent = send(stored)
    assert sent.is_whole
    assert sent.body == stored.body


def test_memory_is_that_of_two_buffers_however_long_the_body(stored: Stored) -> None:
    sent = send(stored)
    assert len(sent.memory) == 2
    assert max(sent.parts) <= BLOCK_BYTES
    assert len(sent.parts) <= WHOLE // BLOCK_BYTES + len(SIZES)


@pytest.mark.parametrize("start", CUTS)
def test_every_range_is_that_part_of_the_whole(stored: Stored, start: int) -> None:
    for end in CUTS:
        if start < end:
            sent = send(stored, Span(start, end))
            assert sent.is_whole
            assert sent.body == stored.body[start:end], (start, end)


def test_a_compressed_answer_is_the_whole(stored: Stored) -> None:
    assert gzip.decompress(send(stored, packed=True).body) == stored.body


def blocks() -> list[tuple[int, int]]:
    """Return where each block begins in the whole body, and its length."""
    found, begin = [], 0
    for size in SIZES:
        found += [(begin + at, min(BLOCK_BYTES, size - at)) for at in range(0, size, BLOCK_BYTES)]
        begin += size
    return found


@pytest.mark.parametrize("block", range(len(blocks())))
@pytest.mark.parametrize("end", ["first", "last"])
def test_a_damaged_block_cuts_the_transfer_before_its_first_byte(
    stored: Stored, block: int, end: str
) -> None:
    begin, length = blocks()[block]
    place = begin if end == "first" else begin + length - 1
    stored.flip(place)
    try:
        for packed in (False, True):
            sent = send(stored, packed=packed)
            assert not sent.is_whole
            if not packed:
                assert sent.body == stored.body[: len(sent.body)]
                assert len(sent.body) <= begin
                assert begin - len(sent.body) <= 2 * BLOCK_BYTES, "what is whole is sent"
        assert not send(stored, Span(place, place + 1)).is_whole
        for span in (Span(0, begin), Span(begin + length, WHOLE)):
            if not span.is_empty:
                sent = send(stored, span)
                assert sent.is_whole, "what is not asked for is not looked at"
                assert sent.body == stored.body[span.start : span.end]
    finally:
        stored.flip(place)


def test_a_damaged_block_is_found_on_every_read(stored: Stored) -> None:
    """Also when it was whole a moment ago: nothing is remembered of it."""
    place = EDGES[5] + BLOCK_BYTES + 7
    for _ in range(3):
        assert send(stored).is_whole
        stored.flip(place)
        assert not send(stored).is_whole
        stored.flip(place)


# A reader that stops -----------------------------------------------------------------------------


def private_bytes(yard: Yard) -> int:
    assert yard.process is not None
    with open(f"/proc/{yard.process.pid}/status") as file:  # noqa: PTH123 - not a file
        (line,) = [line for line in file if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1_024


def test_readers_that_stop_hold_no_more_than_their_buffers(yard: Yard) -> None:
    """Others read on meanwhile, and those who stopped get the same bytes in the end."""
    padding = "x" * 20_000
    batch_id = yard.create([request(f"stop-{n}|message,{padding}", f"id-{n}") for n in range(900)])[
        "id"
    ]
    yard.wait_ended(batch_id)
    path = f"{BATCHES}/{batch_id}/results"
    whole = yard.get(path).body
    assert len(whole) > 15_000_000
    before = private_bytes(yard)
    head = "\r\n".join(
        [f"GET {path} HTTP/1.1", "host: localhost", *(f"{k}: {v}" for k, v in HEADERS.items())]
    )
    readers = [socket.create_connection(("127.0.0.1", yard.port), DEADLINE_S) for _ in range(6)]
    try:
        for reader in readers:
            reader.sendall(f"{head}\r\nrange: bytes=0-\r\n\r\n".encode())
            assert reader.recv(1) == b"H"
        assert yard.get(path).body == whole
        held = private_bytes(yard) - before
        assert held < len(readers) * 4 * BLOCK_BYTES + 8_000_000, held
        got = bytearray(b"H")
        while not got.endswith(whole[-50_000:]):
            data = readers[0].recv(1 << 20)
            assert data, "it ended early"
            got += data
        assert got.endswith(whole)
    finally:
        for reader in readers:
            reader.close()


def test_the_next_answer_on_a_connection_is_whole_after_a_long_one(yard: Yard) -> None:
    padding = "x" * 9_000
    batch_id = yard.create([request(f"next-{n}|message,{padding}", f"id-{n}") for n in range(400)])[
        "id"
    ]
    yard.wait_ended(batch_id)
    path = f"{BATCHES}/{batch_id}/results"
    bodies = set()
    with closing(yard.connect()) as connection:
        for extra in ({}, {"range": "bytes=0-"}, {"accept-encoding": "gzip"}, {}):
            connection.request("GET", path, headers=HEADERS | extra)
            response = connection.getresponse()
            data = response.read()
            is_packed = response.headers["content-encoding"] == "gzip"
            bodies.add(gzip.decompress(data) if is_packed else data)
            connection.request("GET", f"{BATCHES}/{batch_id}", headers=HEADERS)
            assert b'"ended"' in connection.getresponse().read()
    assert len(bodies) == 1
