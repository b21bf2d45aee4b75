"""A pool whose upstream refuses calls (401, 402, 403): whether that is for the requests' sake.

What is refused to one request, as a feature that the account does not have, need not be refused to
all. Nobody can tell by one reply, so a first refusal pauses the pool: one call tries after each
pause. Each time that calls are taken which were sent later than refused ones, twice as many
refusals in a row are borne before the next pause; and half as many each time that the one which
tries is refused. So a wrong key costs few calls, and many requests that are refused for their own
sake hold up nobody for long. Pure: times are monotonic seconds, calls are known by their numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard import limits

if TYPE_CHECKING:
    from batchyard.dispatch.aside import Refused
    from batchyard.dispatch.shard import Request

_BORNE_MAX = 1_024  # refusals in a row without a pause


class Pausing:
    """Whether and until when a pool is paused."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why; None while it is not."""
        self.speaks_of_request = False
        """Whether the last refusal may be for what was asked for, by its kind."""
        self.until_s = 0.0
        """When the next call tries."""
        self.trying: Request | None = None
        """The request that may be sent although it is paused."""
        self.newest_taken = -1
        """The number of the newest call that the upstream took."""
        self.refusals = 0
        """In a row: since a call was taken that was sent after the first of them."""
        self._first = -1
        self._doubtful = -1
        """The newest refused call of a request that may have met what all would meet."""
        self._borne = 1

    def is_own(self, number: int, refused: Refused, *, speaks_of_request: bool) -> bool:
        """Whether a refusal counts as a try of its request: the upstream takes others.

        A key that is wrong must cost no request, also where a part of the upstream takes it for
        some time longer. So others have to be taken between any two tries that count. Only where
        a refusal is of what was asked for, and nobody else is refused, once is enough: the request
        may be the last one.

        Args:
            number: of the call.
            refused: the request, this time included.
            speaks_of_request: whether it may be for what was asked for, by its kind.
        """
        if self.newest_taken <= refused.first:
            self._doubtful = max(self._doubtful, number)
        if self.newest_taken > refused.since:
            return True
        is_doubtful = self._doubtful > self.newest_taken
        return speaks_of_request and self.newest_taken > refused.first and not is_doubtful

    def is_borne(self, number: int) -> bool:
        """Note a refusal that may be meant for all; return whether calls go on all the same."""
        if not self.refusals:
            self._first = number
        self.refusals += 1
        return self.reason is None and self.refusals < self._borne

    def begin(
        self,
        reason: str,
        until_s: float,
        refused: Request | None = None,
        *,
        speaks_of_request: bool = False,
    ) -> None:
        """Pause, or go on to.

        Args:
            reason: for people.
            until_s: when the next call tries.
            refused: the request that the upstream would not take.
            speaks_of_request: whether that may be for what was asked for, by its kind.
        """
        self.speaks_of_request = speaks_of_request
        if refused is not None and refused is self.trying:
            self._borne = max(1, self._borne // 2)
        self.reason, self.until_s, self.trying = reason, until_s, None
        self.refusals = max(1, self.refusals)

    def taken(self, number: int) -> None:
        """Note that the upstream took a call, where some were refused: a pause is over.

        Args:
            number: of the call; -1 where it does not tell that calls are not refused as such.
        """
        if number > self._first:
            self._borne = min(_BORNE_MAX, 2 * self._borne)
            self.refusals = 0
        self.reason, self.until_s, self.trying = None, 0.0, None

    def may_try(self, now_s: float) -> bool:
        """Whether one call may try, of a pool that is paused."""
        return now_s >= self.until_s

    def tries(self, request: Request, now_s: float) -> None:
        """Note who tries; if that takes its time, another one will."""
        self.trying, self.until_s = request, now_s + limits.UPSTREAM_PAUSE_S
