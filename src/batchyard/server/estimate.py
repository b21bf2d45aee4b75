"""When a batch will have ended: from the results it got in the last minutes, and honestly.

Pure but for its memory of what was seen: the times are passed in. There is no estimate without a
basis, none while a pool of the batch stands still, and none is earlier than the known end of what
is waited for, or than what is left in any of its pools allows, at a known limit of calls or at the
rate of its results. Where no result has come for a while, it is as far away again: who is asked
often does not hear "now" for as long as one slow call lasts.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchyard import limits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchyard.model import Batch

_WINDOW_US = 300 * limits.SECOND_US
_APART_US = limits.SECOND_US
_BASIS_US = 3 * limits.SECOND_US
_BATCHES_MAX = 1_000
# Of batches with several pools more is remembered: of the pools with the most left, more rarely.
_POOLS_MAX = 16
_POOLS_APART_US = 15 * limits.SECOND_US


@dataclass(frozen=True, slots=True)
class Estimate:
    """The end, or why nothing can be said of it."""

    ends_us: int | None
    basis: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Time that has to pass, as far as it is known, before all that is left can go on."""

    seconds: float = 0.0
    is_of_all: bool = False
    """Whether nothing goes on before."""


NO_WAIT = Wait()


@dataclass(frozen=True, slots=True)
class Part:
    """What is left of a batch in one pool."""

    left: int
    """Requests without a result."""
    rate_max: float | None = None
    """Calls a second that its upstream takes at most, where that is known."""


@dataclass(slots=True)
class _Seen:
    """How far a batch was when it was looked at."""

    looks: deque[tuple[int, int]]
    """When, and how many results it had."""
    results: int
    moved_us: int
    """When there was a new result, or it was known to wait for time."""
    pools: deque[tuple[int, dict[str, int]]] = field(default_factory=deque)
    """When, and how many were left by pool."""


class Estimates:
    """Remembers how far batches were when they were looked at."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def of(
        self,
        batch: Batch,
        results: int,
        now_us: int,
        *,
        stopped: str | None = None,
        parts: Mapping[str, Part] | None = None,
        wait: Wait = NO_WAIT,
    ) -> Estimate:
        """Return when a batch that has not ended will have.

        Args:
            batch: it.
            results: how many of its requests have a result.
            now_us: the wall time.
            stopped: what of it stands still without a known end, and why.
            parts: what is left of it, by pool, where that is known.
            wait: what is known to be waited for.
        """
        seen, parts = self._look(batch, results, now_us), parts or {}
        if len(parts) > 1 or seen.pools:
            _look_at_pools(seen, parts, now_us)
        if results != seen.results or wait.seconds > 0.0:
            seen.results, seen.moved_us = results, now_us
        since_us, before = seen.looks[0]
        left = batch.requests - results
        if stopped is not None:
            return Estimate(None, f"not while it stands still: {stopped}")
        seconds = (now_us - since_us) / limits.SECOND_US
        gained = results - before
        if not gained or now_us - since_us < _BASIS_US:
            return Estimate(None, f"no basis: {gained:,} results in the last {seconds:.0f} s")
        rate = gained / seconds
        basis = f"{left:,} left, {rate:,.1f} results a second over the last {seconds:.0f} s"
        takes_s = left / rate
        each = [_takes(seen, pool, part, now_us) for pool, part in parts.items()]
        slowest_s, why = max(each, default=(0.0, ""))
        if slowest_s > takes_s:
            takes_s = slowest_s
            basis += why
        quiet_s = (now_us - seen.moved_us) / limits.SECOND_US
        if quiet_s > takes_s:
            takes_s = quiet_s
            basis += f", none in the last {quiet_s:.0f} s"
        if wait.seconds > 0.0:
            takes_s = wait.seconds + takes_s if wait.is_of_all else max(wait.seconds, takes_s)
            basis += f", {'all wait' if wait.is_of_all else 'some wait'} for {wait.seconds:,.0f} s"
        ends_us = now_us + round(takes_s * limits.SECOND_US)
        if ends_us >= batch.expires_us:
            return Estimate(batch.expires_us, f"{basis}: it expires before all is done")
        return Estimate(ends_us, basis)

    def _look(self, batch: Batch, results: int, now_us: int) -> _Seen:
        """Remember how far a batch is; return how far it was in the last minutes."""
        seen = self._seen.get(batch.id)
        if seen is None:
            # A young batch has begun within the window; of an older one nothing is known yet.
            begun = (batch.created_us, 0) if now_us - batch.created_us <= _WINDOW_US else None
            looks = deque([begun] if begun else [])
            seen = self._seen[batch.id] = _Seen(looks, results, now_us)
            if len(self._seen) > _BATCHES_MAX:
                self._seen.popitem(last=False)
        looks = seen.looks
        if not looks or now_us - looks[-1][0] >= _APART_US:
            looks.append((now_us, results))
        while len(looks) > 1 and now_us - looks[0][0] > _WINDOW_US:
            looks.popleft()
        return seen


def _look_at_pools(seen: _Seen, parts: Mapping[str, Part], now_us: int) -> None:
    """Remember how much is left in the pools of a batch that has several."""
    looks = seen.pools
    if not looks or now_us - looks[-1][0] >= _POOLS_APART_US:
        most = heapq.nlargest(_POOLS_MAX, parts, key=lambda pool: parts[pool].left)
        looks.append((now_us, {pool: parts[pool].left for pool in most}))
    while len(looks) > 1 and now_us - looks[0][0] > _WINDOW_US:
        looks.popleft()


def _takes(seen: _Seen, pool: str, part: Part, now_us: int) -> tuple[float, str]:
    """Return the seconds that a pool needs at least for what is left, and why; 0.0 if unknown."""
    rate, why = part.rate_max or 0.0, "at most "
    if seen.pools:
        since_us, before = seen.pools[0]
        gained = before.get(pool, 0) - part.left
        seconds = (now_us - since_us) / limits.SECOND_US
        if gained > 0 and now_us - since_us >= _BASIS_US and not 0.0 < rate <= gained / seconds:
            rate, why = gained / seconds, ""
    if not rate:
        return 0.0, ""
    return part.left / rate, f", {part.left:,} of them in {pool}, {why}{rate:,.1f} a second"
