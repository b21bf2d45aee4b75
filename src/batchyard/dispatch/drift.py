"""Whether answers take longer than they used to, told from the natural spread of answers. Pure.

An upstream with too many calls lets them queue: all of them take longer. But answers differ anyway,
by a lot: many are short and a few are long. And the first that come in after calls were sent are
the shortest, so that answers in the order in which they come seem to take ever longer at first.

So samples are compared: some calls sent one after the other, which count whether they have been
answered or not. The share of pairs is taken in which the call of the later sample took over twice
as long as that of the earlier one; a call that is still out counts with its time so far. However
far one distribution is spread, that share is at most a half between two samples of it, and nearly
always much less; where nothing is spread, it is all of them as soon as answers take twice as long.
"""

from __future__ import annotations

from bisect import bisect_left, insort

_NEVER = float("-inf")

_CALLS = 64  # of a sample
_CALLS_MIN = 32  # of those that were not refused, or it tells nothing
_WHOLE = 0.75  # of a sample that has ended: then it is judged
_LOOK = 16  # it is looked at after so many more answers
_TIMES = 2.0
_SHARE = 2.0 / 3.0  # of pairs: 3 standard deviations from a half, 6 from that of exponential times
_KEPT_SAMPLES, _KEPT_S = 8, 60.0  # of slow answers, after which they are the usual ones


class _Sample:
    """Calls that were sent one after the other."""

    __slots__ = ("out", "sent", "took_s")

    def __init__(self) -> None:
        self.sent = 0
        self.out: dict[int, float] = {}
        """When those that have not ended were sent, by number."""
        self.took_s: list[float] = []
        """How long the others took, in ascending order; without those that were refused."""

    @property
    def calls(self) -> int:
        return len(self.out) + len(self.took_s)

    @property
    def is_whole(self) -> bool:
        return self.sent == _CALLS and len(self.took_s) >= _WHOLE * self.calls

    def end(self, number: int, now_s: float, *, is_taken: bool) -> bool:
        """Take in the end of a call; return whether it belongs here."""
        sent_s = self.out.pop(number, None)
        if sent_s is None:
            return False
        if is_taken:
            insort(self.took_s, now_s - sent_s)
        return True


class Drift:
    """Compares how long calls of one pool take with how long they used to."""

    def __init__(self) -> None:
        self.is_seen = False
        """Whether the last calls take over twice as long."""
        self._usual: _Sample | None = None
        self._recent = _Sample()
        self._slow_samples = 0
        self._slow_since_s = _NEVER

    def sent(self, number: int, now_s: float) -> None:
        """Count a call that starts now."""
        recent = self._recent
        if recent.sent < _CALLS:
            recent.sent += 1
            recent.out[number] = now_s

    def ended(self, number: int, now_s: float, *, is_taken: bool) -> None:
        """Take in the end of a call.

        Args:
            number: of the call.
            now_s: the time.
            is_taken: whether it was accepted; how long others took tells nothing.
        """
        recent = self._recent
        if recent.end(number, now_s, is_taken=is_taken):
            if recent.is_whole or not len(recent.took_s) % _LOOK:
                self._look(now_s)
        elif self._usual is not None:
            self._usual.end(number, now_s, is_taken=is_taken)

    def _look(self, now_s: float) -> None:
        recent, usual = self._recent, self._usual
        if recent.sent == _CALLS and recent.calls < _CALLS_MIN:
            self._recent = _Sample()
            return
        is_whole = recent.is_whole
        if usual is not None:
            # What is not answered yet can only raise the share: it may be believed early.
            if _share(usual, recent, _TIMES, now_s) > _SHARE:
                self._see(now_s)
            elif is_whole:
                self.is_seen = False
        if is_whole:
            self._judge(recent, now_s)
            self._recent = _Sample()

    def _see(self, now_s: float) -> None:
        if not self.is_seen:
            self.is_seen = True
            self._slow_samples, self._slow_since_s = 0, now_s

    def _judge(self, recent: _Sample, now_s: float) -> None:
        usual = self._usual
        if usual is None:
            self._usual = recent
        elif self.is_seen:
            self._slow_samples += 1
            if self._slow_samples >= _KEPT_SAMPLES and now_s - self._slow_since_s >= _KEPT_S:
                self._usual, self.is_seen = recent, False  # what is asked for has changed
        elif _share(recent, usual, 1.0, now_s) > _SHARE:
            self._usual = recent


def _share(quick: _Sample, slow: _Sample, times: float, now_s: float) -> float:
    """Return the share of pairs in which a call took over `times` as long, as far as is known.

    Args:
        quick: the sample of the call that took less time; those that are out count for nothing.
        slow: the sample of the other; those that are out have taken the time until now.
        times: more than this.
        now_s: the time.
    """
    took_s = [*slow.took_s, *(now_s - sent_s for sent_s in slow.out.values())]
    pairs = sum(bisect_left(quick.took_s, each / times) for each in took_s)
    return pairs / max(1, quick.calls * slow.calls)
