"""The HTTP client of the upstreams, bounded: connections to one origin and the calls over them.

Fixed origin, no redirects, no proxies from the environment, no compressed replies, a cap on every
reply, a time-out on everything. A call that is given up has its connection closed at once: an
upstream that notices stops generating what nobody will read, and nobody pays for.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import msgspec

from batchyard import limits
from batchyard.errors import BadGateway
from batchyard.upstream import Failure, FailureKind, Reply
from batchyard.upstream.connection import Connection
from batchyard.upstream.events import StreamTooLarge
from batchyard.upstream.fold import Fold, StreamBroken, UnknownDelta, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

_PASSED_ON = (b"content-type", b"request-id", b"retry-after", b"x-should-retry")
_LIMITS = (b"anthropic-ratelimit-", b"x-ratelimit-", b"retry-after")
_EVENT_STREAM = b"text/event-stream"
_SWEEP_S = 1.0
_LAST_CHUNK_S = 1.0  # for the end of a body whose message is whole, to keep the connection
_READ_AHEAD_BYTES = 256 * limits.KIB
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTimeouts:
    """How long a streamed call may take, in seconds."""

    first_byte_s: float = limits.UPSTREAM_FIRST_BYTE_TIMEOUT_S
    """From sending to the first byte of the answer's body."""
    idle_s: float = limits.UPSTREAM_IDLE_TIMEOUT_S
    """Between two pieces of it, pings and comments included."""
    whole_s: float = limits.UPSTREAM_STREAM_TIMEOUT_S
    """From sending to the last byte."""


class HttpClient:
    """Connections to one upstream."""

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
        stream_timeouts: StreamTimeouts | None = None,
        secret: str | None = None,
    ) -> None:
        """Make a client; nothing is connected yet.

        Args:
            base_url: of the upstream; a path is kept.
            headers: sent with every request; they may hold the key of the upstream.
            timeout_s: for a whole call that is not streamed, from sending to the last byte.
            stream_timeouts: of a streamed call; None for the usual ones.
            secret: the key, which is taken out of errors that echo it.

        Raises:
            ValueError: it is not the URL of an HTTP server, or a header has a line end.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in _PORTS or parts.hostname is None:
            raise ValueError(f"not the URL of an HTTP server: {base_url}")
        self._address = parts.hostname, parts.port or _PORTS[parts.scheme]
        self._tls = _tls() if parts.scheme == "https" else None
        self._path = parts.path.rstrip("/")
        host = parts.netloc.rpartition("@")[2]
        self._secret = secret.encode() if secret else None
        self._common = _lines({"host": host, "accept-encoding": "identity"} | dict(headers))
        self._timeout_s = timeout_s
        self._stream_timeouts = stream_timeouts or StreamTimeouts()
        shortest = min(timeout_s, self._stream_timeouts.first_byte_s, self._stream_timeouts.idle_s)
        self._sweep_s = min(_SWEEP_S, shortest / 5)
        self._idle: list[Connection] = []
        self._waiting: dict[_Call, Connection] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False

    def head(self, method: Literal["GET", "POST"], path: str, headers: Mapping[str, str]) -> bytes:
        """Return the head of requests, to be kept and sent with each of them.

        Args:
            method: of the request.
            path: and query, below the base URL.
            headers: beside those of every request.

        Raises:
            ValueError: a line end stands where none may.
        """
        target = self._path + path
        if not target.isascii() or any(char <= " " for char in target):
            raise ValueError(f"not a path: {target!r}")
        start = f"{method} {target} HTTP/1.1\r\n".encode("ascii")
        return start + self._common + _lines(headers)

    async def post(
        self,
        head: bytes,
        body: bytes,
        begun: Callable[[], None] | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> Reply | Failure:
        """Make one call. Raises nothing.

        Args:
            head: from `head`.
            body: as it is.
            begun: called when an answer with status 200 begins.
            wanted: asked when there is a connection: whether the request is still to be sent.
        """
        return await self._call(_Call(begun, self._timeout_s), head, body, wanted)

    async def post_streamed(
        self,
        head: bytes,
        body: bytes,
        begun: Callable[[], None] | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> Reply | Failure:
        """Make one call that asks for a stream, and return the message that comes of it.

        An upstream that answers without a stream is taken at its word. An `error` event is
        returned as the reply that would have been sent instead of a stream.

        Args:
            head: from `head`.
            body: as it is; it asks for a stream.
            begun: called at the first event of a message, or when a plain answer begins.
            wanted: as in `post`.

        Raises:
            UnknownDelta: the stream holds what cannot be folded; the call has been ended.
        """
        return await self._call(_StreamedCall(begun, self._stream_timeouts), head, body, wanted)

    async def _call(
        self, call: _Call, head: bytes, body: bytes, wanted: Callable[[], bool] | None
    ) -> Reply | Failure:
        try:
            connection = await self._connection()
        except _NotConnectedError as error:
            return Failure(FailureKind.CONNECT, str(error))
        if wanted is not None and not wanted():
            self._give_back(connection)
            return Failure(FailureKind.CONNECT, "given up before it was sent")
        call.start(asyncio.get_running_loop())
        self._waiting[call] = connection
        if self._sweeper is None:
            self._sweep()
        try:
            connection.send(b"%bcontent-length: %d\r\n\r\n" % (head, len(body)), body, call)
            outcome = await call.outcome
        finally:
            connection.drop(call)
            del self._waiting[call]
        if self._secret and isinstance(outcome, Reply) and outcome.status != 200:
            body = outcome.body.replace(self._secret, b"***")
            return msgspec.structs.replace(outcome, body=body)
        return outcome

    @asynccontextmanager
    async def stream(self, head: bytes, body: bytes | None) -> AsyncIterator[Streamed]:
        """Make one call whose reply is read as it comes.

        Args:
            head: from `head`.
            body: None for a request without one.

        Raises:
            BadGateway: no reply.
        """
        try:
            connection = await self._connection()
        except _NotConnectedError as error:
            raise BadGateway(f"The upstream did not answer: {error}") from error
        reply = Streamed(connection)
        length = b"" if body is None else b"content-length: %d\r\n" % len(body)
        try:
            connection.send(b"%b%b\r\n" % (head, length), body or b"", reply)
            async with asyncio.timeout(self._timeout_s):
                await reply.has_begun.wait()
                if reply.failure is not None and not reply.status:
                    raise BadGateway(f"The upstream did not answer: {reply.failure.text}")
                yield reply
        except TimeoutError:
            text = f"the whole call took over {self._timeout_s:g} s"
            raise BadGateway(f"The upstream did not answer: {text}") from None
        finally:
            connection.drop(reply)

    async def close(self) -> None:
        """Close all connections."""
        self._is_closed = True
        for connection in (*self._idle, *self._waiting.values()):
            connection.abort()
        self._idle.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    # Connections ---------------------------------------------------------------------------------

    async def _connection(self) -> Connection:
        """Return a connection that nobody uses, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        host, port = self._address
        seconds = limits.UPSTREAM_CONNECT_TIMEOUT_S
        try:
            async with asyncio.timeout(seconds):
                _, connection = await loop.create_connection(
                    partial(Connection, self._give_back), host, port, ssl=self._tls
                )
        except TimeoutError:
            raise _NotConnectedError(f"no connection in {seconds:g} s") from None
        except OSError as error:  # of TLS too, and of a name that is not known
            raise _NotConnectedError(error.strerror or str(error) or "no connection") from error
        return connection

    def _give_back(self, connection: Connection) -> None:
        if self._is_closed:
            connection.abort()
            return
        connection.idle_since_s = asyncio.get_running_loop().time()
        self._idle.append(connection)

    def _sweep(self) -> None:
        """End the calls whose time is over, and the connections that nobody has used for long.

        One timer for all calls: one for each would cost more than the rest of it.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        for call in self._waiting:
            if call.deadline_s <= now:
                call.time_out()
        oldest = now - limits.UPSTREAM_IDLE_CONNECTION_S
        while self._idle and self._idle[0].idle_since_s < oldest:
            self._idle.pop(0).abort()
        if self._waiting or self._idle:
            self._sweeper = loop.call_later(self._sweep_s, self._sweep)
        else:
            self._sweeper = None


class _Call:
    """A call whose reply is wanted whole."""

    def __init__(self, begun: Callable[[], None] | None, timeout_s: float) -> None:
        self.outcome: asyncio.Future[Reply | Failure]
        self.deadline_s = 0.0
        self._begun = begun
        self._timeout_s = timeout_s
        self._status = 0
        self._headers: Mapping[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._length = 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to wait."""
        self.outcome = loop.create_future()
        self.deadline_s = loop.time() + self._timeout_s

    def begin(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """Take the head."""
        self._status = status
        self._headers = headers
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > limits.UPSTREAM_REPLY_BYTES_MAX:
            self._settle(_too_large())
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
        self._settle(failure or self._reply(b"".join(self._parts)))

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
        said = {
            name.decode("ascii"): text
            for name, value in headers.items()
            if name.startswith(_LIMITS) and (text := _text(value)) is not None
        }
        if status == 200:
            return Reply(200, body, headers=said or None)
        request_id = _text(headers.get(b"request-id"))
        return Reply(status, body, said.get("retry-after"), request_id, said or None)


class _StreamedCall(_Call):
    """A call whose reply is folded as it comes, if it is a stream."""

    def __init__(self, begun: Callable[[], None] | None, timeouts: StreamTimeouts) -> None:
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
        if status != 200 or not kind.startswith(_EVENT_STREAM):
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


class Streamed:
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


class _NotConnectedError(Exception):
    """There is no connection: nothing was sent."""


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _lines(headers: Mapping[str, str]) -> bytes:
    """Return the lines of headers.

    Raises:
        ValueError: a line end stands where none may, or it cannot be sent.
    """
    for name, value in headers.items():
        if any(char in "\r\n\0" for char in name + value):
            raise ValueError(f"header {name} has a line end")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def _text(value: bytes | None) -> str | None:
    """Return the value of a header; None when there is none, or it is not ASCII."""
    return value.decode("ascii") if value is not None and value.isascii() else None


def _broken(text: str) -> Failure:
    return Failure(FailureKind.BROKEN, text)


def _too_large() -> Failure:
    return Failure(FailureKind.TOO_LARGE, f"over {limits.UPSTREAM_REPLY_BYTES_MAX} bytes")


def _whole_too_long(seconds: float) -> Failure:
    return Failure(FailureKind.TIMEOUT, f"the whole call took over {seconds:g} s")
