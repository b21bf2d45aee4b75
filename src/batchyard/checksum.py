"""Checksums of stored bytes: one CRC-32 for each mebibyte, so that any part can be checked alone.

Not against an attacker who can write the files: against disks, and against ourselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard import limits

try:
    from isal.isal_zlib import crc32
except ImportError:  # there is no wheel for this machine: the same values, at a tenth of the speed
    from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["BLOCK_BYTES", "Checksums", "blocks_of", "crc32", "is_block"]

BLOCK_BYTES = limits.MIB


class Checksums:
    """The checksums of bytes that are still being added to."""

    def __init__(self) -> None:
        self._whole: list[int] = []
        self._last = 0
        self._length = 0

    def add(self, data: bytes | memoryview) -> None:
        """Take `data` in."""
        view = memoryview(data)
        while view:
            room = BLOCK_BYTES - self._length % BLOCK_BYTES
            part, view = view[:room], view[room:]
            self._last = crc32(part, self._last)
            self._length += len(part)
            if len(part) == room:
                self._whole.append(self._last)
                self._last = 0

    @property
    def blocks(self) -> tuple[int, ...]:
        """Return the CRC-32 of each block so far; the last block may be shorter."""
        if self._length % BLOCK_BYTES:
            return (*self._whole, self._last)
        return tuple(self._whole)


def blocks_of(chunks: Iterable[bytes]) -> tuple[int, ...]:
    """Return the checksums of the bytes of all `chunks`."""
    found = Checksums()
    for chunk in chunks:
        found.add(chunk)
    return found.blocks


def is_block(data: bytes | memoryview, index: int, blocks: Sequence[int]) -> bool:
    """Whether `data` is what block `index` was, as far as that is known: old files have none."""
    return not blocks or (index < len(blocks) and crc32(data) == blocks[index])
