"""A client that is still sending a body that nobody wants reads its answer all the same."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

from helpers_upstream import DEADLINE_S, Upstream
from helpers_yard import BATCHES, HEADERS, Yard

if TYPE_CHECKING:
    from pathlib import Path

CAP = 1 << 20


def test_a_refused_body_is_heard_out_before_the_connection_is_closed(tmp_path: Path) -> None:
    """A reset while it sends would make some clients drop the answer unread."""
    length = 8 * CAP
    fields = HEADERS | {"host": "127.0.0.1", "content-length": str(length)}
    sent = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    bounds = {"limits:BATCH_BODY_BYTES_MAX": CAP}
    with Upstream() as upstream, Yard(tmp_path / "data", upstream.url, bounds=bounds) as yard:
        address = ("127.0.0.1", yard.port)
        with closing(socket.create_connection(address, DEADLINE_S)) as client:
            client.sendall(f"POST {BATCHES} HTTP/1.1\r\n{sent}\r\n".encode())
            answer = client.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 413 ")
            for _ in range(8):
                client.sendall(b" " * CAP)
            while part := client.recv(65_536):
                answer += part
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b"connection: close" in head.lower()
            assert b"request_too_large" in body
