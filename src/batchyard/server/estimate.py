"""When a batch will have ended: from the results it got in the last minutes, and honestly.

Pure but for its memory of what was seen: the times are passed in. There is no estimate without a
basis, and none is earlier than what is known of limits allows.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard import limits

if TYPE_CHECKING:
    from batchyard.model import Batch

_WINDOW_US = 300 * limits.SECOND_US
_APART_US = limits.SECOND_US
_BASIS_US = 3 * limits.SECOND_US
_BATCHES_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """The end, or why nothing can be said of it."""

    ends_us: int | None
    basis: str


class Estimates:
    """Remembers how far batches were when they were looked at."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, deque[tuple[int, int]]] = OrderedDict()

    def of(
        self,
        batch: Batch,
        results: int,
        now_us: int,
        *,
        stopped: str | None = None,
        rate_max: float | None = None,
    ) -> Estimate:
        """Return when a batch that has not ended will have.

        Args:
            batch: it.
            results: how many of its requests have a result.
            now_us: the wall time.
            stopped: why nothing moves at all, if so.
            rate_max: calls a second that its upstreams take at most, where that is known.
        """
        since_us, before = self._look(batch, results, now_us)
        left = batch.requests - results
        if stopped is not None:
            return Estimate(None, f"nothing moves: {stopped}")
        seconds = (now_us - since_us) / limits.SECOND_US
        gained = results - before
        if not gained or now_us - since_us < _BASIS_US:
            return Estimate(None, f"no basis: {gained:,} results in the last {seconds:.0f} s")
        rate = gained / seconds
        basis = f"{left:,} left, {rate:,.1f} results a second over the last {seconds:.0f} s"
        if rate_max is not None and rate > rate_max:
            rate = rate_max
            basis += f", at most {rate_max:,.1f} a second from now on"
        ends_us = now_us + round(left / rate * limits.SECOND_US)
        if ends_us >= batch.expires_us:
            return Estimate(batch.expires_us, f"{basis}: it expires before all is done")
        return Estimate(ends_us, basis)

    def _look(self, batch: Batch, results: int, now_us: int) -> tuple[int, int]:
        """Remember how far a batch is; return when and how far it was, minutes ago."""
        seen = self._seen.get(batch.id)
        if seen is None:
            # A young batch has begun within the window; of an older one nothing is known yet.
            begun = (batch.created_us, 0) if now_us - batch.created_us <= _WINDOW_US else None
            seen = self._seen[batch.id] = deque([begun] if begun else [])
            if len(self._seen) > _BATCHES_MAX:
                self._seen.popitem(last=False)
        if not seen or now_us - seen[-1][0] >= _APART_US:
            seen.append((now_us, results))
        while len(seen) > 1 and now_us - seen[0][0] > _WINDOW_US:
            seen.popleft()
        return seen[0]
