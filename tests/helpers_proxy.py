"""Stands between a process and PostgreSQL on loopback, and breaks connections at a COMMIT."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

from helpers_relay import Relay, ends_both

if TYPE_CHECKING:
    import socket

When = Literal["before", "after"]
_COMMIT = b"COMMIT\0"


class Proxy(Relay):
    """A port that leads to another one."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._break: When | None = None
        self.broken = 0

    def break_next_commit(self, when: When) -> None:
        """Break the next connection that commits: before the server hears of it, or after."""
        self._break = when

    def serve(self, client: socket.socket) -> None:
        server = self.connect()
        muted = threading.Event()
        back = threading.Thread(target=self._pass, args=(server, client, False, muted), daemon=True)
        back.start()
        self._pass(client, server, True, muted)

    def _pass(
        self, source: socket.socket, target: socket.socket, asks: bool, muted: threading.Event
    ) -> None:
        with ends_both(source, target):
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
