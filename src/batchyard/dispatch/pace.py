"""The rate that an upstream allows, learned from the calls that it refuses. Pure.

Until a call is refused there is no rate. Then it is what was accepted in the last seconds, and
sends are spaced evenly. It falls to the share of a cohort that was accepted, and probes upward in
small steps: they halve when they fail, with rests between that grow, and double while they
succeed; beyond a size only above what a bucket explains.
"""

from __future__ import annotations

from batchyard.dispatch.rest import Rest

_NEVER = float("-inf")

_CUT = 0.94  # for a cohort with a single refusal
_MANY = 8  # calls in a cohort from which the share that was accepted tells something
_SOME = 4  # calls in one that is doubted, when only a few of them were refused
_FEW_SHARE = 0.1  # of a cohort; a limit that is exceeded by more refuses more
_STEP_MIN, _STEP, _STEP_MAX, _STEP_FRESH = 0.01, 0.04, 0.4, 0.5
_PROBE_S, _PROBE_MAX_S = 1.0, 5.0  # a step lasts a round trip, but within these
_PROBE_CALLS_MIN, _PROBE_CALLS = 3, 10  # and so many calls as take this long, within these
_PROBE_CALLS_S = 2.0
_NEAR = 1.1  # up to this many times the rate after the last decrease steps are small
_UNUSED = 1.5  # no step to more than this many times of what is used
_SOON_S = 0.5
_BIN_S = 1.0
_BINDING_S = 1.0
_LATE_S = 0.02  # a send may catch up on this much lateness of timers
_FORGET_S = 60.0  # a rate that held no call back for this long is dropped
_RATE_MIN = 0.2  # calls a second: one in 5 s finds out that a limit is gone
_SHUT = 5  # decreases with nothing accepted between them: it takes no calls at all
_FIRST_MIN = 5.0  # calls a second, of a rate that was just learned
_IDLE_S = 30.0  # after so long without a call, nothing is known


class Pace:
    """Calls a second, or None when no limit is known."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self.round_s = 0.0
        """How long an answer takes."""
        self._told: dict[str, tuple[float, float]] = {}
        """What the upstream told of each of its buckets: calls a second, and until when."""
        self._is_paced = False
        """Whether there is any rate, learned or told."""
        self._next_s = _NEVER
        self._good = 0.0
        self._step = _STEP_MAX
        self._rest = Rest()
        self._calls = 0
        self.is_probing = False
        """Whether the last step upward has still to prove itself."""
        self._is_fresh = False
        """Whether it was learned just now, from little: then it grows fast."""
        self._is_vague = False
        """Whether few calls were accepted before the last decrease: steps grow from the first."""
        self._fresh_step = _STEP_FRESH
        """The step while little is known; smaller each time that it was too much."""
        self._has_failed_step = False
        """Whether the last decrease was due to a step upward."""
        self._held_back_s = _NEVER
        # What was accepted: sends by second, less those refused.
        self._bin_s = _NEVER
        self._bin = self._bin_before = 0
        # The cohort of the last decrease: from the first call that was refused to the last sent.
        self._first = self._last = -1
        self._begun_s = _NEVER
        self._was_soon = False
        """Whether it decreased right after a decrease."""
        self._shut = 0
        """Decreases in a row between which no call was accepted."""
        self._calls_min = _PROBE_CALLS_MIN
        """A step lasts so many calls at least."""
        self._refused = 0
        self._rate_before: float | None = None
        self._cap = self._known = 0.0

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until a call may start, 0.0 for now."""
        if not self._is_paced or now_s >= self._next_s:
            if self.rate is not None and now_s - self._bin_s > _IDLE_S:
                self.rate = None
            return 0.0
        self._held_back_s = now_s
        return self._next_s - now_s

    def sent(self, now_s: float) -> None:
        """Count a call that starts now."""
        if now_s - self._bin_s >= _BIN_S:
            self._bin_before = self._bin if now_s - self._bin_s < 2 * _BIN_S else 0
            self._bin = 0
            self._bin_s = now_s
        self._bin += 1
        if not self._is_paced:
            return
        if self.rate is not None:
            self._calls += 1
            calls = self._calls
            enough = calls >= _PROBE_CALLS or calls >= self.rate * _PROBE_CALLS_S
            if enough and calls >= self._calls_min and now_s >= self._rest.due_s:
                self._step_up(now_s)
        rate = self.known(now_s)
        if rate is None:
            self._is_paced = False
            return
        late = now_s - self._next_s
        base = now_s - _LATE_S if late > _LATE_S else self._next_s
        self._next_s = base + 1.0 / rate

    def known(self, now_s: float) -> float | None:
        """Return calls a second: what was learned or what the upstream told, the lower one."""
        if not self._told:
            return self.rate
        self._told = {kind: told for kind, told in self._told.items() if now_s < told[1]}
        rates = [rate for rate, _ in self._told.values()]
        return min(rates if self.rate is None else [*rates, self.rate], default=None)

    def is_binding(self, now_s: float) -> bool:
        """Whether it has held calls back of late."""
        return now_s - self._held_back_s < _BINDING_S

    def hint(self, bucket: str, rate: float, until_s: float) -> None:
        """Take in what the upstream told of one of its buckets, which holds for a while."""
        self._told[bucket] = max(_RATE_MIN, rate), until_s
        self._is_paced = True

    def _step_up(self, now_s: float) -> None:
        assert self.rate is not None
        if now_s - self._held_back_s > _PROBE_S + 2.0 / self.rate:
            # The rate is not what holds calls back: leave it, and drop it in time.
            if now_s - self._held_back_s > _FORGET_S:
                self.rate = None
            return
        if _UNUSED * (self._recent(now_s) + 1.0) < self.rate:
            return  # something else holds calls back more
        if self.is_probing:  # the last step was accepted
            self._good = self.rate
            if self._is_vague or self.rate > _NEAR * self._known:
                self._fresh_step = min(self._fresh_step * 2.0, _STEP_FRESH)
                self._step = max(self._step, min(self._step * 2.0, _STEP_MAX))
            else:
                self._step = max(self._step, min(self._step * 2.0, _STEP))
            self._rest.has_succeeded()
        self.is_probing = True
        self.rate *= 1.0 + self._step
        self._calls = 0
        self._rest.due_s = now_s + min(max(_PROBE_S, 1.2 * self.round_s), _PROBE_MAX_S)

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
        if number <= self._last:
            if self.rate is not None and number >= self._first:
                self._refused += 1
                self._set(now_s)
        elif self.rate is None:
            self._measure(number, sent, now_s)
            self._step = self._fresh_step = _STEP_FRESH
            self._is_fresh = True
        elif is_rate and not self.is_binding(sent_s):
            self._step = _STEP
            self._measure(number, sent, now_s)  # what was known is not the limit
        elif is_rate:
            self._event(number, sent, now_s)
        elif self.is_probing and self.is_binding(sent_s):
            self._step_back(now_s)  # it may have been this as well

    def _step_back(self, now_s: float) -> None:
        self.rate = self._good
        self._step = _STEP
        self.is_probing = False
        self._calls = 0
        self._rest.begin(now_s)

    def _measure(self, number: int, sent: int, now_s: float) -> None:
        self._rate_before = None
        self._cap = float("inf") if self.rate is None else self.rate * _CUT
        self._held_back_s = now_s
        self.is_probing = False
        self._begin(number, sent, now_s)

    def _event(self, number: int, sent: int, now_s: float) -> None:
        assert self.rate is not None
        has_failed_step = self.is_probing
        is_fresh = is_vague = False
        between = number - self._last
        if has_failed_step:
            # The step went too far: half of it next time, and a longer rest before it.
            self._rate_before = self.rate
            self._cap = self._good
            self._was_soon = False
            self._fresh_step = max(_STEP, self._fresh_step / 2.0)
            self._step = max(_STEP_MIN, min(self._step / 2.0, _STEP))
            self._rest.has_failed()
        else:
            # The fewer were accepted since the last decrease, the further it was from enough. But a
            # bucket is empty just after one, and a first refusal then says little.
            is_soon = now_s - self._begun_s < _SOON_S and not self._was_soon
            self._was_soon = is_soon
            share = _CUT if is_soon else min(_CUT, between / (between + 1.0))
            self._rate_before = self._cap = self.rate * share
            # From few calls little is known: as fast as it fell it may rise again.
            is_vague = between < _MANY and not is_soon
            is_fresh = is_vague and self._fresh_step > _STEP
            # Nor does that one tell more of a rate that was learned a moment before it.
            self._step = self._fresh_step if is_fresh or (is_soon and self._is_fresh) else _STEP
        shut = self._shut + 1 if between == 1 else 0
        self._begin(number, sent, now_s)
        self._shut = shut
        self._has_failed_step = has_failed_step
        self._is_fresh = is_fresh
        self._is_vague = is_vague

    def _begin(self, number: int, sent: int, now_s: float) -> None:
        self._is_fresh = self.is_probing = self._has_failed_step = False
        self._shut = 0
        self._calls_min = _PROBE_CALLS_MIN
        self._first = number
        self._last = sent - 1
        self._begun_s = now_s
        self._refused = 1
        self._calls = 0
        self._rest.begin(now_s)
        self._set(now_s)

    def _set(self, now_s: float) -> None:
        """Set the rate to what the cohort, or the last seconds, had accepted."""
        if self._rate_before is None:
            # From little, much is not concluded: a first guess that is too low takes long to mend.
            rate = min(self._cap, max(_FIRST_MIN, self._recent(now_s)))
        else:
            size = self._last - self._first + 1
            if size >= _MANY:
                share = (size - self._refused + 1) / (size + 1)
            else:
                share = _CUT ** (self._refused - 1)
            rate = min(self._cap, self._rate_before * share)
        self.rate = self._good = self._known = max(_RATE_MIN, rate)
        self._is_paced = True

    def _recent(self, now_s: float) -> float:
        """Return calls a second in the last one or two seconds, less those known to be refused."""
        seconds = max(_BIN_S, now_s - self._bin_s + (_BIN_S if self._bin_before else 0.0))
        return (self._bin + self._bin_before) / seconds

    def taken(self, number: int, now_s: float) -> None:
        """Note an accepted call: after none was for long, a limit that was zero may be gone."""
        if self._shut >= _SHUT and self.rate == _RATE_MIN and number > self._last:
            self._shut = 0
            self.rise(now_s)
            self._calls_min = 1

    def rise(self, now_s: float) -> None:
        """Go up quickly from what was learned: it may have been nothing."""
        self._step = self._fresh_step = _STEP_FRESH
        self._is_vague = True
        self._rest.reset()
        self._rest.due_s = now_s
        self.is_probing = self._has_failed_step = False

    def doubt(self) -> None:
        """Forget what a single refusal said: it was of one request, not of the pool."""
        if self._is_fresh and self._refused == 1:
            self.rate = None

    def doubt_cohort(self) -> bool:
        """Forget what few refusals among many calls said; return whether it did."""
        calls = self._last - self._first + 1
        if not self._is_fresh or calls < _SOME or self._refused > max(1.0, _FEW_SHARE * calls):
            return False
        self.rate = None
        return True

    def take_over(self, rate: float, now_s: float) -> None:
        """Go on from a rate that was learned, by others or with another part of the limit."""
        self.rate = self._good = self._known = max(_RATE_MIN, rate)
        self._is_paced, self.is_probing, self._step, self._calls = True, False, _STEP, 0
        self._bin_s = self._held_back_s = now_s
        self._rest.begin(now_s)

    def rest_at_least(self, seconds: float, now_s: float) -> None:
        """Put off the next step, since the last one made all calls wait."""
        if self._has_failed_step:
            self._rest.at_least(seconds, now_s)
