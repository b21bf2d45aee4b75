"""The outermost layer: which requests are answered at all, and the frame of every answer.

Gives each request its id, refuses foreign hosts and browsers, bounds bodies in size and time, and
turns every error into the envelope of the API. Knows no endpoint.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import re
from typing import TYPE_CHECKING

from starlette.responses import Response

from batchyard import __version__, ids, limits, wire
from batchyard.errors import (
    BatchyardError,
    DamagedError,
    DiskFull,
    Forbidden,
    Internal,
    InvalidRequest,
    Overloaded,
    SegmentRefused,
    SegmentsGone,
    StoreError,
    TooLarge,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

BODY_IDLE_S = 60.0
BODY_TIMEOUT = "request_body_timeout"
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

# What is wrong with one batch, or will be right again, is not the end of the store.
_OF_ONE_CALL = (DamagedError, DiskFull, SegmentRefused, SegmentsGone)
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})  # nothing was written for want of

_HOST = re.compile(
    r"(?:(?P<name>[A-Za-z0-9._-]+)|\[(?P<address>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{1,5}))?"
)
_PORT_MAX = 65_535


class Guard:
    """ASGI layer around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        allowed_hosts: frozenset[str],
        store_failed: Callable[[StoreError], None],
    ) -> None:
        """Put it around an application.

        Args:
            app: what answers.
            allowed_hosts: values of `Host` that are answered, without port, lower case.
            store_failed: told, after the answer, when the store itself failed under a call.
        """
        self._app = app
        self._allowed_hosts = allowed_hosts
        self._store_failed = store_failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request_id = ids.mint("req")
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        started = False

        async def framed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [
                    *message["headers"],
                    (b"request-id", request_id.encode()),
                    (b"batchyard-version", __version__.encode()),
                    *state.get("headers", ()),  # of the caller: see `door.py`
                ]
                names = {name for name, _ in message["headers"]}
                if message["status"] >= 400 and b"connection" not in names and _expects(scope):
                    # The client may or may not send the body now: only closing is unambiguous.
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            self._check_origin(scope)
            await self._app(scope, receive, framed)
        except BatchyardError as error:
            try:
                if started:
                    # The server aborts the connection of an unfinished answer: it is noticed.
                    why = shown(error.message, 300)
                    log.warning("cut short request_id=%s: %s", request_id, why)
                else:
                    await _answer(error, request_id)(scope, receive, framed)
            finally:
                if isinstance(error, StoreError) and not _is_of_one_call(error):
                    self._store_failed(error)
        except asyncio.CancelledError:
            # Only the end of the process cancels: the store failed, which is told elsewhere. The
            # connection is aborted; passed on, this would be logged as a defect of ours.
            log.warning("cut short request_id=%s: the server ends", request_id)
        except Exception as error:
            if _is_of_the_end(error):
                log.warning("cut short request_id=%s: the server ends", request_id)
            else:
                log.exception("defect request_id=%s path=%s", request_id, shown(scope["path"]))
            if started:
                return
            await error_response(Internal(), request_id)(scope, receive, framed)

    def _check_origin(self, scope: Scope) -> None:
        """Refuse names that are not ours (DNS rebinding) and pages of other sites.

        Raises:
            InvalidRequest: the `Host` is missing, twice there, or foreign.
            Forbidden: a browser sends a page's request.
        """
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or host_name(hosts[0]) not in self._allowed_hosts:
            shown_hosts = shown(", ".join(hosts))
            raise InvalidRequest(
                f"Host {shown_hosts} is not served here; allowed are the loopback names, the host "
                "of public_url and allowed_hosts"
            )
        if scope["method"] not in {"GET", "HEAD"} and any(
            name == b"origin" for name, _ in scope["headers"]
        ):
            raise Forbidden("Requests from web pages are not allowed.")


def _answer(error: BatchyardError, request_id: str) -> Response:
    """Return the answer to a call that failed; what the store says is for the log."""
    if isinstance(error, DiskFull):
        log.warning("disk full request_id=%s: %s", request_id, error)
        error = Overloaded(
            "The disk of this server is full", retry_after_s=limits.DISK_FULL_RETRY_AFTER_S
        )
    elif isinstance(error, StoreError):
        log.error("store request_id=%s: %s", request_id, error)
        error = Internal()
    return error_response(error, request_id)


def _is_of_one_call(error: StoreError) -> bool:
    cause = error.__cause__
    is_passing = isinstance(cause, OSError) and cause.errno in _PASSING
    return is_passing or isinstance(error, _OF_ONE_CALL)


def _is_of_the_end(error: Exception) -> bool:
    """Whether it is that of a call which no thread takes any more: the store failed, as above."""
    return isinstance(error, RuntimeError) and "shutdown" in str(error)


def _expects(scope: Scope) -> bool:
    return any(name == b"expect" for name, _ in scope["headers"])


def host_name(host: str) -> str | None:
    """Return the name in a `Host` value, lower case, without brackets and port.

    None when it is not `name` or `name:port`: the whole value becomes a part of `results_url`.
    """
    match = _HOST.fullmatch(host)
    if match is None or int(match["port"] or 0) > _PORT_MAX:
        return None
    if match["address"] is None:
        return match["name"].lower()
    try:
        ipaddress.IPv6Address(match["address"])
    except ValueError:
        return None
    return match["address"].lower()


def error_response(error: BatchyardError, request_id: str) -> Response:
    """Return the envelope of an error with its headers."""
    details = {} if error.error_code is None else {"details": {"error_code": error.error_code}}
    body = {
        "type": "error",
        "error": {"type": error.type, "message": error.message, **details},
        "request_id": request_id,
    }
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    if error.allow is not None:
        headers["allow"] = error.allow
    if isinstance(error, TooLarge) or error.error_code == BODY_TIMEOUT:
        headers["connection"] = "close"
    return Response(wire.encode(body), error.status, headers=headers, media_type="application/json")


async def body_chunks(request: Request, bytes_max: int) -> AsyncIterator[bytes]:
    """Yield the body, which the caller knows to be JSON.

    Raises:
        TooLarge: announced or grown over `bytes_max`.
        InvalidRequest: coded, of another type, too slow, or cut off.
    """
    _check_body_headers(request, bytes_max)
    pace = _Pace()
    length = 0
    more = True
    while more:
        message = await pace.next(request)
        if message["type"] == "http.disconnect":
            raise InvalidRequest("The request body ended early")
        chunk = message.get("body", b"")
        length += len(chunk)
        if length > bytes_max:
            raise TooLarge(_too_large(bytes_max))
        if chunk:
            yield chunk
        more = message.get("more_body", False)


class _Pace:
    """How fast a body arrives, counted over the time that we waited for it and not over our own."""

    def __init__(self) -> None:
        self._waited_s = 0.0
        self._bytes = 0

    async def next(self, request: Request) -> Message:
        """Return the next message.

        Raises:
            InvalidRequest: nothing came for `BODY_IDLE_S`, or over a window of `BODY_WINDOW_S`
                less than `BODY_RATE_MIN`.
        """
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            async with asyncio.timeout(BODY_IDLE_S):
                message = await request.receive()
        except TimeoutError:
            raise InvalidRequest(
                f"The request body stopped: nothing came for {BODY_IDLE_S:g} s",
                error_code=BODY_TIMEOUT,
            ) from None
        self._waited_s += clock() - started
        self._bytes += len(message.get("body", b""))
        if self._waited_s > limits.BODY_WINDOW_S:
            if self._bytes < limits.BODY_RATE_MIN * self._waited_s and message.get("more_body"):
                raise InvalidRequest(
                    f"The request body arrived too slowly: below {limits.BODY_RATE_MIN} bytes per "
                    f"second for {limits.BODY_WINDOW_S:g} s",
                    error_code=BODY_TIMEOUT,
                )
            self._waited_s = 0.0
            self._bytes = 0
        return message


async def read_body(request: Request, bytes_max: int) -> bytes:
    """Return the whole body; see `body_chunks`."""
    return b"".join([chunk async for chunk in body_chunks(request, bytes_max)])


def _check_body_headers(request: Request, bytes_max: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > bytes_max:
        raise TooLarge(_too_large(bytes_max))
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise InvalidRequest(
            f"content-encoding: {shown(coding)} is not supported; send the body as it is",
            error_code="request_body_encoding_unsupported",
        )
    content_type, _, rest = request.headers.get("content-type", "application/json").partition(";")
    if content_type.strip().lower() != "application/json":
        raise InvalidRequest(
            f"content-type: {shown(content_type)} is not supported; use application/json"
        )
    for parameter in rest.split(";"):
        name, _, value = parameter.partition("=")
        charset = value.strip().strip('"').lower()
        if name.strip().lower() == "charset" and charset not in {"utf-8", "utf8"}:
            raise InvalidRequest(
                "content-type: the charset must be UTF-8", error_code="unsupported_charset"
            )


def _too_large(bytes_max: int) -> str:
    return f"Request exceeds the maximum size of {bytes_max // limits.MIB} MB"
