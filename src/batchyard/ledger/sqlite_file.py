"""The file of the SQLite ledger: whose it is, of which version, and how it is opened."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

from batchyard import crash, limits
from batchyard.errors import ConfigError, StoreError
from batchyard.ledger.dialect import sqlite_schema, sqlite_statement, statements

if TYPE_CHECKING:
    from pathlib import Path

APPLICATION_ID = 0x62796172  # "byar"
SCHEMA_VERSION = 4
# What a file of an older version needs, by that version, in the transaction that opens it.
_MIGRATIONS = {
    1: (
        "ALTER TABLE batches ADD COLUMN user_profile TEXT",
        "ALTER TABLE shards ADD COLUMN crc INTEGER",
        (
            "CREATE TABLE deleted (workspace TEXT NOT NULL, id TEXT NOT NULL,"
            " seq INTEGER NOT NULL, deleted_us INTEGER NOT NULL,"
            " PRIMARY KEY (workspace, id)) STRICT, WITHOUT ROWID"
        ),
        "CREATE INDEX deleted_since ON deleted (deleted_us)",
    ),
    2: (
        "ALTER TABLE batches ADD COLUMN priority INTEGER NOT NULL DEFAULT 1",
        (
            "CREATE INDEX batches_canceling ON batches (id)"
            " WHERE cancel_us IS NOT NULL AND ended_us IS NULL"
        ),
        "ALTER TABLE shards ADD COLUMN priority INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE shards ADD COLUMN head INTEGER NOT NULL DEFAULT 0",
        (
            "UPDATE shards SET head = 1 WHERE (batch, idx) IN"
            " (SELECT batch, min(idx) FROM shards GROUP BY batch, pool)"
        ),
        "DROP INDEX shards_ready",
        (
            "CREATE INDEX shards_ready ON shards (pool, workspace, priority, seq, idx)"
            " WHERE state = 0"
        ),
        (
            "CREATE INDEX shards_fresh ON shards (pool, workspace, priority DESC, seq)"
            " WHERE state = 0 AND head = 1"
        ),
        (
            "CREATE TABLE shares (pool TEXT NOT NULL, owner TEXT NOT NULL,"
            " slots INTEGER NOT NULL, lease_us INTEGER NOT NULL, note TEXT,"
            " PRIMARY KEY (pool, owner)) STRICT, WITHOUT ROWID"
        ),
    ),
    3: (
        "ALTER TABLE shards ADD COLUMN failures INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE shards ADD COLUMN at_risk INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX shards_apart ON shards (pool, failures, seq, idx) WHERE state = -1",
        "ALTER TABLE shares ADD COLUMN told TEXT",
        (
            "CREATE TABLE accounts (batch TEXT NOT NULL, owner TEXT NOT NULL,"
            " told_us INTEGER NOT NULL, told TEXT NOT NULL,"
            " PRIMARY KEY (batch, owner)) STRICT, WITHOUT ROWID"
        ),
        "CREATE INDEX accounts_told ON accounts (told_us)",
    ),
}

# What SQLite says of bytes that are no database of its; anything else may be the disk's fault.
_NO_LEDGER = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA journal_size_limit = 16777216",
    "PRAGMA busy_timeout = 5000",
)


SQL = {name: sqlite_statement(text) for name, text in statements().items()}
"""Every statement, by name."""


def connect(path: Path, *, read_only: bool, joins: bool = False) -> sqlite3.Connection:
    """Open a ledger; a writer creates or migrates it, and takes back all work.

    Args:
        path: of the file.
        read_only: whether nothing will be written.
        joins: whether another process of the same yard has opened it and works on it.

    Raises:
        ConfigError: the file is not a ledger, or of a version that this program does not know.
        StoreError, sqlite3.Error: it cannot be read or written.
    """
    if read_only:
        db = sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True, isolation_level=None)
        db.execute("PRAGMA query_only = ON")
        db.execute("PRAGMA busy_timeout = 5000")
    else:
        db = sqlite3.connect(path, isolation_level=None)
        _check_identity(db, path)
        for pragma in _PRAGMAS:
            db.execute(pragma)
        if not joins and failure_of(path).exists():
            _fold(db, path)
        with db:
            db.execute("BEGIN IMMEDIATE")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                _create_schema(db)
            elif version < SCHEMA_VERSION:
                _migrate(db, version)
            if not joins:
                if failure_of(path).exists():
                    db.execute(SQL["spare_all"])
                db.execute(SQL["cut_all"])
                db.execute(SQL["take_back_all"], {"apart_from": limits.FAILURES_TO_SET_APART})
                db.execute(SQL["shares_clear"])
        crash.point("opened")
        if not joins:
            with contextlib.suppress(OSError):  # then the next end counts for nothing either
                failure_of(path).unlink(missing_ok=True)
    db.row_factory = sqlite3.Row
    return db


def _fold(db: sqlite3.Connection, path: Path) -> None:
    """Write all that the log holds to the file, durably, and begin the log anew.

    A sync of the log may have failed: what can be read of it may be on no disk, and no later sync
    would say so. What is appended behind such a gap is lost with it.

    Raises:
        StoreError: another program holds the file.
    """
    is_held, *_ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if is_held:
        raise StoreError(f"cannot clear the log of {path}: another program holds the file")


def failure_of(path: Path) -> Path:
    """Return where it is noted that writing to a ledger has failed, for the next start."""
    return path.with_suffix(".failed")


def note_failure(path: Path, why: str) -> None:
    """Note beside a ledger that writing to it has failed, if so much can still be written. Blocks.

    Whoever worked then ends for that, and not for its shards. The ledger cannot be told any more:
    nothing is written to it after a failure. What a crash of the machine takes of the note is none
    of its business, so it is not synced.

    Args:
        path: of the ledger.
        why: for people.
    """
    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(failure_of(path), flags, 0o600)
        try:
            os.write(descriptor, f"{why}\n".encode())
        finally:
            os.close(descriptor)


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _create_schema(db: sqlite3.Connection) -> None:
    for statement in sqlite_schema():  # single ones: a script would commit the transaction
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _migrate(db: sqlite3.Connection, version: int) -> None:
    for step in range(version, SCHEMA_VERSION):
        for statement in _MIGRATIONS[step]:
            crash.point("migrating")
            db.execute(statement)
    crash.point("migrating")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    crash.point("migrating")


def _check_identity(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that is not ours before anything is written to it.

    Raises:
        ConfigError: not a ledger, or of another version.
    """
    try:
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        pages = db.execute("PRAGMA page_count").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NO_LEDGER:
            raise ConfigError(f"{path} is not a ledger: {error}") from None
        raise StoreError(f"cannot read the ledger {path}: {error}") from error
    if application == APPLICATION_ID and 1 <= version <= SCHEMA_VERSION:
        return
    if application == APPLICATION_ID:
        raise ConfigError(
            f"{path} has schema version {version}; this program knows versions 1 to "
            f"{SCHEMA_VERSION}"
        )
    if not pages and path.stat().st_size:
        # SQLite takes any file shorter than a page for an empty database.
        raise ConfigError(f"{path} is not a ledger: file is not a database")
    if application or version or tables:
        raise ConfigError(f"{path} is a database of another program, not a ledger")
