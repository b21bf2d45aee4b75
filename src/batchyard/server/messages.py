"""What passes straight through to the upstream: messages, token counts, models.

So that one base URL serves everything. The yard adds nothing and keeps nothing of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from starlette.responses import StreamingResponse

from batchyard import limits
from batchyard.errors import InvalidRequest, NotFound, shown
from batchyard.server.auth import Caller, identify
from batchyard.server.guard import read_body
from batchyard.upstream import Forward

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from batchyard.server.yard import Yard
    from batchyard.upstream import Upstream


class _Head(msgspec.Struct):
    model: str


_head = msgspec.json.Decoder(_Head)


class Messages:
    """The handlers."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def post(self, request: Request) -> Response:
        """Pass on `POST /v1/messages` or `/v1/messages/count_tokens`, streamed answers as well."""
        caller = identify(request, self._yard.keys)
        body = await read_body(request, limits.MESSAGE_BODY_BYTES_MAX)
        try:
            model = _head.decode(body).model
        except msgspec.ValidationError:
            raise InvalidRequest("model: Field required") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"The request body is not valid JSON: {error}") from None
        return await self._pass_on(request, caller, self._upstream(model), body)

    async def models(self, request: Request) -> Response:
        """Pass on `GET /v1/models` to the first upstream, `/v1/models/{id}` to the model's."""
        caller = identify(request, self._yard.keys)
        model = request.path_params.get("model_id")
        if model is None:
            upstream = next(iter(self._yard.upstreams.values()))
        else:
            upstream = self._upstream(model)
        return await self._pass_on(request, caller, upstream, b"")

    def _upstream(self, model: str) -> Upstream:
        name = self._yard.routes.upstream_for(model)
        if name is None:
            raise NotFound(f"model: {shown(model)}")
        return self._yard.upstreams[name]

    async def _pass_on(
        self, request: Request, caller: Caller, upstream: Upstream, body: bytes
    ) -> Response:
        query = f"?{request.url.query}" if request.url.query else ""
        forward = Forward(
            method="GET" if request.method == "GET" else "POST",
            path=request.scope["raw_path"].decode("latin-1").partition("?")[0] + query,
            version=caller.version,
            betas=caller.betas,
            workspace=caller.workspace,
            body=body,
        )
        context = upstream.forward(forward)
        reply = await context.__aenter__()

        async def chunks() -> AsyncIterator[bytes]:
            try:
                async for chunk in reply.chunks():
                    yield chunk
            finally:
                await context.__aexit__(None, None, None)

        # `request-id` is ours; the upstream's own goes beside it.
        headers = {k: v for k, v in reply.headers.items() if k != "request-id"}
        if "request-id" in reply.headers:
            headers["upstream-request-id"] = reply.headers["request-id"]
        return StreamingResponse(chunks(), reply.status, headers)
