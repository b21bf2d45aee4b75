"""Adoption: what a later attempt at a shard takes over from earlier ones.

A segment is taken whole up to its last line that parses, or, when any of its ids is covered
already, not at all. So the extents that an attempt freezes hold every id at most once, by
construction, and the attempt sends only ids that are not in them. Bytes after the frozen length do
not exist.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchyard import result, segments
from batchyard.checksum import BLOCK_BYTES, blocks_of, is_block
from batchyard.errors import DamagedError
from batchyard.model import Extent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from batchyard.ledger import Claim
    from batchyard.price import Usage
    from batchyard.segments import Segments


@dataclass(slots=True)
class Tally:
    """Running sums over result lines."""

    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0
    input: int = 0
    output: int = 0
    cache_write: int = 0
    cache_read: int = 0

    def add(self, kind: result.ResultType, usage: Usage | None) -> None:
        """Count one line."""
        if kind == "succeeded":
            self.succeeded += 1
        elif kind == "errored":
            self.errored += 1
        elif kind == "canceled":
            self.canceled += 1
        else:
            self.expired += 1
        if usage is not None:
            self.input += usage.input_tokens
            self.output += usage.output_tokens
            self.cache_write += usage.cache_write_tokens
            self.cache_read += usage.cache_read_tokens


@dataclass(slots=True)
class Adopted:
    """What is done already, and where it stands."""

    extents: list[Extent] = field(default_factory=list)
    covered: set[str] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)


def adopt(store: Segments, claim: Claim, known: AbstractSet[str]) -> Adopted:
    """Collect what earlier attempts at a shard have left, and make it durable. Blocks.

    Args:
        store: the bytes.
        claim: of the shard.
        known: the ids of its requests. A line with another id is damaged.

    Raises:
        DamagedError: a frozen extent is not what it was.
        StoreError: it cannot be read back, or a sync failed.
    """
    adopted = Adopted()
    for extent in claim.frozen:
        _verify(store, extent)
        lines = list(_lines(store, extent.segment, extent.length, known))
        if (lines[-1].end if lines else 0) != extent.length:
            raise DamagedError(f"segment {extent.segment} holds damaged lines")
        _take(adopted, lines, extent)
    frozen = {extent.segment for extent in claim.frozen}
    for name in store.names(segments.results_prefix(claim.batch, claim.index)):
        if name in frozen:
            continue
        lines = list(_lines(store, name, store.size(name), known))
        if lines and adopted.covered.isdisjoint(line.custom_id for line in lines):
            # It may be only in the page cache of a process that died.
            store.sync(name)
            length = lines[-1].end
            _take(adopted, lines, Extent(name, length, blocks_of(_chunks(store, name, length))))
    return adopted


@dataclass(frozen=True, slots=True)
class _Line:
    custom_id: str
    kind: result.ResultType
    usage: Usage
    end: int


def _take(adopted: Adopted, lines: list[_Line], extent: Extent) -> None:
    for line in lines:
        adopted.covered.add(line.custom_id)
        adopted.tally.add(line.kind, line.usage)
    adopted.extents.append(extent)


def _verify(store: Segments, extent: Extent) -> None:
    for index, chunk in enumerate(_chunks(store, extent.segment, extent.length)):
        if not is_block(chunk, index, extent.blocks):
            raise DamagedError(
                f"segment {extent.segment} is damaged in the mebibyte at {index * BLOCK_BYTES}"
            )


def _chunks(store: Segments, name: str, length: int) -> Iterator[bytes]:
    for offset in range(0, length, BLOCK_BYTES):
        yield store.read(name, offset, min(BLOCK_BYTES, length - offset))


def _lines(store: Segments, name: str, length: int, known: AbstractSet[str]) -> Iterator[_Line]:
    """Yield the lines of the first `length` bytes, up to the first that is torn or damaged."""
    seen: set[str] = set()
    end = 0
    rest = b""
    for chunk in _chunks(store, name, length):
        *whole, rest = (rest + chunk).split(b"\n")
        for text in whole:
            try:
                custom_id, kind, usage = result.read_line(text)
            except ValueError:
                return
            if custom_id in seen or custom_id not in known:
                return
            seen.add(custom_id)
            end += len(text) + 1
            yield _Line(custom_id, kind, usage, end)
