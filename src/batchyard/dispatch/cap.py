"""The calls that one process may make at once, over all models. Pure counting.

A slot counts while it makes a call, or is about to. One that waits at a gate, or for the time of
its request, does not: others may have its call, and it goes on when there is room for one again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard import limits

if TYPE_CHECKING:
    from collections.abc import Callable


class Cap:
    """How many calls there may be, and are."""

    def __init__(self, most: int = limits.CALLS_MAX) -> None:
        self.most = most
        self.slots = self.calls = 0
        """Slots that are filled, and those of them that do not wait. The latter are more than may
        be for a moment, when some go on for which there is no room: these must wait again."""
        self.on_room: Callable[[], object] = lambda: None
        """Called when a slot begins to wait and leaves room where there was none."""

    @property
    def left(self) -> int:
        """Return how many more calls may start."""
        return self.most - self.calls

    def fill(self) -> None:
        """Note that a slot is filled."""
        self.slots += 1
        self.calls += 1

    def empty(self) -> None:
        """Note that a slot is empty, one that did not wait."""
        self.slots -= 1
        self.calls -= 1

    def rest(self) -> None:
        """Note that a slot begins to wait."""
        self.calls -= 1
        if self.left == 1:
            self.on_room()

    def go_on(self) -> None:
        """Note that a slot waits no more."""
        self.calls += 1
