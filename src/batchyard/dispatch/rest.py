"""When the next step upward is due: rests grow while steps fail, shrink while they succeed. Pure.

The window of a pool takes such steps, to find out whether a limit has moved.
"""

from __future__ import annotations

_REST_S = 2.0  # before a step, at first and at least
_REST_MAX_S = 16.0


class Rest:
    """The rest before the next step of one kind."""

    __slots__ = ("due_s", "seconds")

    def __init__(self) -> None:
        self.seconds = _REST_S
        self.due_s = float("-inf")
        """When the next step may be taken."""

    def begin(self, now_s: float) -> None:
        """Rest from now on."""
        self.due_s = now_s + self.seconds

    def at_least(self, seconds: float, now_s: float) -> None:
        """Rest for so long from now on, if not longer already."""
        self.due_s = max(self.due_s, now_s + seconds)

    def has_failed(self) -> None:
        """Make the rests longer: a step went too far."""
        self.seconds = min(self.seconds * 2.0, _REST_MAX_S)

    def has_succeeded(self) -> None:
        """Make the rests shorter: a step was accepted."""
        self.seconds = max(_REST_S, self.seconds / 2.0)

    def reset(self) -> None:
        """Make the rests as short as at first."""
        self.seconds = _REST_S
