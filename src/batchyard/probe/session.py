"""One probe of one server: how it is spoken to, and what was made there."""

from __future__ import annotations

import json
import re
import secrets
from typing import TYPE_CHECKING, Any

from batchyard.probe import check
from batchyard.probe.check import NotRun, at
from batchyard.probe.http import Connection, Exchange, NoAnswer, Request, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchyard.probe.batches import Batches

BATCHES = "/v1/messages/batches"
OLD_VERSION = "2023-06-01"
NEW_VERSION = "2026-10-21"
_BUSY = frozenset({429, 529})
_BUSY_ATTEMPTS = 4
_BUSY_WAIT_MAX_S = 60.0
_SECONDS = re.compile(r"\d{1,5}(?:\.\d+)?")


class Session:
    """What a point works with."""

    def __init__(
        self,
        target: Target,
        key: str,
        *,
        model: str,
        timeout_s: float,
        pause: Callable[[float], object],
        say: Callable[[str], None],
    ) -> None:
        """Describe a probe.

        Args:
            target: the server.
            key: of the API.
            model: that the batches of the probe ask for.
            timeout_s: of one call, as a whole.
            pause: waits for some seconds.
            say: is told what takes time.
        """
        self.target = target
        self.key = key
        self.model = model
        self.timeout_s = timeout_s
        self.pause = pause
        self.say = say
        self.batches: Batches | None = None
        self.made: list[str] = []
        """The ids of all batches that this probe has made, also those that should not be."""
        self.head = old_head(key)

    # Calls ------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str = BATCHES,
        *,
        body: object = None,
        head: Mapping[str, str] | None = None,
        headers: Mapping[str, str | None] | None = None,
        recipe: str | None = None,
        timeout_s: float | None = None,
    ) -> Request:
        """Return a request.

        Args:
            method: of HTTP.
            path: below the base URL.
            body: bytes as they are, anything else as JSON, None for no body at all.
            head: key and version; that of the older clients otherwise.
            headers: further ones; None takes one away.
            recipe: see `Request.recipe`.
            timeout_s: another deadline than the usual one.
        """
        merged: dict[str, str | None] = dict(self.head if head is None else head)
        if body is not None:
            merged["content-type"] = "application/json"
        merged.update(headers or {})
        given = tuple((name, value) for name, value in merged.items() if value is not None)
        data = body if body is None or isinstance(body, bytes) else _json(body)
        return Request(method, path, given, data, recipe, timeout_s)

    def send(self, request: Request, over: Connection | None = None) -> Exchange:
        """Make a call, again while the server is busy.

        Raises:
            NoAnswer: no whole answer of HTTP came in time.
            NotRun: the server stayed busy.
        """
        exchange = self._call(request, over)
        for _ in range(_BUSY_ATTEMPTS - 1):
            if exchange.status not in _BUSY:
                break
            wait_s = _wait_s(exchange)
            self.say(f"the server is busy ({exchange.status}), asking again in {wait_s:g} s")
            self.pause(wait_s)
            exchange = self._call(request, over)
        if exchange.status in _BUSY:
            raise NotRun(f"the server stayed busy: {check.answer(exchange)}")
        self._note(exchange)
        return exchange

    def _call(self, request: Request, over: Connection | None) -> Exchange:
        if over is not None:
            return over.send(request)
        with Connection(self.target, self.timeout_s) as connection:
            return connection.send(request)

    def attempt(self, request: Request, over: Connection | None = None) -> Exchange | NoAnswer:
        """Make a call; return why nothing came of it instead of raising that.

        Raises:
            NotRun: the server stayed busy.
        """
        try:
            return self.send(request, over)
        except NoAnswer as error:
            return error

    def get(self, path: str = BATCHES, **headers: str | None) -> Exchange:
        """Make a GET; in names of headers `_` stands for `-`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send(self.request("GET", path, headers=given))

    def post(self, body: object, path: str = BATCHES) -> Exchange:
        """Make a POST with this body."""
        return self.send(self.request("POST", path, body=body))

    def _note(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.method == "POST" and request.path.partition("?")[0] == BATCHES:
            made = at(exchange.json(), "id")
            if exchange.status == 200 and is_plain_id(made) and made not in self.made:
                self.made.append(made)

    # What there is to look at -----------------------------------------------------------------

    def own(self) -> Batches:
        """Return the batches of this probe.

        Raises:
            NotRun: it may make none.
        """
        if self.batches is None:
            raise NotRun("needs --create")
        return self.batches

    def some_batch(self) -> tuple[dict[str, Any], Exchange]:
        """Return any batch of the workspace as retrieved, and the call.

        Raises:
            NotRun: there is none, or it cannot be retrieved.
        """
        if self.batches is not None:
            exchange = self.batches.main.retrieved()
        else:
            first = at(self.get(f"{BATCHES}?limit=1").json(), "data", 0, "id")
            if not is_plain_id(first):
                raise NotRun("there is no batch in this workspace (needs --create)")
            exchange = self.get(f"{BATCHES}/{first}")
        body = exchange.json()
        if exchange.status != 200 or not isinstance(body, dict):
            raise NotRun(f"the batch cannot be retrieved: {check.answer(exchange)}")
        return body, exchange

    def newest(self, number: int) -> list[str]:
        """Return the ids of so many newest batches.

        Raises:
            NotRun: there are fewer.
        """
        data = at(self.get(f"{BATCHES}?limit={number}").json(), "data")
        ids = [at(batch, "id") for batch in data] if isinstance(data, list) else []
        if len(ids) < number or not all(map(is_plain_id, ids)):
            raise NotRun(f"the list does not give the {number} batches that this needs")
        return ids[:number]


def old_head(key: str) -> dict[str, str]:
    """Return how clients until autumn 2026 begin every request."""
    return {"x-api-key": key, "anthropic-version": OLD_VERSION}


def new_head(key: str) -> dict[str, str]:
    """Return how clients since autumn 2026 begin every request."""
    return {"authorization": f"Bearer {key}", "anthropic-version": NEW_VERSION}


def is_plain_id(value: object) -> bool:
    """Whether `value` may stand in a path as it is."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,128}", value) is not None


def unknown_id() -> str:
    """Return an id that no server has given to a batch."""
    alphabet = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    return "msgbatch_01" + "".join(secrets.choice(alphabet) for _ in range(22))


def _wait_s(exchange: Exchange) -> float:
    value = exchange.header("retry-after") or ""
    asked = float(value) if _SECONDS.fullmatch(value) else 5.0
    return min(max(asked, 1.0), _BUSY_WAIT_MAX_S)


def _json(body: object) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
