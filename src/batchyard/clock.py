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
        """Return seconds from an arbitrary point of the machine; never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` of this clock."""


class SystemClock:
    """The clock of the machine, on guard against a wall clock that is set.

    The wall time goes on with the monotonic time. Small corrections are followed at once. A jump of
    more than an hour is followed only when it has stood for some minutes, so that a clock that is
    wrong for a moment expires nothing and archives nothing. It stands as long as it is the same
    jump, give or take an hour.
    """

    def __init__(
        self,
        wall_us: Callable[[], int] = _wall_us,
        monotonic_s: Callable[[], float] = _up_s,
        *,
        offset_us: int | None = None,
    ) -> None:
        """Make a clock.

        Args:
            wall_us: microseconds since 1970 as the machine has it.
            monotonic_s: its monotonic time, seconds.
            offset_us: that of another clock of the machine, which knows the time longer; see
                `offset_of`. Without it the wall clock is believed as it is now.
        """
        self._wall_us = wall_us
        self._monotonic_s = monotonic_s
        if offset_us is None:
            offset_us = wall_us() - round(monotonic_s() * 1_000_000)
        self._offset_us = offset_us
        self._jump: tuple[float, int] | None = None
        """When the jump that is not followed yet was seen, in monotonic seconds, and its size."""

    def now_us(self) -> int:
        """Return the wall time in microseconds since 1970, UTC."""
        monotonic_s = self._monotonic_s()
        steady = round(monotonic_s * 1_000_000) + self._offset_us
        jump = self._wall_us() - steady
        noted = self._jump
        if abs(jump) <= _JUMP_US:
            self._jump = None
        elif noted is None or abs(jump - noted[1]) > _JUMP_US:
            self._jump = monotonic_s, jump
            log.warning("the wall clock jumped by %+.0f s: not followed yet", jump / 1_000_000)
            return steady
        elif monotonic_s - noted[0] < _JUMP_STANDS_S:
            return steady
        else:
            self._jump = None
            log.warning("the wall clock stays %+.0f s away: followed now", jump / 1_000_000)
        self._offset_us += jump
        return steady + jump

    def monotonic_s(self) -> float:
        """Return the monotonic time of the machine in seconds."""
        return self._monotonic_s()

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        await asyncio.sleep(seconds)


def steady_us(clock: Clock) -> int:
    """Return the time that leases are in: microseconds from an arbitrary point, never set.

    All processes of a machine count from the same one.
    """
    return round(clock.monotonic_s() * 1_000_000)


def offset_of(clock: Clock) -> int:
    """Return what is added to the steady time of the machine to have the wall time, microseconds.

    A process that starts while the wall clock is wrong has the time by that of an older one.
    """
    return clock.now_us() - steady_us(clock)


async def wait_first(
    clock: Clock, event: asyncio.Event, seconds: float, *or_: asyncio.Event
) -> None:
    """Wait for one of the events or for `seconds`, whichever comes first."""
    waits = [each.wait() for each in (event, *or_)]
    tasks = [asyncio.ensure_future(wait) for wait in (*waits, clock.sleep(seconds))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
