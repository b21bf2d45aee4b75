"""How fast one pool may call: what is known of its upstream's limits, learned from its answers.

Pure: the time is passed in as monotonic seconds, nothing waits and nothing is random. `gate.py`
makes calls wait; `ceilings.py` holds the limits that people have written down.

What is learned, and how:

- The *window*, calls in flight. It starts generously and doubles in each round trip (or each
  second, where answers take longer) up to the slots. A call that is refused with 429 at a higher
  concurrency than any that was accepted of late sets the window to that concurrency, at which it
  only probes; 529 and time-outs multiply it by 0.7, and then it grows by one in each round.
- The *rate*, calls a second (`pace.py`), where 429s come at a concurrency that was accepted.
- One decrease for each cohort: calls sent before a decrease do not decrease again.
- The *cool-down* (`cooldown.py`): until the end of a `retry-after`, no call but single probes. It
  ends early when a call that was sent after the refused one is accepted: then the limit is not one
  of the whole pool.
- The *breaker*: after many failures in a row (5xx, 529, no connection) all calls stop, then single
  calls probe until one is answered.
- *Drift*: while answers take twice as long as they used to, the window does not grow.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from batchyard import limits
from batchyard.dispatch.ceilings import Estimate
from batchyard.dispatch.cooldown import CoolDown
from batchyard.dispatch.pace import Pace
from batchyard.dispatch.rest import Rest
from batchyard.dispatch.strays import Strays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.dispatch.ceilings import Ceiling
    from batchyard.dispatch.hints import Hint

_NEVER = float("-inf")
_ANSWER = float("inf")  # wait for an answer, not for time

_CUT = 0.7
_DOUBLING_S = 1.0
_PAUSE_SHARE = 25.0  # rest this many times as long as a failed probe made us wait
_FEW = 3  # calls beside a refused one, below which the rate is to blame
_PEAK_S = 10.0  # how long the highest accepted concurrency is remembered, at least
_DRIFT = 2.0


class Signal(enum.Enum):
    """What one call tells of the upstream."""

    TAKEN = "taken"  # it was accepted, whatever came of it
    LIMITED = "rate limited"  # 429
    OVERLOADED = "overloaded"  # 529
    TIMEOUT = "timed out"
    FAILED = "failed"  # 5xx, a broken connection, an answer that is none
    UNREACHABLE = "unreachable"
    NOTHING = "nothing"  # it was given up, or the key was refused


_UNUSED = frozenset({Signal.LIMITED, Signal.OVERLOADED, Signal.UNREACHABLE})


class Permit(msgspec.Struct, gc=False):
    """One call under way."""

    number: int
    sent_s: float
    others: int
    """Calls in flight beside it when it was sent."""
    size: int = 0
    tokens: tuple[float, float] = (0.0, 0.0)
    """Input and output tokens that the ceilings were charged."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Why calls wait, and until when (monotonic seconds; None when an answer decides)."""

    kind: Literal["breaker_open", "cooling_down", "limited"]
    detail: str
    until_s: float | None


class Window:
    """How many calls may be in flight."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.size = float(min(slots, limits.WINDOW_START))
        self.wall: int | None = None
        """A concurrency that was refused with 429."""
        self._is_slow_start = True
        self._is_drifting = False
        self._grown_s = _NEVER
        self._step = 1
        self._has_failed = False
        self._rest = Rest()
        """Between two probes above a concurrency that was refused."""
        self._peak = self._peak_before = -1
        self._peak_s = _NEVER

    def taken(self, permit: Permit, now_s: float, *, is_drifting: bool) -> None:
        """Note an accepted call."""
        others = permit.others
        self._is_drifting = is_drifting
        self._peak = max(self._peak, others)
        if now_s - self._peak_s >= _PEAK_S:
            self._peak_before, self._peak, self._peak_s = self._peak, others, now_s
        size = self.size
        if size >= self.slots:
            return
        if self.wall is not None:
            if others >= self.wall and others + 1 >= int(size):
                self._pass_wall()
                return
            if size >= self.wall:
                return
        if is_drifting or (others + 1) * 2 < size:  # nobody used what there is
            return
        size += 1.0 if self._is_slow_start else 1.0 / size
        self.size = min(size, self.slots if self.wall is None else self.wall)

    def _pass_wall(self) -> None:
        """Go on, and faster: what was refused before is accepted now."""
        self.wall = int(self.size)
        self._rest.has_succeeded()
        self._step = min(self._step * 2, max(1, self.wall // 2))
        self.size = float(min(self.wall + self._step, self.slots))
        if self.size >= self.slots:
            self.wall = None

    def grow_by_time(self, now_s: float) -> float:
        """Grow where that needs no answer; return the seconds until it may grow again."""
        if self.wall is not None:
            if self.size < self.wall:
                return _ANSWER
            if self.size > self.wall:
                return _ANSWER
            if now_s >= self._rest.due_s:
                self._step = 1
                self.size = self.wall + 1.0
                return _ANSWER
            return self._rest.due_s - now_s
        if not self._is_slow_start or self._is_drifting or self.size >= self.slots:
            return _ANSWER
        if self._grown_s == _NEVER:
            self._grown_s = now_s
        left = self._grown_s + _DOUBLING_S - now_s
        if left <= 0.0:
            self.size = min(self.size * 2.0, self.slots)
            self._grown_s = now_s
            left = _DOUBLING_S
        return left

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
        self._is_slow_start = False
        self._has_failed = self.wall is not None and self.size > self.wall
        if self._has_failed:
            self._rest.has_failed()
        self.wall = max(_FEW, permit.others)
        self.size = float(self.wall)
        self._step = 1
        self._rest.begin(now_s)

    def lower(self, permit: Permit) -> None:
        """Note a further 429 of the same cohort."""
        if self.wall is not None and permit.others < self.wall:
            self.wall = max(_FEW, permit.others)
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

    def cut(self, in_flight: int) -> None:
        """Note a cohort of calls that were too much for the upstream."""
        self._is_slow_start = False
        self.size = max(1.0, min(self.size, float(in_flight)) * _CUT)

    def take_over(self, size: float, wall: int | None, now_s: float) -> None:
        """Go on from what was learned before, by others or with another part of the limit."""
        self.wall = None if wall is None else min(max(_FEW, wall), self.slots)
        self.size = min(max(1.0, size), float(self.slots if self.wall is None else self.wall))
        self._is_slow_start = self.wall is None
        self._rest.begin(now_s)

    def start_over(self) -> None:
        """Begin carefully, after the upstream was away."""
        self._is_slow_start = True
        self.size = 1.0
        self.wall = None
        self._grown_s = _ANSWER  # by answers only


class Breaker:
    """Stops all calls when the upstream is down, and lets single ones probe."""

    def __init__(self) -> None:
        self.until_s: float | None = None
        """Open until then, half-open after; None when closed."""
        self.is_probing = False
        self.reason = ""
        self.failures = 0
        """Since the last answer."""
        self._times = 0

    def taken(self) -> bool:
        """Note an answer; return whether that closed it."""
        self.failures = 0
        if self.until_s is None:
            return False
        self.until_s = None
        self.is_probing = False
        self._times = 0
        return True

    def failed(self, reason: str, now_s: float) -> None:
        """Note a failure of a call that was sent when the breaker let it."""
        self.failures += 1
        if self.until_s is None and self.failures < limits.BREAKER_FAILURES:
            return
        self.reason = reason
        self.is_probing = False
        self.until_s = now_s + min(
            limits.BREAKER_CAP_S, limits.BREAKER_BASE_S * 2.0 ** min(self._times, 20)
        )
        self._times += 1

    def wait_s(self, now_s: float) -> float:
        """Return how long an open breaker holds calls back."""
        assert self.until_s is not None
        if self.is_probing:
            return _ANSWER
        return max(0.0, self.until_s - now_s)


class Limiter:
    """The limits of one pool."""

    def __init__(self, slots: int, ceilings: Sequence[Ceiling] = ()) -> None:
        """Make one that knows nothing yet.

        Args:
            slots: calls in flight, at most.
            ceilings: configured limits, shared with other pools of the upstream.
        """
        self.in_flight = 0
        self.window = Window(slots)
        self.pace = Pace()
        self.breaker = Breaker()
        self.strays = Strays()
        self.ceilings = tuple(ceilings)
        self.estimate = Estimate()
        self.part = 1.0
        """Of the ceilings, what this process has; several workers divide them."""
        self._sent = 0
        self._cut = 0
        """The number of the first call that was sent after the last decrease."""
        self._cool_down = CoolDown()
        self._recent_s = self._usual_s = 0.0

    # Before a call ----------------------------------------------------------------------------

    def wait_s(self, now_s: float) -> float:
        """Return 0.0 when a call may start; else the seconds to wait, inf for an answer."""
        if self.breaker.until_s is not None:
            # Calls from before it opened are not waited for: one of them may take hours.
            wait = self.breaker.wait_s(now_s)
            if wait:
                return wait
        cool_down = self._cool_down
        if cool_down.until_s is not None:
            if now_s < cool_down.until_s:
                return cool_down.wait_s(now_s)
            self._end_cool_down(now_s)
        window = self.window
        # At a wall it probes now and then; in slow start it doubles each second.
        if self.in_flight >= window.size or (window.wall is not None and window.size < 1e9):
            left = window.grow_by_time(now_s)
            if self.in_flight >= int(window.size):
                return left
        wait = self.pace.wait_s(now_s)
        for ceiling in self.ceilings:
            wait = max(wait, ceiling.wait_s(now_s))
        return wait

    def start(self, now_s: float, size: int = 0, output_max: int = 0) -> Permit:
        """Count a call that starts now.

        Args:
            now_s: the time.
            size: of the request in bytes, for the ceilings on tokens.
            output_max: its `max_tokens`.
        """
        permit = Permit(self._sent, now_s, self.in_flight)
        self._sent += 1
        self.in_flight += 1
        self.pace.sent(now_s)
        if self._cool_down.until_s is not None:
            self._cool_down.sent(permit.number)
        if self.breaker.until_s is not None:
            self.breaker.is_probing = True
        if self.ceilings:
            permit.size = size
            permit.tokens = tokens = self.estimate.tokens(size, output_max)
            self._charge(now_s, 1.0, tokens)
        return permit

    def _charge(self, now_s: float, requests: float, tokens: tuple[float, float]) -> None:
        # A process with a part of the ceiling has a whole bucket, and takes that much more out.
        weight = 1.0 / self.part
        for ceiling in self.ceilings:
            ceiling.charge(now_s, requests * weight, (tokens[0] * weight, tokens[1] * weight))

    # After it ---------------------------------------------------------------------------------

    def end(
        self,
        permit: Permit,
        now_s: float,
        signal: Signal,
        retry_after_s: float | None = None,
        used: tuple[int, int] | None = None,
    ) -> None:
        """Take in what became of a call.

        Args:
            permit: of the call.
            now_s: the time.
            signal: what it told.
            retry_after_s: what the upstream asked for, capped.
            used: input and output tokens that count against limits, where they are known.
        """
        self.in_flight -= 1
        if self.ceilings:
            self._correct(permit, now_s, signal, used)
        elif used is not None:
            self.estimate.learn(permit.size, used)
        if signal is Signal.TAKEN:
            self._taken(permit, now_s)
            return
        breaker = self.breaker
        self._cool_down.failed(permit.number, now_s)
        if signal is Signal.NOTHING or (signal is Signal.LIMITED and self._is_stray(permit, now_s)):
            breaker.is_probing = False
            return
        if retry_after_s is not None:
            self._cool_down.ask(permit.number, now_s, retry_after_s, signal.value)
        if signal is Signal.LIMITED:
            breaker.is_probing = False
            self._limited(permit, now_s, names_time=retry_after_s is not None)
            return
        is_overload = signal is Signal.OVERLOADED or signal is Signal.TIMEOUT
        if is_overload and permit.number >= self._cut:
            self._cut = self._sent
            self.window.cut(self.in_flight + 1)
        if breaker.until_s is None or breaker.is_probing:
            breaker.failed(signal.value, now_s)

    def _correct(
        self, permit: Permit, now_s: float, signal: Signal, used: tuple[int, int] | None
    ) -> None:
        if used is None:
            if signal not in _UNUSED:
                return  # the upstream may have worked for it
            used = (0, 0)
        else:
            self.estimate.learn(permit.size, used)
        charged = permit.tokens
        self._charge(now_s, 0.0, (used[0] - charged[0], used[1] - charged[1]))

    def hint(self, hint: Hint, now_s: float) -> None:
        """Take in what the upstream says of a bucket that is nearly empty."""
        if hint.refill is None:
            if not hint.remaining:
                self._cool_down.ask(self._sent - 1, now_s, hint.reset_s, f"no {hint.kind} left")
            return
        if hint.kind == "requests":
            each = 1.0
        elif hint.kind == "output-tokens":
            each = self.estimate.output or 0.0
        else:
            each = self.estimate.input
        if each > 0.0:
            self.pace.hint(hint.refill / each, now_s + hint.reset_s)

    def _taken(self, permit: Permit, now_s: float) -> None:
        took_s = now_s - permit.sent_s
        recent = self._recent_s
        usual = self._usual_s
        if recent == 0.0:
            self._recent_s = self._usual_s = took_s
        else:
            recent += (took_s - recent) / 32.0
            self._recent_s = recent
            # A long-term minimum that rises slowly, since what is asked for changes.
            self._usual_s = recent if recent < usual else usual + (recent - usual) / 2048.0
        self.pace.round_s = self._recent_s
        if self.strays.share:
            self.strays.taken()
        if permit.number >= self._cut:
            self.window.taken(permit, now_s, is_drifting=recent > _DRIFT * usual)
        if self.breaker.failures and self.breaker.taken():
            self.window.start_over()
        cool_down = self._cool_down
        if cool_down.until_s is not None and cool_down.is_refuted(permit.number):
            if cool_down.is_probe(permit.number):
                cool_down.end_by_probe(now_s)
                self.pace.doubt()
            else:
                self._end_cool_down(now_s)

    def _is_stray(self, permit: Permit, now_s: float) -> bool:
        strays = self.strays
        return strays.share > 0.0 and permit.number >= self._cut and strays.is_one(now_s)

    def _limited(self, permit: Permit, now_s: float, *, names_time: bool) -> None:
        by_window = self.window.is_new_height(permit)
        is_step = self.pace.is_probing or self.window.is_probing
        self.pace.refused(permit.number, self._sent, permit.sent_s, now_s, is_rate=not by_window)
        if permit.number < self._cut:  # of a cohort that has decreased it already
            self.window.lower(permit)
            return
        apart, self._cut = permit.number - self._cut, self._sent
        self.window.forget_peak()
        if not is_step and self.strays.unexplained(apart, now_s, names_time=names_time):
            self.window.drop_wall()
            self.pace.rise(now_s)
        elif by_window:
            self.window.refuse(permit, now_s)
        else:
            self.window.drop_wall()

    def _end_cool_down(self, now_s: float) -> None:
        pause_s = self._cool_down.end(now_s)
        self.window.rest_at_least(pause_s, now_s)
        self.pace.rest_at_least(_PAUSE_SHARE * pause_s, now_s)

    # For people -------------------------------------------------------------------------------

    @property
    def is_limited(self) -> bool:
        """Whether anything is known that holds calls back, or did a moment ago."""
        return (
            self.pace.rate is not None
            or self.window.wall is not None
            or self.breaker.until_s is not None
            or self._cool_down.until_s is not None
        )

    def rate_max(self, now_s: float) -> float | None:
        """Return how many calls a second are possible at most; None when nothing says that."""
        rates = [
            b.per_minute * self.part / 60.0
            for c in self.ceilings
            for b in c.buckets[:1]
            if b is c.requests
        ]
        known = self.pace.known(now_s)
        return min([*rates, *([] if known is None else [known])], default=None)

    def waits(self, now_s: float) -> list[Wait]:
        """Return why calls wait, the hardest reason first."""
        breaker = self.breaker
        if breaker.until_s is not None:
            detail = f"the last calls failed ({breaker.reason}); single calls try"
            return [Wait("breaker_open", detail, max(now_s, breaker.until_s))]
        found = []
        cool_down = self._cool_down
        if cool_down.until_s is not None and now_s < cool_down.until_s:
            detail = f"the upstream asked to wait ({cool_down.reason}); single calls try"
            found.append(Wait("cooling_down", detail, cool_down.until_s))
        for ceiling in self.ceilings:
            binding = ceiling.binding(now_s)
            if binding is not None:
                bucket, wait = binding
                detail = f"{bucket.name} = {bucket.per_minute} is reached"
                found.append(Wait("limited", detail, now_s + wait))
        rate = self.pace.known(now_s)
        if rate is not None and self.pace.is_binding(now_s):
            shown = f"{rate:,.{0 if rate >= 10 else 1}f}"
            detail = f"calls go out at {shown} a second, since faster ones were refused"
            found.append(Wait("limited", detail, None))
        if self.window.size < self.window.slots and self.in_flight >= int(self.window.size):
            detail = f"{int(self.window.size):,} calls at once, since more were refused or too slow"
            found.append(Wait("limited", detail, None))
        return found
