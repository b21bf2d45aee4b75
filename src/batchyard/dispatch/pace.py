"""The rate that an upstream allows, learned from the calls that it refuses. Pure.

Until a call is refused there is no rate. Then it is what was accepted in the last seconds, and
sends are spaced evenly. It falls to what refusals measure (`refill.py`). After a rest it rises in
steps, which double while they are accepted and end at the first refusal: since that comes while the
bucket is empty, it tells at once whether more is allowed. Where for a while nothing is accepted at
all, as at the end of each second that an upstream counts, it goes on afterwards as before
(`closing.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard.dispatch.closing import Closing
from batchyard.dispatch.refill import Refill

if TYPE_CHECKING:
    from batchyard.dispatch.refill import Between

_NEVER = float("-inf")

_SURE = 16  # accepted calls between two refusals that measure the rate
_FEW = 8  # accepted calls between two refusals that say little
_FAR = 0.8  # refusals one after the other that allow less than this of the rate: it is far too high
_CUT = 0.94  # for a refusal that measures nothing
_CUT_SURE = 0.99  # also after one that did: the bucket is empty still
_SURE_FOR = 4  # refusals that measure nothing after one that did
_CUT_FULL = 0.85  # though it was full at first
_STEP, _STEP_VAGUE, _STEP_MAX = 0.1, 0.25, 0.5
_STEP_S, _STEP_MAX_S = 0.1, 5.0  # a step lasts twice as long as a refusal takes, within these,
_STEP_CALLS = 4  # and so many calls, or those of a second
_NEAR_STEPS = 4  # accepted steps, up to which what came before counts as much
_SAVED = 1.5  # times what is allowed, that a bucket may have let through for more steps than these
_RISEN = 1.05  # times the rate before: there is more to find
_REST_CALLS, _REST_GROWS, _REST_CALLS_MAX = 100.0, 1.1, 250.0  # for each refusal: about 1 %
_REFUSED_MAX = 3  # refusals of one cohort that make the rest longer
_REST_S, _REST_MAX_S = 0.5, 16.0
_HOLD_S, _HOLD_MAX_S = 30.0, 60.0  # without a step where no limit may refuse, for answers to come
_REST_VAGUE = 0.2  # of what else would be rested for a pause
_UNUSED = 1.1  # no step upward where this many times what is used is less than what is allowed
_STALL_S = 0.05  # a send that is so late is not due to the rate
_UNWANTED_S = 1.0  # without a send that might have been: nobody had calls to make
_PAUSE_S = 0.25  # without a send, in which the bucket may overflow
_BIN_S = 1.0
_BINDING_S = 1.0
_LATE_S = 0.02  # a send may catch up on this much lateness of timers
_FORGET_S = 60.0  # a rate that held no call back for this long is dropped
_RATE_MIN = 0.2  # calls a second: one in 5 s finds out that a limit is gone
_SHUT, _SHUT_RATE = 5, 1.0  # decreases with nothing accepted between them: it takes no calls at all
_FIRST_MIN = 5.0  # calls a second, of a rate that was just learned
_IDLE_S = 30.0  # after so long without a call, nothing is known
_SOME = 4  # calls in a cohort that is doubted, when only a few of them were refused
_FEW_SHARE = 0.1  # of a cohort; a limit that is exceeded by more refuses more


@dataclass(slots=True)
class _Cut:
    """A decrease, and its cohort: the calls from the first that was refused to the last sent."""

    first: int = -1
    last: int = -1
    cap: float = 0.0
    """Calls a second, at most."""
    refused: int = 1
    """Calls of the cohort."""
    is_fresh: bool = False
    """Whether the rate was learned with it, when there was none."""
    is_measured: bool = False
    """Whether the rate falls to what refusals measure; else to what was accepted of late."""
    is_sure: bool = False
    """Whether that is precise, or was a moment before."""
    unsure: int = 0
    """Decreases since one that was."""
    is_several: bool = False
    """Whether it was measured over several refusals."""
    is_vague: bool = True
    """Whether little is known: then steps are larger, and rests short."""
    is_of_step: bool = False
    """Whether it was due to a step upward."""
    shut: int = 0
    """Decreases before it, one after the other, between which no call was accepted."""


class Pace:
    """Calls a second, or None when no limit is known."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self.refusal_s = 0.0
        """How long a refusal takes."""
        self._told: dict[str, tuple[float, float]] = {}
        """What the upstream told of each of its buckets: calls a second, and until when."""
        self._is_paced = False
        """Whether there is any rate, learned or told."""
        self._next_s = self._held_back_s = self._sent_s = _NEVER
        # What was accepted: sends by second, less those refused.
        self._bin_s = _NEVER
        self._bin = self._bin_before = 0
        self._refill = Refill()
        # Steps upward, one after the other.
        self.is_probing = False
        """Whether the last step upward has still to prove itself."""
        self._step = _STEP
        self._steps = 0
        """Those that were accepted since the rest."""
        self._base = self._good = 0.0
        """The rate before the first of them, and after the last accepted one."""
        self._step_s = self._due_s = _NEVER
        """When the last step or rest began, and when the next step is due."""
        self._calls = 0
        """Since it began."""
        self._rest_calls = _REST_CALLS
        self._cut = _Cut()
        """The last one."""
        self._closing = Closing()

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until a call may start, 0.0 for now."""
        if not self._is_paced or now_s >= self._next_s:
            if self.rate is not None and now_s - self._bin_s > _IDLE_S:
                self.rate, self._closing = None, Closing()
            return 0.0
        self._held_back_s = now_s
        return self._next_s - now_s

    def sent(self, number: int, now_s: float) -> None:
        """Count a call that starts now; its number is one more than that of the last."""
        if now_s - self._bin_s >= _BIN_S:
            self._bin_before = self._bin if now_s - self._bin_s < 2 * _BIN_S else 0
            self._bin = 0
            self._bin_s = now_s
            self._closing.begin(number, now_s)
        self._bin += 1
        if not self._is_paced:
            return
        closing = self._closing
        if now_s - self._next_s > _UNWANTED_S and self._next_s > _NEVER:
            closing.idle(now_s - self._next_s)
        if closing.is_closed:
            self._reopen(closing.sent(number, now_s, 2.0 * self.refusal_s), now_s)
        if self.rate is not None and now_s - self._sent_s > _PAUSE_S + 2.0 / self.rate:
            self._refill.resume(number, now_s)
        self._sent_s = now_s
        late = now_s - self._next_s
        if self.rate is not None:
            if late > max(_STALL_S, 0.5 / self.rate):
                self._calls, self._step_s = 0, now_s  # this step shows nothing so far
            self._calls += 1
            if now_s >= self._due_s and self._calls >= min(_STEP_CALLS, self.rate):
                self._step_up(now_s)
        rate = self.known(now_s)
        if rate is None:
            self._is_paced = False
            return
        base = now_s - _LATE_S if late > _LATE_S else self._next_s
        self._next_s = base + (closing.pause_s(now_s) if closing.is_closed else 1.0 / rate)

    def known(self, now_s: float) -> float | None:
        """Return calls a second: what was learned or what the upstream told, the lower one."""
        if not self._told:
            return self.rate
        self._told = {kind: told for kind, told in self._told.items() if now_s < told[1]}
        rates = [rate for rate, _ in self._told.values()]
        return min(rates if self.rate is None else [*rates, self.rate], default=None)

    @property
    def is_closed(self) -> bool:
        """Whether nothing is accepted for a while."""
        return self._closing.is_closed

    def is_binding(self, now_s: float) -> bool:
        """Whether it has held calls back of late."""
        return now_s - self._held_back_s < _BINDING_S

    def hint(self, bucket: str, rate: float, until_s: float) -> None:
        """Take in what the upstream told of one of its buckets, which holds for a while."""
        self._told[bucket] = max(_RATE_MIN, rate), until_s
        self._is_paced = True

    # Upward -----------------------------------------------------------------------------------

    def _step_up(self, now_s: float) -> None:
        assert self.rate is not None
        if now_s - self._held_back_s > _BINDING_S + 2.0 / self.rate:
            # The rate is not what holds calls back: leave it, and drop it in time.
            if now_s - self._held_back_s > _FORGET_S:
                self.rate = None
            return
        if _UNUSED * (self._calls + 1) < self.rate * (now_s - self._step_s):
            self._begin_step(now_s)
            return  # something else holds calls back more
        if self.is_probing:  # the last step was accepted
            self._good = self.rate
            self._steps += 1
            self._step = min(self._step * 2.0, _STEP_MAX)
        else:
            self._base = self._good = self.rate
            self._steps = 0
        self.is_probing = True
        self.rate *= 1.0 + self._step
        self._begin_step(now_s)

    def _begin_step(self, now_s: float) -> None:
        self._calls, self._step_s = 0, now_s
        self._due_s = now_s + min(max(_STEP_S, 2.0 * self.refusal_s), _STEP_MAX_S)

    def _rest(self, now_s: float, calls: float, step: float = _STEP) -> None:
        """Let so many calls go before the next step."""
        assert self.rate is not None
        self.is_probing = False
        self._step = step
        self._calls, self._step_s = 0, now_s
        self._due_s = now_s + min(max(_REST_S, calls / self.rate), _REST_MAX_S)

    # Downward ---------------------------------------------------------------------------------

    def refused(
        self, number: int, sent: int, sent_s: float, now_s: float, *, is_rate: bool
    ) -> None:
        """Note a call refused with 429.

        Args:
            number: of the call.
            sent: calls sent so far; the number of the next.
            sent_s: when it was sent.
            now_s: the time.
            is_rate: whether it tells of the rate, not of the concurrency.
        """
        if sent_s >= self._bin_s:
            self._bin -= 1
        elif sent_s >= self._bin_s - _BIN_S:
            self._bin_before -= 1
        between = self._refill.refused(number, sent_s)
        self._closing.refused(number, sent_s, self.rate)
        cut = self._cut
        if number <= cut.last:
            if self.rate is not None and number >= cut.first:
                cut.refused += 1
                self._lower(now_s)
        elif self.rate is None:
            self._begin(_Cut(number, sent - 1, float("inf"), is_fresh=True), now_s)
        elif is_rate and not self.is_binding(sent_s):  # what was known is not the limit
            self._begin(_Cut(number, sent - 1, self.rate * _CUT), now_s)
        elif is_rate:
            self._exceeded(number, sent, now_s, between)
        elif self.is_probing and self.is_binding(sent_s):
            self.rate = self._good  # it may have been this as well
            self._rest(now_s, self._rest_calls)

    def refused_alone(self, number: int) -> None:
        """Note a call refused with 429 that tells of its request only."""
        self._closing.refused_alone(number)

    def _begin(self, cut: _Cut, now_s: float) -> None:
        """Decrease by what was accepted of late."""
        self._held_back_s = now_s
        self._cut = cut
        self._lower(now_s)

    def _exceeded(self, number: int, sent: int, now_s: float, between: Between) -> None:
        """Decrease, since calls at this rate were too many."""
        assert self.rate is not None
        before, due_s = self._cut, self._due_s
        was_sure = before.is_sure and before.unsure < _SURE_FOR
        was_sure &= self._refill.most >= _FAR * self.rate
        is_sure = between.is_exact and between.taken >= _SURE
        cap = self._allowed(between, is_sure=is_sure, was_sure=was_sure)
        is_vague = not is_sure and not was_sure and between.taken < _FEW
        several = None if self.is_probing else self._refill.over_several()
        if several is not None:  # if soon once more, that was too much, or not due to a rate
            cap = min(several, _CUT * self.rate if before.is_several else self.rate)
            is_sure, is_vague = not before.is_several, before.is_several
        if self.is_probing:
            if self._steps > _NEAR_STEPS:  # for most of this time it was far less
                cap, is_sure = self._good / _SAVED, False
            elif not between.is_exact:
                cap = self._base
            cap = max(cap, self._base)
            is_vague = not before.is_sure or cap > _RISEN * self._base
            self._rest_calls = min(_REST_GROWS * self._rest_calls, _REST_CALLS_MAX)
        if is_vague:
            self._rest_calls = _REST_CALLS
        self._cut = cut = _Cut(
            number,
            sent - 1,
            min(self.rate, cap),
            is_measured=True,
            is_sure=is_sure or was_sure,
            is_vague=is_vague,
            unsure=0 if is_sure else before.unsure + 1,
            is_of_step=self.is_probing,
            is_several=several is not None,
            shut=before.shut + 1 if number - before.last == 1 else 0,
        )
        self._lower(now_s)
        if cut.is_sure and not (cut.is_of_step or cut.is_several):
            self._due_s = due_s  # as much was accepted until now

    def _allowed(self, between: Between, *, is_sure: bool, was_sure: bool) -> float:
        """Return calls a second that are allowed, as far as a refusal tells."""
        assert self.rate is not None
        if is_sure:
            return between.taken / between.seconds
        if was_sure and between.is_exact:
            return _CUT_SURE * self.rate
        share = (between.taken + 1) / (between.taken + 2)
        return self.rate * min(_CUT if between.is_exact else _CUT_FULL, share)

    def _lower(self, now_s: float) -> None:
        """Set the rate to what was measured, or accepted in the last seconds."""
        cut = self._cut
        if cut.is_measured:
            rate = cut.cap = min(cut.cap, self._refill.most)
        else:
            # From little, much is not concluded: a first guess that is too low takes long to mend.
            rate = min(cut.cap, max(_FIRST_MIN, self._recent(now_s)))
        self.rate = self._good = max(_RATE_MIN, rate)
        self._is_paced = True
        if cut.is_vague:
            self._rest(now_s, _FEW, _STEP_VAGUE)
        else:
            self._rest(now_s, self._rest_calls * min(cut.refused, _REFUSED_MAX))

    def _recent(self, now_s: float) -> float:
        """Return calls a second in the last one or two seconds, less those known to be refused."""
        this_s = now_s - self._bin_s
        if this_s >= _BIN_S / 2.0:
            return self._bin / this_s
        seconds = max(_BIN_S, this_s + (_BIN_S if self._bin_before else 0.0))
        return (self._bin + self._bin_before) / seconds

    # What turned out differently --------------------------------------------------------------

    def taken(self, number: int, now_s: float) -> None:
        """Note an accepted call: after none was for long, a limit that was zero may be gone."""
        if self._closing.is_closed:
            self._reopen(self._closing.taken(number), now_s)
        cut = self._cut
        if number > cut.last and cut.shut >= _SHUT and (self.rate or 0.0) <= _SHUT_RATE:
            cut.shut = 0
            self.rise(now_s)

    def _reopen(self, rate: float | None, now_s: float) -> None:
        """Go on at a rate where calls are accepted again, if it is more than refusals have left."""
        if rate is None or self.rate is None:
            return
        if not rate:
            self.rise(now_s)  # nothing was accepted before the pause, which says nothing of now
        elif rate > self.rate:
            self.rate = self._good = rate
            self._next_s = min(self._next_s, now_s + 1.0 / rate)
            self._rest(now_s, self._rest_calls * min(self._cut.refused, _REFUSED_MAX))

    def rise(self, now_s: float) -> None:
        """Go up quickly from what was learned: it may have been nothing."""
        self._step = _STEP_MAX
        self._due_s = now_s
        self.is_probing = self._cut.is_of_step = False

    def doubt(self) -> None:
        """Forget what a single refusal said: it was of one request, not of the pool."""
        if self._cut.is_fresh and self._cut.refused == 1:
            self.rate = None

    def doubt_cohort(self) -> bool:
        """Forget what few refusals among many calls said; return whether it did."""
        cut = self._cut
        calls = cut.last - cut.first + 1
        if not cut.is_fresh or calls < _SOME or cut.refused > max(1.0, _FEW_SHARE * calls):
            return False
        self.rate = None
        return True

    def take_over(self, rate: float, now_s: float) -> None:
        """Go on from a rate that was learned, by others or with another part of the limit."""
        self.rate = self._good = max(_RATE_MIN, rate)
        self._is_paced = True
        self._bin_s = self._held_back_s = now_s
        self._sent_s = _NEVER  # what was measured so far is of something else
        self._rest(now_s, _REST_CALLS)

    def hold(self, share: float, calls: int, now_s: float) -> None:
        """Go on with a share of the calls of late, and no more until `let_go`.

        Args:
            share: of them.
            calls: after so many, and a time in which they may be answered, it goes on by itself.
            now_s: the time.
        """
        rate = self.rate
        if rate is None or not self.is_binding(now_s):
            seconds = now_s - self._bin_s + (_BIN_S if self._bin_before else 0.0)
            rate = (self._bin + self._bin_before) / max(_BIN_S, seconds)
        self.rate = self._good = rate = max(_RATE_MIN, share * rate)
        self._is_paced = True
        self._held_back_s = now_s
        self._sent_s = _NEVER  # what was measured so far is of something else
        self._rest(now_s, _REST_CALLS)
        self._due_s = now_s + min(calls / rate + _HOLD_S, _HOLD_MAX_S)

    def let_go(self, now_s: float) -> None:
        """Go on after `hold`: that rate is not too much."""
        self._due_s = now_s

    def rest_at_least(self, seconds: float, now_s: float) -> None:
        """Put off the next step, since the last one made all calls wait."""
        if self._cut.is_of_step:
            rest_s = _REST_VAGUE * seconds if self._cut.is_vague else seconds
            self._due_s = max(self._due_s, now_s + rest_s)
