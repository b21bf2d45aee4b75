"""A stream of choices that depends on nothing but its seed.

Not `random.Random`: seeding that costs more than a whole answer's choices, and its sequence for
`choice` may change between releases of Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

_MASK = (1 << 64) - 1


class Draw:
    """Deterministic choices. Source: Knuth's MMIX multiplier, of which the high bits are used."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = (seed ^ (seed >> 64)) & _MASK

    def below(self, n: int) -> int:
        """Return an integer from 0 to `n` - 1; `n` is at least 1 and below 2^31 for even odds."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & _MASK
        return (self._state >> 32) % n

    def share(self) -> float:
        """Return a float from 0 up to, but not including, 1."""
        return self.below(1 << 31) / (1 << 31)

    def pick(self, items: Sequence[T]) -> T:
        """Return one of `items`, which must not be empty."""
        return items[self.below(len(items))]
