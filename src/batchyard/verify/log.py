"""The write-ahead log of the ledger: does it end where it should?

SQLite reads it up to the first frame whose checksum is wrong, and says nothing about the rest. What
follows may be a transaction that a crash cut off, or what a damaged byte has cut off. The file is

    header   32 bytes: magic, version, page size, sequence, salt 1, salt 2, checksum (2 words)
    frame    24 bytes: page, pages after commit or 0, salt 1, salt 2, checksum (2 words); the page

all words big-endian, the checksum of a frame continuing that of the one before. A transaction is
synced before the next one is written, so a crash leaves nothing that continues a broken one.

Source: the WAL-mode file format of SQLite.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_VERSION = 3_007_000
_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
"""Byte order of the words that are summed."""
_MASK = 0xFFFFFFFF

Sum = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Log:
    """What a log is like."""

    end: int
    """Bytes that SQLite reads."""
    more: bool
    """Whether there is more of the same generation, which it does not read."""
    lost: bool
    """Whether that includes a transaction that had been committed: something was damaged."""


def scan(file: BinaryIO) -> Log:
    """Read a log from its start to its end."""
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return Log(0, more=bool(header), lost=False)
    magic, version, page_bytes, _, *salts, sum_1, sum_2 = _HEADER.unpack(header)
    order = _MAGIC.get(magic, "")
    if (
        not order
        or version != _VERSION
        or not (512 <= page_bytes <= 65_536 and page_bytes & (page_bytes - 1) == 0)
        or _add((0, 0), header[:24], order) != (sum_1, sum_2)
    ):
        # The header is synced before the first frame.
        return Log(0, more=True, lost=bool(file.read(1)))
    reading = _Reading(order, (salts[0], salts[1]), (sum_1, sum_2))
    for head, page in _frames(file, page_bytes):
        reading.take(head, page)
    return Log(reading.end, more=reading.more, lost=reading.lost)


def _frames(file: BinaryIO, page_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    while True:
        head = file.read(_FRAME.size)
        page = file.read(page_bytes)
        if len(head) < _FRAME.size:
            return
        yield head, page
        if len(page) < page_bytes:
            return


class _Reading:
    """Where the reader is, frame by frame."""

    def __init__(self, order: str, salts: Sum, start: Sum) -> None:
        self.end = self._position = _HEADER.size
        self.more = self.lost = False
        self._order = order
        self._salts = salts
        self._stored = self._computed = start
        self._broken = self._after_commit = False

    def take(self, head: bytes, page: bytes) -> None:
        _, pages, salt_1, salt_2, *stored = _FRAME.unpack(head)
        self._position += len(head) + len(page)
        if (salt_1, salt_2) != self._salts:
            # The rest of an earlier generation, or a frame whose salts are damaged.
            self._broken = True
            return
        self.more = True
        covered = head[:8] + page
        computed = _add(self._computed, covered, self._order)
        continues = computed == tuple(stored)
        if not continues and self._stored != self._computed:
            # The frame before is damaged, in its page or in its checksum: this one tells which.
            computed = _add(self._stored, covered, self._order)
            continues = computed == tuple(stored)
        self._broken = self._broken or not continues
        self._stored, self._computed = (stored[0], stored[1]), computed
        if self._broken:
            self.lost = self.lost or (self._after_commit and continues)
            self._after_commit = bool(pages)
        elif pages:
            self.end = self._position
            self.more = False


def _add(start: Sum, data: bytes, order: str) -> Sum:
    one, two = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data[: len(data) // 4 * 4])
    for first, second in zip(words[::2], words[1::2], strict=False):
        one = (one + first + two) & _MASK
        two = (two + second + one) & _MASK
    return one, two
