"""An upstream whose model is in this process: engine calls in the place of HTTP.

What holds of an endpoint holds here: one call, one outcome, nothing is retried and nothing judged.
An engine that has died is started again, and until it works calls count as never sent, so that no
request pays for it but those that were being answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from batchyard import ids, limits, wire
from batchyard.errors import (
    BadGateway,
    BatchyardError,
    ConfigError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    shown,
)
from batchyard.upstream import Failure, FailureKind, Reply
from batchyard.upstream.engine import (
    EngineAwayError,
    EngineDownError,
    EngineFailedError,
    EngineRefusedError,
)
from batchyard.upstream.engine.answering import Answer, error_body, event, text_event
from batchyard.upstream.engine.reading import read

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from batchyard.clock import Clock
    from batchyard.model import Billing
    from batchyard.upstream import Call, Forward, Outcome
    from batchyard.upstream.engine import Engine, Piece
    from batchyard.upstream.engine.reading import Asked
    from batchyard.upstream.http import StreamTimeouts

log = logging.getLogger(__name__)

_JSON = "application/json"
_EVENTS = "text/event-stream; charset=utf-8"
_RESTART_BASE_S = 1.0
_RESTART_CAP_S = 60.0
_FAILURES = (EngineDownError, EngineFailedError, TimeoutError)
_NO_REASON = "the engine ended the answer without a reason"
_EPOCH = "1970-01-01T00:00:00Z"  # what the hosted API has where a date is not known


class EngineUpstream:
    """One model in this process."""

    billing: Billing = "standard"
    fetches_urls = False
    unset_key: str | None = None

    def __init__(
        self,
        name: str,
        model: str,
        engine: Engine | None,
        clock: Clock,
        *,
        timeouts: StreamTimeouts,
        timeout_s: float = limits.UPSTREAM_TIMEOUT_S,
        stream_above_tokens: int | None = limits.STREAM_ABOVE_TOKENS,
    ) -> None:
        """Make an upstream; `start` loads the model.

        Args:
            name: of the configuration.
            model: what `GET /v1/models` shows.
            engine: None where other processes hold the model.
            clock: of the waits before the engine is started again.
            timeouts: of an answer that comes in pieces.
            timeout_s: for an answer that comes whole.
            stream_above_tokens: an answer that may be longer comes in pieces; None for none.
        """
        self.name = name
        self._model = model
        self._engine = engine
        self._clock = clock
        self._timeouts = timeouts
        self._timeout_s = timeout_s
        self._stream_above = stream_above_tokens
        self._down: str | None = "the engine has not been started"
        self._restarting: asyncio.Task[None] | None = None
        self._calls = itertools.count(1)
        self._prefix = ids.nonce()

    async def start(self) -> None:
        """Load the model, where this process holds it.

        Raises:
            ConfigError: it cannot be loaded.
        """
        if self._engine is None:
            self._down = "its model is held by worker processes"
            return
        try:
            await self._engine.start()
        except EngineDownError as error:
            raise ConfigError(f"upstream {self.name}: {error}") from None
        self._down = None

    async def send(self, call: Call) -> Outcome:
        """Answer one call of `POST /v1/messages`. Raises nothing."""
        try:
            asked = read(call.params)
        except BatchyardError as error:
            await asyncio.sleep(0)
            return _refused(error)
        down = self._down
        if down is not None:
            return Failure(FailureKind.CONNECT, down)
        return await self._answer(call, asked)

    async def _answer(self, call: Call, asked: Asked) -> Outcome:
        """Make one call to an engine that works."""
        above = self._stream_above
        in_pieces = call.begun is not None or (
            above is not None and asked.sampling.max_tokens > above
        )
        answer = Answer(asked.model)
        begun = call.begun
        try:
            async with aclosing(self._pieces(asked, in_pieces=in_pieces)) as pieces:
                async for piece in pieces:
                    if begun is not None:
                        begun()
                        begun = None
                    answer.add(piece)
        except BatchyardError as error:
            return _refused(error)
        except TimeoutError as error:
            return Failure(FailureKind.TIMEOUT, str(error))
        except EngineFailedError as error:
            return Failure(FailureKind.BROKEN, str(error))
        except EngineAwayError as error:
            return Failure(FailureKind.CONNECT, f"the engine is away: {error}")
        except EngineDownError as error:
            return Failure(FailureKind.BROKEN, f"the engine died: {error}")
        if answer.finish is None:
            return Failure(FailureKind.BROKEN, _NO_REASON)
        return Reply(200, wire.encode(answer.message()), request_id=ids.mint("req"))

    @asynccontextmanager
    async def forward(self, request: Forward) -> AsyncIterator[_Forwarded]:
        """Answer one request of a client.

        Raises:
            BadGateway: the engine died before it had answered.
        """
        request_id = ids.mint("req")
        headers = {"content-type": _JSON, "request-id": request_id}
        try:
            async with contextlib.AsyncExitStack() as stack:
                yield await self._route(request, headers, stack)
        except BatchyardError as error:
            if isinstance(error, BadGateway):
                raise
            if error.allow is not None:
                headers["allow"] = error.allow
            body = error_body(error.type, error.message, request_id)
            yield _Forwarded(error.status, headers, _whole(body))

    async def close(self) -> None:
        """Let go of the model."""
        self._down = "the engine was stopped"
        if self._restarting is not None:
            self._restarting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restarting
        if self._engine is not None:
            await self._engine.stop()

    # Generating -------------------------------------------------------------------------------

    async def _pieces(self, asked: Asked, *, in_pieces: bool) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of an answer, each in its time.

        Raises:
            InvalidRequest: the engine does not take it.
            EngineFailedError: it failed.
            EngineAwayError: it was never asked, and is being started again.
            EngineDownError: the engine has died, and is being started again.
            TimeoutError: it took too long. The text says what for.
        """
        assert self._engine is not None  # else it is down
        name = f"{self._prefix}-{next(self._calls)}"
        clock = asyncio.get_running_loop()
        times = self._timeouts
        end_s = clock.time() + (times.whole_s if in_pieces else self._timeout_s)
        bound, what = (times.first_byte_s, "the first token") if in_pieces else (None, "")
        try:
            generation = self._engine.generate(
                name, asked.prompt, asked.sampling, in_pieces=in_pieces
            )
            async with aclosing(generation) as pieces:
                while True:
                    due_s = end_s if bound is None else min(end_s, clock.time() + bound)
                    try:
                        async with asyncio.timeout_at(due_s):
                            piece = await anext(pieces)
                    except TimeoutError:
                        what = "the whole answer" if due_s == end_s else what
                        raise TimeoutError(f"{what} took too long") from None
                    except StopAsyncIteration:
                        return
                    yield piece
                    if in_pieces:
                        bound, what = times.idle_s, "the next token"
        except EngineRefusedError as error:
            raise InvalidRequest(str(error)) from None
        except EngineDownError as error:
            self._note_down(str(error))
            raise

    def _note_down(self, why: str) -> None:
        """Start the engine again, once for all the calls that tell of it."""
        if self._down is None:
            log.error("upstream=%s the engine died: %s", self.name, shown(why, 500))
            self._down = f"the engine died and is being started again: {shown(why, 200)}"
            self._restarting = asyncio.get_running_loop().create_task(self._restart())

    async def _restart(self) -> None:
        assert self._engine is not None
        pause_s = _RESTART_BASE_S
        while True:
            await self._engine.stop()
            try:
                await self._engine.start()
            except EngineDownError as error:
                log.error("upstream=%s does not start: %s", self.name, shown(str(error), 500))  # noqa: TRY400
                self._down = f"the engine does not start: {shown(str(error), 200)}"
                await self._clock.sleep(pause_s)
                pause_s = min(2 * pause_s, _RESTART_CAP_S)
                continue
            log.info("upstream=%s the engine works again", self.name)
            self._down = None
            return

    # Passing on -------------------------------------------------------------------------------

    async def _route(
        self, request: Forward, headers: dict[str, str], stack: contextlib.AsyncExitStack
    ) -> _Forwarded:
        path = urlsplit(request.path).path
        method = "GET" if path == "/v1/models" or path.startswith("/v1/models/") else "POST"
        if path not in {"/v1/messages", "/v1/messages/count_tokens"} and method == "POST":
            raise NotFound
        if request.method != method:
            raise MethodNotAllowed(allow=method)
        if method == "GET":
            return _Forwarded(200, headers, _whole(wire.encode(self._models(path))))
        asked = read(request.body, counting=path.endswith("count_tokens"))
        if self._down is not None:
            raise Overloaded(f"upstream {self.name}: {self._down}")
        if path.endswith("count_tokens"):
            count = await self._count(asked)
            return _Forwarded(200, headers, _whole(wire.encode({"input_tokens": count})))
        pieces = self._pieces(asked, in_pieces=asked.streams)
        await stack.enter_async_context(aclosing(pieces))
        answer = Answer(asked.model)
        try:
            async for piece in pieces:
                if asked.streams:
                    events = _events(answer, piece, pieces)
                    return _Forwarded(200, headers | {"content-type": _EVENTS}, events)
                answer.add(piece)
        except EngineAwayError:
            raise Overloaded(f"upstream {self.name}: {self._down}") from None
        except _FAILURES as error:
            raise BadGateway(f"upstream {self.name}: {error}") from None
        if answer.finish is None:
            raise BadGateway(f"upstream {self.name}: {_NO_REASON}")
        return _Forwarded(200, headers, _whole(wire.encode(answer.message())))

    async def _count(self, asked: Asked) -> int:
        assert self._engine is not None  # else it is down
        try:
            return await self._engine.count(asked.prompt)
        except EngineRefusedError as error:
            raise InvalidRequest(str(error)) from None
        except EngineDownError as error:
            self._note_down(str(error))
            raise Overloaded(f"upstream {self.name}: {self._down}") from None

    def _models(self, path: str) -> dict[str, object]:
        model: dict[str, object] = {
            "type": "model",
            "id": self._model,
            "display_name": self._model,
            "created_at": _EPOCH,
        }
        asked = path.removeprefix("/v1/models").lstrip("/")
        if asked:
            return model | {"id": asked}
        return {
            "data": [model],
            "has_more": False,
            "first_id": self._model,
            "last_id": self._model,
        }


@dataclass(slots=True)
class _Forwarded:
    """The reply to a forwarded request."""

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]

    def chunks(self) -> AsyncIterator[bytes]:
        """Return the body as it comes."""
        return self.body


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


async def _events(
    answer: Answer, first: Piece, pieces: AsyncGenerator[Piece, None]
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a stream. A failure on the way is its last one, as in the hosted API."""
    answer.add(first)
    yield answer.begin() + text_event(first)
    try:
        async for piece in pieces:
            answer.add(piece)
            found = text_event(piece)
            if found:
                yield found
    except _FAILURES as error:
        yield _error_event(str(error))
        return
    yield _error_event(_NO_REASON) if answer.finish is None else answer.end()


def _error_event(text: str) -> bytes:
    return event("error", {"error": {"type": "api_error", "message": text}})


def _refused(error: BatchyardError) -> Reply:
    request_id = ids.mint("req")
    body = error_body(error.type, error.message, request_id)
    return Reply(error.status, body, request_id=request_id)
