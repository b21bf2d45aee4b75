"""The requests of a create body, split off and checked while the body arrives.

Nearly all bodies are written by a program, each request as the one before: it begins with the same
bytes. So the last place where these bytes stand in what has arrived is where the next request
begins, and what lies before is whole requests, if it decodes as such. A body that is other than
that, or in which anything is wrong, is not judged here: see `OddBodyError`. Pure.
"""

from __future__ import annotations

import re
from itertools import repeat
from typing import TYPE_CHECKING

from batchyard import limits, strict, wire
from batchyard.dispatch.prefix import MARK, are_in_order, order_keys
from batchyard.dispatch.routes import routable
from batchyard.segments.requests import Buffer, Stored, head_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchyard.wire import Entry

_MARK = MARK.decode()
# White space of JSON: of bytes, `\s` takes two more.
_BEGIN = re.compile(
    rb'~\{~"requests"~:~\[~(\{~"(?:custom_id|params)")'.replace(b"~", rb"[ \t\r\n]*")
)
_WHITE = b" \t\r\n"
_WHITE_BYTES_MAX = 256  # between two requests
_HEAD_BYTES_MAX = 1_024
_AROUND = len(("custom_id", "its value", "params"))  # what stands around params
_CLOSED = ord("]")


class OddBodyError(Exception):
    """A body that must be looked at whole: it may be wrong, or only unusual."""


class Arriving:
    """What is known of the requests that have arrived."""

    def __init__(self) -> None:
        self.stored: list[Stored] = []
        self.models: list[str] = []
        self.keys: list[bytes] = []
        """By what each is ordered: see `prefix.order_keys`."""
        self.size = 0
        """Bytes of the records so far."""
        self._splitter = _Splitter()

    def are_in_order(self) -> bool:
        """Whether the order of arrival is a dispatch order, as far as is known yet."""
        return len(set(self.models)) == 1 and are_in_order(self.keys)

    def feed(self, chunks: Iterable[bytes]) -> bytes:
        """Take the next chunks of the body in.

        Returns:
            The records of the requests that are whole now, in the order of arrival.

        Raises:
            OddBodyError: a part could not be split, or proven to be in order.
        """
        text, end = self._splitter.feed(chunks)
        return self._records(text, end) if end else b""

    def finish(self) -> bytes:
        """Return the records of the last requests; the body has ended.

        Raises:
            OddBodyError: as in `feed`, or ids are there twice.
        """
        records = self._records(*self._splitter.finish())
        if len({stored.custom_id for stored in self.stored}) != len(self.stored):
            raise OddBodyError("ids are there twice")
        return records

    def _records(self, text: bytearray, end: int) -> bytes:
        """Check the requests in `text`, a JSON list that ends at `end`; return their records."""
        try:
            entries = wire.entries_in(memoryview(text)[:end])
        except ValueError:
            raise OddBodyError("not a list of requests") from None
        self._check(entries)
        proof = strict.Proof(_MARK)
        parts: list[Buffer] = []
        for entry in entries:
            params = proof.add(entry.params)
            if params is None:
                raise OddBodyError("params that may not be in order")
            size = len(memoryview(entry.params))
            head = head_of(entry.custom_id, size)
            self.stored.append(Stored(entry.custom_id, self.size, size))
            self.models.append(routable(params.get("model")))
            self.size += len(head) + size + 1
            parts += (head, entry.params, b"\n")
        if not proof.holds(text, end, _AROUND * len(entries)):
            raise OddBodyError("keys that may be there twice")
        if proof.has_name:
            self.keys += order_keys(entries)
        else:
            self.keys += repeat(b"", len(entries))
        return b"".join(parts)

    def _check(self, entries: list[Entry]) -> None:
        if not entries or len(self.stored) + len(entries) > limits.BATCH_REQUESTS_MAX:
            raise OddBodyError("no request, or too many")
        if not wire.are_custom_ids([entry.custom_id for entry in entries]):
            raise OddBodyError("ids that are none")


class _Splitter:
    """Finds where whole requests end. Returns lists of them, with the `]` that was not there."""

    def __init__(self) -> None:
        self._begin = b""  # with what each request begins; empty before the first
        self._rest = bytearray(b"[")
        self._seen = 0  # bytes of the rest that no request begins in

    def feed(self, chunks: Iterable[bytes]) -> tuple[bytearray, int]:
        """Return a text and where a list of requests ends in it: 0 when none is whole yet."""
        text = self._rest = bytearray().join((self._rest, *chunks))
        if not self._begin:
            found = _BEGIN.match(text, 1)
            if found is None:
                if len(text) > _HEAD_BYTES_MAX:
                    raise OddBodyError("it does not begin as a create body")
                return text, 0
            self._begin = bytes(found[1])
            del text[1 : found.start(1)]
        cut = text.rfind(self._begin, max(2, self._seen))
        if cut < 0:
            if len(text) > limits.ARRIVING_BYTES_MAX:
                raise OddBodyError("a request that is too large to hold")
            self._seen = len(text) - len(self._begin) + 1
            return text, 0
        self._rest = bytearray(b"[") + memoryview(text)[cut:]
        self._seen = 0
        white = text[max(1, cut - _WHITE_BYTES_MAX) : cut]
        end = cut - len(white) + len(white.rstrip(_WHITE))
        if text[end - 1] != ord(","):
            raise OddBodyError("what looks like a request is none")
        text[end - 1] = _CLOSED
        return text, end

    def finish(self) -> tuple[bytearray, int]:
        """Return what is left, which ends as a create body does."""
        text = self._rest
        if self._begin and _ends(text, b"}") and _ends(text, b"]"):
            text += b"]"
            return text, len(text)
        raise OddBodyError("it does not end as a create body")


def _ends(text: bytearray, mark: bytes) -> bool:
    """Take `mark` from the end, with the white space after it; whether it was there."""
    white = text[-_WHITE_BYTES_MAX:]
    del text[len(text) - len(white) + len(white.rstrip(_WHITE)) :]
    if not text.endswith(mark):
        return False
    del text[-1:]
    return True
