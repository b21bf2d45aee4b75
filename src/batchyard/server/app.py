"""The route table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.routing import Route, Router

from batchyard.errors import MethodNotAllowed, NotFound, shown
from batchyard.server.batches import Batches
from batchyard.server.caching import Caching
from batchyard.server.description import Description
from batchyard.server.door import Door
from batchyard.server.dry_run import DryRun
from batchyard.server.guard import Guard
from batchyard.server.messages import Messages
from batchyard.server.progress import Progress
from batchyard.server.results import Results

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from batchyard.server.yard import Yard

    Handler = Callable[[Request], Awaitable[ASGIApp]]

Access = Literal["batches", "key", "open"]
"""What it takes to call an endpoint: a key and a place in the rate limit, a key, or nothing."""


def build(yard: Yard, layer: Callable[[ASGIApp], ASGIApp] | None = None) -> ASGIApp:
    """Return the application of a yard.

    Args:
        yard: its parts.
        layer: put between the guard and the routes, for what the emulator adds.
    """
    batches, messages = Batches(yard), Messages(yard)
    door = Door(yard.keys, yard.rates)
    table: dict[str, tuple[Access, dict[str, Handler]]] = {
        "/v1/messages/batches": ("batches", {"POST": batches.create, "GET": batches.list}),
        "/v1/messages/batches/validate": ("batches", {"POST": DryRun(yard).respond}),
        "/v1/messages/batches/{batch_id}": (
            "batches",
            {"GET": batches.retrieve, "DELETE": batches.delete},
        ),
        "/v1/messages/batches/{batch_id}/cancel": ("batches", {"POST": batches.cancel}),
        "/v1/messages/batches/{batch_id}/results": ("batches", {"GET": Results(yard).respond}),
        "/v1/messages/batches/{batch_id}/progress": ("batches", {"GET": Progress(yard).respond}),
        "/v1/messages/batches/{batch_id}/cache": ("batches", {"GET": Caching(yard).respond}),
        "/v1/messages": ("key", {"POST": messages.post}),
        "/v1/messages/count_tokens": ("key", {"POST": messages.post}),
        "/v1/models": ("key", {"GET": messages.models}),
        "/v1/models/{model_id:path}": ("key", {"GET": messages.models}),
        "/openapi.json": ("open", {"GET": Description(yard).respond}),
    }
    routes = [
        Route(path, _Endpoint(handlers, access, door)) for path, (access, handlers) in table.items()
    ]
    inner: ASGIApp = Router(routes, redirect_slashes=False, default=_unknown)
    if layer is not None:
        inner = layer(inner)
    prefix = urlsplit(yard.public_url or "").path
    app = _Prefixed(inner, prefix) if prefix else inner
    return Guard(app, yard.allowed_hosts, yard.failure.tell)


class _Endpoint:
    """One path: a handler for each method."""

    def __init__(self, handlers: dict[str, Handler], access: Access, door: Door) -> None:
        self._handlers = handlers
        self._access = access
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["method"])
        if handler is None:
            allowed = ", ".join(sorted(self._handlers))
            raise MethodNotAllowed(
                f"Method {shown(scope['method'])} is not allowed here; allowed: {allowed}",
                allow=allowed,
            )
        request = Request(scope, receive, send)
        if self._access != "open":
            request.state.caller = self._door.admit(request, counted=self._access == "batches")
        response = await handler(request)
        await response(scope, receive, send)


class _Prefixed:
    """Takes the path of `public_url` off a request's, where a proxy has left it there."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(f"{self._prefix}/"):
            raw = scope["raw_path"].removeprefix(self._prefix.encode())
            path = scope["path"].removeprefix(self._prefix)
            scope = {**scope, "path": path, "raw_path": raw}
        await self._app(scope, receive, send)


async def _unknown(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound(f"{shown(scope['path'])} does not exist")
