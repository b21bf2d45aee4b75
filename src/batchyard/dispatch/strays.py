"""Stray refusals: 429s that come whatever the load, and tell nothing of a limit. Pure.

A limit refuses what goes beyond it: after a decrease it refuses nothing more. Strays come after
decreases all the same, each far from the next. So after some refusals that nothing explains a trial
begins: refusals are taken for strays, as long as they are about as rare as those were, and the load
rises quickly. If they become more frequent meanwhile, there is a limit: the trial has failed, and
the next one comes later. If not, strays they are, until they become more frequent after all.

Frequent ones come soon after decreases, as those of a limit do. But where no more than a third of
the calls is refused, a limit is not far below the rate. So when as many are still refused at a
fourth of that rate, it was no limit. Nor was it one when they go on for long and few of them come
after steps upward: at a rate that it was measured to allow, a limit refuses nothing.

A limit just below what the slots can do refuses about as many as strays are. So strays that have
stood are checked now and then, with fewer calls a second: of these, such a limit refuses none.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_NEVER = float("-inf")

_EVIDENCE = 3  # refusals that nothing explains, before a trial
_EVIDENCE_TOLD = 6  # where they name a time to wait: then there mostly is a limit
_EVIDENCE_S = 60.0  # within about so long
_APART = 8  # calls between one and the decrease before it, at least
_SHARE_MAX = 1.0 / 3.0
_FALLS, _FALLEN = 6, 0.25  # decreases one after the other, and what they have left of the rate
_FALLS_LONG, _STEPS_MAX = 12, 3  # so many are long, and of these after steps upward, at most
_FALL_CALLS = 32  # calls without a refusal: what is left is accepted
_MORE = 1.4  # times the share that so few decreases show, which may be too low by chance
# Each refusal adds one, each call takes away what it may. One in 30,000 calls brings a trial to its
# end by chance; once it has stood, next to none does. Where strays are frequent, more is by chance.
_SCORE_MAX, _SCORE_STOOD_MAX = 5.0, 8.0
_FREQUENT, _SCORE_MORE = 0.1, 30.0  # this share, and how much more for what is beyond it
_FREE_TIMES, _FREE_MAX, _FREE = 2.0, 0.1, 0.02  # how much more frequent strays may become
_TRIAL_CALLS = 200  # after which it has not failed
_GONE_TIMES = 20.0  # when so many times the usual calls bring no stray, there are none any more
_REST_S, _REST_MAX_S = 15.0, 120.0  # after a trial that failed
_SHORT_REST_S = 2.0  # after strays that had stood a trial
_CHECK_FROM = 0.02  # a limit that refuses fewer may be taken for strays
_CHECK_CALLS, _CHECK_FEW = 16.0, 3  # over the share: of as many calls, seldom so few are strays
_CHECK_S, _CHECK_MAX_S = 30.0, 480.0  # from one check to the next, twice as long each time
_CHECKED_S = 60.0  # after a check that found a limit


class _Fall(NamedTuple):
    """A decrease of the rate."""

    apart: int
    """Calls between it and the one before."""
    is_step: bool
    """Whether it came after a step upward."""


class Strays:
    """Tells stray refusals of one pool from those of a limit."""

    def __init__(self) -> None:
        self.share = 0.0
        """Of all calls, what strays are taken to be; 0.0 while every refusal counts."""
        self._gaps: list[int] = []
        self._falls: list[_Fall] = []
        """The last decreases of the rate, which came soon after one another."""
        self._fallen_from = 0.0
        """The highest rate meanwhile at which most calls were accepted."""
        self._since_s = _NEVER
        self._rest_s = _REST_S
        self._rests_until_s = _NEVER
        self._score = 0.0
        self._free = 0.0
        self._calls = self._refused = self._quiet = 0
        self._check_s, self._checks_from_s = _CHECK_S, _NEVER
        self._checked: range | None = None
        """The numbers of the calls of a check."""
        self._left = self._few = 0
        """How many more of them have to be accepted, until it has found a limit, and how many may
        be refused."""

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

    def fell(self, apart: int, rate: float, now_s: float, *, is_step: bool) -> bool:
        """Note a decrease where a rate is known; return whether a trial begins.

        Args:
            apart: calls sent since the last one.
            rate: calls a second, after it.
            now_s: the time.
            is_step: whether more was tried than is known to be accepted.
        """
        falls = self._falls
        if apart >= _FALL_CALLS:
            falls.clear()
            self._fallen_from = 0.0
        falls.append(_Fall(apart, is_step))
        del falls[:-_FALLS_LONG]
        # A limit that has become much lower refuses more than this.
        last = falls[-_FALLS:]
        is_seldom = len(last) == _FALLS and _share(last) <= _SHARE_MAX
        if is_seldom:
            self._fallen_from = max(self._fallen_from, rate)
        if now_s < self._rests_until_s:
            return False
        if not is_seldom or rate > _FALLEN * self._fallen_from:
            last = falls
            steps = sum(fall.is_step for fall in last)
            if len(last) < _FALLS_LONG or _share(last) > _SHARE_MAX or steps > _STEPS_MAX:
                return False
        self._begin(_MORE * _share(last))
        return True

    def _begin(self, share: float) -> None:
        """Begin a trial."""
        self._set(share)
        self._gaps.clear()
        self._falls.clear()
        self._fallen_from = self._score = 0.0
        self._calls = self._refused = self._quiet = 0
        self._check_s, self._checks_from_s, self._checked = _CHECK_S, _NEVER, None

    def sent(self) -> None:
        """Note a call that starts, while there are strays.

        It is taken for accepted: a refusal comes at once, an answer may take a minute, and calls
        whose answers are waited for must not make those refused look frequent.
        """
        self._calls += 1
        self._score = max(0.0, self._score - self._free)

    def taken(self, number: int, now_s: float) -> None:
        """Note an accepted call, while there are strays."""
        checked = self._checked
        if checked is None:
            self._quiet += 1
            if self._quiet > _GONE_TIMES * self._apart():
                self.share = 0.0
        elif number in checked:
            self._left -= 1
            if not self._left:
                self._found(now_s)

    @property
    def is_checking(self) -> bool:
        """Whether a check is under way."""
        return self._checked is not None and self.share > 0.0

    @property
    def seen(self) -> float:
        """Return the share of the calls that were refused since the trial began."""
        return self._refused / self._calls

    def is_check_due(self, now_s: float) -> bool:
        """Whether they are to be checked."""
        return (
            self._checked is None
            and self._calls >= _TRIAL_CALLS
            and self.seen >= _CHECK_FROM
            and now_s >= self._checks_from_s
        )

    def check(self, number: int, now_s: float) -> int:
        """Begin a check; return how many calls are to be so few.

        Args:
            number: of the next call.
            now_s: the time.
        """
        self._left, self._few = round(_CHECK_CALLS / self.seen), _CHECK_FEW
        calls = self._left + self._few
        self._checked = range(number, number + calls)
        self._checks_from_s = now_s + self._check_s
        self._check_s = min(2.0 * self._check_s, _CHECK_MAX_S)
        return calls

    def is_confirmed(self, number: int) -> bool:
        """Whether a stray ends a check, since there were too many: no limit refused them."""
        if self._checked is None or number not in self._checked:
            return False
        self._few -= 1
        if self._few >= 0:
            return False
        self._checked = None
        self._quiet = 0
        return True

    def _found(self, now_s: float) -> None:
        """End a check that found a limit."""
        self.share = 0.0
        self._rests_until_s = now_s + _CHECKED_S

    def is_one(self, number: int, now_s: float) -> bool:
        """Whether a call that was refused is a stray; where it is not, there are none any more."""
        if self._checked is not None and number >= self._checked.stop:
            self._found(now_s)  # of those before it nearly none was refused
            return False
        self._refused += 1
        self._quiet = 0
        self._score += 1.0
        has_stood = self._calls >= _TRIAL_CALLS
        most = _SCORE_STOOD_MAX if has_stood else _SCORE_MAX
        if self._score <= most + _SCORE_MORE * max(0.0, self.share - _FREQUENT):
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

    def _apart(self) -> float:
        """Return how many calls they are apart at most, as was believed or is seen."""
        seen = (self._calls - self._quiet) / self._refused if self._refused else 0.0
        return max(seen, 1.0 / self.share)

    def _set(self, share: float) -> None:
        self.share = min(share, _SHARE_MAX)
        self._free = min(self.share * _FREE_TIMES, self.share + _FREE_MAX) + _FREE


def _share(falls: Sequence[_Fall]) -> float:
    """Return of how many calls a refusal was one, while the rate fell."""
    return 1.0 / (1.0 + statistics.fmean(fall.apart for fall in falls))
