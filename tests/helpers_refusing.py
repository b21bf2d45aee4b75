"""Stands between a process and an S3 server on loopback, and refuses some of its calls."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from typing import Self

_BODY = b"<Error><Code>InvalidObjectState</Code><Message>it is archived</Message></Error>"
_OWN = {"connection", "content-length", "date", "server", "transfer-encoding"}


class Refusing:
    """A port that leads to an S3 server."""

    def __init__(self, endpoint: str) -> None:
        self.refused: set[str] = set()
        """Calls that are answered with `status` whose method and path contain one of these."""
        self.status = 403
        self.least = 0
        """Bytes of the bodies that are refused, at the least."""
        self.times: int | None = None
        """How many calls are refused at the most; all if None."""
        self.counted_from = ""
        """Calls count as such from the first on whose method and path contain this."""
        self.is_silent = False
        """Whether those calls have no answer instead; they are passed on."""
        self.dropped: set[str] = set()
        """Headers, in lower case, that the server does not get to see."""
        self.seen: list[str] = []
        """Method and path of the calls that were refused."""
        self._counts = False
        self._ending = threading.Event()
        target = urlsplit(endpoint).netloc
        refusing = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                what = f"{self.command} {self.path}"
                is_refused = len(body) >= refusing.least and refusing.is_refused(what)
                if is_refused and not refusing.is_silent:
                    self._send(refusing.status, [], _BODY)
                    return
                passed = {
                    k: v for k, v in self.headers.items() if k.lower() not in refusing.dropped
                }
                connection = http.client.HTTPConnection(target, timeout=30)
                connection.request(self.command, self.path, body, passed)
                reply = connection.getresponse()
                if is_refused:
                    refusing.wait()
                    return
                headers = [each for each in reply.getheaders() if each[0].lower() not in _OWN]
                length = reply.getheader("content-length") if self.command == "HEAD" else None
                self._send(reply.status, headers, reply.read(), length)
                connection.close()

            def _send(
                self,
                status: int,
                headers: list[tuple[str, str]],
                body: bytes,
                length: str | None = None,
            ) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("content-length", length or str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def is_refused(self, what: str) -> bool:
        """Return whether a call, by method and path, is one that is refused; count it."""
        if self.times == 0 or not any(each in what for each in self.refused):
            return False
        self._counts |= self.counted_from in what
        if self.times is not None and self._counts:
            self.times -= 1
        self.seen.append(what)
        return True

    def wait(self) -> None:
        """Wait for the end."""
        self._ending.wait()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()
