"""The route table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.routing import Route, Router

from batchyard.errors import MethodNotAllowed, NotFound, shown
from batchyard.server.batches import Batches
from batchyard.server.guard import Guard
from batchyard.server.messages import Messages
from batchyard.server.progress import Progress
from batchyard.server.results import Results

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from batchyard.server.yard import Yard

    Handler = Callable[[Request], Awaitable[ASGIApp]]


def build(yard: Yard) -> ASGIApp:
    """Return the application of a yard."""
    batches, messages = Batches(yard), Messages(yard)
    table: dict[str, dict[str, Handler]] = {
        "/v1/messages/batches": {"POST": batches.create, "GET": batches.list},
        "/v1/messages/batches/{batch_id}": {"GET": batches.retrieve, "DELETE": batches.delete},
        "/v1/messages/batches/{batch_id}/cancel": {"POST": batches.cancel},
        "/v1/messages/batches/{batch_id}/results": {"GET": Results(yard).respond},
        "/v1/messages/batches/{batch_id}/progress": {"GET": Progress(yard).respond},
        "/v1/messages": {"POST": messages.post},
        "/v1/messages/count_tokens": {"POST": messages.post},
        "/v1/models": {"GET": messages.models},
        "/v1/models/{model_id:path}": {"GET": messages.models},
    }
    routes = [Route(path, _Endpoint(handlers)) for path, handlers in table.items()]
    router = Router(routes, redirect_slashes=False, default=_unknown)
    return Guard(router, yard.allowed_hosts)


class _Endpoint:
    """One path: a handler for each method."""

    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["method"])
        if handler is None:
            allowed = ", ".join(sorted(self._handlers))
            raise MethodNotAllowed(
                f"Method {shown(scope['method'])} is not allowed here; allowed: {allowed}",
                allow=allowed,
            )
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)


async def _unknown(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound(f"{shown(scope['path'])} does not exist")
