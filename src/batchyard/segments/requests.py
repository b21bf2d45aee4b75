r"""The requests segment: what was accepted, in dispatch order, byte for byte.

One record is

    <custom_id> SP <length of params in bytes, decimal> SP <check> LF <params> LF

The params are the client's own bytes, which may hold line ends; the length says where they end. The
check is the CRC-32 of all before it in its line, in eight hexadecimal digits; older files have
none. So a damaged shard can still say for certain whose results it owes. A shard is a byte range of
whole records.
"""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec

from batchyard import limits
from batchyard.checksum import crc32
from batchyard.errors import DamagedError
from batchyard.model import ShardPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from batchyard.wire import Entry


Buffer = bytes | msgspec.Raw | memoryview
Record = tuple[str, bytes]
"""The custom_id and the params of a request."""


class Identified(Protocol):
    """A request of which the id is known."""

    @property
    def custom_id(self) -> str:
        """Return it."""


class Stored(msgspec.Struct, frozen=True, gc=False):
    """Where a request lies among records that were written in the order of their arrival."""

    custom_id: str
    offset: int
    """Of the record."""
    size: int
    """Of the params, in bytes."""


_HEAD = re.compile(rb"([a-zA-Z0-9_-]+) ([0-9]+)(?: [0-9a-f]{8})?\n")
_HEAD_BYTES_MAX = 100
_HEAD_REST_BYTES = len("  01234567\n")  # beside id and length


def sizes_of(entries: Sequence[Entry]) -> list[int]:
    """Return the length of the params of each request, in bytes."""
    return [len(memoryview(entry.params)) for entry in entries]


def plan_shards(
    entries: Sequence[Identified],
    sizes: Sequence[int],
    pools: Sequence[str],
    order: Sequence[int],
    keys: Sequence[bytes] | None = None,
) -> list[ShardPlan]:
    """Cut requests in dispatch order into shards of one pool each.

    A shard ends at `SHARD_REQUESTS` requests or `SHARD_BYTES_MAX` bytes, whichever comes first, but
    is made larger where a batch would get more than `BATCH_SHARDS_MAX` shards. It ends before a
    group of requests with the same key that would not fit into it whole, if that fits into a shard,
    or if this one is half full. So a group is cut only where it must be, and two shards that follow
    one another are more than one full one.

    Args:
        entries: the requests as they arrived.
        sizes: the bytes of the params of each.
        pools: the pool of each.
        order: the indexes of `entries` in dispatch order, each pool in one piece.
        keys: of each, equal for requests that had better stay together, empty for no matter.
    """
    bytes_max = max(limits.SHARD_BYTES_MAX, sum(sizes) // (limits.BATCH_SHARDS_MAX // 2))
    shards: list[ShardPlan] = []
    offset = length = count = 0
    pool, key = "", b""

    def cut() -> None:
        nonlocal offset, length, count
        shards.append(
            ShardPlan(index=len(shards), pool=pool, offset=offset, length=length, requests=count)
        )
        offset += length
        length = count = 0

    for at, index in enumerate(order):
        size = sizes[index]
        full = count >= limits.SHARD_REQUESTS or length + size > bytes_max
        if keys is not None and keys[index] != key:
            key = keys[index]
            if key and count and not full:
                group = partial(_has_room, keys, sizes, order, at)
                half = 2 * count >= limits.SHARD_REQUESTS or 2 * length >= bytes_max
                full = not group(limits.SHARD_REQUESTS - count, bytes_max - length) and (
                    half or group(limits.SHARD_REQUESTS, bytes_max)
                )
        if count and (full or pools[index] != pool):
            cut()
        pool = pools[index]
        length += record_bytes(entries[index].custom_id, size)
        count += 1
    cut()
    return shards


def _has_room(
    keys: Sequence[bytes],
    sizes: Sequence[int],
    order: Sequence[int],
    at: int,
    requests: int,
    length: int,
) -> bool:
    """Whether the group that begins at a place of `order` has no more requests and bytes."""
    key = keys[order[at]]
    for place in range(at, len(order)):
        index = order[place]
        if keys[index] != key:
            return True
        requests -= 1
        length -= sizes[index]
        if requests < 0 or length < 0:
            return False
    return True


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

    def _record(self, index: int) -> tuple[Buffer, ...]:
        """Return the parts of one record."""
        entry = self._entries[index]
        return head_of(entry.custom_id, self._sizes[index]), entry.params, b"\n"

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in pieces of about `DISK_CHUNK_BYTES`, each of one shard."""
        start = 0
        for shard in self._shards:
            crc = 0
            for piece in self._pieces(self._order[start : start + shard.requests]):
                crc = crc32(piece, crc)
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
        parts: list[Buffer] = []
        length = 0
        for index in order:
            parts += self._record(index)
            length += self._sizes[index]
            if length >= limits.DISK_CHUNK_BYTES:
                yield b"".join(parts)
                parts.clear()
                length = 0
        if parts:
            yield b"".join(parts)


class Reordered(Records):
    """The bytes of the segment, taken from records that were written in another order."""

    def __init__(
        self,
        stored: Sequence[Stored],
        records: memoryview,
        order: Sequence[int],
        shards: Sequence[ShardPlan],
    ) -> None:
        super().__init__((), [each.size for each in stored], order, shards)
        self._stored = stored
        self._all = records

    def _record(self, index: int) -> tuple[Buffer, ...]:
        stored = self._stored[index]
        end = stored.offset + record_bytes(stored.custom_id, stored.size)
        return (self._all[stored.offset : end],)


def with_checksums(shards: Sequence[ShardPlan], records: memoryview) -> list[ShardPlan]:
    """Return the shards of a whole segment with their checksums."""
    return [
        dataclasses.replace(shard, crc=crc32(records[shard.offset : shard.offset + shard.length]))
        for shard in shards
    ]


def record_bytes(custom_id: str, size: int) -> int:
    """Return the length of the record of a request whose params have `size` bytes."""
    return len(custom_id) + len(str(size)) + _HEAD_REST_BYTES + size + 1


def head_of(custom_id: str, size: int) -> bytes:
    """Return the first line of a record, LF included."""
    head = f"{custom_id} {size}".encode()
    return b"%b %08x\n" % (head, crc32(head))


def _sized(head: bytes) -> tuple[bytes, int, bool] | None:
    """Return custom_id, length and whether they are proven, of the first line of a record."""
    custom_id, _, rest = head.partition(b" ")
    size, _, check = rest.partition(b" ")
    if not size.isdigit() or not custom_id.isascii():
        return None
    if check and check != b"%08x" % crc32(head[: -len(check) - 1]):
        return None
    return custom_id, int(size), bool(check)


def read_records(data: bytes, *, is_proven: bool = False) -> Iterator[Record]:
    """Yield the custom_id and params of each record of a shard's byte range.

    Args:
        data: the bytes.
        is_proven: whether they are known to be what was accepted, so that no record of them needs
            a check of its own.

    Raises:
        DamagedError: the bytes are not records.
    """
    if not is_proven:
        for custom_id, params, _ in _records(data):
            yield custom_id, params
        return
    position = 0
    while position < len(data):
        head = _HEAD.match(data, position)
        if head is None:
            raise _damage(position)
        start = head.end()
        stop = start + int(head[2])
        position = stop + 1
        if data[stop:position] != b"\n":
            raise _damage(start)
        yield head[1].decode(), data[start:stop]


def read_ids(data: bytes, *, is_whole: bool = False) -> list[str]:
    """Return the custom_ids of a shard's byte range.

    Args:
        data: the bytes.
        is_whole: whether they are what was accepted; else the params may be damaged, and each id
            needs a check of its own.

    Raises:
        DamagedError: they cannot be told for certain.
    """
    ids = []
    for custom_id, _, is_proven in _records(data):
        if not is_whole and not is_proven:
            raise DamagedError("whose requests they are cannot be told")
        ids.append(custom_id)
    return ids


def _records(data: bytes) -> Iterator[tuple[str, bytes, bool]]:
    position = 0
    while position < len(data):
        end = data.find(b"\n", position, position + _HEAD_BYTES_MAX)
        head = None if end < 0 else _sized(data[position:end])
        if head is None:
            raise _damage(position)
        custom_id, size, is_proven = head
        start = end + 1
        stop = start + size
        position = stop + 1
        if data[stop:position] != b"\n":
            raise _damage(start)
        yield custom_id.decode(), data[start:stop], is_proven


def _damage(position: int) -> DamagedError:
    return DamagedError(f"the requests segment is damaged {position} bytes into the shard")


def stream_records(read: Callable[[int, int], bytes], size: int) -> Iterator[list[Record]]:
    """Yield the records of a whole segment, some at a time, in memory for one of them and a bit.

    Args:
        read: returns so many bytes at an offset.
        size: bytes of the segment.

    Raises:
        DamagedError: the bytes are not records.
    """
    data, offset = b"", 0
    while offset < size:
        more = min(size - offset, max(limits.MIB, _missing(data)))
        data += read(offset, more)
        offset += more
        end = _whole(data)
        if end:
            yield list(read_records(data[:end]))
            data = data[end:]
    if data:
        raise DamagedError("the requests segment ends within a record")


def _whole(data: bytes) -> int:
    """Return how many bytes at the beginning are whole records, or cannot be records."""
    position = 0
    while True:
        end = _record_end(data, position)
        if end is None:
            return len(data)  # `read_records` says what is wrong
        if end > len(data):
            return position
        position = end


def _missing(data: bytes) -> int:
    """Return how many bytes the record at the beginning still lacks."""
    return max(0, (_record_end(data, 0) or 0) - len(data))


def _record_end(data: bytes, position: int) -> int | None:
    """Return where a record ends, beyond the data if it does; None when it is none."""
    end = data.find(b"\n", position, position + _HEAD_BYTES_MAX)
    if end < 0:
        return len(data) + 1 if len(data) - position < _HEAD_BYTES_MAX else None
    head = _sized(data[position:end])
    return None if head is None else end + 1 + head[1] + 1
