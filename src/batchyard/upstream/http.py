"""The HTTP client of the upstreams, bounded: connections to one origin and the calls over them.

Fixed origin, no redirects, no proxies from the environment, no compressed replies, a cap on every
reply, a time-out on everything. A call that is given up has its connection closed at once: an
upstream that notices stops generating what nobody will read, and nobody pays for.
"""

from __future__ import annotations

import asyncio
import ssl
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
from batchyard.upstream.exchanges import Folded, Passed, Whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping

_SWEEP_S = 1.0
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


class Clients:
    """The clients of a process: where too many connections are open, unused ones are closed."""

    def __init__(self, connections_max: int) -> None:
        """Begin without a client.

        Args:
            connections_max: how many connections they may have together; no fewer than calls.
        """
        self._connections_max = connections_max
        self._clients: list[HttpClient] = []

    def add(self, client: HttpClient) -> None:
        """Count the connections of a client from now on."""
        self._clients.append(client)

    def make_room(self) -> bool:
        """Close the oldest unused connection where there are too many; whether one was closed."""
        if sum(client.connections for client in self._clients) <= self._connections_max:
            return False
        return max(self._clients, key=lambda client: client.unused).close_oldest()


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
        self._waiting: dict[Whole, Connection] = {}
        self._open: set[Connection] = set()
        self._connecting = 0
        self._clients: Clients | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop
        """That of the last connection: to ask which one runs takes a call of the kernel."""

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

    def post(
        self,
        head: bytes,
        body: bytes,
        begun: Callable[[], None] | None = None,
        wanted: Callable[[], bool] | None = None,
        *,
        anew: bool = False,
        is_streamed: bool = False,
    ) -> Coroutine[None, None, Reply | Failure]:
        """Make one call, and return the message that comes of it.

        An upstream that is asked for a stream and answers without is taken at its word. An `error`
        event is returned as the reply that would have been sent instead of a stream.

        Args:
            head: from `head`.
            body: as it is.
            begun: called when an answer with status 200 begins; of a stream, at the first event of
                a message.
            wanted: asked when it had to wait for a connection: whether the request is still to be
                sent.
            anew: use no connection that was used before.
            is_streamed: whether the body asks for a stream.

        Raises:
            UnknownDelta: the stream holds what cannot be folded; the call has been ended.
        """
        if is_streamed:
            call: Whole = Folded(begun, self._stream_timeouts)
        else:
            call = Whole(begun, self._timeout_s)
        return self._call(call, head, body, wanted, anew=anew)

    async def _call(
        self,
        call: Whole,
        head: bytes,
        body: bytes,
        wanted: Callable[[], bool] | None,
        *,
        anew: bool,
    ) -> Reply | Failure:
        connection = None if anew else self._unused()
        if connection is None:
            try:
                connection = await self._connect()
            except _NotConnectedError as error:
                return Failure(FailureKind.CONNECT, str(error))
            if wanted is not None and not wanted():
                self._give_back(connection)
                return Failure(FailureKind.UNWANTED, "given up before it was sent")
        call.start(self._loop)
        self._waiting[call] = connection
        if self._sweeper is None:
            self._sweep()
        try:
            connection.send(b"%bcontent-length: %d\r\n\r\n" % (head, len(body)), body, call)
            outcome = await call.outcome
        finally:
            connection.drop(call)
            del self._waiting[call]
        if isinstance(outcome, Failure):
            return self._judged(outcome, call)
        if self._secret and outcome.status != 200:
            body = outcome.body.replace(self._secret, b"***")
            return msgspec.structs.replace(outcome, body=body)
        return outcome

    def _judged(self, failure: Failure, call: Whole) -> Failure:
        """Return a failure; who closes a connection late has not just missed a request."""
        took_s = asyncio.get_running_loop().time() - call.sent_s
        if failure.kind is FailureKind.STALE and took_s > limits.UPSTREAM_STALE_S:
            return Failure(FailureKind.BROKEN, failure.text)
        return failure

    @asynccontextmanager
    async def stream(self, head: bytes, body: bytes | None) -> AsyncIterator[Passed]:
        """Make one call whose reply is read as it comes.

        Args:
            head: from `head`.
            body: None for a request without one.

        Raises:
            BadGateway: no reply.
        """
        try:
            connection = self._unused() or await self._connect()
        except _NotConnectedError as error:
            raise BadGateway(f"The upstream did not answer: {error}") from error
        reply = Passed(connection)
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

    def share(self, clients: Clients) -> None:
        """Share the descriptors of the process with its other clients; before the first call."""
        self._clients = clients
        clients.add(self)

    @property
    def connections(self) -> int:
        """How many there are, those that are being made and those that nobody uses included."""
        return len(self._open) + self._connecting

    @property
    def unused(self) -> int:
        """How many there are that nobody uses."""
        return len(self._idle)

    def close_oldest(self) -> bool:
        """Close the one that nobody has used for longest; whether there is one."""
        if not self._idle:
            return False
        connection = self._idle.pop(0)
        connection.abort()
        self._open.discard(connection)
        return True

    def _unused(self) -> Connection | None:
        """Return an open connection that nobody uses, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> Connection:
        loop = self._loop = asyncio.get_running_loop()
        host, port = self._address
        seconds = limits.UPSTREAM_CONNECT_TIMEOUT_S
        self._connecting += 1
        try:
            if self._clients is not None and self._clients.make_room():
                await asyncio.sleep(0)  # its descriptor is given back in the next turn
            async with asyncio.timeout(seconds):
                made = partial(Connection, self._give_back, loop.call_soon, self._open.discard)
                _, connection = await loop.create_connection(made, host, port, ssl=self._tls)
        except TimeoutError:
            raise _NotConnectedError(f"no connection in {seconds:g} s") from None
        except OSError as error:  # of TLS too, and of a name that is not known
            raise _NotConnectedError(error.strerror or str(error) or "no connection") from error
        finally:
            self._connecting -= 1
        if connection.is_open:
            self._open.add(connection)
        return connection

    def _give_back(self, connection: Connection) -> None:
        if self._is_closed:
            connection.abort()
            return
        connection.idle_since_s = self._loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweep()

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
        while self._clients is not None and self._clients.make_room():
            pass
        if self._waiting or self._idle:
            self._sweeper = loop.call_later(self._sweep_s, self._sweep)
        else:
            self._sweeper = None


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
