r"""The requests segment: what was accepted, in dispatch order, byte for byte.

One record is

    <custom_id> SP <length of params in bytes, decimal> LF <params> LF

The params are the client's own bytes, which may hold line ends; the length says where they end. A
shard is a byte range of whole records.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.errors import DamagedError
from batchyard.model import ShardPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import msgspec

    from batchyard.wire import Entry


def sizes_of(entries: Sequence[Entry]) -> list[int]:
    """Return the length of the params of each request, in bytes."""
    return [len(memoryview(entry.params)) for entry in entries]


def plan_shards(
    entries: Sequence[Entry], sizes: Sequence[int], pools: Sequence[str], order: Sequence[int]
) -> list[ShardPlan]:
    """Cut requests in dispatch order into shards of one pool each.

    A shard ends at `SHARD_REQUESTS` requests or `SHARD_BYTES_MAX` bytes, whichever comes first, but
    is made larger where a batch would get more than `BATCH_SHARDS_MAX` shards.

    Args:
        entries: the requests as they arrived.
        sizes: the bytes of the params of each.
        pools: the pool of each.
        order: the indexes of `entries` in dispatch order, each pool in one piece.
    """
    bytes_max = max(limits.SHARD_BYTES_MAX, sum(sizes) // (limits.BATCH_SHARDS_MAX // 2))
    shards: list[ShardPlan] = []
    offset = length = count = 0
    pool = ""

    def cut() -> None:
        nonlocal offset, length, count
        shards.append(
            ShardPlan(index=len(shards), pool=pool, offset=offset, length=length, requests=count)
        )
        offset += length
        length = count = 0

    for index in order:
        size = sizes[index]
        full = count >= limits.SHARD_REQUESTS or length + size > bytes_max
        if count and (full or pools[index] != pool):
            cut()
        pool = pools[index]
        length += len(entries[index].custom_id) + len(str(size)) + size + 3
        count += 1
    cut()
    return shards


class Records:
    """The bytes of the segment, and the checksum of each shard once they have been written."""

    def __init__(
        self,
        entries: Sequence[Entry],
        sizes: Sequence[int],
        order: Sequence[int],
        shards: Sequence[ShardPlan],
    ) -> None:
        self._entries = entries
        self._sizes = sizes
        self._order = order
        self._shards = shards
        self._crcs: list[int] = []

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in pieces of about `DISK_CHUNK_BYTES`, each of one shard."""
        start = 0
        for shard in self._shards:
            crc = 0
            for piece in self._pieces(self._order[start : start + shard.requests]):
                crc = zlib.crc32(piece, crc)
                yield piece
            self._crcs.append(crc)
            start += shard.requests

    def shards(self) -> list[ShardPlan]:
        """Return the shards with their checksums, after `chunks`."""
        return [
            dataclasses.replace(shard, crc=crc)
            for shard, crc in zip(self._shards, self._crcs, strict=True)
        ]

    def _pieces(self, order: Sequence[int]) -> Iterator[bytes]:
        parts: list[bytes | msgspec.Raw] = []
        length = 0
        for index in order:
            entry, size = self._entries[index], self._sizes[index]
            parts += (f"{entry.custom_id} {size}\n".encode(), entry.params, b"\n")
            length += size
            if length >= limits.DISK_CHUNK_BYTES:
                yield b"".join(parts)
                parts.clear()
                length = 0
        if parts:
            yield b"".join(parts)


def read_records(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the custom_id and params of each record of a shard's byte range.

    Raises:
        DamagedError: the bytes are not records.
    """
    position = 0
    while position < len(data):
        end = data.find(b"\n", position, position + 100)
        custom_id, _, size = data[position:end].partition(b" ")
        if end < 0 or not size.isdigit():
            raise DamagedError(f"the requests segment is damaged {position} bytes into the shard")
        start = end + 1
        position = start + int(size) + 1
        if data[position - 1 : position] != b"\n":
            raise DamagedError(f"the requests segment is damaged {start} bytes into the shard")
        if not custom_id.isascii():
            raise DamagedError(f"the requests segment is damaged {position} bytes into the shard")
        yield custom_id.decode(), data[start : position - 1]
