"""What calls send in one turn of the event loop, sent together at its end.

An upstream that sleeps has to be woken by who sends. Calls that begin one by one, each with the
work of some others in between, would find it asleep again each time; sent in a row, they wake it
once. On one machine that is a third of what the kernel does for a call.
"""

from __future__ import annotations

import asyncio


class Outbox:
    """That of the connections to one upstream."""

    def __init__(self) -> None:
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []

    def add(self, transport: asyncio.Transport, data: bytes) -> None:
        """Send `data` when those who can go on now have done so, unless it is closed by then."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send)
        self._waiting.append((transport, data))

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for transport, data in waiting:
            if not transport.is_closing():  # else the call was given up, or the upstream has left
                transport.write(data)
