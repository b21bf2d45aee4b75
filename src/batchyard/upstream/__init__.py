"""Where answers come from: the interface of a model endpoint, and what one call can bring back.

An upstream makes one call and reports what happened; it never retries, and it never judges. What an
outcome means is decided by `dispatch/retry.py`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
    from contextlib import AbstractAsyncContextManager

    from batchyard.model import Billing


class Call(msgspec.Struct, frozen=True, gc=False):
    """One request on its way to a model."""

    params: bytes
    version: str
    betas: tuple[str, ...]
    workspace: str
    user_profile: str | None = None
    custom_id: str = ""
    """For a simulated model that is told what becomes of which request; never sent anywhere."""
    begun: Callable[[], None] | None = None
    """Called once, when an answer with status 200 begins: from then on its cache entries can be
    read. For a stream that is its first event. Must not raise, and must not hold this call."""
    wanted: Callable[[], bool] | None = None
    """Asked when the call has waited, for a connection say, right before anything is sent: whether
    it may still be. Not for ever else: it is made again."""
    max_tokens: int | None = None
    """Of a request that asks for no stream, where that is known; None to look into `params`."""
    anew: bool = False
    """Whether to use no connection that was used before."""
    plain: str | None = None
    """Why to ask for no stream: what a failure of the kind NO_STREAM said; None if nothing did."""


class FailureKind(enum.StrEnum):
    """Why there was no whole reply."""

    CONNECT = "connect"  # no connection: the request was not sent
    TIMEOUT = "timeout"  # sent, and no whole reply in time
    BROKEN = "broken"  # the connection broke, or what came was not HTTP, or no whole stream
    STALE = "stale"  # a connection that was used before was closed without a byte of a reply
    TOO_LARGE = "too_large"  # the reply was larger than we read
    UNWANTED = "unwanted"  # nobody wanted an answer any more: the request was not sent
    NO_STREAM = "no_stream"  # sent, and cannot be had as a stream: the same call, plain, can


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A whole reply of the upstream, whatever its status."""

    status: int
    body: bytes
    retry_after: str | None = None
    request_id: str | None = None
    headers: Mapping[str, str] | None = None
    """What the upstream says of its limits, whatever the status: `anthropic-ratelimit-*`,
    `x-ratelimit-*` and `retry-after`, names in lower case, values as sent. None without any."""


class Failure(msgspec.Struct, frozen=True, gc=False):
    """No whole reply."""

    kind: FailureKind
    text: str


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What becomes of a request, said outright: only a simulated model knows that."""

    kind: Literal["errored", "canceled", "expired"]
    type: str = "api_error"
    message: str = ""


Outcome = Reply | Failure | Verdict


class Forward(msgspec.Struct, frozen=True):
    """A request that a client of the yard makes to the upstream itself."""

    method: Literal["GET", "POST"]
    path: str
    """Path and query below the base URL, such as `/v1/models?limit=5`."""
    version: str
    betas: tuple[str, ...]
    workspace: str
    body: bytes = b""
    user_profile: str | None = None


class Forwarded(Protocol):
    """The reply to a forwarded request, its body still to come."""

    status: int
    headers: Mapping[str, str]
    """`content-type` and the few headers that clients act on; never `content-length`."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            BadGateway: the upstream broke off.
        """


class Upstream(Protocol):
    """A model endpoint that speaks the Messages dialect, or behaves as if."""

    name: str
    billing: Billing
    fetches_urls: bool
    """Whether it may be sent URLs of images and documents, which it will fetch."""
    unset_key: str | None
    """The variable that would set its key, where it has none; None where it has, or wants none."""

    def send(self, call: Call) -> Coroutine[None, None, Outcome]:
        """Make one call of `POST /v1/messages` and return what came back. Raises nothing."""

    def forward(self, request: Forward) -> AbstractAsyncContextManager[Forwarded]:
        """Pass one request through.

        Raises:
            BadGateway: the upstream could not be reached.
        """

    async def close(self) -> None:
        """Let go of all connections."""
