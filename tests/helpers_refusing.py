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
        target = urlsplit(endpoint).netloc
        refusing = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                what = f"{self.command} {self.path}"
                if any(each in what for each in refusing.refused):
                    self._send(refusing.status, [], _BODY)
                    return
                connection = http.client.HTTPConnection(target, timeout=30)
                connection.request(self.command, self.path, body, dict(self.headers))
                reply = connection.getresponse()
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

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
