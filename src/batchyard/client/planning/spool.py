"""Bytes that are kept until they are wanted again: in memory while they are few, else on disk.

A plan holds the exact request of every document before anything may be written to the output
folder. The file has no name: it goes when the plan goes, however the process ends.
"""

from __future__ import annotations

import tempfile
import threading
import weakref
from dataclasses import dataclass, field

from batchyard import limits

MEMORY_BYTES_MAX = 64 * limits.MIB


class Spool:
    """Appended to, and read at random, by any thread."""

    def __init__(self, memory_bytes_max: int | None = None) -> None:
        if memory_bytes_max is None:
            memory_bytes_max = MEMORY_BYTES_MAX
        # Closed by the finalizer, when nobody can read any more.
        self._file = tempfile.SpooledTemporaryFile(memory_bytes_max)  # noqa: SIM115
        self._lock = threading.Lock()
        self._size = 0
        self._is_at_end = True  # a seek empties the buffer of the file, so only where one is due
        weakref.finalize(self, self._file.close)

    def add(self, data: bytes) -> Spooled:
        """Keep `data`."""
        with self._lock:
            if not self._is_at_end:
                self._file.seek(self._size)
                self._is_at_end = True
            self._file.write(data)
            kept = Spooled(self, self._size, len(data))
            self._size += len(data)
            return kept

    def read(self, offset: int, size: int) -> bytes:
        """Return what was kept there."""
        with self._lock:
            self._is_at_end = False
            self._file.seek(offset)
            return self._file.read(size)


@dataclass(frozen=True, slots=True, eq=False)
class Spooled:
    """Bytes in a spool: `bytes(it)` and `len(it)`."""

    _spool: Spool = field(repr=False)
    _offset: int
    _size: int

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self._spool.read(self._offset, self._size)
