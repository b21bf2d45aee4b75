"""A port on loopback that leads to another one, for those that disturb what passes."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self


class Relay:
    """Accepts connections, each served in a thread; those who derive say what passes."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            _shut(each)  # wakes the threads that wait on it
            each.close()

    def serve(self, client: socket.socket) -> None:
        """Serve a connection; an error of a socket is its end."""
        raise NotImplementedError

    def connect(self) -> socket.socket:
        """Return a new connection to the port that this one leads to."""
        server = socket.create_connection(("127.0.0.1", self._target))
        self._sockets.append(server)
        return server

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self.serve(client)


@contextlib.contextmanager
def ends_both(source: socket.socket, target: socket.socket) -> Iterator[None]:
    """End both sides when nothing passes any more, or one of them has broken."""
    with contextlib.suppress(OSError):
        yield
    _shut(source)
    _shut(target)


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
