"""Take a batch out of a yard whose requests are lost, so that nothing waits for it any more.

Its results cannot be completed truthfully: it is not known whose are missing. So the batch goes,
and every file of it is kept aside, with whatever results there were. The only part here that
writes, and only when it is asked to.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

from batchyard import segments
from batchyard.disk import sync_names
from batchyard.errors import ConfigError, StoreError
from batchyard.ledger.sqlite_file import APPLICATION_ID, SCHEMA_VERSION, failure_of, note_failure
from batchyard.verify import reading
from batchyard.verify.files import GIVEN_UP, SEGMENTS
from batchyard.verify.ledger import FILE
from batchyard.verify.rows import is_batch_id
from batchyard.verify.run import check

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.verify.findings import Finding

_OPEN = (
    "SELECT cancel_us IS NOT NULL OR expires_us <= ? FROM batches WHERE id = ? AND ended_us IS NULL"
)
_FORGET = (
    "DELETE FROM shards WHERE batch = ?",
    "DELETE FROM creates WHERE batch = ?",
    "DELETE FROM batches WHERE id = ?",
)


def give_up(data: Path, batch_id: str, now_us: int) -> Path:
    """Take a batch out; safe to repeat when it was cut short. Blocks.

    Args:
        data: the directory of a yard that does not run.
        batch_id: of a batch that was canceled or has expired, and whose requests are lost.
        now_us: microseconds since 1970, UTC.

    Returns:
        Where its files are now.

    Raises:
        DataDirectoryInUse: a yard works on it.
        ConfigError: the batch may not be given up, or the directory cannot be used.
    """
    if not is_batch_id(batch_id):
        raise ConfigError("a batch is given up by its id, msgbatch_…")
    lost = check(data, _nobody).lost
    with reading.held(data, alone=True), contextlib.closing(_connect(data)) as db:
        try:
            row = db.execute(_OPEN, (now_us, batch_id)).fetchone()
        except sqlite3.Error as error:
            raise ConfigError(f"cannot read the ledger: {error}") from None
        if row is None:
            raise ConfigError(f"there is no open batch {batch_id}")
        if batch_id not in lost:
            raise ConfigError(f"the requests of {batch_id} are there: it will end by itself")
        if not row[0]:
            raise ConfigError(
                f"{batch_id} may still be repaired: cancel it first, or let it expire"
            )
        target = data / GIVEN_UP / batch_id
        try:
            _move(data / SEGMENTS / segments.batch_prefix(batch_id), target)
        except OSError as error:
            raise StoreError(f"cannot give up {batch_id}: {error}") from error
        try:
            with db:
                db.execute("BEGIN IMMEDIATE")
                for statement in _FORGET:
                    db.execute(statement, (batch_id,))
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _HARMLESS:
                note_failure(data / FILE, f"giving up a batch failed: {error}")
            raise StoreError(f"cannot give up {batch_id}: {error}") from error
    return target


# After these nothing is in doubt: nothing was written.
_HARMLESS = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL}


def _nobody(_: Finding) -> None:
    """Who gives up a batch knows what is wrong with it."""


def _connect(data: Path) -> sqlite3.Connection:
    path = data / FILE
    if not path.is_file():
        raise ConfigError(f"there is no ledger in {data}")
    if failure_of(path).exists():  # behind what may be on no disk nothing is written
        raise ConfigError(f"writing to {path} has failed: start a yard on it once")
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous = FULL")
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if (application, version) != (APPLICATION_ID, SCHEMA_VERSION):
        db.close()
        raise ConfigError(f"{path} is of another version: start a yard on it once")
    return db


def _move(source: Path, target: Path) -> None:
    """Move a directory below `data`, durably; nothing to do when that has happened before."""
    target.parent.mkdir(mode=0o700, exist_ok=True)
    if source.exists():
        source.rename(target)
    else:
        target.mkdir(mode=0o700, exist_ok=True)
    for directory in (target.parent, target.parent.parent, source.parent):
        if directory.exists():
            sync_names(directory)
