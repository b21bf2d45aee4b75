"""Ports of loopback that are known before anything listens on them."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self


class Port:
    """A port that is nobody else's until it is closed: who connects to it meanwhile is refused.

    A port that was only looked for may be another process's a moment later, or the near end of the
    very connection that is opened to it. This one is bound, which takes it from both; a server that
    sets SO_REUSEADDR, as nearly all do, can listen on it all the same.
    """

    def __init__(self) -> None:
        """Take one."""
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.number}"

    def close(self) -> None:
        """Give it back."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
