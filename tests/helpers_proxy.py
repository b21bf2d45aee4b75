"""Stands between a process and PostgreSQL on loopback, and breaks connections at a COMMIT."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from typing import Self

When = Literal["before", "after"]
_COMMIT = b"COMMIT\0"


class Proxy:
    """A port that leads to another one."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._break: When | None = None
        self.broken = 0
        self.port: int = self._listener.getsockname()[1]

    def break_next_commit(self, when: When) -> None:
        """Break the next connection that commits: before the server hears of it, or after."""
        self._break = when

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes the threads that wait on it
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                muted = threading.Event()
                for way in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass, args=(*way, muted), daemon=True).start()

    def _pass(
        self, source: socket.socket, target: socket.socket, asks: bool, muted: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                when = self._break
                if asks and when is not None and _COMMIT in data:
                    self._break = None
                    self.broken += 1
                    if when == "before":
                        break
                    muted.set()
                    target.sendall(data)
                    continue
                if not asks and muted.is_set():
                    break  # the server has answered: it is committed
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
