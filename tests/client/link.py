"""Stands between a run and a real server, and loses what networks lose.

Faults are given per operation, in the words of an emulator's script, and used up in order:

    drop        the call is done, and the connection closes without an answer
    reset       the same with a reset (RST)
    accept_502  the call is done, and the answer is a 502
    refuse      reset before the server hears of it
    529         that status, before the server hears of it
    cut         half of the answer's body, then the connection closes
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from batchyard.emulator.calls import operation
from helpers_upstream import DEADLINE_S

if TYPE_CHECKING:
    from typing import Self

_HOP = frozenset({"connection", "host", "keep-alive", "transfer-encoding", "content-length"})
_YARD = frozenset({"batchyard-version"})


class Link:
    """A port of its own that leads to `target`, which may change between two calls."""

    def __init__(self, target: int) -> None:
        """Lead to the port `target` of loopback."""
        self.target = target
        self.hides_yard = False
        """Whether the server passes for one without idempotency keys."""
        self.faults: dict[str, deque[Any]] = {}
        self.met: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def follow(self, faults: dict[str, list[Any]]) -> None:
        """Replace what goes wrong; None in a list lets a call pass."""
        with self._lock:
            self.faults = {name: deque(steps) for name, steps in faults.items()}

    def next_fault(self, name: str | None) -> Any:
        with self._lock:
            steps = self.faults.get(name or "")
            fault = steps.popleft() if steps else None
            if fault is not None:
                self.met[f"{name}:{fault}"] += 1
            return fault


def _handler(link: Link) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms between head and body

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.handle_call()

        def do_POST(self) -> None:
            self.handle_call()

        def do_DELETE(self) -> None:
            self.handle_call()

        def handle_call(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            fault = link.next_fault(operation(self.command, self.path.partition("?")[0]))
            if fault == "refuse":
                self.reset()
                return
            if isinstance(fault, int):
                self.error(fault)
                return
            try:
                status, headers, answer = self.passed_on(body)
            except OSError:  # the server is down
                self.reset()
                return
            if fault == "drop":
                self.close_connection = True
            elif fault == "reset":
                self.reset()
            elif fault == "accept_502":
                self.error(502)
            else:
                self.send(status, headers, answer, is_cut=fault == "cut")

        def passed_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            hidden = _HOP | ({"idempotency-key"} if link.hides_yard else set())
            headers = {k: v for k, v in self.headers.items() if k.lower() not in hidden}
            server = http.client.HTTPConnection("127.0.0.1", link.target, timeout=DEADLINE_S)
            with contextlib.closing(server):
                server.request(self.command, self.path, body or None, headers)
                answer = server.getresponse()
                data = answer.read()
            hidden = _HOP | (_YARD if link.hides_yard else set())
            return (
                answer.status,
                [h for h in answer.getheaders() if h[0].lower() not in hidden],
                data,
            )

        def send(
            self, status: int, headers: list[tuple[str, str]], body: bytes, *, is_cut: bool = False
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if is_cut else body)
            self.close_connection = self.close_connection or is_cut

        def error(self, status: int) -> None:
            value = {"type": "error", "error": {"type": "api_error", "message": f"link {status}"}}
            self.send(status, [("content-type", "application/json")], json.dumps(value).encode())

        def reset(self) -> None:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            # The file objects hold the socket open; detached, its end is a reset at once.
            socket.socket(fileno=self.connection.detach()).close()
            self.close_connection = True

    return Handler
