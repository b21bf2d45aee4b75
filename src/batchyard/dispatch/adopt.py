"""Adoption: what a later attempt at a shard takes over from earlier ones.

A segment is taken whole up to its last line that can be read and parses, or, when any of its ids is
covered already, not at all. So the extents that an attempt freezes hold every id at most once, by
construction, and the attempt sends only ids that are not in them. Bytes after the frozen length do
not exist. Before it is frozen a segment is synced; one of which a sync has failed before is dead,
and copied to a new one, as a second sync of it would say nothing.

A frozen extent that the disk has damaged is set aside: the row keeps its name with no length, so
that nobody takes its bytes again, now that no checksum would tell them. The lines of it that are
proven whole are copied to a new segment first; the requests of the others are sent again. That has
a bound, since each time is paid for: when so many attempts have lost results to the disk, what is
still missing is given up (`suspects.given_up`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchyard import limits, result, segments
from batchyard.checksum import BLOCK_BYTES, blocks_of, is_block
from batchyard.errors import DamagedError, DeadSegment, DiskFull, SegmentRefused
from batchyard.model import Extent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from batchyard.ledger import Claim
    from batchyard.price import Usage
    from batchyard.segments import Segments

log = logging.getLogger(__name__)

# What people are told of damaged shards, beside the log.
UNSENT = (
    "its requests are damaged: they are not sent, and end when the batch is canceled or expires"
)


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
    damage: str | None = None
    """What was damaged, and what comes of it."""

    @property
    def damages(self) -> int:
        """Return what `damages` does of its extents."""
        return damages(self.extents)


def damages(extents: Iterable[Extent]) -> int:
    """Return how many attempts at a shard have left results that the disk has damaged since.

    A row tells what was set aside, not when: several that were damaged at once count each.
    """
    return len({segments.attempt_of(each.segment) for each in extents if not each.length})


def adopt(store: Segments, claim: Claim, known: AbstractSet[str]) -> Adopted:
    """Collect what earlier attempts at a shard have left, and make it durable. Blocks.

    Args:
        store: the bytes.
        claim: of the shard.
        known: the ids of its requests. A line with another id is damaged.

    Raises:
        DiskFull: what is to be copied found no room; it may be tried again.
        SegmentRefused: it cannot be told what there is.
        StoreError: the store failed.
    """
    left = _left(store, claim)  # what refuses that gets no copy each time it is asked
    adopted = Adopted()
    damaged: list[Extent] = []
    for extent in claim.frozen:
        try:
            lines = _frozen_lines(store, extent, known)
        except DamagedError as error:
            log.error("damaged %s", error)  # noqa: TRY400 - it says all
            damaged.append(extent)
            adopted.extents.append(Extent(extent.segment, 0))
        else:
            _take(adopted, lines, extent)
    if damaged:
        _rescue(store, claim, known, damaged, adopted)
    frozen = {extent.segment for extent in claim.frozen}
    for name in left:
        if name in frozen:
            continue
        lines = _left_lines(store, name, known)
        if lines and adopted.covered.isdisjoint(line.custom_id for line in lines):
            try:
                extents = _durable(store, claim, name, lines[-1].end)
            except DamagedError as error:  # it could be read a moment ago
                log.error("damaged %s", error)  # noqa: TRY400 - it says all
            else:
                _take(adopted, lines, *extents)
    return adopted


def _left(store: Segments, claim: Claim) -> list[str]:
    """Return the names of the segments of a shard, the earlier attempts first."""
    try:
        names = store.names(segments.results_prefix(claim.batch, claim.index))
    except DamagedError as error:
        # Nothing is known to be lost, and where nothing can be listed little can be written.
        raise SegmentRefused(str(error)) from error
    return sorted(names, key=len)  # attempt 10 after attempt 9: a copy may be torn


def _left_lines(store: Segments, name: str, known: AbstractSet[str]) -> list[_Line]:
    """Return the lines of a segment that no row names, up to where the disk cannot read it.

    What is behind that place was never promised to anybody: its requests are sent again.
    """
    lines: list[_Line] = []
    try:
        for line in _lines(store, name, store.size(name), known):
            lines.append(line)  # noqa: PERF402 - those before an error are kept
    except DamagedError as error:
        log.error("damaged %s", error)  # noqa: TRY400 - it says all
    return lines


def _durable(store: Segments, claim: Claim, name: str, length: int) -> tuple[Extent, ...]:
    """Make the start of a segment durable that an earlier attempt left; return where it stands."""
    try:
        # It may be only in the page cache of a process that died.
        store.sync(name)
    except DeadSegment as error:
        log.warning("copied to a new segment: %s", error)
        return _written(store, claim, ([chunk] for chunk in _chunks(store, name, length)))
    return (Extent(name, length, blocks_of(_chunks(store, name, length))),)


def _written(
    store: Segments, claim: Claim, pieces: Iterable[Sequence[bytes]]
) -> tuple[Extent, ...]:
    """Write a new segment of this attempt, durably; return where it stands."""
    appender = store.appender(segments.result_name(claim.batch, claim.index, claim.attempt))
    try:
        for piece in pieces:
            appender.append(piece)
        appender.sync()
        return appender.extents()
    except DiskFull:  # the next try has another name, and needs the room of this one
        appender.remove()
        raise
    finally:
        appender.close()


@dataclass(frozen=True, slots=True)
class _Line:
    custom_id: str
    kind: result.ResultType
    usage: Usage
    end: int


def _take(adopted: Adopted, lines: list[_Line], *extents: Extent) -> None:
    for line in lines:
        adopted.covered.add(line.custom_id)
        adopted.tally.add(line.kind, line.usage)
    adopted.extents += extents


def _frozen_lines(store: Segments, extent: Extent, known: AbstractSet[str]) -> list[_Line]:
    """Return the lines of a frozen extent.

    Raises:
        DamagedError: they are not what they were.
    """
    verify_extent(store, extent)
    lines = list(_lines(store, extent.segment, extent.length, known))
    if (lines[-1].end if lines else 0) != extent.length:
        raise DamagedError(f"segment {extent.segment} holds damaged lines")
    return lines


def _rescue(
    store: Segments,
    claim: Claim,
    known: AbstractSet[str],
    damaged: Sequence[Extent],
    adopted: Adopted,
) -> None:
    """Copy what is proven whole of damaged extents to a new segment, durably, and take that over.

    It may be done again after a crash: until the row names the copy, its ids are covered.
    """
    rescued: list[bytes] = []
    for extent in damaged:
        for text in _proven_lines(store, extent):
            try:
                custom_id, kind, usage = result.read_line(text)
            except ValueError:
                continue
            if custom_id in known and custom_id not in adopted.covered:
                adopted.covered.add(custom_id)
                adopted.tally.add(kind, usage)
                rescued.append(text + b"\n")
    is_often = adopted.damages >= limits.DAMAGES_MAX
    adopted.damage = (
        f"results of it were damaged on the disk: {len(rescued)} of them could be kept, the others "
        + ("end as errored: it was too often" if is_often else "are made again")
    )
    if rescued:
        adopted.extents += _written(store, claim, [rescued])


def _proven_lines(store: Segments, extent: Extent) -> Iterator[bytes]:
    """Yield the lines, without LF, all of whose bytes lie in blocks that are what was written."""
    rest: bytes | None = b""  # None: within a line of which a part is not proven
    for index, offset in enumerate(range(0, extent.length, BLOCK_BYTES)):
        length = min(BLOCK_BYTES, extent.length - offset)
        try:
            block = store.read(extent.segment, offset, length)
        except DamagedError:
            block = b""
        if len(block) != length or not is_block(block, index, extent.blocks):
            rest = None
            continue
        if rest is None:
            _, end, block = block.partition(b"\n")
            if not end:
                continue
            rest = b""
        *whole, rest = (rest + block).split(b"\n")
        yield from whole


def verify_extent(store: Segments, extent: Extent) -> None:
    """Read an extent and compare it with its checksums. Blocks.

    Raises:
        DamagedError: it is not what was written, or not there.
        StoreError: the store failed.
    """
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
