"""Time as a parameter: wall time, monotonic time and sleep behind one interface.

The yard reads no other clock, so that a test can turn it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_JUMP_US = 3_600 * 1_000_000
_UP_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_JUMP_STANDS_S = 150.0  # two sweeps of the keeper, and some


def _wall_us() -> int:
    return time.time_ns() // 1_000


# Seconds that never go back, those that the machine slept included where it counts. No function of
# ours: it is asked several times for each call.
_up_s = partial(time.clock_gettime, _UP_CLOCK)


class Clock(Protocol):
    """A source of time."""

    def now_us(self) -> int:
        """Return the wall time in microseconds since 1970, UTC."""

    def monotonic_s(self) -> float:
        """Return seconds from an arbitrary point; never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` of this clock."""


class SystemClock:
    """The clock of the machine, on guard against a wall clock that is set.

    The wall time goes on with the monotonic time. Small corrections are followed at once. A jump of
    more than an hour is followed only when it has stood for some minutes, so that a clock that is
    wrong for a moment expires nothing and archives nothing.
    """

    def __init__(
        self,
        wall_us: Callable[[], int] = _wall_us,
        monotonic_s: Callable[[], float] = _up_s,
    ) -> None:
        """Make a clock.

        Args:
            wall_us: microseconds since 1970 as the machine has it.
            monotonic_s: its monotonic time, seconds.
        """
        self._wall_us = wall_us
        self._monotonic_s = monotonic_s
        self._offset_us = wall_us() - round(monotonic_s() * 1_000_000)
        self._jumped_s: float | None = None

    def now_us(self) -> int:
        """Return the wall time in microseconds since 1970, UTC."""
        monotonic_s = self._monotonic_s()
        steady = round(monotonic_s * 1_000_000) + self._offset_us
        jump = self._wall_us() - steady
        if abs(jump) <= _JUMP_US:
            self._jumped_s = None
        elif self._jumped_s is None:
            self._jumped_s = monotonic_s
            log.warning("the wall clock jumped by %+.0f s: not followed yet", jump / 1_000_000)
            return steady
        elif monotonic_s - self._jumped_s < _JUMP_STANDS_S:
            return steady
        else:
            self._jumped_s = None
            log.warning("the wall clock stays %+.0f s away: followed now", jump / 1_000_000)
        self._offset_us += jump
        return steady + jump

    def monotonic_s(self) -> float:
        """Return the monotonic time of the machine in seconds."""
        return self._monotonic_s()

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
