"""How much room the disk has, and what is kept back so that the last steps always have some.

Below the reserve no new batch is accepted, while recording, reading, canceling and deleting go on;
what uploads under way will still write counts as written. A ballast file is given up when even the
ledger finds the disk full: a delete writes before it frees.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.disk import has_room
from batchyard.errors import Overloaded

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

log = logging.getLogger(__name__)

COPIES = 3
"""Of a body that becomes a batch: spooled, drafted, and written again if in another order."""
_START_BYTES = limits.MIB


def give_up_ballast(data: Path) -> bool:
    """Make room for a few last writes; False when there is no ballast left.

    Args:
        data: the directory that it is in.
    """
    ballast = _ballast(data)
    try:
        size = ballast.stat().st_size
        ballast.unlink()
    except OSError:
        return False
    log.warning("the disk is full: gave up the ballast of %d bytes", size)
    return True


def _ballast(data: Path) -> Path:
    return data / "ballast"


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
        self._expected = 0  # bytes that uploads under way have not written yet
        self._ballast = _ballast(data)
        # Larger than what the ledger's log may take before it is folded back.
        self._ballast_bytes = min(limits.BALLAST_BYTES, reserve_bytes // 4)
        self._has_told = False  # that no ballast can be had, as long as none can

    def free_bytes(self) -> int:
        """Return the bytes that may still be written, the ballast not among them."""
        found = os.statvfs(self._data)
        return found.f_bavail * found.f_frsize

    def room(self, announced: int, *, copies: int = COPIES, is_new: bool = True) -> Room:
        """Return the room for a body that begins to arrive.

        Args:
            announced: its bytes; 0 when they are not known.
            copies: of it that will be on the disk.
            is_new: whether it becomes a batch. What may be the repeat of a create, or is only
                looked at, gives back what it takes: it may use half of the reserve.
        """
        return Room(self, announced, copies, 0 if is_new else self._reserve // 2)

    def expect(self, size: int, spare: int) -> None:
        """Expect `size` more bytes to be written; for them, `spare` of the reserve may be used.

        Raises:
            Overloaded: the disk would have too little left.
        """
        self._check(self.free_bytes() - self._expected - size + spare)
        self._expected += size

    def settle(self, size: int) -> None:
        """Expect less: so much was written, or never will be."""
        self._expected -= size

    def admit(self, *, before_others: bool) -> None:
        """Let a batch in whose body is on the disk already.

        Args:
            before_others: whatever else is expected.

        Raises:
            Overloaded: the disk has less than the reserve left.
        """
        self._check(self.free_bytes() - (0 if before_others else self._expected))

    def _check(self, free: int) -> None:
        if free < self._reserve:
            raise Overloaded(
                "The disk of this server is nearly full: no new batches are accepted until there "
                "is room",
                retry_after_s=limits.DISK_FULL_RETRY_AFTER_S,
            )

    def give_up_ballast(self) -> bool:
        """Make room for a few last writes; False when there is no ballast left."""
        return give_up_ballast(self._data)

    def make_room_to_start(self) -> None:
        """Give the ballast up where next to nothing is free: a start writes before it can delete.

        It takes back work in the ledger, whose log has an index beside it, and writes where the
        yard is to be found. A quota may leave less than the disk has.
        """
        if self.free_bytes() < _START_BYTES or not has_room(self._data):
            self.give_up_ballast()

    def take_ballast(self) -> None:
        """Keep some room back, if there is enough and less is kept yet; all of it, or none."""
        kept = 0
        with contextlib.suppress(OSError):
            kept = self._ballast.lstat().st_size
        missing = self._ballast_bytes - kept
        if missing <= 0 or self.free_bytes() < self._reserve + missing:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._ballast, flags, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._ballast_bytes)
            except OSError:  # such as a quota, which has let it have a part
                self._ballast.unlink()
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            if not self._has_told:
                log.warning("cannot keep room back on the disk: %s", error.strerror)
            self._has_told = True
        else:
            self._has_told = False


class Room:
    """What one body takes of a disk: a context, at whose end nothing more is expected of it."""

    def __init__(self, disk: Disk, announced: int, copies: int, spare: int) -> None:
        """See `Disk.room`."""
        self._disk = disk
        self._announced = announced
        self._copies = copies
        self._spare = spare
        self._arrived = 0
        self._expected = 0

    def __enter__(self) -> Self:
        """Take in what was announced.

        Raises:
            Overloaded: there is no room for it.
        """
        self._expect(self._announced)
        return self

    def __exit__(self, *_: object) -> None:
        self._disk.settle(self._expected)
        self._expected = 0

    def arrive(self, size: int) -> None:
        """Take in bytes that came.

        Raises:
            Overloaded: they are more than was announced, and there is no room for them.
        """
        known = max(self._arrived, self._announced)
        self._arrived += size
        if self._arrived > known:
            self._expect(self._arrived - known)

    def wrote(self, size: int) -> None:
        """Note that bytes of the body were written: spooled, and drafted where they are to be."""
        written = min(self._expected, size * min(self._copies, 2))
        self._expected -= written
        self._disk.settle(written)

    def admit(self) -> None:
        """Let the body, which is whole, become a batch.

        Raises:
            Overloaded: the disk has less than the reserve left.
        """
        # What was taken in as a batch comes before what was taken in after it.
        self._disk.admit(before_others=not self._spare)

    def _expect(self, size: int) -> None:
        self._disk.expect(size * self._copies, self._spare)
        self._expected += size * self._copies
