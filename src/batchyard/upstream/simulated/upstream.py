"""The simulated model: an upstream that calls nothing, for demos, tests and the emulator.

Answers as the Messages API would in form, and says in every text that it is simulated. This file is
the shell around `answer`: routes, time and the envelope of errors. It thinks when it is asked to,
and searches once when it has a web search tool. It does not simulate other server tools, citations,
thinking of models that always think, rate limits, or which models refuse which parameters; it
refuses, pauses or breaks off only when it is told to (`send_as`).
"""

from __future__ import annotations

import hashlib
import itertools
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from batchyard import ids, wire
from batchyard.errors import (
    BatchyardError,
    ConfigError,
    MethodNotAllowed,
    NotFound,
    shown,
)
from batchyard.models import EXTENDED_OUTPUT_BETA
from batchyard.upstream import Call, Forward, Outcome, Reply
from batchyard.upstream.simulated import listing
from batchyard.upstream.simulated.answer import USUAL, Answer, Wish, answer, count
from batchyard.upstream.simulated.cache import PromptCache
from batchyard.upstream.simulated.request import read
from batchyard.upstream.simulated.stream import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from batchyard.clock import Clock
    from batchyard.model import Billing
    from batchyard.upstream.simulated.request import Request

_LATENCY_MAX_S = 86_400
_WORDS_MAX = 100_000
_JSON = "application/json"
_ROUTES = {
    "/v1/messages": "POST",
    "/v1/messages/count_tokens": "POST",
    "/v1/models": "GET",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How the simulated model behaves."""

    latency: float = 0.0
    """Seconds from the request to the first byte of the answer, with which all of it comes."""
    jitter: float = 0.0
    """Share, 0 to 1, by which the latency of one answer may lie above or below that."""
    words: int = 180
    """Typical length of an answer in words."""
    seed: int = 0
    """Another seed gives other answers."""

    @classmethod
    def parse(cls, url: str) -> Settings:
        """Read settings from a URL such as `simulated:?latency=0.2&seed=7`.

        Raises:
            ConfigError: not such a URL, an unknown setting or a value out of range.
        """
        scheme, _, rest = url.partition(":")
        query = rest.removeprefix("?")
        if scheme != "simulated" or (rest and rest == query):
            raise ConfigError(
                f"{shown(url)} is not `simulated:` with settings, as in `simulated:?latency=0.2`"
            )
        names = [field.name for field in fields(cls)]
        found: dict[str, str] = {}
        for name, text in parse_qsl(query, keep_blank_values=True):
            if name not in names:
                raise ConfigError(
                    f"{shown(name)} is not a setting of the simulated model; there are "
                    f"{', '.join(names)}"
                )
            if name in found:
                raise ConfigError(f"{name} of the simulated model is given twice")
            found[name] = text
        usual = cls()
        return cls(
            latency=_number(found, "latency", usual.latency, _LATENCY_MAX_S),
            jitter=_number(found, "jitter", usual.jitter, 1),
            words=_integer(found, "words", usual.words, 1, _WORDS_MAX),
            seed=_integer(found, "seed", usual.seed, 0, 2**63 - 1),
        )


def _number(found: dict[str, str], name: str, default: float, most: float) -> float:
    text = found.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:  # refuses NaN too
        raise ConfigError(
            f"{name} of the simulated model is {shown(text)}; it must be a number from 0 to {most}"
        )
    return number


def _integer(found: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    text = found.get(name)
    if text is None:
        return default
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not least <= number <= most:
        raise ConfigError(
            f"{name} of the simulated model is {shown(text)}; it must be a whole number from "
            f"{least} to {most}"
        )
    return number


class Simulated:
    """An `Upstream` without a model behind it."""

    billing: Billing = "simulated"
    fetches_urls = True  # it fetches nothing
    unset_key: str | None = None

    def __init__(self, name: str, settings: Settings, clock: Clock) -> None:
        self.name = name
        self._settings = settings
        self._clock = clock
        self._cache = PromptCache()
        self._requests = itertools.count(1)
        self.waiting = 0
        """How many calls of `send` wait for time to pass."""
        self._request_prefix = ids.from_number("req", settings.seed << 64)[:-10]

    async def send(self, call: Call) -> Outcome:
        """Answer one call of `POST /v1/messages`. Raises nothing; always lets others run."""
        return await self.send_as(call, USUAL)

    async def send_as(self, call: Call, wish: Wish) -> Outcome:
        """Answer one call as wished, unless the request is at fault. Raises nothing."""
        try:
            request = read(call.params, version=call.version, betas=call.betas)
            found = self._answer(request, call, call.custom_id, wish)
        except BatchyardError as error:
            await self._clock.sleep(0)
            request_id = self._worker_request_id(call)
            return Reply(error.status, _error_body(error, request_id), request_id=request_id)
        waits = self._settings.latency > 0
        self.waiting += waits
        try:
            await self._wait(found)
        finally:
            self.waiting -= waits
        if call.begun is not None:
            call.begun()
        return Reply(200, wire.encode(found.message), request_id=self._request_id())

    @asynccontextmanager
    async def forward(self, request: Forward) -> AsyncIterator[_Simulated]:
        """Answer one request of a client. Never fails to be reached."""
        request_id = self._request_id()
        try:
            kind, body = await self._route(request)
            status, headers = 200, {"content-type": kind, "request-id": request_id}
        except BatchyardError as error:
            status, body = error.status, [_error_body(error, request_id)]
            headers = {"content-type": _JSON, "request-id": request_id}
            if error.allow is not None:
                headers["allow"] = error.allow
        yield _Simulated(status, headers, body)

    async def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    def reseed(self, seed: int) -> None:
        """Give other answers from now on."""
        self._settings = replace(self._settings, seed=seed)

    def _request_id(self) -> str:
        # Minting a whole id for each would cost as much as reading the request.
        return f"{self._request_prefix}{next(self._requests):010d}"

    def _worker_request_id(self, call: Call) -> str:
        """Return the id of a call that failed: part of its result, so not a matter of order."""
        if not call.custom_id:
            return self._request_id()
        data = f"{self._settings.seed} {call.custom_id} ".encode() + call.params
        number = int.from_bytes(hashlib.blake2b(data, digest_size=16).digest(), "big")
        return ids.from_number("workerreq", number)

    def _answer(
        self, request: Request, call: Call | Forward, custom_id: str = "", wish: Wish = USUAL
    ) -> Answer:
        return answer(
            request,
            seed=self._settings.seed,
            words=self._settings.words,
            workspace=call.workspace,
            cache=self._cache,
            now_s=self._clock.monotonic_s(),
            custom_id=custom_id,
            wish=wish,
        )

    async def _wait(self, found: Answer) -> None:
        """Let the latency pass; then the answer begins and its cache entries can be read."""
        spread = self._settings.jitter * (2 * found.luck - 1)
        await self._clock.sleep(self._settings.latency * (1 + spread))
        self._cache.begin(found.use)

    async def _route(self, request: Forward) -> tuple[str, Iterable[bytes]]:
        url = urlsplit(request.path)
        one_model = (
            url.path.removeprefix("/v1/models/") if url.path.startswith("/v1/models/") else ""
        )
        allowed = "GET" if one_model else _ROUTES.get(url.path)
        if allowed is None:
            raise NotFound
        if request.method != allowed:
            raise MethodNotAllowed(allow=allowed)
        if one_model:
            return _JSON, [wire.encode(listing.info(one_model))]
        match url.path:
            case "/v1/models":
                query = parse_qsl(url.query, keep_blank_values=True)  # `limit=` is no number
                return _JSON, [wire.encode(listing.page(query))]
            case "/v1/messages/count_tokens":
                return _JSON, [wire.encode({"input_tokens": count(_read(request, counting=True))})]
            case _:
                return await self._messages(request)

    async def _messages(self, request: Forward) -> tuple[str, Iterable[bytes]]:
        asked = _read(request)
        found = self._answer(asked, request)
        await self._wait(found)
        if asked.stream:
            return "text/event-stream; charset=utf-8", events(found.message)
        return _JSON, [wire.encode(found.message)]


@dataclass(slots=True)
class _Simulated:
    """The reply to a forwarded request."""

    status: int
    headers: Mapping[str, str]
    body: Iterable[bytes]

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body: all at once, or event by event."""
        for chunk in self.body:
            yield chunk


def _read(request: Forward, *, counting: bool = False) -> Request:
    # The beta for extended output holds in batches only, so it does not lift the cap here.
    betas = tuple(beta for beta in request.betas if beta != EXTENDED_OUTPUT_BETA)
    return read(request.body, version=request.version, betas=betas, counting=counting)


def _error_body(error: BatchyardError, request_id: str) -> bytes:
    return wire.encode(
        {
            "type": "error",
            "error": {"type": error.type, "message": error.message},
            "request_id": request_id,
        }
    )
