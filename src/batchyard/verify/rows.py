"""What must be true of the rows of a ledger, each by itself. Pure.

Source: ARCHITECTURE.md, "Why nothing is lost and nothing is doubled"; the life of a batch is that
of the Message Batches API.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import msgspec

from batchyard import limits, wire
from batchyard.errors import shown
from batchyard.ledger import columns
from batchyard.model import Counts, Extent, Tokens
from batchyard.verify.findings import Rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

T = TypeVar("T")

READY, RUNNING, DONE = range(3)
APART = -1  # ready, to be claimed apart
_DIGEST_BYTES = 32
_BATCH_ID = re.compile(r"[A-Za-z0-9_]{1,64}")

Number = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class Wrong(NamedTuple):
    """Which rule does not hold, and how."""

    rule: Rule
    text: str


class _Counted(msgspec.Struct, kw_only=True):
    succeeded: Number
    errored: Number
    canceled: Number
    expired: Number

    @property
    def counts(self) -> Counts:
        """Return the four counts."""
        return Counts(self.succeeded, self.errored, self.canceled, self.expired)


class BatchRow(_Counted, kw_only=True):
    """A row of `batches`."""

    seq: Positive
    id: Text
    workspace: Text
    requests: Annotated[int, msgspec.Meta(ge=1, le=limits.BATCH_REQUESTS_MAX)]
    version: Text
    betas: str
    billing: Annotated[str, msgspec.Meta(pattern="^(standard|batch|simulated)$")]
    created_us: Number
    expires_us: Number
    cancel_us: Number | None
    ended_us: Number | None
    archived_us: Number | None
    tokens: str

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.ended_us is None


class ShardRow(_Counted, kw_only=True):
    """A row of `shards`."""

    batch: Text
    idx: Number
    seq: Positive
    workspace: Text
    pool: Text
    off: Number
    len: Positive
    n: Positive
    state: Annotated[int, msgspec.Meta(ge=APART, le=DONE)]
    attempt: Number
    owner: str | None
    lease_us: Number | None
    inflight: Number
    tokens: str
    manifest: str
    crc: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] | None = None
    """CRC-32 of its range of the requests segment; files of older versions have none."""


class CreateRow(msgspec.Struct, kw_only=True):
    """A row of `creates`."""

    workspace: Text
    key: Text
    digest: bytes
    batch: Text
    until_us: Number


def read(row: Mapping[str, Any], kind: type[T]) -> T:
    """Return a row as a value.

    Raises:
        ValueError: a column is missing or holds what it cannot.
    """
    try:
        return msgspec.convert(dict(row), kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def is_batch_id(text: str) -> bool:
    """Whether `text` can be one of our ids, and so a part of a name."""
    return _BATCH_ID.fullmatch(text) is not None


def read_tokens(text: str) -> Tokens:
    """Return the token sums of a column.

    Raises:
        ValueError: they are not four numbers.
    """
    sums = wire.decode(text)
    if not isinstance(sums, list) or len(sums) != 4 or not all(map(_is_number, sums)):
        raise ValueError("not four numbers")
    return Tokens(*sums)


def read_extents(text: str) -> tuple[Extent, ...]:
    """Return the extents of a column.

    Raises:
        ValueError: they are not names and lengths.
    """
    try:
        return checked_extents(columns.load_extents(text), may_be_empty=True)
    except (TypeError, LookupError) as error:
        raise ValueError(str(error)) from None


def checked_extents(extents: Sequence[Extent], *, may_be_empty: bool = False) -> tuple[Extent, ...]:
    """Return extents that were read from a file, which may hold anything.

    Args:
        extents: as they were read.
        may_be_empty: whether one may have no bytes: a shard keeps the name of what it set aside.

    Raises:
        ValueError: they are not names and lengths.
    """
    for extent in extents:
        if not _is_text(extent.segment) or not _is_number(extent.length):
            raise ValueError("not a list of names and lengths")
        if not extent.length and not may_be_empty:
            raise ValueError("an extent of no bytes")
        if not all(map(_is_number, blocks_of(extent))):
            raise ValueError("a checksum is not a number")
    return tuple(extents)


def blocks_of(extent: Extent) -> tuple[int, ...]:
    """Return the CRC-32 of each MiB of an extent, the last one shorter; empty in older files."""
    return tuple(getattr(extent, "blocks", None) or ())


def _is_number(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: object) -> bool:
    return type(value) is str


def batch_problems(row: BatchRow) -> Iterator[Wrong]:
    """Yield what is wrong with a row of `batches` by itself."""
    yield from _time_problems(row)
    total = row.counts.total
    if row.is_open and total:
        yield Wrong(Rule.BATCH_COUNTS, f"it has not ended, and {total} results are counted")
    if not row.is_open and total != row.requests:
        yield Wrong(Rule.BATCH_COUNTS, f"{row.requests} requests, {total} results are counted")
    try:
        tokens = read_tokens(row.tokens)
    except ValueError as error:
        yield Wrong(Rule.BATCH_TOKENS, f"the token sums cannot be read: {error}")
    else:
        if tokens != Tokens() and not row.succeeded:
            yield Wrong(Rule.BATCH_TOKENS, f"{_sums(tokens)}, and nothing has succeeded")
    if row.canceled and row.cancel_us is None:
        yield Wrong(Rule.BATCH_STATE, f"{row.canceled} requests canceled without a cancel")
    if row.expired and row.ended_us is not None and row.ended_us < row.expires_us:
        yield Wrong(Rule.BATCH_STATE, f"{row.expired} requests expired before their time")


def _time_problems(row: BatchRow) -> Iterator[Wrong]:
    if row.expires_us - row.created_us != limits.PROCESSING_WINDOW_US:
        window_s = (row.expires_us - row.created_us) / limits.SECOND_US
        yield Wrong(Rule.BATCH_TIMES, f"it expires {window_s:.6f} s after its creation, not 24 h")
    if row.archived_us is not None and row.ended_us is None:
        yield Wrong(Rule.BATCH_STATE, "it is archived and has not ended")
    steps = [
        ("created", row.created_us),
        ("canceled", row.cancel_us),
        ("ended", row.ended_us),
        ("archived", row.archived_us),
    ]
    known = [(name, at) for name, at in steps if at is not None]
    for (earlier, before), (later, after) in itertools.pairwise(known):
        if after < before:
            yield Wrong(Rule.BATCH_TIMES, f"it was {later} before it was {earlier}")


def shard_problems(row: ShardRow, batch: BatchRow) -> Iterator[Wrong]:
    """Yield what is wrong with a row of `shards` by itself, in an open batch."""
    if (row.seq, row.workspace) != (batch.seq, batch.workspace):
        yield Wrong(Rule.SHARD_ROW, "its workspace or place in the queue is not that of its batch")
    total = row.counts.total
    if row.state == DONE and total != row.n:
        yield Wrong(Rule.SHARD_STATE, f"done: {row.n} requests, {total} results are counted")
    if row.state != DONE and total + row.inflight > row.n:
        yield Wrong(Rule.SHARD_STATE, f"{total + row.inflight} of {row.n} requests are under way")
    if row.state not in (READY, APART) and not row.attempt:
        yield Wrong(Rule.SHARD_STATE, "it was never claimed, and is not ready")
    if (row.state in (READY, APART)) != (row.owner is None):
        yield Wrong(Rule.SHARD_STATE, "ready with an owner" if row.owner else "without an owner")
    if row.state == RUNNING and row.lease_us is None:
        yield Wrong(Rule.SHARD_STATE, "running without a lease")
    if row.state != RUNNING and row.inflight:
        yield Wrong(Rule.SHARD_STATE, f"{row.inflight} requests in flight, and it is not running")
    if row.canceled and batch.cancel_us is None:
        yield Wrong(Rule.SHARD_STATE, f"{row.canceled} requests canceled without a cancel")
    try:
        tokens = read_tokens(row.tokens)
    except ValueError as error:
        yield Wrong(Rule.SHARD_ROW, f"the token sums cannot be read: {error}")
    else:
        if tokens != Tokens() and (row.state != DONE or not row.succeeded):
            yield Wrong(Rule.SHARD_STATE, f"{_sums(tokens)}, and no result that has any")


def create_problems(row: CreateRow, batch: BatchRow) -> Iterator[Wrong]:
    """Yield what is wrong with a row of `creates`, whose batch exists."""
    if row.workspace != batch.workspace:
        yield Wrong(Rule.CREATE_BATCH, f"{shown(row.key)} is of another workspace than its batch")
    if len(row.digest) != _DIGEST_BYTES:
        yield Wrong(Rule.CREATE_ROW, f"{shown(row.key)} has a digest of {len(row.digest)} bytes")
    if not batch.created_us <= row.until_us <= batch.created_us + limits.IDEMPOTENCY_WINDOW_US:
        yield Wrong(Rule.CREATE_ROW, f"{shown(row.key)} is kept for another time than promised")


def cover_problems(rows: Sequence[ShardRow], requests: int, size: int) -> Iterator[Wrong]:
    """Yield where the shards of an open batch do not cover its requests exactly.

    Args:
        rows: by index.
        requests: of the batch.
        size: bytes of the requests segment.
    """
    position = 0
    for index, row in enumerate(rows):
        if row.idx != index:
            yield Wrong(Rule.SHARD_COVER, f"shard {index} is missing")
            return
        if row.off != position:
            yield Wrong(Rule.SHARD_COVER, f"shard {index} begins at {row.off}, not at {position}")
        position = row.off + row.len
    if position != size:
        yield Wrong(Rule.SHARD_COVER, f"the shards end at {position}, the requests at {size}")
    held = sum(row.n for row in rows)
    if held != requests:
        yield Wrong(Rule.SHARD_COVER, f"the shards have {held} requests, the batch {requests}")


def _sums(tokens: Tokens) -> str:
    return f"{tokens.input} tokens in and {tokens.output} out"
