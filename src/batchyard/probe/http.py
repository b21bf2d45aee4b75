"""One HTTP request, one untouched answer, and the `curl` line that repeats it.

Knows no endpoint. Redirects are not followed, nothing is decoded, and every call has a deadline.
"""

from __future__ import annotations

import http.client
import json
import shlex
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from batchyard.errors import ConfigError, shown

if TYPE_CHECKING:
    from types import TracebackType

KEY_NAME = "$ANTHROPIC_API_KEY"
ANSWER_BYTES_MAX = 32 * 1024 * 1024
CONNECT_TIMEOUT_S = 10.0
_CHUNK = 65_536
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class NoAnswer(Exception):
    """The server gave no whole HTTP answer."""

    def __init__(self, reason: str, request: Request) -> None:
        self.reason = reason
        self.request = request
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server is: a base URL in parts, without `/v1`."""

    scheme: str
    host: str
    port: int | None
    prefix: str

    @property
    def origin(self) -> str:
        """Return scheme, host and port as a client writes them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port is None else f":{self.port}")

    @property
    def base(self) -> str:
        """Return the base URL."""
        return self.origin + self.prefix

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
        return self.host in _LOOPBACK


def target(url: str) -> Target:
    """Read a base URL.

    Raises:
        ConfigError: it is not an http(s) address, or holds more than that.
    """
    wrong = ConfigError(f"{shown(url)} is not a base URL like http://127.0.0.1:8787")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise wrong
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise wrong
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ConfigError("the base URL may hold no query and no password")
    return Target(parts.scheme, parts.hostname, port, parts.path.rstrip("/").removesuffix("/v1"))


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, as it stands on the wire."""

    method: str
    path: str
    """Below the base URL, query included."""
    headers: tuple[tuple[str, str], ...]
    body: bytes | None = None
    recipe: str | None = None
    """A shell command that prints the body, where the body is too long to be shown."""
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its whole answer."""

    request: Request
    status: int
    headers: tuple[tuple[str, str], ...]
    """Names in lower case."""
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the first header of this name (lower case), or None."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def media_type(self) -> str | None:
        """Return the content type without parameters, lower case."""
        value = self.header("content-type")
        return None if value is None else value.partition(";")[0].strip().lower()

    def json(self) -> object:
        """Return the body as JSON, None when it is none."""
        return parsed(self.body)


def parsed(data: bytes) -> object:
    """Return `data` as JSON, None when it is none."""
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value


class Connection:
    """A connection that is kept as long as the server keeps it, for calls one after the other."""

    def __init__(self, at: Target, timeout_s: float) -> None:
        self._at = at
        self._timeout_s = timeout_s
        self._http: http.client.HTTPConnection | None = None
        self.opened = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def send(self, request: Request) -> Exchange:
        """Make one call.

        Raises:
            NoAnswer: no whole answer of HTTP came in time.
        """
        timeout_s = request.timeout_s or self._timeout_s
        deadline = _Deadline(timeout_s)
        is_whole = False
        try:
            exchange = self._send(request, deadline)
            is_whole = True
        except http.client.IncompleteRead as error:
            reason = f"the answer was cut after {len(error.partial)} bytes of its body"
            raise NoAnswer(deadline.reason or reason, request) from None
        except http.client.RemoteDisconnected:
            reason = "the server closed the connection without an answer"
            raise NoAnswer(deadline.reason or reason, request) from None
        except http.client.HTTPException as error:
            reason = f"the answer is not HTTP ({type(error).__name__})"
            raise NoAnswer(deadline.reason or reason, request) from None
        except TimeoutError:
            raise NoAnswer(f"no whole answer within {timeout_s:g} s", request) from None
        except ssl.SSLError as error:
            raise NoAnswer(f"TLS failed: {error.reason or error}", request) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NoAnswer(deadline.reason or reason, request) from None
        finally:
            deadline.cancel()
            if not is_whole:
                self.close()
        return exchange

    def _send(self, request: Request, deadline: _Deadline) -> Exchange:
        connection = self._open(request.timeout_s or self._timeout_s)
        assert connection.sock is not None
        deadline.watch(connection.sock)
        connection.putrequest(request.method, self._at.prefix + request.path,
                              skip_accept_encoding=True)  # fmt: skip
        for name, value in request.headers:
            connection.putheader(name, value)
        if request.body is not None and "content-length" not in dict(request.headers):
            connection.putheader("content-length", str(len(request.body)))
        # A body that is refused unread breaks the pipe; the answer may be there all the same.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.endheaders(request.body)
        response = connection.getresponse()
        body = _read(response, request)
        headers = tuple((name.lower(), value) for name, value in response.getheaders())
        if connection.sock is None:
            self._http = None
        return Exchange(request, response.status, headers, body)

    def _open(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._http is None:
            kind = (
                http.client.HTTPSConnection
                if self._at.scheme == "https"
                else http.client.HTTPConnection
            )
            self._http = kind(
                self._at.host, self._at.port, timeout=min(CONNECT_TIMEOUT_S, timeout_s)
            )
            self._http.connect()
            self.opened += 1
        assert self._http.sock is not None
        self._http.sock.settimeout(timeout_s)
        return self._http


class _Deadline:
    """Ends a call as a whole: a server that sends a byte now and then never meets a time-out."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: threading.Timer | None = None
        self.reason: str | None = None

    def watch(self, sock: socket.socket) -> None:
        def end() -> None:
            self.reason = f"no whole answer within {self._seconds:g} s"
            with suppress(OSError):
                # Not that of the TLS object, which would forget its state under the reader.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

        self._timer = threading.Timer(self._seconds, end)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _read(response: http.client.HTTPResponse, request: Request) -> bytes:
    parts, total = [], 0
    while part := response.read(_CHUNK):
        parts.append(part)
        total += len(part)
        if total > ANSWER_BYTES_MAX:
            size = ANSWER_BYTES_MAX // 1024**2
            raise NoAnswer(f"the answer is longer than {size} MiB", request)
    if response.length:
        raise http.client.IncompleteRead(b"".join(parts), response.length)
    return b"".join(parts)


def curl(at: Target, request: Request, key: str) -> str:
    """Return a command line that repeats the request; the key is a variable of the shell."""
    parts = ["curl -isS"]
    if request.method != "GET":
        parts.append(f"-X {request.method}")
    if "%" in request.path:
        parts.append("--path-as-is")
    if request.timeout_s is not None:
        parts.append(f"--max-time {request.timeout_s:g}")
    parts.append(shlex.quote(at.base + request.path))
    parts += [f"-H {_header(name, value, key)}" for name, value in request.headers]
    if request.recipe is not None:
        return f"{request.recipe} | {' '.join(parts)} --data-binary @-"
    if request.body:
        parts.append(f"--data-binary {_quoted(request.body)}")
    elif request.body is not None:
        parts.append("-H 'content-length: 0'")
    return " ".join(parts)


def _header(name: str, value: str, key: str) -> str:
    if key and value in {key, f"Bearer {key}"}:
        return f'"{name}: {value.removesuffix(key)}{KEY_NAME}"'
    return shlex.quote(f"{name}: {value}")


def _quoted(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        escaped = "".join(
            chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
            for byte in body
        )
        return f"$'{escaped}'"
    return shlex.quote(text)
