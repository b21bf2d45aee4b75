"""A line on loopback that can be cut, slow, or answer for the other side: networks as they are."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

_SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\ncontent-type: application/xml\r\ncontent-length: 0\r\n"
    b"connection: close\r\n\r\n"
)


class Line:
    """A port that leads to another one."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._whole = threading.Event()
        self._whole.set()
        self.delay_s = 0.0
        """Before each piece that passes."""
        self.refuses = False
        """Whether each HTTP request is answered with 503 instead of being passed on."""
        self.refused = 0
        self.port: int = self._listener.getsockname()[1]

    def cut(self) -> None:
        """Let nothing pass any more, and tell nobody."""
        self._whole.clear()

    def mend(self) -> None:
        """Let pass what has gathered, and all that comes."""
        self._whole.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.mend()
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes the threads that wait on it
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._whole.wait()
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets.append(server)
            back = threading.Thread(target=self._pass, args=(server, client), daemon=True)
            back.start()
            self._pass(client, server, asks=True)

    def _pass(self, source: socket.socket, target: socket.socket, *, asks: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if self.delay_s:
                    time.sleep(self.delay_s)
                self._whole.wait()
                if asks and self.refuses:
                    self.refused += 1
                    source.sendall(_SLOW_DOWN)
                    break
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
