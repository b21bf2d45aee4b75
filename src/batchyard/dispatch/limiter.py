"""How fast one pool may call: what is known of its upstream's limits, learned from its answers.

Pure: the time is passed in as monotonic seconds, nothing waits and nothing is random. `gate.py`
makes calls wait; `ceilings.py` holds the limits that people have written down.

What is learned, and how:

- The *window*, calls in flight (`window.py`).
- The *rate*, calls a second (`pace.py`), where 429s come at a concurrency that was accepted.
- One decrease for each cohort: calls sent before a decrease do not decrease again.
- The *cool-down* (`cooldown.py`): until the end of a `retry-after`, no call but single probes. It
  ends early when a call that was sent after the refused one is accepted: then the limit is not one
  of the whole pool.
- *Strays* (`strays.py`): single 429s that tell nothing of the pool. Where no limit is known and
  calls are accepted, a few that name a time hold back their own requests only.
- The *breaker*: after many failures in a row (5xx, 529, no connection) all calls stop, then single
  calls probe until one is answered, or is out so much longer than those that failed that the
  upstream must be working on it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from batchyard import limits
from batchyard.dispatch.ceilings import Estimate
from batchyard.dispatch.cooldown import CoolDown
from batchyard.dispatch.pace import Pace
from batchyard.dispatch.strays import Strays
from batchyard.dispatch.window import Permit, Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.dispatch.ceilings import Ceiling
    from batchyard.dispatch.hints import Hint

_ANSWER = float("inf")  # wait for an answer, not for time

_PAUSE_SHARE = 25.0  # rest this many times as long as a failed probe made us wait
_DOUBT = 2.0  # as many 429s at once that name a time are borne, where no limit is known
_DOUBT_FIRST = 1.5  # before the first call
_DOUBT_LESS = 1.0 / 5.0  # for each accepted call
_LEAST_S = 1.0  # whole seconds cannot say less: who never says more says nothing by it
_NAMED_S = 600.0  # how long it is remembered that somebody does
_CHECK_SHARE = 0.85  # of the calls that were accepted, where strays are checked
_REFUSAL_KEPT = 0.9  # of how long a refusal took, with the next one


class Signal(enum.Enum):
    """What one call tells of the upstream."""

    TAKEN = "taken"  # it was accepted, whatever came of it
    LIMITED = "rate limited"  # 429
    OVERLOADED = "overloaded"  # 529
    TIMEOUT = "timed out"
    FAILED = "failed"  # 5xx, a broken connection, an answer that is none
    UNREACHABLE = "unreachable"
    BARRED = "barred"  # the key or the account was refused
    UNSENT = "unsent"  # nobody wanted it any more, and no byte of it was sent
    NOTHING = "nothing"  # it was given up


_SILENT = frozenset({Signal.BARRED, Signal.UNSENT, Signal.NOTHING})
_UNUSED = frozenset(
    {Signal.LIMITED, Signal.OVERLOADED, Signal.UNREACHABLE, Signal.BARRED, Signal.UNSENT}
)


@dataclass(frozen=True, slots=True)
class Wait:
    """Why calls wait, and until when (monotonic seconds; None when an answer decides)."""

    kind: Literal["breaker_open", "cooling_down", "limited"]
    detail: str
    until_s: float | None


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
        self._first = 0
        """The number of the first call that was sent after it opened last."""
        self._probing_s = self._probed_s = 0.0
        """When the oldest probe was sent that is out, and when the last."""
        self._slowest_s = 0.0
        """After how long the slowest of these failed, or the slowest that timed out."""

    def taken(self) -> bool:
        """Note an answer; return whether that closed it."""
        self.failures = self._times = 0
        self._slowest_s = 0.0
        return self._close()

    def _close(self) -> bool:
        was_open, self.until_s = self.until_s is not None, None
        self.is_probing = False
        return was_open

    def failed(self, permit: Permit, signal: Signal, now_s: float, sent: int) -> None:
        """Note a failure.

        Args:
            permit: of the call.
            signal: what it told.
            now_s: the time.
            sent: the number of the next call.
        """
        if permit.number < self._first:
            return  # it tells of the outage that is known
        self.failures += 1
        if self._times or signal is Signal.TIMEOUT:  # not how long it took until an outage began
            self._slowest_s = max(self._slowest_s, now_s - permit.sent_s)
        if self.until_s is None and self.failures < limits.BREAKER_FAILURES:
            return
        self.reason, self._first = signal.value, sent
        self.is_probing = False
        self.until_s = now_s + min(
            limits.BREAKER_CAP_S, limits.BREAKER_BASE_S * 2.0 ** min(self._times, 20)
        )
        self._times += 1

    def wait_s(self, now_s: float) -> float:
        """Return how long an open breaker holds calls back. A probe that hangs is not all."""
        assert self.until_s is not None
        if self.is_probing:
            return max(0.0, self._probed_s + limits.BREAKER_CAP_S - now_s)
        return max(0.0, self.until_s - now_s)

    def probe(self, now_s: float) -> None:
        """Note a call that is sent while it is open."""
        if not self.is_probing:
            self._probing_s = now_s
        self.is_probing, self._probed_s = True, now_s

    def has_held(self, now_s: float) -> bool:
        """Close it when a probe is out twice as long as any took to fail; return whether it is.

        The next failure opens it again.
        """
        enough_s = max(limits.BREAKER_CAP_S, 2.0 * self._slowest_s)
        return self.is_probing and self._probing_s + enough_s <= now_s and self._close()


class Limiter:
    """The limits of one pool."""

    def __init__(self, slots: int, ceilings: Sequence[Ceiling] = ()) -> None:
        """Make one that knows nothing yet.

        Args:
            slots: calls in flight, at most.
            ceilings: configured limits, shared with other pools of the upstream.
        """
        self.in_flight = 0
        self.slots = slots
        """Calls in flight, at most; several workers divide them."""
        self.window = Window(slots)
        self.pace = Pace()
        self.breaker = Breaker()
        self.strays = Strays()
        self.ceilings = tuple(ceilings)
        self.estimate = Estimate()
        self.part = 1.0
        """Of what the upstream allows; several workers divide that."""
        self._sent = 0
        self._cut = 0
        """The number of the first call that was sent after the last decrease."""
        self._cool_down = CoolDown()
        self._doubt = _DOUBT_FIRST
        """One for each 429 of late, less what each accepted call takes away."""
        self._refused = 0
        """The number of the first call that was sent after the last 429."""
        self._named_s = float("-inf")
        """When a 429 last said to wait for longer than `_LEAST_S`."""

    # Before a call ----------------------------------------------------------------------------

    def wait_s(self, now_s: float) -> float:
        """Return 0.0 when a call may start; else the seconds to wait, inf for an answer."""
        if self.breaker.until_s is not None:
            # Calls from before it opened are not waited for: one of them may take hours.
            wait = self.breaker.wait_s(now_s)
            if wait:
                return wait
            if self.breaker.has_held(now_s):
                self.window.start_over(now_s)
        cool_down = self._cool_down
        if cool_down.until_s is not None:
            if now_s < cool_down.until_s:
                if self.in_flight >= self.slots:
                    return _ANSWER
                waits = [ceiling.wait_s(now_s) for ceiling in self.ceilings]
                return max(cool_down.wait_s(now_s), *waits, 0.0)
            self._end_cool_down(now_s)
        if self.in_flight >= self.slots:
            return _ANSWER
        window = self.window
        # At a wall it probes now and then; in slow start it doubles each second.
        if self.in_flight >= window.size or (window.wall is not None and window.size < 1e9):
            left = window.grow_by_time(now_s, self.in_flight)
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
        self.window.drift.sent(permit.number, now_s)
        self.pace.sent(permit.number, now_s)
        if self.strays.share:
            self.strays.sent()
        if self._cool_down.until_s is not None:
            self._cool_down.sent(permit.number)
        if self.breaker.until_s is not None:
            self.breaker.probe(now_s)
        if self.ceilings:
            permit.size = size
            permit.tokens = tokens = self.estimate.tokens(size, output_max)
            self._charge(now_s, 1.0, tokens)
        return permit

    def _charge(self, now_s: float, requests: float, tokens: tuple[float, float]) -> None:
        for ceiling in self.ceilings:
            ceiling.charge(now_s, requests, tokens)

    # After it ---------------------------------------------------------------------------------

    def end(
        self,
        permit: Permit,
        now_s: float,
        signal: Signal,
        retry_after_s: float | None = None,
        used: tuple[int, int] | None = None,
        *,
        tells: bool = True,
        is_invalid: bool = False,
    ) -> None:
        """Take in what became of a call.

        Args:
            permit: of the call.
            now_s: the time.
            signal: what it told.
            retry_after_s: what the upstream asked for, capped.
            used: input and output tokens that count against limits, where they are known.
            tells: whether a failure tells of others, too, not of its request only.
            is_invalid: whether it was refused for what it asked, so that no output came of it.
        """
        if retry_after_s is not None and signal is Signal.LIMITED:
            retry_after_s = self._said(retry_after_s, now_s)
        self.in_flight -= 1
        self.window.drift.ended(permit.number, now_s, is_taken=signal is Signal.TAKEN)
        if self.ceilings:
            self._correct(permit, now_s, signal, used, is_invalid=is_invalid)
        elif used is not None:
            self.estimate.learn(permit.size, used)
        if signal is Signal.TAKEN:
            self._taken(permit, now_s)
            return
        breaker = self.breaker
        self._cool_down.failed(permit.number, now_s)
        is_limited = signal is Signal.LIMITED
        if signal in _SILENT or (
            is_limited
            and (not tells or self._is_stray(permit, now_s, names_time=retry_after_s is not None))
        ):
            breaker.is_probing = False
            if is_limited:
                self.pace.refused_alone(permit.number)
            return
        if not tells:
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
            self.window.cut(permit, self.in_flight + 1, now_s)
        if breaker.until_s is None or breaker.is_probing:
            breaker.failed(permit, signal, now_s, self._sent)

    def _said(self, retry_after_s: float, now_s: float) -> float | None:
        """Return the time that a 429 names; None where it cannot mean anything."""
        if retry_after_s > _LEAST_S:
            self._named_s = now_s
        if retry_after_s == _LEAST_S and now_s - self._named_s > _NAMED_S:
            return None
        return retry_after_s

    def _correct(
        self,
        permit: Permit,
        now_s: float,
        signal: Signal,
        used: tuple[int, int] | None,
        *,
        is_invalid: bool,
    ) -> None:
        charged = permit.tokens
        if used is not None:
            self.estimate.learn(permit.size, used)
            self._charge(now_s, 0.0, (used[0] - charged[0], used[1] - charged[1]))
        elif signal in _UNUSED:
            requests = -1.0 if signal is Signal.UNSENT else 0.0
            self._charge(now_s, requests, (-charged[0], -charged[1]))
        elif is_invalid:  # its input was counted before it was looked at, perhaps
            self._charge(now_s, 0.0, (0.0, -charged[1]))
        # else the upstream may have worked for it

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
            self.pace.hint(hint.kind, hint.refill * self.part / each, now_s + hint.reset_s)

    def _taken(self, permit: Permit, now_s: float) -> None:
        self.pace.taken(permit.number, now_s)
        self._doubt = max(0.0, self._doubt - _DOUBT_LESS)
        if self.strays.share:
            self._taken_beside_strays(permit, now_s)
        if permit.number >= self._cut:
            self.window.taken(permit, now_s)
        else:
            self.window.taken_late(permit)
        if self.breaker.failures and self.breaker.taken():
            self.window.start_over(now_s)
        cool_down = self._cool_down
        if cool_down.until_s is not None and cool_down.is_refuted(permit.number):
            if cool_down.is_probe(permit.number):
                cool_down.end_by_probe(now_s)
                self.pace.doubt()
            else:
                self._end_cool_down(now_s)
                if self.pace.doubt_cohort():
                    self.window.drop_wall()

    def _is_stray(self, permit: Permit, now_s: float, *, names_time: bool) -> bool:
        """Whether a 429 is of one request only; else it is taken for that of a limit."""
        self._doubt = min(_DOUBT, self._doubt) + 1.0
        apart, self._refused = permit.number - max(self._cut, self._refused), self._sent
        if permit.number < self._cut:
            return False
        if self.strays.share:
            return self._is_stray_still(permit, now_s)
        if not names_time or self._doubt > _DOUBT or self._cool_down.until_s is not None:
            return False
        pace = self.pace
        if self.window.is_probing or (pace.rate is not None and pace.is_binding(permit.sent_s)):
            return False
        self._unexplained(apart, now_s, names_time=names_time)
        return True

    def _is_stray_still(self, permit: Permit, now_s: float) -> bool:
        strays, pace = self.strays, self.pace
        if not strays.is_one(permit.number, now_s):
            return False
        if strays.is_confirmed(permit.number):
            pace.rise(now_s)
        elif strays.is_check_due(now_s):
            pace.hold(_CHECK_SHARE * (1.0 - strays.seen), strays.check(self._sent, now_s), now_s)
        return True

    def _taken_beside_strays(self, permit: Permit, now_s: float) -> None:
        was_checking = self.strays.is_checking
        self.strays.taken(permit.number, now_s)
        if was_checking and not self.strays.is_checking:
            self.pace.let_go(now_s)

    def _is_step(self, permit: Permit) -> bool:
        """Whether more was tried than is known to be accepted when a call was sent."""
        pace = self.pace
        return (pace.is_probing and pace.is_binding(permit.sent_s)) or self.window.is_probing

    def _unexplained(self, apart: int, now_s: float, *, names_time: bool) -> bool:
        """Note a 429 that no step upward explains; return whether a trial has begun."""
        if not self.strays.unexplained(apart, now_s, names_time=names_time):
            return False
        self._begin_trial(now_s)
        return True

    def _begin_trial(self, now_s: float) -> None:
        self.window.drop_wall()
        self.pace.rise(now_s)

    def _limited(self, permit: Permit, now_s: float, *, names_time: bool) -> None:
        by_window = self.window.is_new_height(permit)
        is_step = self._is_step(permit)
        refusal_s = max(now_s - permit.sent_s, _REFUSAL_KEPT * self.pace.refusal_s)
        self.pace.refusal_s = self.window.refusal_s = refusal_s
        is_paced = self.pace.is_binding(permit.sent_s) and not self.window.is_probing
        is_rate = is_paced or not by_window
        self.pace.refused(permit.number, self._sent, permit.sent_s, now_s, is_rate=is_rate)
        if permit.number < self._cut:  # of a cohort that has decreased it already
            self.window.lower(permit)
            return
        apart, self._cut = permit.number - self._cut, self._sent
        if not is_paced:  # at a rate, a refusal does not say that less concurrency is accepted
            self.window.forget_peak()
        is_row = self.pace.is_closed  # of a limit: strays do not come so
        if not (is_step or is_row) and self._unexplained(apart, now_s, names_time=names_time):
            return
        rate = self.pace.rate
        if (
            rate is not None
            and not is_row
            and self.strays.fell(apart, rate, now_s, is_step=is_step)
        ):
            self._begin_trial(now_s)
            return
        if by_window and not (is_paced and is_step):  # which is one of the concurrency, too
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

    def is_broken(self) -> bool:
        """Whether all calls have stopped but single ones, which try."""
        return self.breaker.until_s is not None

    def rate_max(self, now_s: float) -> float | None:
        """Return how many calls a second are possible at most; None when nothing says that."""
        rates = [
            b.per_minute * b.part / 60.0
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
            return [Wait("breaker_open", detail, now_s + breaker.wait_s(now_s))]
        found = []
        cool_down = self._cool_down
        if cool_down.until_s is not None and now_s < cool_down.until_s:
            detail = f"the upstream asked to wait ({cool_down.reason}); single calls try"
            found.append(Wait("cooling_down", detail, cool_down.until_s))
        for ceiling in self.ceilings:
            binding = ceiling.binding(now_s)
            if binding is not None and binding[0].part:  # else it has one in a second
                bucket, wait = binding
                detail = f"{bucket.name} = {bucket.per_minute} is reached"
                found.append(Wait("limited", detail, now_s + wait))
        rate = self.pace.known(now_s)
        if rate is not None and self.pace.is_binding(now_s):
            shown = f"{rate:,.{0 if rate >= 10 else 1}f}"
            detail = f"calls go out at {shown} a second, since faster ones were refused"
            found.append(Wait("limited", detail, None))
        if self.window.size < self.window.slots and self.in_flight >= int(self.window.size):
            found.append(Wait("limited", self.window.detail, None))
        return found
