"""The `Range` header: which bytes of a body a client asks for. Pure.

Source: RFC 9110, sections 13 and 14. Several ranges at once are answered with the whole body, as it
allows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]{1,19})-([0-9]{0,19})|-([0-9]{1,19}))[ \t]*")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` up to, but not including, `end`; an empty span cannot be satisfied."""

    start: int
    end: int

    @property
    def is_empty(self) -> bool:
        """Whether no byte of the body is in it."""
        return self.start >= self.end


def read(header: str | None, length: int) -> Span | None:
    """Return the one span that `header` asks for of a body of `length` bytes.

    Returns:
        None when there is no header, or one that must be ignored: another unit, several ranges, not
        a range at all. An empty span when the range lies outside the body: that is a 416.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return Span(max(0, length - int(suffix)), length)
    start, end = int(first), int(last) + 1 if last else length
    if end <= start and last:
        return None
    return Span(min(start, length), min(end, length))
