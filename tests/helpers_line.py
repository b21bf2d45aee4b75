"""A line on loopback that can be cut, slow, or answer for the other side: networks as they are."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from helpers_relay import Relay, ends_both

if TYPE_CHECKING:
    import socket

_SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\ncontent-type: application/xml\r\ncontent-length: 0\r\n"
    b"connection: close\r\n\r\n"
)


class Line(Relay):
    """A port that leads to another one."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._whole = threading.Event()
        self._whole.set()
        self.delay_s = 0.0
        """Before each piece that passes."""
        self.refuses = False
        """Whether each HTTP request is answered with 503 instead of being passed on."""
        self.refused = 0

    def cut(self) -> None:
        """Let nothing pass any more, and tell nobody."""
        self._whole.clear()

    def mend(self) -> None:
        """Let pass what has gathered, and all that comes."""
        self._whole.set()

    def __exit__(self, *exc: object) -> None:
        self.mend()
        super().__exit__(*exc)

    def serve(self, client: socket.socket) -> None:
        self._whole.wait()
        server = self.connect()
        threading.Thread(target=self._pass, args=(server, client), daemon=True).start()
        self._pass(client, server, asks=True)

    def _pass(self, source: socket.socket, target: socket.socket, *, asks: bool = False) -> None:
        with ends_both(source, target):
            while data := source.recv(65_536):
                if self.delay_s:
                    time.sleep(self.delay_s)
                self._whole.wait()
                if asks and self.refuses:
                    self.refused += 1
                    source.sendall(_SLOW_DOWN)
                    break
                target.sendall(data)
