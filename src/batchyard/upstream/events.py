"""Server-sent events, from bytes that come in pieces of any size.

Pure. Holds one line and the data of one event, and no more than a cap of both together.
Source: the HTML standard, "Interpreting an event stream". Ids and retry times are passed over:
an answer cannot be taken up again where it broke off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LINE_ENDS = b"\r\n"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class StreamTooLarge(Exception):
    """A stream, or a part of it, is larger than we read. The text says which, and the bound."""


class EventParser:
    """Reads one stream of events."""

    __slots__ = ("_after_cr", "_at_start", "_bytes_max", "_data", "_held", "_line", "_name")

    def __init__(self, bytes_max: int) -> None:
        """Make a parser.

        Args:
            bytes_max: of one event, and of one line.
        """
        self._bytes_max = bytes_max
        self._line = bytearray()  # the beginning of a line whose end has not come
        self._data: list[bytes] = []
        self._held = 0  # bytes of `_data`
        self._name = b""
        self._after_cr = False
        self._at_start = True

    def feed(self, chunk: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield name and data of each event that is whole with these bytes.

        The name is empty when none was given. An event without data is none, and one whose blank
        line never comes is never given.

        Raises:
            StreamTooLarge: an event has more than `bytes_max`.
        """
        if self._after_cr and chunk:
            # The second half of a line end: splitting it would give a blank line that is none.
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        for line in chunk.splitlines(keepends=True):
            if line[-1] not in _LINE_ENDS:
                self._line += line
                self._check_size()
                return
            self._after_cr = False
            text = line.rstrip(_LINE_ENDS)
            if self._line:
                self._line += text
                text = bytes(self._line)
                self._line = bytearray()
            if text:
                self._take(text)
            else:
                name, data = self._name, self._data
                self._name, self._data, self._held = b"", [], 0
                if data:
                    yield name, b"\n".join(data)
        self._after_cr = chunk.endswith(b"\r")

    def _take(self, line: bytes) -> None:
        if self._at_start:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._at_start = False
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._held += len(value) + 1
            self._check_size()
        elif field == b"event":
            self._name = value

    def _check_size(self) -> None:
        if self._held + len(self._line) > self._bytes_max:
            raise StreamTooLarge(f"one event over {self._bytes_max} bytes")
