"""HTTP/1.1 on one connection: what is let through to the application, and what is not.

The parser under it is strict already. This adds bounds on the head of a request (bytes, fields,
time), refuses what two servers in a row could read differently, bounds the number of connections,
and gives every refusal the envelope of the API. Knows no endpoint and reads no body.

After a refusal the connection is closed: where the next request begins is not known.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from batchyard import __version__, descriptors, ids, limits
from batchyard.errors import BatchyardError, HeadTooLarge, InvalidRequest, Overloaded
from batchyard.server.guard import error_response
from batchyard.server.streaming import uncopied

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

log = logging.getLogger(__name__)

ABORT = "batchyard.abort"
"""Name of the scope extension that drops the connection at once, without the rest of an answer."""
CLOSE = "batchyard.close"
"""Name of the scope extension that closes the connection after what has been written."""

# Where one server in a row takes the first and another the last, the second sees another caller,
# another length or another meaning. `anthropic-beta` may be repeated: it is a list.
_ONCE = frozenset(
    {
        b"anthropic-version",
        b"anthropic-workspace-id",
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"idempotency-key",
        b"transfer-encoding",
        b"x-api-key",
    }
)
_LENGTH = re.compile(rb"[0-9]{1,19}")
_TARGET = re.compile(rb'/[!"$-~]*')


_WARN_INTERVAL_S = 60.0  # whoever opens connections must not fill the log


class RequestTimeout(InvalidRequest):
    """The request head did not arrive in time."""

    status = 408


class UrlTooLong(InvalidRequest):
    """The URL is too long."""

    status = 414


class Protocol(HttpToolsProtocol):
    """One connection."""

    _warn_again_s: ClassVar[float] = 0.0

    def __init__(self, *args: Any, **options: Any) -> None:  # those of its base, passed on
        super().__init__(*args, **options)
        self._in_head = True  # until the end of a head, and again from the end of its body
        self._begun = False  # a request line has begun, and its message has not ended
        self._received_bytes = 0  # since the end of the last message, while in a head
        self._field_bytes = 0
        self._fields = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._refusal: BatchyardError | None = None
        self._is_leaving = False  # answered, and closed as soon as the client stops sending

    # The connection ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > descriptors.connections_max():
            self._warn_full()
            self._refuse(
                Overloaded("Too many connections", retry_after_s=limits.FULL_RETRY_AFTER_S)
            )
            return
        self._deadline = self.loop.call_later(limits.HEAD_TIMEOUT_S, self._head_is_late)

    def _warn_full(self) -> None:
        now = self.loop.time()
        if now > Protocol._warn_again_s:
            Protocol._warn_again_s = now + _WARN_INTERVAL_S
            log.warning("%d connections are open: more are refused", len(self.connections) - 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        if self._refusal is not None:
            return  # what follows a refused request is not looked at
        self._unset_keepalive_if_required()
        if self._in_head:
            self._received_bytes += len(data)
        try:
            self._feed(data)
            if self._in_head and self._received_bytes > limits.HEAD_BYTES_MAX:
                raise _head_too_large()
        except BatchyardError as error:
            self._refuse(error)
        else:
            if self._in_head and self._deadline is None and not self._is_idle():
                self._deadline = self.loop.call_later(limits.HEAD_TIMEOUT_S, self._head_is_late)

    def _is_idle(self) -> bool:
        return not self._begun and self._received_bytes == 0

    def _feed(self, data: bytes) -> None:
        """Give the parser bytes.

        Raises:
            BatchyardError: the request is refused.
        """
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_offer() + data[upgrade.args[0] :]
                continue
            except httptools.HttpParserCallbackError as error:
                if isinstance(error.__context__, BatchyardError):
                    raise error.__context__ from None
                raise
            except httptools.HttpParserError as error:
                raise InvalidRequest(f"The request is not valid HTTP/1.1: {error}") from None
            return

    def _without_offer(self) -> bytes:
        """Return the head that has just been read without its offer of another protocol.

        The offer is not taken. The parser would take the body for the other protocol, so a new
        one reads the request again.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version.encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                kept = b", ".join(token for token in tokens if token.lower() != b"upgrade")
                lines.append(b"connection: %b" % kept)
            elif name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the base does
        self._in_head = True
        return b"\r\n".join([*lines, b"", b""])

    # The head ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._begun = True
        self._fields = self._field_bytes = 0
        hooks: dict[str, Any] = {ABORT: self.transport.abort, CLOSE: self.transport.close}
        self.scope["extensions"] = hooks

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        super().on_url(url)
        self._field_bytes += len(url)
        if len(self.url) > limits.URL_BYTES_MAX:
            raise UrlTooLong(f"The URL is longer than {limits.URL_BYTES_MAX} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; those after a body (trailers) are bounded and dropped.

        Blanks around a value are no part of it; the parser leaves those after it. Source: RFC 9110
        section 5.5.
        """
        self._fields += 1
        self._field_bytes += len(name) + len(value) + 4
        if self._fields > limits.HEAD_FIELDS_MAX:
            raise HeadTooLarge(f"The request head has more than {limits.HEAD_FIELDS_MAX} fields")
        if self._field_bytes > limits.HEAD_BYTES_MAX:
            raise _head_too_large()
        if self._in_head:
            super().on_header(name, value.strip(b" \t"))

    def on_headers_complete(self) -> None:
        """Check a head and hand the request on."""
        _check_head(self.url, self.headers, self.parser.get_http_version())
        if self.parser.should_upgrade():
            return  # it comes again: see `_without_offer`
        self._stop_deadline()
        self._in_head = False
        super().on_headers_complete()
        self.cycle.transport = _Lingering(self.transport, self._close)  # type: ignore[assignment]
        self.cycle.send = uncopied(self.cycle)  # type: ignore[assignment, method-assign]

    def _head_is_late(self) -> None:
        self._deadline = None
        if self.flow.read_paused:  # we do not read: earlier requests come first
            self._deadline = self.loop.call_later(limits.HEAD_TIMEOUT_S, self._head_is_late)
        elif self._is_idle():
            self.transport.close()
        else:
            self._refuse(
                RequestTimeout(
                    f"The request head did not arrive within {limits.HEAD_TIMEOUT_S:g} s"
                )
            )

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # The body and the answer ------------------------------------------------------------------

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        cycle = self.cycle
        if not cycle.response_complete:
            # The usual one part between two reads of the application is not copied into the
            # buffer and out of it again.
            if not cycle.body:
                cycle.body = body  # type: ignore[assignment]
                body = b""
            elif isinstance(cycle.body, bytes):
                cycle.body = bytearray(cycle.body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request; the next byte begins another."""
        if self.parser.should_upgrade():
            return
        self._in_head = True
        self._begun = False
        self._received_bytes = 0
        self._stop_deadline()
        super().on_message_complete()
        if self._is_leaving:
            self.transport.close()
        elif self.cycle.response_complete and not self.pipeline:
            self._rest()

    def on_response_complete(self) -> None:
        """Go on with the next request, or close."""
        goes_on = bool(self.pipeline)
        super().on_response_complete()
        if goes_on or self.transport.is_closing():
            return
        if self._refusal is not None:
            self._write_refusal(self._refusal)
        elif not self._in_head:
            self._unset_keepalive_if_required()
            self._deadline = self.loop.call_later(limits.UNREAD_TIMEOUT_S, self.transport.close)

    def _close(self) -> None:
        """Close after an answer, but hear a body out that is still coming.

        A closed socket meets it with a reset, and some clients then never read the answer.
        """
        if self._in_head or self.pipeline or not self.cycle.response_complete:
            self.transport.close()
        else:
            self._is_leaving = True

    def _rest(self) -> None:
        """Wait for the next request, as after an answer."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    # Refusals ---------------------------------------------------------------------------------

    def _refuse(self, error: BatchyardError) -> None:
        """Answer with an error and close, after the answers to earlier requests."""
        self._refusal = error
        self._stop_deadline()
        cycle = self.cycle
        if self._is_in_body():
            # In the middle of its body: this request has reached the application.
            if cycle.response_started:
                # A second answer would be taken for that of the next request.
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
            if self.pipeline and self.pipeline[0][0] is cycle:
                self.pipeline.popleft()
                return
        elif self._is_answering():
            return  # `on_response_complete` comes back to it
        self._write_refusal(error)

    def _latest(self) -> RequestResponseCycle | None:
        return self.cycle  # None before the first request, other than the base declares

    def _is_answering(self) -> bool:
        cycle = self._latest()
        return cycle is not None and not cycle.response_complete

    def _is_in_body(self) -> bool:
        """Whether the message that is being read has reached the application."""
        cycle = self._latest()
        return not self._in_head and cycle is not None and cycle.scope is self.scope

    def _write_refusal(self, error: BatchyardError) -> None:
        if self.transport.is_closing():
            return
        request_id = ids.mint("req")
        response = error_response(error, request_id)
        fields = [
            *((name, value) for name, value in response.raw_headers if name != b"connection"),
            (b"request-id", request_id.encode()),
            (b"batchyard-version", __version__.encode()),
            (b"connection", b"close"),
        ]
        head = b"".join(
            b"%b: %b\r\n" % field for field in self.server_state.default_headers + fields
        )
        self.transport.write(STATUS_LINE[response.status_code] + head + b"\r\n" + response.body)
        self.transport.close()


class _Lingering:
    """What an answer sees of the transport; how it closes is the connection's business."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.writelines = transport.writelines
        self.set_write_buffer_limits = transport.set_write_buffer_limits
        self.is_closing = transport.is_closing
        self.close = close


def _check_head(url: bytes, fields: list[tuple[bytes, bytes]], version: str) -> None:
    """Refuse what is legal for the parser and still means different things to different servers.

    Raises:
        InvalidRequest: with what is wrong.
    """
    if version != "1.1":
        # Results have no length beforehand; in HTTP/1.0 a cut of them would pass for their end.
        # Not 505: it is about the major version (RFC 9110 15.6.6), and clients try it again.
        raise InvalidRequest("HTTP/1.1 is needed")
    if not _TARGET.fullmatch(url):
        raise InvalidRequest("The request target must be a path: `/v1/…`, without scheme and host")
    seen: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in seen:
            raise InvalidRequest(f"{name.decode('ascii')}: the header was sent twice")
        if name in _ONCE:
            seen[name] = value
    coding = seen.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        raise InvalidRequest("transfer-encoding: only `chunked` is allowed")
    if not _LENGTH.fullmatch(seen.get(b"content-length", b"0")):
        raise InvalidRequest("content-length: at most 19 digits are allowed")


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(
        f"The request head is larger than {limits.HEAD_BYTES_MAX // limits.KIB} KiB"
    )
