"""How much room the disk has, and what is kept back so that the last steps always have some.

Below the reserve no new batch is accepted, while recording, reading, canceling and deleting go on.
A ballast file is given up when even the ledger finds the disk full: a delete writes before it
frees.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.errors import Overloaded

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)


class Disk:
    """The disk of a data directory."""

    def __init__(self, data: Path, reserve_bytes: int) -> None:
        """Look at a disk.

        Args:
            data: a directory on it.
            reserve_bytes: that new batches must leave free.
        """
        self._data = data
        self._reserve = reserve_bytes
        self._ballast = data / "ballast"
        # Larger than what the ledger's log may take before it is folded back.
        self._ballast_bytes = min(limits.BALLAST_BYTES, reserve_bytes // 4)

    def free_bytes(self) -> int:
        """Return the bytes that may still be written, the ballast not among them."""
        found = os.statvfs(self._data)
        return found.f_bavail * found.f_frsize

    def admit(self, size: int) -> None:
        """Let a batch of `size` bytes in.

        Raises:
            Overloaded: the disk would have less than the reserve left.
        """
        if self.free_bytes() - size < self._reserve:
            raise Overloaded(
                "The disk of this server is nearly full: no new batches are accepted until there "
                "is room",
                retry_after_s=limits.DISK_FULL_RETRY_AFTER_S,
            )

    def give_up_ballast(self) -> bool:
        """Make room for a few last writes; False when there is no ballast left."""
        try:
            self._ballast.unlink()
        except OSError:
            return False
        log.warning("the disk is full: gave up the ballast of %d bytes", self._ballast_bytes)
        return True

    def take_ballast(self) -> None:
        """Keep some room back, if there is enough and none is kept yet."""
        if self._ballast.exists() or self.free_bytes() < self._reserve + self._ballast_bytes:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(self._ballast, flags, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._ballast_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("cannot keep room back on the disk: %s", error.strerror)
