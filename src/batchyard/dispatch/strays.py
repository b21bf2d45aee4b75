"""Stray refusals: 429s that come whatever the load, and tell nothing of a limit. Pure.

A limit refuses what goes beyond it: after a decrease it refuses nothing more. Strays come after
decreases all the same, each far from the next. So after some refusals that nothing explains a trial
begins: refusals are taken for strays, as long as they are about as rare as those were, and the load
rises quickly. If they become more frequent meanwhile, there is a limit: the trial has failed, and
the next one comes later. If not, strays they are, until they become more frequent after all.

Frequent ones come soon after decreases, as those of a limit do. But where no more than a third of
the calls is refused, a limit is not far below the rate. So when as many are still refused at a
fourth of that rate, it was no limit.
"""

from __future__ import annotations

import statistics

_NEVER = float("-inf")

_EVIDENCE = 3  # refusals that nothing explains, before a trial
_EVIDENCE_TOLD = 6  # where they name a time to wait: then there mostly is a limit
_EVIDENCE_S = 60.0  # within about so long
_APART = 8  # calls between one and the decrease before it, at least
_SHARE_MAX = 1.0 / 3.0
_FALLS, _FALLEN = 6, 0.25  # decreases one after the other, and what they have left of the rate
_FALL_CALLS = 32  # calls without a refusal: what is left is accepted
# Each refusal adds one, less what each call may. One in 30,000 calls brings a trial to its end by
# chance; once it has stood, next to none does.
_SCORE_MAX, _SCORE_STOOD_MAX = 5.0, 8.0
_FREE_TIMES, _FREE_MAX, _FREE = 2.0, 0.1, 0.02  # how much more frequent strays may become
_TRIAL_CALLS = 200  # after which it has not failed
_GONE_TIMES = 20.0  # when so many times the usual calls bring no stray, there are none any more
_REST_S, _REST_MAX_S = 15.0, 120.0  # after a trial that failed
_SHORT_REST_S = 2.0  # after strays that had stood a trial


class Strays:
    """Tells stray refusals of one pool from those of a limit."""

    def __init__(self) -> None:
        self.share = 0.0
        """Of all calls, what strays are taken to be; 0.0 while every refusal counts."""
        self._gaps: list[int] = []
        self._falls: list[int] = []
        """The calls between the last decreases of the rate, which came soon after one another."""
        self._fallen_from = 0.0
        """The highest rate meanwhile at which most calls were accepted."""
        self._since_s = _NEVER
        self._rest_s = _REST_S
        self._rests_until_s = _NEVER
        self._score = 0.0
        self._free = 0.0
        self._calls = self._refused = self._quiet = 0

    def unexplained(self, apart: int, now_s: float, *, names_time: bool = False) -> bool:
        """Note a refusal that no step upward explains; return whether a trial begins.

        Args:
            apart: calls sent since the last decrease.
            now_s: the time.
            names_time: whether it says when to come again.
        """
        if apart < _APART:
            return False  # so frequent are those of a limit that has become lower
        if now_s - self._since_s > _EVIDENCE_S:
            self._gaps.clear()
            self._since_s = now_s
        self._gaps.append(apart)
        enough = _EVIDENCE_TOLD if names_time else _EVIDENCE
        if len(self._gaps) < enough or now_s < self._rests_until_s:
            return False
        self._begin(1.0 / statistics.median(self._gaps))
        return True

    def fell(self, apart: int, rate: float, now_s: float) -> bool:
        """Note a decrease where a rate is known; return whether a trial begins.

        Args:
            apart: calls sent since the last one.
            rate: calls a second, after it.
            now_s: the time.
        """
        falls = self._falls
        if apart >= _FALL_CALLS:
            falls.clear()
            self._fallen_from = 0.0
        falls.append(apart)
        del falls[:-_FALLS]
        between = statistics.fmean(falls)
        if len(falls) < _FALLS or between < 1.0 / _SHARE_MAX - 1.0:
            return False  # or so many are those of a limit that has become lower
        self._fallen_from = max(self._fallen_from, rate)
        if rate > _FALLEN * self._fallen_from or now_s < self._rests_until_s:
            return False
        self._begin(1.0 / (1.0 + between))
        return True

    def _begin(self, share: float) -> None:
        """Begin a trial."""
        self._set(share)
        self._gaps.clear()
        self._falls.clear()
        self._fallen_from = self._score = 0.0
        self._calls = self._refused = self._quiet = 0

    def taken(self) -> None:
        """Note an accepted call, while there are strays."""
        self._calls += 1
        self._quiet += 1
        self._score = max(0.0, self._score - self._free)
        if self._quiet > _GONE_TIMES / self.share:
            self.share = 0.0

    def is_one(self, now_s: float) -> bool:
        """Whether a call that was refused is a stray; where it is not, there are none any more."""
        self._calls += 1
        self._refused += 1
        self._quiet = 0
        self._score += 1.0 - self._free
        has_stood = self._calls >= _TRIAL_CALLS
        if self._score <= (_SCORE_STOOD_MAX if has_stood else _SCORE_MAX):
            if has_stood:
                self._set(max(self.share, self._refused / self._calls))
            return True
        self.share = 0.0
        if has_stood:
            self._rests_until_s = now_s + _SHORT_REST_S
            self._rest_s = _REST_S
        else:
            self._rests_until_s = now_s + self._rest_s
            self._rest_s = min(self._rest_s * 2.0, _REST_MAX_S)
        return False

    def _set(self, share: float) -> None:
        self.share = min(share, _SHARE_MAX)
        self._free = min(self.share * _FREE_TIMES, self.share + _FREE_MAX) + _FREE
