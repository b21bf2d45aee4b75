"""A scripted upstream on loopback, in the test process: raw sockets, so that it can answer wrongly.

What a request meets is written in its prompt: `name` or `name|step,step,…`. Each call with this
prompt takes the next step, the last one stays. Without steps the answer is a message.

    a-1                       a message
    a-2|429,529,message       two refusals, then a message
    a-3|hold:gate             a message, once `upstream.gate("gate").open()` was called

Every call is recorded with its head and body, and counted by prompt. Tests wait on what has
happened (`wait_calls`, `wait_until`), never on time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

DEADLINE_S = 180.0
"""How long a test waits for something that must happen. Generous: it only ends failing tests."""


@dataclass(frozen=True)
class Call:
    """One request that reached the upstream."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    prompt: str
    name: str
    number: int
    """Which call with this prompt it is, from 1."""


@dataclass
class Exchange:
    """One call and the connection to answer it on."""

    upstream: Upstream
    call: Call
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "application/json",
        headers: tuple[str, ...] = (),
    ) -> None:
        head = [
            f"HTTP/1.1 {status} Scripted",
            f"content-type: {content_type}",
            f"content-length: {len(body)}",
            *headers,
        ]
        await self.send("\r\n".join([*head, "", ""]).encode() + body)

    async def begin_stream(self, *headers: str) -> None:
        """Begin an answer of events."""
        head = "".join(f"{header}\r\n" for header in headers).encode()
        await self.send(_STREAM_HEAD + head + b"\r\n")

    async def send_piece(self, data: bytes) -> None:
        """Send the next bytes of a stream."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        """End a stream as HTTP ends one."""
        await self.send(b"0\r\n\r\n")

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


@dataclass
class Gate:
    """A barrier that a test opens."""

    _loop: asyncio.AbstractEventLoop
    _event: asyncio.Event = field(default_factory=asyncio.Event)

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()


def text_of(prompt: str) -> str:
    """Return the text that the upstream answers to a prompt."""
    return f'echo of {prompt}: {{"quoted"}} - ünïcode \u2028 done'


def message(prompt: str, model: str = "scripted") -> bytes:
    """Return a finished message, with white space and fields of its own."""
    return json.dumps(
        {
            "id": f"msg_{abs(hash(prompt))}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [{"type": "text", "text": text_of(prompt)}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "x_extra": {"kept": True},
            "usage": {
                "input_tokens": len(prompt),
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 7,
                "service_tier": "standard",
            },
        },
        ensure_ascii=False,
        indent=1,
    ).encode()


def error(error_type: str, text: str) -> bytes:
    """Return an error body of the Messages dialect."""
    body = {"type": "error", "error": {"type": error_type, "message": text}, "request_id": "req_up"}
    return json.dumps(body).encode()


SSE = (
    b'event: message_start\ndata: {"type":"message_start"}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n"
)


def sse(event: dict[str, Any] | bytes) -> bytes:
    """Return one server-sent event, as it stands in a stream of the Messages dialect."""
    data = event if isinstance(event, bytes) else json.dumps(event, ensure_ascii=False).encode()
    return b"event: %b\ndata: %b\n\n" % (json.loads(data)["type"].encode(), data)


def streamed(body: bytes, step: int = 7) -> list[bytes]:
    """Return the events in which an answer of text blocks is streamed.

    Args:
        body: of the message.
        step: characters in each delta.
    """
    whole = json.loads(body)
    begun = {"content": [], "stop_reason": None, "stop_sequence": None}
    usage = whole["usage"] | {"output_tokens": 1}
    found = [sse({"type": "message_start", "message": whole | begun | {"usage": usage}})]
    for index, block in enumerate(whole["content"]):
        start = {"type": "content_block_start", "index": index}
        found.append(sse(start | {"content_block": block | {"text": ""}}))
        for at in range(0, len(block["text"]), step):
            delta = {"type": "text_delta", "text": block["text"][at : at + step]}
            found.append(sse({"type": "content_block_delta", "index": index, "delta": delta}))
        found.append(sse({"type": "content_block_stop", "index": index}))
    ended = {key: whole[key] for key in ("stop_reason", "stop_sequence")}
    counts = {"output_tokens": whole["usage"]["output_tokens"]}
    found.append(sse({"type": "message_delta", "delta": ended, "usage": counts}))
    return [*found, sse({"type": "message_stop"})]


class Upstream:
    """The server; a context manager that runs it in a thread of its own."""

    def __init__(
        self, script: Callable[[Exchange], Awaitable[None]] | None = None, *, port: int = 0
    ) -> None:
        """Make one.

        Args:
            script: answers every call; by default the steps in the prompt decide.
            port: to listen on; 0 takes a free one.
        """
        self.calls: list[Call] = []
        self.counts: Counter[str] = Counter()
        self.answered: dict[str, list[float]] = {}
        """By name: when the answers had been sent whole (monotonic)."""
        self.in_flight: Counter[str] = Counter()
        """By name: calls that have come and are not answered on a live connection."""
        self.abandoned = 0
        """Connections that the client closed while a call was open."""
        self.connections = 0
        self._script = script or follow_prompt
        self._changed = threading.Condition()
        self._gates: dict[str, Gate] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scripted-upstream")
        self._stop: asyncio.Event
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def gate(self, name: str) -> Gate:
        """Return the gate of this name, closed at first."""
        with self._changed:
            return self._gates.setdefault(name, Gate(self._loop))

    def wait_until(self, what: Callable[[], bool], why: str) -> None:
        """Wait until something is true of the calls."""
        with self._changed:
            if not self._changed.wait_for(what, DEADLINE_S):
                raise AssertionError(f"never happened: {why}; {len(self.calls)} calls came")

    def wait_calls(self, prefix: str, number: int) -> None:
        """Wait until `number` calls have come whose name begins with `prefix`."""
        self.wait_until(lambda: self.number(prefix) >= number, f"{number} calls of {prefix}*")

    def number(self, prefix: str) -> int:
        """Return how many calls came whose name begins with `prefix`."""
        with self._changed:
            return sum(n for name, n in self.counts.items() if name.startswith(prefix))

    def number_answered(self, prefix: str) -> int:
        """Return how many of them were answered."""
        return sum(len(v) for name, v in self.answered.items() if name.startswith(prefix))

    def snapshot(self) -> tuple[Counter[str], Counter[str]]:
        """Return the counts and what is in flight, of one moment."""
        with self._changed:
            return Counter(self.counts), Counter(self.in_flight)

    # The server -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(
            self._on_connection, "127.0.0.1", self.port, backlog=1024, limit=1 << 20
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets in the next turn

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        first = b""
        try:
            while not writer.is_closing():
                call = await self._read(reader, first)
                first = await self._answer(call, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, first: bytes) -> Call:
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {}
        for line in lines:
            key, _, value = line.partition(":")
            headers[key.lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        prompt = _prompt(body)
        name = prompt.partition("|")[0]
        with self._changed:
            self.counts[name] += 1
            self.in_flight[name] += 1
            call = Call(method, path, headers, body, prompt, name, self.counts[name])
            self.calls.append(call)
            self._changed.notify_all()
        return call

    async def _answer(
        self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        """Run the script, unless the client goes away before; return what was read too much."""
        script = asyncio.ensure_future(self._script(Exchange(self, call, writer)))
        # The client sends nothing before it has its answer, so this read ends when it closes.
        gone = asyncio.ensure_future(reader.read(1))
        answered = False
        try:
            await asyncio.wait({script, gone}, return_when=asyncio.FIRST_COMPLETED)
            if script.done():
                with contextlib.suppress(ConnectionError):
                    script.result()
                    answered = True
        finally:
            for task in (script, gone):
                task.cancel()
            _, read = await asyncio.gather(script, gone, return_exceptions=True)
            with self._changed:
                self.in_flight[call.name] -= 1
                if not self.in_flight[call.name]:
                    del self.in_flight[call.name]
                if answered:
                    self.answered.setdefault(call.name, []).append(time.monotonic())
                else:
                    self.abandoned += 1
                self._changed.notify_all()
        if not answered:
            raise ConnectionError
        return read if isinstance(read, bytes) else b""


def _prompt(body: bytes) -> str:
    try:
        return str(json.loads(body)["messages"][0]["content"])
    except (ValueError, LookupError, TypeError):
        return ""


# Steps ----------------------------------------------------------------------------------------


async def follow_prompt(exchange: Exchange) -> None:
    """Answer as the prompt says."""
    steps = exchange.call.prompt.partition("|")[2].split(",")
    step = steps[min(exchange.call.number, len(steps)) - 1] or "message"
    name, _, argument = step.partition(":")
    if name.isdigit():
        await refuse(exchange, int(name), argument)
    else:
        await STEPS[name](exchange, argument)


_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


async def refuse(exchange: Exchange, status: int, retry_after: str) -> None:
    """Answer with an error of the dialect; the argument is its `retry-after`."""
    body = error(_ERRORS.get(status, "api_error"), f"scripted {status}")
    headers = (f"retry-after: {retry_after}",) if retry_after else ()
    await exchange.reply(status, body, headers=(*headers, "request-id: req_upstream"))


async def _message(exchange: Exchange, _: str) -> None:
    if exchange.call.path.partition("?")[0].endswith("/count_tokens"):
        await exchange.reply(200, b'{"input_tokens":42}')
    elif exchange.call.method == "GET":
        await exchange.reply(200, b'{"data":[{"id":"m","type":"model"}],"has_more":false}')
    else:
        model = json.loads(exchange.call.body)["model"]
        body = message(exchange.call.prompt, model)
        await exchange.reply(200, body, headers=("request-id: req_upstream",))


async def _hold(exchange: Exchange, gate: str) -> None:
    await exchange.upstream.gate(gate).wait()
    await _message(exchange, "")


async def _accepted(exchange: Exchange, gate: str) -> None:
    """Refuse with 401 until a gate is open."""
    if exchange.upstream.gate(gate)._event.is_set():
        await _message(exchange, "")
    else:
        await refuse(exchange, 401, "")


async def _raw(exchange: Exchange, status: int, body: bytes, content_type: str) -> None:
    await exchange.reply(status, body, content_type=content_type)


async def _truncated(exchange: Exchange, _: str) -> None:
    body = message(exchange.call.prompt)
    await exchange.send(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        % len(body)
        + body[: len(body) // 2]
    )
    exchange.close()


async def _no_length(exchange: Exchange, _: str) -> None:
    """Half a message, ended by the end of the connection: well-formed HTTP."""
    body = message(exchange.call.prompt)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    await exchange.send(head + body[: len(body) // 2])
    exchange.close()


async def _close(exchange: Exchange, _: str) -> None:
    exchange.close()


async def _reset(exchange: Exchange, _: str) -> None:
    exchange.reset()


async def _garbage(exchange: Exchange, _: str) -> None:
    await exchange.send(b"220 mail.example.com ESMTP\r\n")
    exchange.close()


async def _redirect(exchange: Exchange, target: str) -> None:
    await exchange.reply(302, b"", headers=(f"location: http://127.0.0.1:{target}/v1/messages",))


async def _huge(exchange: Exchange, _: str) -> None:
    """Announce more than is read."""
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n{")
    await exchange.send(b" " * 65_536)


async def _huge_chunked(exchange: Exchange, _: str) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    for _unused in range(200):
        await exchange.send(piece)


async def _no_content(exchange: Exchange, _: str) -> None:
    await exchange.send(b"HTTP/1.1 204 No Content\r\n\r\n")


async def _gzip(exchange: Exchange, _: str) -> None:
    """Send a message in a coding that was not asked for."""
    body = gzip.compress(message(exchange.call.prompt))
    await exchange.reply(200, body, headers=("content-encoding: gzip",))


async def _hints(exchange: Exchange, _: str) -> None:
    """Send interim replies until the connection is closed."""
    while True:
        await exchange.send(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 100)


async def _silent(exchange: Exchange, _: str) -> None:
    """Answer nothing until the connection is closed."""
    await asyncio.Event().wait()


async def _endless(exchange: Exchange, _: str) -> None:
    """Send chunks without the last one, then close."""
    body = message(exchange.call.prompt)
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    await exchange.send(head + b"%x\r\n%b\r\n" % (len(body), body))
    exchange.close()


async def _sse(exchange: Exchange, gate: str) -> None:
    """Stream events; with an argument, wait for that gate after the first."""
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    await exchange.send(head)
    for number, event in enumerate(SSE):
        await exchange.send(b"%x\r\n%b\r\n" % (len(event), event))
        if gate and number == 0:
            await exchange.upstream.gate(gate).wait()
    await exchange.send(b"0\r\n\r\n")


async def _sse_cut(exchange: Exchange, _: str) -> None:
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    await exchange.send(head + b"%x\r\n%b\r\n" % (len(SSE[0]), SSE[0]))
    exchange.close()


async def _stream(exchange: Exchange, events: str) -> None:
    """Stream the message, where that is asked for; with an argument, only its first events."""
    asked = json.loads(exchange.call.body)
    if not asked.get("stream"):
        await _message(exchange, "")
        return
    await exchange.begin_stream()
    found = streamed(message(exchange.call.prompt, asked["model"]))
    for event in found[: int(events)] if events else found:
        await exchange.send_piece(event)
    await exchange.end_stream()


async def _stream_error(exchange: Exchange, error_type: str) -> None:
    """Stream the beginning of a message, then an error."""
    await exchange.begin_stream("request-id: req_upstream")
    for event in streamed(message(exchange.call.prompt))[:4]:
        await exchange.send_piece(event)
    await exchange.send_piece(sse(error(error_type, f"scripted {error_type}")))
    await exchange.end_stream()


_HTML = b"<html><body><h1>502 Bad Gateway</h1>" + b"x" * 5_000 + b"</body></html>"

STEPS: dict[str, Callable[[Exchange, str], Awaitable[Any]]] = {
    "message": _message,
    "hold": _hold,
    "accepted": _accepted,
    "html": lambda e, _: _raw(e, 502, _HTML, "text/html"),
    "html200": lambda e, _: _raw(e, 200, b"<html>captive portal</html>", "text/html"),
    "empty": lambda e, _: _raw(e, 200, b"{}", "application/json"),
    "nobody": lambda e, _: _raw(e, 200, b"", "application/json"),
    "plain": lambda e, _: _raw(e, 200, message(e.call.prompt), "text/plain"),
    "nostop": lambda e, _: _raw(
        e, 200, message(e.call.prompt).replace(b'"end_turn"', b"null"), "application/json"
    ),
    "badutf8": lambda e, _: _raw(
        e, 200, message(e.call.prompt).replace(b"echo", b"\xff\xfe"), "application/json"
    ),
    "truncated": _truncated,
    "nolength": _no_length,
    "close": _close,
    "reset": _reset,
    "garbage": _garbage,
    "redirect": _redirect,
    "huge": _huge,
    "hugechunked": _huge_chunked,
    "nocontent": _no_content,
    "gzip": _gzip,
    "hints": _hints,
    "silent": _silent,
    "endless": _endless,
    "sse": _sse,
    "ssecut": _sse_cut,
    "stream": _stream,
    "streamerror": _stream_error,
}
