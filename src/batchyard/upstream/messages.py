"""An upstream that speaks the Messages dialect: Anthropic, relays, vLLM, SGLang, llama.cpp, Ollama.

`params` go out byte for byte, but that a large `max_tokens` asks for a stream: an answer that takes
long would be cut by whatever stands in between and sees nothing pass. Of the client's headers only
version, betas and user profile are passed on; the client's own key never is.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from batchyard import limits, wire
from batchyard.upstream import Failure, FailureKind, Reply
from batchyard.upstream.fold import UnknownDelta
from batchyard.upstream.http import HttpClient

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from contextlib import AbstractAsyncContextManager

    from batchyard.model import Billing
    from batchyard.upstream import Call, Forward, Forwarded, Outcome
    from batchyard.upstream.http import Clients, StreamTimeouts


log = logging.getLogger(__name__)

# How servers say that they do not stream, as far as it can be told from other refusals.
_REFUSES_STREAMS = frozenset({400, 422, 501})
_NO_STREAMS = re.compile(
    rb"stream.{0,100}(not |n't |un)(support|allow|implement|available|enabled)"
    rb"|(not |n't )(support|allow|implement).{0,100}stream",
    re.IGNORECASE | re.DOTALL,
)
_REFUSAL_BYTES = 4 * limits.KIB  # of which are read for it
_REFUSED = "the upstream refuses streams"
_KINDS_MAX = 100


class _Asks(msgspec.Struct, gc=False):
    max_tokens: int | float = 0
    stream: msgspec.Raw = msgspec.Raw(b"")


class _Typed(msgspec.Struct, gc=False):
    type: str = ""


class _Shape(msgspec.Struct, gc=False):
    """What decides of which blocks an answer is made."""

    model: str = ""
    thinking: _Typed | None = None
    tools: list[_Typed] = []


_Kind = tuple[str, str, frozenset[str], tuple[str, ...]]

_shape = msgspec.json.Decoder(_Shape)
_asks = msgspec.json.Decoder(_Asks)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class MessagesUpstream:
    """One endpoint with one key."""

    billing: Billing = "standard"

    def __init__(
        self,
        name: str,
        base_url: str,
        key: str | None,
        *,
        timeout_s: float = limits.UPSTREAM_TIMEOUT_S,
        stream_above_tokens: int | None = limits.STREAM_ABOVE_TOKENS,
        stream_timeouts: StreamTimeouts | None = None,
        fetches_urls: bool = False,
        unset_key: str | None = None,
    ) -> None:
        """Make an upstream.

        Args:
            name: of the configuration.
            base_url: without `/v1`; a path is kept.
            key: None sends none.
            timeout_s: for a whole call that is not streamed.
            stream_above_tokens: a call whose `max_tokens` is larger is streamed; None streams none.
            stream_timeouts: of a streamed call; None for the usual ones.
            fetches_urls: whether it may be sent URLs of images and documents.
            unset_key: the variable that would set the key, where there is none.
        """
        self.name = name
        self.fetches_urls = fetches_urls
        self.unset_key = unset_key
        headers = {"content-type": "application/json", "accept": "application/json"}
        if key:
            headers["x-api-key"] = key
            if urlsplit(base_url).hostname != "api.anthropic.com":
                # Servers that are OpenAI-compatible at heart know only this form.
                headers["authorization"] = f"Bearer {key}"
        self._client = HttpClient(
            base_url,
            headers,
            timeout_s=timeout_s,
            stream_timeouts=stream_timeouts,
            secret=key,
        )
        self._stream_above = stream_above_tokens
        self._plain: set[_Kind] = set()
        """Kinds of requests of which one was answered with a stream that cannot be folded."""
        self._heads: dict[tuple[str, tuple[str, ...], str | None], bytes] = {}

    def share(self, clients: Clients) -> None:
        """Share the descriptors of the process with its other upstreams, from the first call on."""
        self._client.share(clients)

    def send(self, call: Call) -> Coroutine[None, None, Outcome]:
        """Make one call of `POST /v1/messages`."""
        head = self._head_of(call)
        above = self._stream_above
        if above is not None and (call.max_tokens is None or call.max_tokens > above):
            if call.plain == _REFUSED:
                return self._send_plain(call, head)
            if call.plain is None and not (self._plain and _kind(call) in self._plain):
                body = as_stream(call.params, above)
                if body is not None:
                    return self._send_streamed(call, head, body)
        return self._client.post(head, call.params, call.begun, call.wanted, anew=call.anew)

    async def _send_streamed(self, call: Call, head: bytes, body: bytes) -> Outcome:
        """Make one call as a stream; say so where a stream cannot be had."""
        try:
            outcome = await self._client.post(
                head, body, call.begun, call.wanted, anew=call.anew, is_streamed=True
            )
        except UnknownDelta as error:
            # Such a stream would come again at every try. The message says the same without one.
            kind = _kind(call)
            if kind not in self._plain and len(self._plain) < _KINDS_MAX:
                self._plain.add(kind)
                log.warning(
                    "upstream=%s streams %s: no call like this one asks for it any more",
                    self.name,
                    error,
                )
            return Failure(FailureKind.NO_STREAM, f"it holds {error}")
        if _says_no_streams(outcome):
            return Failure(FailureKind.NO_STREAM, _REFUSED)
        return outcome

    async def _send_plain(self, call: Call, head: bytes) -> Outcome:
        """Make one call again that was refused as a stream."""
        outcome = await self._client.post(
            head, call.params, call.begun, call.wanted, anew=call.anew
        )
        if isinstance(outcome, Reply) and outcome.status == 200 and self._stream_above is not None:
            # Only now is it sure that the stream was the reason, and not the request.
            self._stream_above = None
            log.warning("upstream=%s does not stream: no call asks for it any more", self.name)
        return outcome

    def forward(self, request: Forward) -> AbstractAsyncContextManager[Forwarded]:
        """Pass one request through."""
        head = self._client.head(request.method, request.path, _headers(request))
        return self._client.stream(head, request.body if request.method == "POST" else None)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _head_of(self, call: Call) -> bytes:
        key = (call.version, call.betas, call.user_profile)
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) > 1_000:  # clients choose them: do not grow for ever
                self._heads.clear()
            head = self._heads[key] = self._client.head("POST", "/v1/messages", _headers(call))
        return head


def _kind(call: Call) -> _Kind:
    """Return what requests have in common that are answered with the same kinds of blocks."""
    try:
        asked = _shape.decode(call.params)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        asked = _Shape()  # the upstream will say what is wrong
    thinking = "" if asked.thinking is None else asked.thinking.type
    return asked.model, thinking, frozenset(tool.type for tool in asked.tools), call.betas


def _headers(call: Call | Forward) -> dict[str, str]:
    headers = {"anthropic-version": call.version}
    if call.betas:
        headers["anthropic-beta"] = ",".join(call.betas)
    if call.user_profile is not None:
        headers["anthropic-user-profile-id"] = call.user_profile
    return headers


def as_stream(params: bytes, above: int) -> bytes | None:
    """Return `params` with `stream` set; None when `max_tokens` is not above the bound.

    Nothing else changes, but where `stream` stands already: then the white space between the
    outermost keys goes.

    Args:
        params: of a request.
        above: tokens.
    """
    try:
        asked = _asks.decode(params)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # the upstream will say what is wrong
    if asked.max_tokens <= above:
        return None
    if bytes(asked.stream):
        return wire.encode(_fields.decode(params) | {"stream": msgspec.Raw(b"true")})
    end = params.rindex(b"}")
    return b'%b,"stream":true}' % params[:end]


def _says_no_streams(outcome: Outcome) -> bool:
    return (
        isinstance(outcome, Reply)
        and outcome.status in _REFUSES_STREAMS
        and _NO_STREAMS.search(outcome.body[:_REFUSAL_BYTES]) is not None
    )
