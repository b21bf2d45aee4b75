"""One HTTP/1.1 connection to an upstream: one exchange at a time, everything bounded.

A shell around the parser of `httptools`. It knows the framing of replies and nothing of what they
say: an `Exchange` is told the head, the pieces of the body and the end, in this order. Dropping an
exchange closes the connection at once, so that an upstream can stop a generation nobody waits for.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Protocol, cast

import httptools

from batchyard import limits
from batchyard.upstream import Failure, FailureKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Statuses whose replies have no body, whatever their head says. Source: RFC 9112, section 6.3.
_BODILESS = frozenset({204, 304})
# Said of a connection that lay idle, also when the next request was on its way already: its own
# reply would be taken for that of the one after. Source: RFC 9110, section 15.5.9.
_TIMED_OUT = 408
_INTERIM_MAX = 10
# A call may take hours without a byte: the network must not forget the connection meanwhile.
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 30, "TCP_KEEPCNT": 5}


class Exchange(Protocol):
    """What becomes of one request. None of these may raise."""

    def begin(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """Take the head of the reply; names of headers are in lower case, the first one counts."""

    def feed(self, data: bytes) -> None:
        """Take a piece of the body."""

    def end(self, failure: Failure | None) -> None:
        """Take notice that the reply is whole, or that it never will be."""


class Connection(asyncio.Protocol):
    """One connection, open until either side closes it."""

    def __init__(
        self,
        given_back: Callable[[Connection], None],
        soon: Callable[[Callable[[], None]], object],
        lost: Callable[[Connection], None],
    ) -> None:
        """Prepare; the event loop connects it.

        Args:
            given_back: called when a reply was whole and another request may follow.
            soon: calls what it is given, when all that can go on now has done so.
            lost: called when it is closed.
        """
        self._given_back = given_back
        self._soon = soon
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._exchange: Exchange | None = None
        self._unsent: bytes | None = None
        """The request, until it is sent."""
        self.idle_since_s = 0.0
        self._requests = 0
        self._unparsed = 0
        """Bytes that have come since the last piece of a body: of the head, or of trailers."""
        self._headers: dict[bytes, bytes] = {}
        self._status = 0
        self._interims = 0
        self._has_begun = False
        self._ends_by_close = False
        self._is_whole = False
        self._may_follow = False
        self._is_spoiled = False
        self._is_paused = False

    # What the client asks for --------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, head: bytes, body: bytes, exchange: Exchange) -> None:
        """Send one request; `exchange` is told what comes of it."""
        assert self._transport is not None
        assert self._exchange is None
        self._exchange = exchange
        self._requests += 1
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self._headers = {}
        self._status = self._unparsed = self._interims = 0
        self._has_begun = self._ends_by_close = self._is_whole = False
        if len(body) < limits.DISK_CHUNK_BYTES:
            # An upstream on this machine sleeps after each request that comes alone, and to wake it
            # costs a third of what the kernel does for a call. In a row they wake it once.
            self._unsent = head + body
            self._soon(self._send_now)
        else:  # not worth a copy
            self._transport.writelines((head, body))

    def _send_now(self) -> None:
        data, self._unsent = self._unsent, None
        if data is not None and self.is_open and self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Close at once; the exchange is told nothing more."""
        self._exchange = self._unsent = None
        if self._transport is not None:
            self._transport.abort()

    def drop(self, exchange: Exchange) -> None:
        """Close at once, if the reply to `exchange` is still to come."""
        if self._exchange is exchange:
            self.abort()

    def pause(self) -> None:
        """Take nothing more from the network for now."""
        self._is_paused = True
        if self.is_open and self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Take what the network has."""
        self._is_paused = False
        if self.is_open and self._transport is not None:
            self._transport.resume_reading()

    # What the event loop tells -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.Transport", transport)  # not by inheritance in uvloop
        peer: socket.socket | None = transport.get_extra_info("socket")
        if peer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):
                    peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        if self._exchange is None:  # nobody asked
            self.abort()
            return
        if self._unsent is not None:  # to nothing that was asked: the one before has its reply
            self._fail(self._unread, "a reply came before the request was sent")
            return
        self._unparsed += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._is_spoiled = True
            if not self._is_whole:  # else it is what came after the reply that is none
                text = str(error) or "an upgrade that nobody asked for"
                self._fail(FailureKind.BROKEN, f"what came is not HTTP: {text}")
                return
        if self._is_whole:
            self._finish()
        elif self._unparsed > limits.UPSTREAM_HEAD_BYTES_MAX:
            cap = limits.UPSTREAM_HEAD_BYTES_MAX
            what = "trailers of the reply are" if self._has_begun else "head of the reply is"
            self._fail(FailureKind.BROKEN, f"the {what} over {cap} bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        """Take notice that the connection is gone."""
        self._transport = None
        self._lost(self)
        if self._exchange is None:
            return
        if exc is None and self._has_begun and self._ends_by_close:
            exchange, self._exchange = self._exchange, None
            exchange.end(None)
            return
        when = "within its reply" if self._has_begun else "without a reply"
        why = str(exc) if exc is not None and str(exc) else f"the connection was closed {when}"
        has_reply = self._unparsed or self._has_begun
        self._fail(FailureKind.BROKEN if has_reply else self._unread, why)

    # What the parser tells -----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a reply; a second one to the same request is none of ours."""
        if self._is_whole:
            self._is_spoiled = True
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header; trailers say nothing that is used."""
        if not self._has_begun:
            self._headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        """Take the head."""
        self._status = self._parser.get_status_code()
        if self._status < 100:
            raise ValueError(f"the status is {self._status}")
        if self._is_spoiled or self._status < 200:
            return
        self._has_begun = True
        headers = self._headers
        self._ends_by_close = (
            b"content-length" not in headers
            and b"transfer-encoding" not in headers
            and self._status not in _BODILESS
        )
        if self._exchange is not None:
            self._exchange.begin(self._status, headers)

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._unparsed = 0
        if self._exchange is not None and not self._is_spoiled:
            self._exchange.feed(data)

    def on_message_complete(self) -> None:
        """Take the end of the reply; an interim one is followed by the real one."""
        if self._status >= 200:
            self._is_whole = True
            self._may_follow = bool(self._parser.should_keep_alive())
            return
        self._interims += 1
        if self._interims > _INTERIM_MAX:
            raise ValueError("too many interim replies")

    def _finish(self) -> None:
        exchange, self._exchange = self._exchange, None
        transport = self._transport
        if (
            transport is not None
            and not self._is_spoiled
            and not self._is_paused
            and not self._ends_by_close
            and self._may_follow
            and self._status != _TIMED_OUT
            and not transport.get_write_buffer_size()  # it may have answered before it read all
        ):
            self._given_back(self)
        elif transport is not None:
            transport.abort()
        if exchange is not None:
            exchange.end(None)

    @property
    def _unread(self) -> FailureKind:
        """Return what it means that no reply came: servers close what lies idle."""
        return FailureKind.STALE if self._requests > 1 else FailureKind.BROKEN

    def _fail(self, kind: FailureKind, text: str) -> None:
        exchange = self._exchange
        self.abort()
        if exchange is not None:
            exchange.end(Failure(kind, text))
