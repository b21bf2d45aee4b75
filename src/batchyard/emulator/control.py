"""The emulator's own endpoints: its clock, its script, its account. They need no key.

GET  /emulator           what it is and how it stands
GET  /emulator/clock
POST /emulator/clock     {"advance": "25h"} or {"speed": 1000}
POST /emulator/script    {"toml": "[[request]]…"}: replaces the script, counts start anew
POST /emulator/credit    {"requests": 100} or {"usd": 5}: pays into the account
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from batchyard import limits, wire
from batchyard.emulator import script as scripts
from batchyard.errors import ConfigError, InvalidRequest, MethodNotAllowed, NotFound, shown
from batchyard.server.guard import read_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from batchyard.emulator.machine import Machine

T = TypeVar("T")

_PREFIX = "/emulator"


class _Clock(msgspec.Struct, forbid_unknown_fields=True):
    advance: str | float | None = None
    speed: float | None = None


class _Script(msgspec.Struct, forbid_unknown_fields=True):
    toml: str


class _Credit(msgspec.Struct, forbid_unknown_fields=True):
    requests: int | None = None
    usd: float | None = None


class Control:
    """ASGI layer that answers these paths."""

    def __init__(self, app: ASGIApp, machine: Machine) -> None:
        self._app = app
        self._machine = machine
        self._table: dict[tuple[str, str], Callable[[Request], Awaitable[object]]] = {
            ("", "GET"): self._look,
            ("/clock", "GET"): self._look,
            ("/clock", "POST"): self._clock,
            ("/script", "POST"): self._script,
            ("/credit", "POST"): self._credit,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            InvalidRequest, NotFound, MethodNotAllowed: as of any endpoint.
        """
        path = scope["path"]
        if path != _PREFIX and not path.startswith(f"{_PREFIX}/"):
            await self._app(scope, receive, send)
            return
        name = path.removeprefix(_PREFIX)
        handler = self._table.get((name, scope["method"]))
        if handler is None:
            allowed = ", ".join(method for known, method in self._table if known == name)
            if not allowed:
                raise NotFound(f"{shown(path)} does not exist")
            raise MethodNotAllowed(f"allowed: {allowed}", allow=allowed)
        body = await handler(Request(scope, receive, send))
        response = Response(wire.encode(body), media_type="application/json")
        await response(scope, receive, send)

    async def _look(self, _request: Request) -> object:
        return self._machine.standing()

    async def _clock(self, request: Request) -> object:
        asked = await _read(request, _Clock)
        if (asked.advance is None) == (asked.speed is None):
            raise InvalidRequest('give one of {"advance": "25h"} and {"speed": 1000}')
        if asked.speed is not None:
            self._machine.clock.set_speed(asked.speed)
        if asked.advance is not None:
            await self._machine.advance(asked.advance)
        return self._machine.standing()

    async def _script(self, request: Request) -> object:
        asked = await _read(request, _Script)
        try:
            self._machine.follow(scripts.parse(asked.toml))
        except ConfigError as error:
            raise InvalidRequest(error.message) from None
        return self._machine.standing()

    async def _credit(self, request: Request) -> object:
        asked = await _read(request, _Credit)
        if (asked.requests is None) == (asked.usd is None):
            raise InvalidRequest('give one of {"requests": 100} and {"usd": 5}')
        self._machine.pay_in(requests=asked.requests, usd=asked.usd)
        return self._machine.standing()


async def _read(request: Request, kind: type[T]) -> T:
    body = await read_body(request, limits.MIB)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The request body is not as expected: {error}") from None
