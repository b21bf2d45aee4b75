"""How many calls a workspace may make: a token bucket, refilled all the time.

Source: the API's rate-limits page; its numbers count HTTP calls to all batch endpoints together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard import limits

if TYPE_CHECKING:
    from batchyard.clock import Clock

_WORKSPACES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left to a workspace after a call."""

    limit: int
    remaining: int
    full_again_us: int
    """When the bucket is full, microseconds since 1970."""
    retry_after_s: int | None
    """None when the call is within the limit; else when the next one will be."""


class Rates:
    """The buckets of all workspaces."""

    def __init__(self, clock: Clock, per_minute: int) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._full_at_s: dict[str, float] = {}

    def take(self, workspace: str) -> Standing:
        """Count one call of `workspace`."""
        # A bucket is one number: the moment at which it would be full again.
        now = self._clock.monotonic_s()
        call_s = 60 / self._per_minute
        full_at = max(self._full_at_s.get(workspace, now), now)
        missing_s = full_at + call_s - now
        over_s = missing_s - 60
        if over_s <= 1e-9:
            full_at += call_s
            self._remember(workspace, full_at, now)
        left = max(0, math.floor((60 - (full_at - now)) / call_s + 1e-6))
        return Standing(
            limit=self._per_minute,
            remaining=left,
            full_again_us=self._clock.now_us() + round((full_at - now) * limits.SECOND_US),
            retry_after_s=None if over_s <= 1e-9 else max(1, math.ceil(over_s)),
        )

    def _remember(self, workspace: str, full_at_s: float, now_s: float) -> None:
        if len(self._full_at_s) >= _WORKSPACES_MAX:
            self._full_at_s = {w: at for w, at in self._full_at_s.items() if at > now_s}
        self._full_at_s[workspace] = full_at_s
