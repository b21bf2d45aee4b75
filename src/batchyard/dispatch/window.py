"""How many calls of one pool may be in flight, learned from its answers. Pure.

It starts with a few, has `WINDOW_START` after some tenths of a second, unless the concurrency is
refused in that time, and then doubles in each round trip (or each second, where answers take
longer) up to the slots. A call that is refused with 429 at a higher concurrency than any that was
accepted of late sets the window to that concurrency, at which it only probes; 529 and time-outs
multiply it by 0.7, and then it grows by one in each round. It does not grow with answers that take
longer than they used to (`drift.py`).

No answer is waited for without end, since the calls that are out may take hours: where none comes,
one call more goes after each rest.
"""

from __future__ import annotations

import msgspec

from batchyard import limits
from batchyard.dispatch.drift import Drift
from batchyard.dispatch.rest import Rest

_NEVER = float("-inf")
_ANSWER = float("inf")  # wait for an answer, not for time

_CUT = 0.7
_DOUBLING_FIRST_S, _DOUBLING_S = 0.1, 1.0
_PAUSE_SHARE = 25.0  # rest this many times as long as a failed probe made us wait
_FEW = 3  # calls beside a refused one, below which the rate is to blame
_CUT_REST_S = 10.0  # after a decrease: calls from before it have that long to end
_HELD_S, _HELD_MAX_S = 0.2, 5.0  # not refused in twice the usual time, within these: accepted
_PEAK_S = 10.0  # how long the highest accepted concurrency is remembered, at least


class Permit(msgspec.Struct, gc=False):
    """One call under way."""

    number: int
    sent_s: float
    others: int
    """Calls in flight beside it when it was sent."""
    size: int = 0
    tokens: tuple[float, float] = (0.0, 0.0)
    """Input and output tokens that the ceilings were charged."""


class Window:
    """How many calls may be in flight."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.size = float(min(slots, limits.WINDOW_FIRST))
        self.wall: int | None = None
        """A concurrency that was refused with 429."""
        self._wall_call = -1
        """The number of the call that was refused at it."""
        self.refusal_s = _HELD_MAX_S
        """How long a refusal takes."""
        self.drift = Drift()
        self._is_slow_start = True
        self._is_first = True
        """Whether it is still below `WINDOW_START`, and nothing is known against more."""
        self._was_away = False
        self._grown_s = _NEVER
        self._step = 1
        self._has_failed = False
        self._rest = Rest()
        """Between two probes above a concurrency that was refused, or beside what is out."""
        self._is_trying = False
        """Whether the last growth was such a call beside what is out, of which nothing is known."""
        self._above, self._above_s = 0.0, _NEVER
        """The last size above the wall that was filled, and since when."""
        self._cut_s = _NEVER
        """When a call was too much last."""
        self._proof_s = 0.0
        """How long that call took."""
        self._peak = self._peak_before = -1
        self._peak_s = _NEVER

    def taken(self, permit: Permit, now_s: float) -> None:
        """Note an accepted call."""
        others = permit.others
        self._peak = max(self._peak, others)
        if now_s - self._peak_s >= _PEAK_S:
            self._peak_before, self._peak, self._peak_s = self._peak, others, now_s
        size = self.size
        if size >= self.slots:
            return
        if self.wall is None:
            if self._is_trying:
                self._is_trying = False
                self._rest.has_succeeded()
            self._rest.at_least(self._rest.seconds, now_s)
        else:
            if others >= self.wall and others + 1 >= int(size):
                self._pass_wall()
                return
            if size >= self.wall:
                return
        if self.drift.is_seen or (others + 1) * 2 < size:  # nobody used what there is
            return
        size += 1.0 if self._is_slow_start else 1.0 / size
        self.size = min(size, self.slots if self.wall is None else self.wall)

    def taken_late(self, permit: Permit) -> None:
        """Note an accepted call that was sent before the last decrease.

        If it was sent after the one that was refused, its concurrency is no wall.
        """
        if self.wall is not None and permit.number > self._wall_call:
            self.wall = max(self.wall, min(permit.others, self.slots))
            self.size = max(self.size, float(self.wall))

    def _pass_wall(self) -> None:
        """Go on, and faster: what was refused before is accepted now."""
        self.wall = int(self.size)
        self._rest.has_succeeded()
        self._step = min(self._step * 2, max(1, self.wall // 2))
        self.size = float(min(self.wall + self._step, self.slots))
        if self.size >= self.slots:
            self.wall = None

    def grow_by_time(self, now_s: float, in_flight: int) -> float:
        """Grow where that needs no answer; return the seconds until it may grow again."""
        if self.wall is not None and self.size >= self.wall:
            if self.size > self.wall:
                return self._hold_above(now_s, in_flight)
            if now_s >= self._rest.due_s:
                self._step = 1
                self.size = max(self.wall, in_flight) + 1.0  # not all that are out were refused
                return _ANSWER
            return self._rest.due_s - now_s
        if self.size >= self.slots:
            return _ANSWER
        if self.wall is not None or not self._is_slow_start or self.drift.is_seen:
            return self._grow_beside(now_s, in_flight)
        if self._grown_s == _NEVER:
            self._grown_s = now_s
        self._is_first = self._is_first and self.size < limits.WINDOW_START
        doubling_s = _DOUBLING_FIRST_S if self._is_first else _DOUBLING_S
        left = self._grown_s + doubling_s - now_s
        if left <= 0.0:
            self.size = min(self.size * 2.0, self.slots)
            self._grown_s = now_s
            left = doubling_s
        return left

    def _hold_above(self, now_s: float, in_flight: int) -> float:
        """Go on when nothing was refused for a while: an answer may take minutes, a refusal not."""
        if in_flight < int(self.size):
            return _ANSWER
        if self._above != self.size:
            self._above, self._above_s = self.size, now_s
        held_s = min(max(_HELD_S, 2.0 * self.refusal_s), _HELD_MAX_S)
        left = self._above_s + held_s - now_s
        if left <= 0.0:
            self._pass_wall()
            return 0.0 if in_flight < int(self.size) else _ANSWER
        return left

    def _grow_beside(self, now_s: float, in_flight: int) -> float:
        """Let one call go beside those that are out, if no answer has let it grow for a while."""
        if in_flight < int(self.size):
            return _ANSWER
        rest = self._rest
        due_s = rest.due_s
        if in_flight > self.size + 1.0:  # let calls from before the decrease end
            due_s = max(due_s, self._cut_s + self._proof_s)
        if now_s >= due_s:
            if self._is_trying:
                rest.has_succeeded()
            self._is_trying = True
            most = self.slots if self.wall is None else self.wall
            self.size = float(min(max(self.size, in_flight) + 1.0, most))
            rest.begin(now_s)
            rest.at_least(self._proof_s, now_s)
            due_s = rest.due_s
        return due_s - now_s

    def is_new_height(self, permit: Permit) -> bool:
        """Whether a refused call went out at a concurrency that was not accepted lately.

        One less is enough: what was in flight beside an accepted call may be refused later. A call
        that was nearly alone says nothing of concurrency.
        """
        if permit.others < _FEW:
            return False
        if self.wall is not None and permit.others < self.wall:
            return False
        return permit.others + 1 >= max(self._peak, self._peak_before)

    @property
    def is_probing(self) -> bool:
        """Whether it tries a concurrency that was refused before."""
        return self.wall is not None and self.size > self.wall

    def forget_peak(self) -> None:
        """Forget what was accepted: the upstream has changed its mind."""
        self._peak = self._peak_before = -1

    def refuse(self, permit: Permit, now_s: float) -> None:
        """Note a 429 that the concurrency explains."""
        self._is_slow_start = self._is_first = self._was_away = False
        self._has_failed = self.wall is not None and self.size > self.wall
        if self._has_failed:
            self._rest.has_failed()
        self.wall = max(_FEW, permit.others)
        self._wall_call = permit.number
        self.size = float(self.wall)
        self._step = 1
        self._rest.begin(now_s)
        self._above = 0.0

    def lower(self, permit: Permit) -> None:
        """Note a further 429 of the same cohort."""
        if self.wall is not None and permit.others < self.wall:
            self.wall = max(_FEW, permit.others)
            self._wall_call = permit.number
            self.size = min(self.size, float(self.wall))

    def drop_wall(self) -> None:
        """Forget the concurrency that was refused: it was not the reason."""
        if self.wall is not None:
            self.wall = None
            self._rest.reset()
            self._is_slow_start = True

    def rest_at_least(self, pause_s: float, now_s: float) -> None:
        """Note that the last probe made all calls wait this long."""
        if self._has_failed:
            self._rest.at_least(_PAUSE_SHARE * pause_s, now_s)

    def cut(self, permit: Permit, in_flight: int, now_s: float) -> None:
        """Note a cohort of calls that were too much for the upstream, by the first to end."""
        self._is_slow_start = self._is_first = self._was_away = False
        self.size = max(1.0, min(self.size, float(in_flight)) * _CUT)
        self._cut_s, self._proof_s = now_s, now_s - permit.sent_s
        if self._is_trying:
            self._is_trying = False
            self._rest.has_failed()
        self._rest.begin(now_s)
        self._rest.at_least(_CUT_REST_S, now_s)

    def take_over(self, size: float, wall: int | None, now_s: float) -> None:
        """Go on from what was learned before, by others or with another part of the limit."""
        self.wall = None if wall is None else min(max(_FEW, wall), self.slots)
        self.size = min(max(1.0, size), float(self.slots if self.wall is None else self.wall))
        self._is_slow_start, self._is_first, self._was_away = self.wall is None, False, False
        self._rest.begin(now_s)

    def start_over(self, now_s: float) -> None:
        """Begin with one call, after the upstream was away.

        How long answers took before says nothing of those of one call.
        """
        self.drift = Drift()
        self._is_slow_start = self._was_away = True
        self._is_first = False
        self.size = 1.0
        self.wall = None
        self._is_trying = False
        self._grown_s = now_s

    @property
    def detail(self) -> str:
        """Return how many calls there may be, and why not more, for people."""
        calls = f"{int(self.size):,} calls at once"
        if not self._is_slow_start or self.wall is not None or self.drift.is_seen:
            return f"{calls}, since more were refused or too slow"
        if self._was_away:
            return f"starting again after an outage: {calls}"
        return f"{calls}, more {'in a moment' if self._is_first else 'each second'}"
