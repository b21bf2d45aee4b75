"""What passes straight through to the upstream: messages, token counts, models.

So that one base URL serves everything. The yard adds nothing and keeps nothing of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batchyard import limits
from batchyard.errors import InvalidRequest, NotFound, shown
from batchyard.server.guard import read_body
from batchyard.server.streaming import while_connected
from batchyard.upstream import Forward

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from batchyard.server.auth import Caller
    from batchyard.server.yard import Yard
    from batchyard.upstream import Upstream


class _Head(msgspec.Struct):
    model: str


_head = msgspec.json.Decoder(_Head)


class Messages:
    """The handlers."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def post(self, request: Request) -> ForwardedResponse:
        """Pass on `POST /v1/messages` or `/v1/messages/count_tokens`, streamed answers as well."""
        caller = request.state.caller
        body = await read_body(request, limits.MESSAGE_BODY_BYTES_MAX)
        try:
            model = _head.decode(body).model
        except msgspec.ValidationError:
            raise InvalidRequest("model: Field required") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"The request body is not valid JSON: {error}") from None
        path = request.url.path
        return self._pass_on(request, caller, self._upstream(model), path, body)

    async def models(self, request: Request) -> ForwardedResponse:
        """Pass on `GET /v1/models` to the first upstream, `/v1/models/{id}` to the model's."""
        caller = request.state.caller
        model = request.path_params.get("model_id")
        if model is None:
            upstream = next(iter(self._yard.upstreams.values()))
        else:
            upstream = self._upstream(model)
        _check_model_path(model or "m")
        path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        return self._pass_on(request, caller, upstream, path, b"")

    def _upstream(self, model: str) -> Upstream:
        name = self._yard.routes.upstream_for(model)
        if name is None:
            raise NotFound(f"model: {shown(model)}")
        return self._yard.upstreams[name]

    def _pass_on(
        self, request: Request, caller: Caller, upstream: Upstream, path: str, body: bytes
    ) -> ForwardedResponse:
        query = f"?{request.url.query}" if request.url.query else ""
        forward = Forward(
            method="GET" if request.method == "GET" else "POST",
            path=path + query,
            version=caller.version,
            betas=caller.betas,
            workspace=caller.workspace,
            body=body,
            user_profile=caller.user_profile,
        )
        return ForwardedResponse(upstream, forward)


class ForwardedResponse:
    """The upstream's answer, as it comes."""

    def __init__(self, upstream: Upstream, forward: Forward) -> None:
        self._upstream = upstream
        self._forward = forward

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make the call and send its answer; end it when the client has gone."""
        await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        async with self._upstream.forward(self._forward) as reply:
            # `request-id` is ours; the upstream's own goes beside it.
            headers = [
                (b"upstream-request-id" if name == "request-id" else name.encode(), value.encode())
                for name, value in reply.headers.items()
            ]
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            async for chunk in reply.chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _check_model_path(model: str) -> None:
    """Refuse a name that would lead elsewhere at the upstream, with the yard's own key.

    Raises:
        NotFound: it has dot segments.
    """
    if any(part in {"", ".", ".."} for part in model.split("/")):
        raise NotFound(f"model: {shown(model)}")
