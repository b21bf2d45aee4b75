"""What is under way: so that a test, or the emulator, can tell when all is quiet."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator


class Activity:
    """Counts pieces of work that no passing of time is needed for."""

    def __init__(self) -> None:
        self._pieces = 0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is under way."""
        return not self._pieces

    @contextmanager
    def piece(self) -> Generator[None]:
        """Mark one piece of work."""
        self._pieces += 1
        try:
            yield
        finally:
            self._pieces -= 1
