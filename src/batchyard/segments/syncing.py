"""The syncs of a directory of segments. After one that failed, none is believed any more.

What the kernel could not write it may drop and call clean: the next sync of the same file or
directory then returns as if nothing had happened, in any process, until the machine is started
again. So a failure ends the process that meets it, and until it has ended no sync of it succeeds:
one of a directory stands for the names of others too. Results that are on no disk can still be
read, so a mark is left in their batch for the next start: what lies there and was never committed
is copied, not synced. The mark needs no sync: what takes it takes the bytes that it warns of. Nor
does another process that works on the batch believe its syncs when the mark has changed since; only
the moment between a failure and its mark is left open.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from batchyard.disk import no_room, opened, with_room
from batchyard.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MARK = "sync-failed"
"""The name of the mark, in the directory of a batch, which goes with it."""


class Syncs:
    """All syncs of one store in this process. Threads share it."""

    def __init__(self, make_room: Callable[[], bool] = no_room) -> None:
        """Begin to believe syncs.

        Args:
            make_room: asked when a mark finds the disk full; whether it is worth another try.
        """
        self._make_room = make_room
        self._has_failed = False

    def file(self, descriptor: int, what: str) -> None:
        """Sync the bytes of a file.

        Args:
            descriptor: of the file.
            what: it is, for people.

        Raises:
            StoreError: whatever the reason, a full disk included: what is on it is unknown.
        """
        self._run(os.fdatasync, descriptor, what)

    def directory(self, path: Path, what: str) -> None:
        """Sync the names in a directory.

        Raises:
            FileNotFoundError: it is not there.
            StoreError: as `file`.
        """
        try:
            with opened(path) as descriptor:
                self._run(os.fsync, descriptor, what)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"cannot sync {what}: {error}") from error

    def mark(self, results: Path) -> None:
        """Mark a batch: a sync of its results has failed; see `mark`."""
        mark(results, self._make_room)

    def _run(self, sync: Callable[[int], None], descriptor: int, what: str) -> None:
        self._check(what)
        try:
            sync(descriptor)
        except OSError as error:
            self._has_failed = True
            raise StoreError(f"cannot sync {what}: {error}") from error
        self._check(what)  # another thread may have met what this one was not told

    def _check(self, what: str) -> None:
        if self._has_failed:
            raise StoreError(f"cannot sync {what}: another sync has failed")


def mark(results: Path, make_room: Callable[[], bool] = no_room) -> None:
    """Mark a batch: a sync of its results has failed. Does nothing where that cannot be written.

    Args:
        results: the directory of its result segments.
        make_room: as `Syncs` has it.
    """
    with contextlib.suppress(OSError):
        with_room(lambda: make_mark(results), make_room)
        path = results.with_name(MARK)
        os.truncate(path, path.stat().st_size + 1)  # takes no room


def make_mark(results: Path) -> None:
    """Mark a batch, unless it is marked.

    Raises:
        OSError: it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    os.close(os.open(results.with_name(MARK), flags, 0o600))


def last_mark(results: Path) -> int | None:
    """Return the mark of a batch, which is another after each failure; None where there is none.

    Raises:
        OSError: it cannot be told.
    """
    try:
        return results.with_name(MARK).stat().st_size
    except FileNotFoundError:
        return None
