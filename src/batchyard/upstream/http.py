"""The HTTP client of the upstreams, bounded: the only module here that knows the library.

Fixed origins, no redirects, no proxies from the environment, no compressed replies, a cap on every
reply. The library names a connection that broke after the request was sent a "connect error" too,
so the phase is read from the causes it gives.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import PyreqwestError, RequestTimeoutError

from batchyard import limits
from batchyard.errors import BadGateway
from batchyard.upstream import Failure, FailureKind, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from pyreqwest.response import Response

_CHUNK_BYTES = 64 * limits.KIB
_NOT_SENT = "client error (Connect)"
_PASSED_ON = ("content-type", "request-id", "retry-after", "x-should-retry")


class HttpClient:
    """Connections to one upstream."""

    def __init__(self, headers: Mapping[str, str], *, timeout_s: float) -> None:
        """Make a client.

        Args:
            headers: sent with every request; they may hold the key of the upstream.
            timeout_s: for a whole call, from connecting to the last byte.
        """
        self._client = (
            ClientBuilder()
            .no_proxy()
            .follow_redirects(enable=False)
            .referer(enable=False)
            .gzip(enable=False)
            .brotli(enable=False)
            .zstd(enable=False)
            .deflate(enable=False)
            .default_headers(dict(headers) | {"accept-encoding": "identity"})
            .connect_timeout(timedelta(seconds=limits.UPSTREAM_CONNECT_TIMEOUT_S))
            .timeout(timedelta(seconds=timeout_s))
            .build()
        )

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        """Make one call. Raises nothing."""
        request = self._client.post(url).headers(headers).body_bytes(body).build_streamed()
        try:
            async with request as response:
                text = await _whole(response)
                if text is None:
                    cap = f"over {limits.UPSTREAM_REPLY_BYTES_MAX} bytes"
                    return Failure(FailureKind.TOO_LARGE, cap)
                if response.status == 200:
                    return Reply(200, text)
                return Reply(
                    response.status,
                    text,
                    response.get_header("retry-after"),
                    response.get_header("request-id"),
                )
        except PyreqwestError as error:
            return _failure(error)

    @asynccontextmanager
    async def stream(
        self, method: Literal["GET", "POST"], url: str, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[Streamed]:
        """Make one call whose reply is read as it comes.

        Raises:
            BadGateway: no reply.
        """
        builder = self._client.request(method, url).headers(headers)
        if method == "POST":
            builder = builder.body_bytes(body)
        # The library reads 64 KiB ahead by default: no event of a stream would come before that.
        request = builder.streamed_read_buffer_limit(0).build_streamed()
        try:
            response = await request.__aenter__()
        except PyreqwestError as error:
            raise BadGateway(f"The upstream did not answer: {_failure(error).text}") from error
        try:
            yield Streamed(response)
        finally:
            await request.__aexit__(None, None, None)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


class Streamed:
    """A reply whose body is still to come."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = {
            name: value for name in _PASSED_ON if (value := response.get_header(name)) is not None
        }

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            BadGateway: it broke off.
        """
        reader = self._response.body_reader
        try:
            while (chunk := await reader.read_chunk()) is not None:
                yield bytes(chunk)
        except PyreqwestError as error:
            raise BadGateway(f"The upstream broke off: {_failure(error).text}") from error


async def _whole(response: Response) -> bytes | None:
    """Read the body up to the cap; None when there is more."""
    announced = response.get_header("content-length")
    if announced is not None and announced.isdigit():
        if int(announced) > limits.UPSTREAM_REPLY_BYTES_MAX:
            return None
        return bytes(await response.body_reader.bytes())
    parts = []
    length = 0
    while (chunk := await response.body_reader.read(_CHUNK_BYTES)) is not None:
        length += len(chunk)
        if length > limits.UPSTREAM_REPLY_BYTES_MAX:
            return None
        parts.append(bytes(chunk))
    return b"".join(parts)


def _failure(error: PyreqwestError) -> Failure:
    details = getattr(error, "details", None) or {}
    causes = [cause["message"] for cause in details.get("causes") or ()]
    # The first cause names the URL; the last one says what happened.
    text = causes[-1] if causes else error.message
    if _NOT_SENT in causes:
        return Failure(FailureKind.CONNECT, text)
    if isinstance(error, RequestTimeoutError):
        return Failure(FailureKind.TIMEOUT, text)
    return Failure(FailureKind.BROKEN, text)
