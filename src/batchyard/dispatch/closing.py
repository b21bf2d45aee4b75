"""What an upstream lets in that counts calls by fixed times: so many in each second, say. Pure.

Once its count is reached it takes nothing until the next of these times begins. Refusals meanwhile
say nothing of the rate, however many they are. What was accepted from the end of one such pause to
the end of the next does, as it does where a bucket fills all the time, which is empty at both ends.
So that is the rate at which calls go on; until then single ones look whether it is over.
"""

from __future__ import annotations

_NEVER = float("-inf")

_ROW = 3  # calls refused one after the other: nothing is accepted
_CLOSED_S = 0.1  # a pause takes at least; a bucket that fills lets calls in sooner
_HELD_S = 0.1  # a call that is not refused by then was accepted, at least
_LOOK_S, _LOOK_SHARE, _LOOK_MAX_S = 0.1, 0.5, 5.0  # from one look to the next: of the pause so far


class Closing:
    """The pauses in which an upstream takes nothing."""

    def __init__(self) -> None:
        self.is_closed = False
        """Whether several calls were refused, and none was accepted since."""
        self._opened = -1
        """The number of the first call after the last pause, or of the first one."""
        self._opened_s = _NEVER
        self._refused = 0
        """Calls since then."""
        self._row = 0
        """Calls refused one after the other."""
        self._row_s = _NEVER
        self._last = -1
        """The last of them."""
        self._rate = float("inf")
        """Calls a second, before the first of them."""
        self._after: tuple[int, float] | None = None
        """The first call that was sent since the last of them was known to be refused."""

    def begin(self, number: int, now_s: float) -> None:
        """Note a call, as one of the first or later."""
        if self._opened < 0:
            self._opened, self._opened_s = number, now_s

    def idle(self, seconds: float) -> None:
        """Note a time for which nothing was sent though it might have been: it does not count."""
        self._opened_s += seconds

    def sent(self, number: int, now_s: float, refusal_s: float) -> float | None:
        """Note a call during a pause; return calls a second if it turns out to be over.

        Args:
            number: of the call.
            now_s: the time.
            refusal_s: after which a call would have been refused.
        """
        after = self._after
        if after is None:
            self._after = number, now_s
            return None
        return self._open(*after) if now_s - after[1] >= max(_HELD_S, refusal_s) else None

    def taken(self, number: int) -> float | None:
        """Note an accepted call during a pause; return calls a second if it is over."""
        after = self._after
        return None if after is None or number < after[0] else self._open(*after)

    def refused(self, number: int, sent_s: float, rate: float | None) -> None:
        """Note a refused call.

        Args:
            number: of the call.
            sent_s: when it was sent.
            rate: calls a second until now, where there is one.
        """
        self._refused += number >= self._opened
        if number <= self._last:
            return
        if not self._row or number - self._last > 1:
            self._row, self._row_s = 0, sent_s
            self._rate = float("inf") if rate is None else rate
        self._row += 1
        self._last, self._after = number, None
        self.is_closed = self._row >= _ROW

    def refused_alone(self, number: int) -> None:
        """Note a refused call that tells nothing of others: it was not accepted, and that is all.

        Args:
            number: of the call.
        """
        self._refused += number >= self._opened
        self._last += number - self._last == 1
        if self._after is not None and number >= self._after[0]:
            self._after = None

    def pause_s(self, now_s: float) -> float:
        """Return after how long the next call looks whether a pause is over."""
        return min(max(_LOOK_S, _LOOK_SHARE * (now_s - self._row_s)), _LOOK_MAX_S)

    def _open(self, number: int, at_s: float) -> float | None:
        taken, seconds = number - self._opened - self._refused, at_s - self._opened_s
        is_long = at_s - self._row_s >= _CLOSED_S and seconds > 0.0
        self._opened, self._opened_s, self._refused = number, at_s, 0
        self._row, self._after, self.is_closed = 0, None, False
        return min(self._rate, taken / seconds) if is_long else None
