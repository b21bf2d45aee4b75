"""Time as a parameter: wall time, monotonic time and sleep behind one interface.

The yard reads no other clock, so that a test can turn it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A source of time."""

    def now_us(self) -> int:
        """Return the wall time in microseconds since 1970, UTC."""

    def monotonic_s(self) -> float:
        """Return seconds from an arbitrary point; never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` of this clock."""


class SystemClock:
    """The clock of the machine."""

    def now_us(self) -> int:
        """Return the wall time in microseconds since 1970, UTC."""
        return time.time_ns() // 1_000

    def monotonic_s(self) -> float:
        """Return the monotonic time of the machine in seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        await asyncio.sleep(seconds)


async def wait_first(clock: Clock, event: asyncio.Event, seconds: float) -> None:
    """Wait for `event` or for `seconds`, whichever comes first."""
    tasks = (asyncio.ensure_future(event.wait()), asyncio.ensure_future(clock.sleep(seconds)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
