"""HTTP as bytes, for what no client sends."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from helpers_upstream import DEADLINE_S
from helpers_yard import BATCHES, KEY, poll

FIXED = ("host: 127.0.0.1", f"x-api-key: {KEY}", "anthropic-version: 2023-06-01")


@dataclass(frozen=True)
class Reply:
    """One response of a connection."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def error(self) -> dict[str, Any]:
        """Return the error of an answer, which must be a whole envelope that names its request."""
        body = json.loads(self.body)
        assert list(body) == ["type", "error", "request_id"]
        assert body["type"] == "error"
        assert body["request_id"] == self.headers["request-id"]
        assert self.headers["content-type"] == "application/json"
        found: dict[str, Any] = body["error"]
        return found


def head(*lines: str, method: str = "POST", target: str = BATCHES, fixed: Any = FIXED) -> bytes:
    """Return a request head; characters up to U+00FF are bytes."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", *fixed, *lines, "", ""]).encode("latin-1")


def exchange(port: int, *pieces: bytes) -> bytes:
    """Send bytes and return all that comes until the server closes, which it must do."""
    with closing(socket.create_connection(("127.0.0.1", port), DEADLINE_S)) as connection:
        received = b""
        # What is refused unread breaks the pipe; the answer is there all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65_536):
                received += part
        return received


def exchange_in_time(port: int, *pieces: bytes) -> bytes:
    """Do the same with a server that soon closes a connection on which nothing comes.

    It is asked again where it has closed without a word: then it was this process that was stopped
    between the opening of the connection and its first byte.
    """
    return poll(lambda: exchange(port, *pieces), lambda: "it always closes without a word")


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def makefile(self, mode: str) -> io.BytesIO:
        return self._file


def replies(received: bytes) -> list[Reply]:
    """Read the responses of a connection, all of which must be whole."""
    found = []
    while received:
        source = _Bytes(received)
        response = http.client.HTTPResponse(source)  # type: ignore[arg-type]
        response.begin()
        length = int(response.headers["content-length"])
        start = received.index(b"\r\n\r\n") + 4
        assert len(received) >= start + length, received
        body = received[start : start + length]
        found.append(Reply(response.status, response.headers, body))
        received = received[start + length :]
    return found


def one_reply(port: int, *pieces: bytes) -> Reply:
    """Send bytes; return the only answer before the connection closes."""
    (reply,) = replies(exchange(port, *pieces))
    return reply


def reply_in_time(port: int, *pieces: bytes) -> Reply:
    """Do the same with a server that soon closes a connection on which nothing comes."""
    (reply,) = replies(exchange_in_time(port, *pieces))
    return reply
