"""How many bytes wait for a sync, where that is a call to another machine."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from batchyard import limits

if TYPE_CHECKING:
    from batchyard.errors import StoreError


class Backlog:
    """How many bytes wait for a sync, over all appenders: who appends waits when they are many."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._bytes = 0
        self._failure: StoreError | None = None

    def add(self, size: int) -> None:
        """Let `size` bytes wait, when there is room.

        Raises:
            StoreError: the store has failed, and nothing makes room any more.
        """
        with self._changed:
            while self._bytes > limits.UNWRITTEN_BYTES_MAX and self._failure is None:
                self._changed.wait()
            if self._failure is not None:
                raise self._failure
            self._bytes += size

    def remove(self, size: int) -> None:
        """Count bytes that wait no more."""
        with self._changed:
            self._bytes -= size
            self._changed.notify_all()

    def fail(self, failure: StoreError) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._failure = failure
            self._changed.notify_all()
