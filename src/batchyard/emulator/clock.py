"""A clock that runs like the machine's, faster if wished, and can be turned forward.

It serves one event loop. Nothing of the yard reads another clock, so a turn of 25 hours is 25 hours
for leases, retries, expiry and retention.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from typing import TYPE_CHECKING

from batchyard.errors import InvalidRequest
from batchyard.limits import DAY_US, SECOND_US

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SPEED_MAX = 1_000_000.0
ADVANCE_MAX_S = 1_000 * DAY_US / SECOND_US
_STEPS = 100
_FINE_STEPS = 20_000  # of one turn; half a minute of the machine
_SHORTEST_SLEEP_S = 0.002  # of the machine: at high speed, periodic work would do nothing else


class TurnableClock:
    """A `Clock` whose time passes `speed` times as fast as the machine's, and in jumps."""

    def __init__(self, speed: float = 1.0) -> None:
        self._start_us = time.time_ns() // 1_000
        self._speed = speed
        self._since = time.monotonic()
        self._passed_s = 0.0  # until `_since`
        self._count = 0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._turning = asyncio.Lock()

    @property
    def speed(self) -> float:
        """Seconds of this clock in a second of the machine."""
        return self._speed

    def set_speed(self, speed: float) -> None:
        """Run faster or slower from now on.

        Raises:
            InvalidRequest: not above 0 and at most a million.
        """
        if not 0 < speed <= SPEED_MAX:
            raise InvalidRequest(f"speed: Input should be greater than 0, at most {SPEED_MAX:,.0f}")
        self._move(0)
        self._speed = speed
        self._set_timer()

    def now_us(self) -> int:
        """Return the wall time in microseconds since 1970, UTC."""
        return self._start_us + round(self.monotonic_s() * SECOND_US)

    def monotonic_s(self) -> float:
        """Return the seconds since the start."""
        return self._passed_s + (time.monotonic() - self._since) * self._speed

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` of this clock."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        due_s = self.monotonic_s() + max(seconds, _SHORTEST_SLEEP_S * self._speed)
        self._count += 1
        heapq.heappush(self._sleepers, (due_s, self._count, future))
        if self._sleepers[0][2] is future:
            self._set_timer()
        await future

    async def advance(
        self,
        seconds: float,
        settled: Callable[[], Awaitable[None]],
        finest_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        """Let `seconds` pass at once, as if the yard had lived through them.

        Time moves in steps, each to the next sleeper that comes due or further; after each, what it
        woke may finish. So an answer that takes an hour arrives before what expires a day later. A
        step is a hundredth of the whole, or `finest_s` while that says something.

        Args:
            seconds: 0 or more.
            settled: waits until only the passing of time can change anything.
            finest_s: how far a step may go at least, where more work waits for what comes due.

        Raises:
            InvalidRequest: `seconds` is negative or longer than 1000 days.
        """
        if not 0 <= seconds <= ADVANCE_MAX_S:
            raise InvalidRequest("advance: Input should be a time from 0 to 1000 days")
        async with self._turning:
            await settled()
            left, steps = seconds, 0
            while left > 0:
                due_s = self._next_due_s() - self.monotonic_s()
                coarse = seconds / _STEPS
                finest = finest_s() if steps < _FINE_STEPS else None
                steps += 1
                step = min(left, max(due_s, coarse if finest is None else min(finest, coarse)))
                left -= step
                self._move(step)
                self._wake()
                await settled()

    def _next_due_s(self) -> float:
        while self._sleepers and self._sleepers[0][2].done():  # its caller was cancelled
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else float("inf")

    def _move(self, seconds: float) -> None:
        now = time.monotonic()
        self._passed_s += (now - self._since) * self._speed + seconds
        self._since = now

    def _wake(self) -> None:
        now_s = self.monotonic_s()
        while self._next_due_s() <= now_s:
            heapq.heappop(self._sleepers)[2].set_result(None)
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self._next_due_s()
        if due_s != float("inf"):
            delay = max(0.0, (due_s - self.monotonic_s()) / self._speed)
            self._timer = asyncio.get_running_loop().call_later(delay, self._wake)


class CallClock:
    """A clock for calls to the model, which remembers how long those wait that do."""

    def __init__(self, clock: TurnableClock) -> None:
        self._clock = clock
        self._waiting: Counter[float] = Counter()

    @property
    def shortest_s(self) -> float | None:
        """Return the shortest of the waits that are under way."""
        return min(self._waiting, default=None)

    def now_us(self) -> int:
        """Return the wall time in microseconds since 1970, UTC."""
        return self._clock.now_us()

    def monotonic_s(self) -> float:
        """Return the seconds since the start."""
        return self._clock.monotonic_s()

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` of the clock."""
        if seconds <= 0:
            await self._clock.sleep(seconds)
            return
        self._waiting[seconds] += 1
        try:
            await self._clock.sleep(seconds)
        finally:
            self._waiting[seconds] -= 1
            if not self._waiting[seconds]:
                del self._waiting[seconds]
