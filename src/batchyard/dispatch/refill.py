"""How fast an upstream lets calls in, measured between those that it refuses. Pure.

A call is refused while the upstream's bucket is empty. So what was accepted between two refusals is
what came in meanwhile, however large the bucket is, unless it overflowed.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

_NEVER = float("-inf")

_RUN_CALLS = 16  # accepted calls between two refusals, which then are not of one run
_RUN_S = 2.0
_SEVERAL_CALLS = 16  # accepted calls over several refusals, which measure the rate together
_SEVERAL_S = 40.0  # within so long
_GAPS_MAX = 16
_LONG_S = 5.0  # after which it matters little that the bucket was full at first


class Between(NamedTuple):
    """What was accepted between two refusals."""

    taken: int
    """Calls."""
    seconds: float
    is_exact: bool
    """Whether as many came in; else they may have been saved up."""


class Refill:
    """Measures what is accepted from one refusal to the next, and over a run of them."""

    def __init__(self) -> None:
        # The last call that was refused, or the last one before a pause.
        self._number = -1
        self._sent_s = _NEVER
        self._is_after_pause = False
        # A run: refusals with few accepted calls between them.
        self._run_number = -1
        self._run_s = _NEVER
        self._run_taken = 0
        self._gaps: deque[tuple[int, float]] = deque(maxlen=_GAPS_MAX)
        """Accepted calls and seconds between the last refusals."""

    def resume(self, number: int, sent_s: float) -> None:
        """Note a call that is sent after a pause, in which the bucket may have overflowed."""
        self._number, self._sent_s, self._is_after_pause = number - 1, sent_s, True
        self._run_number, self._run_s, self._run_taken = number - 1, sent_s, 0
        self._gaps.clear()

    def refused(self, number: int, sent_s: float) -> Between:
        """Note a refused call; return what was accepted since the one before it.

        Args:
            number: of the call.
            sent_s: when it was sent.
        """
        if number <= self._number:  # that one was answered sooner
            self._run_taken -= number > self._run_number
            if self._gaps:
                taken, seconds = self._gaps.pop()
                self._gaps.append((max(0, taken - 1), seconds))
            return Between(0, 0.0, is_exact=False)
        taken, seconds = number - self._number - 1, sent_s - self._sent_s
        is_exact = 0.0 < seconds < float("inf")
        is_exact &= not self._is_after_pause or seconds >= _LONG_S
        if is_exact:
            self._gaps.append((taken, seconds))
        else:
            self._gaps.clear()
        is_old = sent_s - self._run_s > _RUN_S and self._run_taken + taken > 0
        if taken >= _RUN_CALLS or is_old or self._run_s == _NEVER:
            self._run_number, self._run_s, self._run_taken = number, sent_s, 0
        else:
            self._run_taken += taken
        self._number, self._sent_s, self._is_after_pause = number, sent_s, False
        return Between(taken, seconds, is_exact)

    def over_several(self) -> float | None:
        """Return calls a second over the last refusals, where these are close to one another.

        None where they are too few, or far enough from one another to tell it by themselves.
        """
        taken, seconds = 0, 0.0
        for more, longer in reversed(self._gaps):
            taken += more
            seconds += longer
            if more >= _SEVERAL_CALLS or seconds > _SEVERAL_S:
                return None
            if taken >= _SEVERAL_CALLS:
                return taken / seconds
        return None

    @property
    def most(self) -> float:
        """Calls a second that it allows at most, by the last run of refusals, and one call."""
        seconds = self._sent_s - self._run_s
        return (self._run_taken + 2) / seconds if seconds > 0.0 else float("inf")
