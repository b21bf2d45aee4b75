"""What passes straight through to the upstream: messages, token counts, models.

So that one base URL serves everything. The yard keeps nothing of these, and changes nothing but the
request id: in the header and in the body of an error it is the yard's own. Only 401, which would
speak of the client's key, is 502: it was the yard's that the upstream has refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batchyard import limits
from batchyard.errors import BadGateway, InvalidRequest, NotFound, Unauthenticated, shown
from batchyard.server.guard import error_response, read_body
from batchyard.server.streaming import while_connected
from batchyard.upstream import Forward

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from batchyard.server.auth import Caller
    from batchyard.server.yard import Yard
    from batchyard.upstream import Forwarded, Upstream

# JSON of an error up to this size is read whole, to put our request id in.
_ERROR_BYTES_MAX = 64 * limits.KIB


class _Head(msgspec.Struct):
    model: str


_head = msgspec.json.Decoder(_Head)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


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
    """The upstream's answer, as it comes; an error with our request id, and 401 as ours."""

    def __init__(self, upstream: Upstream, forward: Forward) -> None:
        self._upstream = upstream
        self._forward = forward

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make the call and send its answer; end it when the client has gone."""
        await while_connected(receive, self._send(scope, receive, send))

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope["state"]["request_id"]
        async with self._upstream.forward(self._forward) as reply:
            if reply.status == Unauthenticated.status:
                await self._refused(reply, request_id)(scope, receive, send)
                return
            # `request-id` is ours; the upstream's own goes beside it.
            headers = [
                (b"upstream-request-id" if name == "request-id" else name.encode(), value.encode())
                for name, value in reply.headers.items()
            ]
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            async for chunk in _body(reply, request_id):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _refused(self, reply: Forwarded, request_id: str) -> Response:
        """Return what a 401 of the upstream means to a client, who has no part in that key."""
        name, variable = self._upstream.name, self._upstream.unset_key
        if variable is None:
            why = f"Upstream {name} refuses the key of the yard"
        else:
            why = f"No key for upstream {name}: set {variable} for the yard"
        error = BadGateway(f"{why} (HTTP {reply.status})", should_retry=False)
        response = error_response(error, request_id)
        if "request-id" in reply.headers:
            response.headers["upstream-request-id"] = reply.headers["request-id"]
        return response


async def _body(reply: Forwarded, request_id: str) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; the envelope of an error whole, and with our request id.

    Raises:
        BadGateway: the upstream broke off.
    """
    chunks = reply.chunks()
    is_json = reply.headers.get("content-type", "").startswith("application/json")
    if is_json and reply.status >= 400:
        start = bytearray()
        async for chunk in chunks:
            start += chunk
            if len(start) > _ERROR_BYTES_MAX:
                yield bytes(start)
                break
        else:
            yield _with_request_id(bytes(start), request_id)
            return
    async for chunk in chunks:
        yield chunk


def _with_request_id(body: bytes, request_id: str) -> bytes:
    """Return an error envelope with our request id, any other body as it is."""
    try:
        fields = _object.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    if "error" not in fields or bytes(fields.get("type", b"")) != b'"error"':
        return body
    return msgspec.json.encode(
        {**fields, "request_id": msgspec.Raw(msgspec.json.encode(request_id))}
    )


def _check_model_path(model: str) -> None:
    """Refuse a name that would lead elsewhere at the upstream, with the yard's own key.

    Raises:
        NotFound: it has dot segments.
    """
    if any(part in {"", ".", ".."} for part in model.split("/")):
        raise NotFound(f"model: {shown(model)}")
