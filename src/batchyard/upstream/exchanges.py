"""What becomes of one request to an upstream: a reply taken whole, one folded, one passed through.

Each is told by its `Connection` the head, the pieces of the body and the end. The first two bring
back one outcome; who waits for it looks after its deadline.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.errors import BadGateway, shown
from batchyard.upstream import Failure, FailureKind, Reply
from batchyard.upstream.events import StreamTooLarge
from batchyard.upstream.fold import Fold, StreamBroken, UnknownDelta, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from batchyard.upstream.connection import Connection
    from batchyard.upstream.http import StreamTimeouts

_CODING = b"content-encoding"
_CODINGS = (b"gzip", b"deflate", b"br", b"zstd", b"compress")  # some servers name other things
_PASSED_ON = (b"content-type", _CODING, b"request-id", b"retry-after", b"x-should-retry")
_LIMITS = (b"anthropic-ratelimit-", b"x-ratelimit-", b"retry-after")
_EVENT_STREAM = b"text/event-stream"
_LAST_CHUNK_S = 1.0  # for the end of a body whose message is whole, to keep the connection
_READ_AHEAD_BYTES = 256 * limits.KIB
_MANY_DIGITS = len(str(limits.UPSTREAM_REPLY_BYTES_MAX))


class Whole:
    """A call whose reply is wanted whole."""

    def __init__(self, begun: Callable[[], None] | None, timeout_s: float) -> None:
        """Prepare.

        Args:
            begun: called when an answer with status 200 begins.
            timeout_s: for all of it, counted from `start`.
        """
        self.outcome: asyncio.Future[Reply | Failure]
        self.sent_s = self.deadline_s = 0.0
        self._begun = begun
        self._timeout_s = timeout_s
        self._status = 0
        self._headers: Mapping[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._length = 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to wait."""
        self.outcome = loop.create_future()
        self.sent_s = loop.time()
        self.deadline_s = self.sent_s + self._timeout_s

    def begin(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """Take the head."""
        self._status = status
        self._headers = headers
        announced = headers.get(b"content-length", b"")
        if len(announced) >= _MANY_DIGITS and _number(announced) > limits.UPSTREAM_REPLY_BYTES_MAX:
            self._settle(_too_large())
        elif status == 200 and _is_coded(headers):
            coding = shown(_text(headers[_CODING]))
            self._settle(_broken(f"its answer is coded with {coding}, which was not asked for"))
        elif status == 200:
            self._tell_begun()

    def feed(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._length += len(data)
        if self._length > limits.UPSTREAM_REPLY_BYTES_MAX:
            self._parts.clear()
            self._settle(_too_large())
        else:
            self._parts.append(data)

    def end(self, failure: Failure | None) -> None:
        """Take the end."""
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._settle(failure or self._reply(body))

    def time_out(self) -> None:
        """Give up: the deadline has passed."""
        self._settle(_whole_too_long(self._timeout_s))

    def _tell_begun(self) -> None:
        begun, self._begun = self._begun, None
        if begun is not None:
            begun()

    def _settle(self, outcome: Reply | Failure) -> None:
        """Let go who waits, who closes the connection unless the reply has ended."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def _reply(self, body: bytes, status: int | None = None) -> Reply:
        headers = self._headers
        status = status or self._status
        said = None
        for name, value in headers.items():
            if name.startswith(_LIMITS) and (text := _text(value)) is not None:
                said = {} if said is None else said
                said[name.decode("ascii")] = text
        if status == 200:
            return Reply(200, body, None, None, said)
        request_id = _text(headers.get(b"request-id"))
        return Reply(status, body, (said or {}).get("retry-after"), request_id, said)


class Folded(Whole):
    """A call whose reply is folded as it comes, if it is a stream."""

    def __init__(self, begun: Callable[[], None] | None, timeouts: StreamTimeouts) -> None:
        """Prepare; as `Whole`, and the first event is the beginning of an answer."""
        super().__init__(begun, timeouts.whole_s)
        self._timeouts = timeouts
        self._loop: asyncio.AbstractEventLoop
        self._whole_by_s = 0.0
        self._fold: Fold | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to wait."""
        super().start(loop)
        self._loop = loop
        self._whole_by_s = self.deadline_s
        self._wait_for(self._timeouts.first_byte_s)

    def begin(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """Take the head."""
        kind = headers.get(b"content-type", b"").strip().lower()
        if status != 200 or not kind.startswith(_EVENT_STREAM) or _is_coded(headers):
            self._wait_for(self._timeouts.idle_s)
            super().begin(status, headers)
            return
        self._status, self._headers, self._fold = status, headers, Fold()

    def feed(self, data: bytes) -> None:
        """Take a piece of the body."""
        fold = self._fold
        if self.outcome.done() or (fold is not None and fold.has_ended):
            return  # what comes now changes nothing
        self._wait_for(self._timeouts.idle_s)
        if fold is None:
            super().feed(data)
            return
        try:
            has_ended = fold.feed(data)
        except StreamBroken as error:
            self._settle(_broken(f"its stream is not a message: {error}"))
        except StreamTooLarge as error:
            self._settle(Failure(FailureKind.TOO_LARGE, str(error)))
        except UnknownDelta as error:
            self.outcome.set_exception(error)
        else:
            if fold.begun:
                self._tell_begun()
            if has_ended:
                self._wait_for(_LAST_CHUNK_S)

    def end(self, failure: Failure | None) -> None:
        """Take the end."""
        fold = self._fold
        if fold is None:
            super().end(failure)
        elif fold.has_ended:
            self._settle(self._folded(fold))
        else:
            text = f"the stream ended before its message did, after {fold.received} bytes"
            self._settle(failure or _broken(text))

    def time_out(self) -> None:
        """Give up, and say which deadline has passed."""
        fold = self._fold
        if fold is not None and fold.has_ended:
            self._settle(self._folded(fold))
        elif self.deadline_s == self._whole_by_s:
            super().time_out()
        elif fold is None and self._status:
            self._settle(Failure(FailureKind.TIMEOUT, "its answer stopped half-way"))
        elif fold is None or not fold.received:
            text = f"no first byte in {self._timeouts.first_byte_s:g} s"
            self._settle(Failure(FailureKind.TIMEOUT, text))
        else:
            text = f"nothing more came for {self._timeouts.idle_s:g} s, after {fold.received} bytes"
            self._settle(Failure(FailureKind.TIMEOUT, text))

    def _wait_for(self, seconds: float) -> None:
        self.deadline_s = min(self._loop.time() + seconds, self._whole_by_s)

    def _folded(self, fold: Fold) -> Reply:
        if fold.message is not None:
            return self._reply(fold.message)
        assert fold.error is not None  # or the stream has not ended
        return self._reply(fold.error, status_of(fold.error))


class Passed:
    """A reply whose body is read as it comes; the network waits while it is not."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: deque[bytes] = deque()
        self._length = 0
        self._is_whole = False
        self._news = asyncio.Event()
        self.has_begun = asyncio.Event()
        self.failure: Failure | None = None
        self.status = 0
        self.headers: Mapping[str, str] = {}

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            BadGateway: it broke off.
        """
        while True:
            while self._waiting:
                data = self._waiting.popleft()
                if self._length > _READ_AHEAD_BYTES >= self._length - len(data):
                    self._connection.resume()
                self._length -= len(data)
                yield data
            if self.failure is not None:
                raise BadGateway(f"The upstream broke off: {self.failure.text}")
            if self._is_whole:
                return
            self._news.clear()
            await self._news.wait()

    def begin(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """Take the head."""
        self.status = status
        self.headers = {
            name.decode("ascii"): text
            for name in _PASSED_ON
            if (text := _text(headers.get(name))) is not None
        }
        self.has_begun.set()

    def feed(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._waiting.append(data)
        if self._length <= _READ_AHEAD_BYTES < self._length + len(data):
            self._connection.pause()
        self._length += len(data)
        self._news.set()

    def end(self, failure: Failure | None) -> None:
        """Take the end."""
        self.failure = failure
        self._is_whole = failure is None
        self.has_begun.set()
        self._news.set()


def _text(value: bytes | None) -> str | None:
    """Return the value of a header; None when there is none, or it is not ASCII."""
    return value.decode("ascii") if value is not None and value.isascii() else None


def _is_coded(headers: Mapping[bytes, bytes]) -> bool:
    coding = headers.get(_CODING)
    return coding is not None and any(name in coding.lower() for name in _CODINGS)


def _number(value: bytes) -> int:
    return int(value) if value.isdigit() else 0


def _broken(text: str) -> Failure:
    return Failure(FailureKind.BROKEN, text)


def _too_large() -> Failure:
    return Failure(FailureKind.TOO_LARGE, f"over {limits.UPSTREAM_REPLY_BYTES_MAX} bytes")


def _whole_too_long(seconds: float) -> Failure:
    return Failure(FailureKind.TIMEOUT, f"the whole call took over {seconds:g} s")
