"""An S3 server on loopback, in this process, and a bucket in it."""

from __future__ import annotations

import http.client
import logging
import os
from typing import TYPE_CHECKING

from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from typing import Self

BUCKET = "yard"


class S3:
    """A server with one empty bucket. The environment of this process leads to it meanwhile."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._before: dict[str, str | None] = {}
        self.environment: dict[str, str] = {}
        """What a process needs to reach it."""

    def __enter__(self) -> Self:
        self._server.start()
        host, port = self._server.get_host_and_port()
        connection = http.client.HTTPConnection(host, port, timeout=30)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        connection.close()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "access",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        for name, value in self.environment.items():
            self._before[name] = os.environ.get(name)
            os.environ[name] = value
        return self

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        self._server.stop()

    def url(self, path: str) -> str:
        """Return the URL of a path in the bucket."""
        return f"s3://{BUCKET}/{path}"
