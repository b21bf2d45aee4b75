"""The requests segment, read again from nothing but its format. No I/O of its own.

<custom_id> SP <length of params in bytes, decimal> SP <CRC-32 of these> LF <params> LF

Older files have no checksum there.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batchyard import limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CHECK_BYTES = 9
_HEAD_BYTES_MAX = (
    limits.CUSTOM_ID_CHARS_MAX + 1 + len(str(limits.BATCH_BODY_BYTES_MAX)) + _CHECK_BYTES + 1
)

# Not into values: only the syntax counts. It passes over bad UTF-8, which is looked for apart.
_params = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Record(NamedTuple):
    """One request, and where it begins."""

    offset: int
    custom_id: str
    params: bytes
    is_proven: bool
    """Whether a checksum says that the id and the length are those that were accepted."""


class BrokenRecord(Exception):
    """The bytes from `offset` on are not records."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


def records(blocks: Iterable[bytes], length: int) -> Iterator[Record]:
    """Yield the records of a run of bytes.

    Args:
        blocks: the bytes, in pieces.
        length: of all of them.

    Raises:
        BrokenRecord: the format does not hold; what follows cannot be told apart.
    """
    pieces = iter(blocks)
    buffer = b""
    start = at = 0  # where the buffer begins, and where in it the next record does
    while start + at < length:
        end = buffer.find(b"\n", at, at + _HEAD_BYTES_MAX)
        if end < 0:
            piece = next(pieces, b"")
            if len(buffer) - at >= _HEAD_BYTES_MAX or not piece:
                raise BrokenRecord(start + at)
            buffer, start, at = buffer[at:] + piece, start + at, 0
            continue
        custom_id, size, is_proven = _head(buffer[at:end], start + at)
        first, stop = end + 1, end + 1 + size + 1
        if start + stop > length:
            raise BrokenRecord(start + at)
        if stop > len(buffer):
            parts = [buffer[at:]]
            missing = stop - len(buffer)
            while missing > 0:
                parts.append(next(pieces))
                missing -= len(parts[-1])
            first, stop = first - at, stop - at
            buffer, start, at = b"".join(parts), start + at, 0
        if buffer[stop - 1] != 0x0A:
            raise BrokenRecord(start + at)
        yield Record(start + at, custom_id, buffer[first : stop - 1], is_proven)
        at = stop


def _head(line: bytes, offset: int) -> tuple[str, int, bool]:
    name, _, rest = line.partition(b" ")
    digits, _, check = rest.partition(b" ")
    if check and check != b"%08x" % zlib.crc32(line[:-_CHECK_BYTES]):
        raise BrokenRecord(offset)
    if not digits.isdigit() or (digits[:1] == b"0" and digits != b"0"):
        raise BrokenRecord(offset)
    # A name that cannot be is told as such, not as a broken record.
    return name.decode("utf-8", "backslashreplace"), int(digits), bool(check)


def params_problem(params: bytes) -> str | None:
    """Return why the params of a request are not a JSON object, or None."""
    try:
        if not params.isascii():
            params.decode()
        _params.decode(params)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return str(error)
    except RecursionError:
        return "nested too deeply"
    return None
