"""A clock that stands still until it is told to move: time in tests and in the emulator.

Knows nothing of what is being tested and imports no test library. It serves one event loop and is
not safe to use from several threads.
"""

from __future__ import annotations

import asyncio
import heapq

from batchyard.limits import SECOND_US

_START_US = 1_790_000_000 * SECOND_US  # 2026-09-21T14:13:20Z: any fixed moment will do
_TURNS = 25  # turns of the loop that woken tasks get before the next sleeper wakes


class ManualClock:
    """A `Clock` whose time passes only inside `advance`."""

    def __init__(self, now_us: int = _START_US) -> None:
        self._start_us = now_us
        self._elapsed_us = 0
        self._count = 0
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrival = asyncio.Event()

    def __repr__(self) -> str:
        return f"<ManualClock +{self.monotonic_s():.6f} s, {self.sleeping} sleeping>"

    @property
    def sleeping(self) -> int:
        """How many callers of `sleep` wait for time to pass."""
        return sum(not future.done() for _, _, future in self._sleepers)

    def now_us(self) -> int:
        """Return the wall time in microseconds since 1970, UTC."""
        return self._start_us + self._elapsed_us

    def monotonic_s(self) -> float:
        """Return the seconds that have been advanced so far."""
        return self._elapsed_us / SECOND_US

    async def sleep(self, seconds: float) -> None:
        """Wait until `seconds` have been advanced; for none or less, only let others run."""
        delay_us = round(seconds * SECOND_US)
        if delay_us <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._elapsed_us + delay_us, self._count, future))
        self._arrival.set()
        await future

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, waking every sleeper that comes due, in the order of their times.

        Sleepers due at the same time wake in the order in which they went to sleep. Between two
        wakes the loop takes some turns, so that what a woken task starts, a further sleep
        included, happens at its own time. Work in threads or on sockets is not waited for.

        Raises:
            ValueError: `seconds` is negative; time never goes back.
        """
        if seconds < 0:
            raise ValueError(f"cannot advance by {seconds} s: time never goes back")
        until_us = self._elapsed_us + round(seconds * SECOND_US)
        await _settle()  # tasks that were just made go to sleep before time moves
        while self._sleepers and self._sleepers[0][0] <= until_us:
            due_us, _, future = heapq.heappop(self._sleepers)
            if future.done():  # its caller was cancelled
                continue
            self._elapsed_us = due_us
            future.set_result(None)
            await _settle()
        self._elapsed_us = max(self._elapsed_us, until_us)

    async def wait_for_sleepers(self, count: int) -> None:
        """Return as soon as at least `count` callers sleep: a signal that a test can wait for."""
        while self.sleeping < count:
            self._arrival.clear()
            await self._arrival.wait()


async def _settle() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
