"""A pool whose upstream refuses us (a wrong key, no credit): who tries again, and when.

One call tries after each pause: the upstream would refuse the others as well. It is one that was
not refused yet, where there is one, and never the last one again before the others: what is refused
to one request, as a feature that the account does not have, need not be refused to all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from batchyard import limits

if TYPE_CHECKING:
    from batchyard.dispatch.shard import Request

_TURN_S = 1.0  # after those who come before


class Pausing:
    """Whether and until when a pool is paused."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why; None while it is not."""
        self.until_s = 0.0
        """Monotonic seconds."""
        self.changed = asyncio.Event()
        """Set when the pause is over before its time."""
        self._refused: Request | None = None
        self._tried_s = float("-inf")

    def begin(self, reason: str, until_s: float, refused: Request | None = None) -> None:
        """Pause, or go on to.

        Args:
            reason: for people.
            until_s: when the next call tries.
            refused: the request that the upstream would not take.
        """
        self.reason, self.until_s, self._refused = reason, until_s, refused
        self._tried_s = float("-inf")
        self.changed.clear()

    def end(self) -> None:
        """End the pause: the upstream has taken a call."""
        self.reason, self.until_s, self._refused = None, 0.0, None
        self.changed.set()

    def wait_s(self, request: Request, now_s: float, *, was_refused: bool) -> float:
        """Return how long a request has to wait; 0.0 when it may be sent, which it is then.

        Args:
            request: it.
            now_s: the time.
            was_refused: whether it was sent before.
        """
        if self.reason is None:
            return 0.0
        due_s = self.until_s + _TURN_S * (was_refused + (request is self._refused))
        # One that takes its time does not keep the others waiting for ever.
        due_s = max(due_s, self._tried_s + limits.UPSTREAM_PAUSE_S)
        if now_s < due_s:
            return due_s - now_s
        self._tried_s = now_s
        return 0.0
