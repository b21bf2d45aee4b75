"""The gates whose calls wait for one ceiling: one line, in which they have turns.

With a timer for each gate all would ring at the same moment, and the one that happened to be first
would take what there is, each time. Nor would a gate learn that another one gave something back.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchyard.clock import Clock
    from batchyard.dispatch.ceilings import Ceiling
    from batchyard.dispatch.gate import Gate

_ANSWER = float("inf")


class Timer:
    """Rings once, at the earliest of the times that it was set to since it last did."""

    def __init__(self, clock: Clock, on_ring: Callable[[], None]) -> None:
        self._clock, self._on_ring = clock, on_ring
        self._task: asyncio.Task[None] | None = None
        self._at_s = 0.0

    def set(self, now_s: float, wait_s: float) -> None:
        """Ring in so many seconds; not at all where that is never."""
        at_s = now_s + wait_s
        if wait_s < _ANSWER and (self._task is None or at_s < self._at_s):
            self.cancel()
            self._at_s = at_s
            self._task = asyncio.ensure_future(self._ring(wait_s))

    def cancel(self) -> None:
        """Do not ring."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _ring(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._task = None
        self._on_ring()


class Line:
    """Those of one ceiling; the one whose last call is the longest ago is the next.

    A gate stands in one line at most, that of the ceiling for which it has to wait longest: of two
    that stood in two lines each could wait behind the other.
    """

    def __init__(self, ceiling: Ceiling, clock: Clock) -> None:
        self._ceiling, self._clock = ceiling, clock
        self._gates: OrderedDict[Gate, None] = OrderedDict()
        self._timer = Timer(clock, self.go_on)
        self._is_closed = False

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until the ceiling lets a call through."""
        return self._ceiling.wait_s(now_s)

    def is_turn_of(self, gate: Gate) -> bool:
        """Whether no other gate is before this one."""
        return not self._gates or next(iter(self._gates)) is gate

    def join(self, gate: Gate) -> None:
        """Let a gate stand last; one that stands here keeps its place."""
        self._gates[gate] = None

    def leave(self, gate: Gate) -> None:
        """Let a gate stand here no more."""
        self._gates.pop(gate, None)

    def took(self, gate: Gate) -> None:
        """Note a call: the others are before this gate now."""
        if gate in self._gates:
            self._gates.move_to_end(gate)

    def go_on(self) -> None:
        """Wake a call of the first gate that may have one, or see to it that the timer does."""
        while self._gates and not self._is_closed:
            now_s = self._clock.monotonic_s()
            wait_s = self._ceiling.wait_s(now_s)
            if wait_s > 0.0:
                self._timer.set(now_s, wait_s)
                return
            gate = next(iter(self._gates))
            gate.have_turn()
            if self.is_turn_of(gate):
                return  # else something else holds it back

    def close(self) -> None:
        """Wake nobody any more: the worker leaves."""
        self._is_closed = True
        self._timer.cancel()
