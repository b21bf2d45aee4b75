"""Result lines: whole, of the right shape, one for each request. No I/O of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from batchyard import limits, result
from batchyard.dispatch.adopt import Tally
from batchyard.model import Counts, Tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Set as AbstractSet

    from batchyard.price import Usage

LINE_BYTES_MAX = limits.UPSTREAM_REPLY_BYTES_MAX + 64 * limits.KIB

_NAME = re.compile(r"(0|[1-9][0-9]{0,8})\.([1-9][0-9]{0,8})\.[0-9a-f]{16}")


class _Message(msgspec.Struct, gc=False):
    type: Literal["message"]
    content: msgspec.Raw
    usage: msgspec.Raw


class _Reason(msgspec.Struct, gc=False):
    type: str
    message: str


class _Error(msgspec.Struct, gc=False):
    type: Literal["error"]
    error: _Reason


class _Succeeded(msgspec.Struct, gc=False, tag_field="type", tag="succeeded"):
    message: _Message


class _Errored(msgspec.Struct, gc=False, tag_field="type", tag="errored"):
    error: _Error


class _Canceled(msgspec.Struct, gc=False, tag_field="type", tag="canceled"):
    pass


class _Expired(msgspec.Struct, gc=False, tag_field="type", tag="expired"):
    pass


class _Line(msgspec.Struct, gc=False):
    custom_id: str
    result: _Succeeded | _Errored | _Canceled | _Expired


_line = msgspec.json.Decoder(_Line)


class Line(NamedTuple):
    """The bytes of a line without its LF, and where it begins."""

    offset: int
    data: bytes
    whole: bool
    """Whether its LF was there, and it is not longer than any line may be."""


def attempt_of(file_name: str) -> tuple[int, int] | None:
    """Return shard and attempt of a result segment's last name part; None when it is not ours."""
    match = _NAME.fullmatch(file_name)
    return None if match is None else (int(match[1]), int(match[2]))


def lines(blocks: Iterable[bytes]) -> Iterator[Line]:
    """Split bytes into lines; of one that is too long, only the first part is kept."""
    parts: list[bytes] = []
    offset = kept = skipped = 0
    for block in blocks:
        *ends, rest = block.split(b"\n")
        for end in ends:
            data = b"".join([*parts, end]) if parts else end
            yield Line(offset, data, whole=not skipped)
            offset += len(data) + skipped + 1
            parts, kept, skipped = [], 0, 0
        if kept + len(rest) > LINE_BYTES_MAX:
            skipped += len(rest)
        elif rest:
            parts.append(rest)
            kept += len(rest)
    if parts or skipped:
        yield Line(offset, b"".join(parts), whole=False)


def read_line(line: Line) -> tuple[str, result.ResultType, Usage]:
    """Return the id, kind and usage of a line that must be one of ours.

    Raises:
        ValueError: it is not.
    """
    if not line.whole:
        raise ValueError("its end is not there")
    if b"\r" in line.data:
        raise ValueError("it holds a CR")
    read = result.read_line(line.data)
    try:
        _line.decode(line.data)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    return read


@dataclass(slots=True)
class Covered:
    """The results that were found of a shard, or of a batch that has ended."""

    expected: AbstractSet[str] | None
    """The ids of its requests; None when they cannot be read."""
    seen: set[str] = field(default_factory=set)
    lines: int = 0
    _tally: Tally = field(default_factory=Tally)

    def take(
        self, line: tuple[str, result.ResultType, Usage]
    ) -> Literal["twice", "unknown"] | None:
        """Count a line; return what is wrong about its id."""
        custom_id, kind, usage = line
        self.lines += 1
        self._tally.add(kind, usage)
        if custom_id in self.seen:
            return "twice"
        self.seen.add(custom_id)
        if self.expected is not None and custom_id not in self.expected:
            return "unknown"
        return None

    @property
    def missing(self) -> list[str]:
        """Return the ids of requests without a result, sorted."""
        return sorted((self.expected or frozenset()) - self.seen)

    @property
    def counts(self) -> Counts:
        """Return how many there are of each kind."""
        t = self._tally
        return Counts(t.succeeded, t.errored, t.canceled, t.expired)

    @property
    def tokens(self) -> Tokens:
        """Return the sums of their usage."""
        t = self._tally
        return Tokens(t.input, t.output, t.cache_write, t.cache_read)
