"""The log of the SQLite ledger: how long it is, and its checkpoints, which are ours.

SQLite's automatic ones do not tell of a sync that has failed. While somebody reads, they copy pages
to the file without a sync; when the sync that should have covered these fails, only what is newer
is copied again, and the log begins anew: then they are nowhere.

Source of the layout: "WAL-mode File Format", https://sqlite.org/walformat.html.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from typing import TYPE_CHECKING

from batchyard.ledger.sqlite_file import found_no_room

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

# A checkpoint is due at so many pages, as with SQLite's automatic ones. One that readers do not let
# finish is tried again after so many more, not at each commit.
_PAGES = 1_000
# From here on (64 MB) it waits for the readers, at most for `PRAGMA busy_timeout` with each of
# them, and then not again for so many pages: reads that overlap each other would never let go.
_PAGES_TO_WAIT = 16 * _PAGES

_PASSING = "PRAGMA wal_checkpoint(PASSIVE)"
_WAITING = "PRAGMA wal_checkpoint(RESTART)"

_HEAD_BYTES = 32
_FRAME_HEAD_BYTES = 24
_SALTS_AT = 8
_SALTS_BYTES = 8


class Log:
    """The log of a ledger that this process writes to."""

    def __init__(self, path: Path) -> None:
        """Open it; it is there as long as a connection is.

        Args:
            path: of the ledger.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        # SQLite locks no byte of this file, so that closing it lets go of no lock.
        self._descriptor = os.open(f"{path.resolve()}-wal", os.O_RDONLY | os.O_CLOEXEC)
        self._salts = b""
        """What all frames bear since the log was last begun anew."""
        self._due = _PAGES

    def is_long(self) -> bool:
        """Whether a checkpoint is due.

        Raises:
            OSError: it cannot be read.
        """
        head = os.pread(self._descriptor, _HEAD_BYTES, 0)
        if len(head) < _HEAD_BYTES:
            return False
        page_bytes, salts = int.from_bytes(head[8:12], "big"), head[16:24]
        if salts != self._salts:
            self._salts, self._due = salts, _PAGES
        at = _HEAD_BYTES + (self._due - 1) * (_FRAME_HEAD_BYTES + page_bytes) + _SALTS_AT
        return os.pread(self._descriptor, _SALTS_BYTES, at) == salts

    def checkpoint(self, db: sqlite3.Connection) -> None:
        """Copy to the file what no read needs in the log.

        A disk without room changes nothing: what was committed stays in the log.

        Raises:
            sqlite3.Error: what is on the disk is unknown.
        """
        waits = self._due >= _PAGES_TO_WAIT
        pragma, step = (_WAITING, _PAGES_TO_WAIT) if waits else (_PASSING, _PAGES)
        try:
            _, pages, _ = db.execute(pragma).fetchone()
        except sqlite3.Error as error:
            # Of a write: a sync that fails, for want of room too, is an I/O error.
            if not found_no_room(error, self._path):
                raise
            log.warning("the ledger's log grows: %s", error)
            pages = self._due
        # Where the log is begun anew this does not matter; `pages` is -1 for another program's.
        self._due = max(self._due, pages) + step

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)
