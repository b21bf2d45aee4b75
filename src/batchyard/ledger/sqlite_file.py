"""The file of the SQLite ledger: whose it is, of which version, and how it is opened."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from typing import TYPE_CHECKING

from batchyard import crash, limits
from batchyard.disk import has_room, no_room, sync_names, with_room
from batchyard.errors import BatchyardError, ConfigError, StoreError
from batchyard.ledger.dialect import sqlite_schema, sqlite_statement, statements

if TYPE_CHECKING:
    from collections.abc import Callable
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

# In the index of a log: how many frames were copied to the file, and the lock of who copies.
# Source: "WAL-Index File Format", https://sqlite.org/walformat.html.
_COPIED_AT = 96
_CHECKPOINTING_AT = 121

# What SQLite says of bytes that are no database of its; anything else may be the disk's fault.
_NO_LEDGER = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})

_PRAGMAS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA wal_autocheckpoint = 0",  # `sqlite_log` does them
    "PRAGMA journal_size_limit = 16777216",
    "PRAGMA busy_timeout = 5000",
)


SQL = {name: sqlite_statement(text) for name, text in statements().items()}
"""Every statement, by name."""


def connect(
    path: Path,
    *,
    read_only: bool,
    joins: bool = False,
    make_room: Callable[[], bool] = no_room,
) -> sqlite3.Connection:
    """Open a ledger; a writer creates or migrates it, and takes back all work.

    Args:
        path: of the file.
        read_only: whether nothing will be written.
        joins: whether another process of the same yard has opened it and works on it.
        make_room: as `note_failure` has it.

    Raises:
        ConfigError: the file is not a ledger, or of a version that this program does not know; or
            writing to it has failed, and another program is at work on it.
        StoreError, OSError, sqlite3.Error: it cannot be read or written.
    """
    if read_only:
        db = sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True, isolation_level=None)
        db.execute("PRAGMA query_only = ON")
        db.execute("PRAGMA busy_timeout = 5000")
        # From the first read on the file counts as in use: a writer that closes folds no log then.
        db.execute("PRAGMA user_version").fetchone()
    else:
        if not joins and failure_of(path).exists():
            _count_none_as_copied(path)
        db = _connected(path, joins=joins)
        try:
            _prepare(db, path, joins=joins)
        except (sqlite3.Error, StoreError, OSError) as error:
            # A sync may have failed. The last connection that closes would sync again, and remove
            # the log, which is left to the next start.
            if not joins and _is_in_doubt(error, path):
                note_failure(path, f"opening the ledger failed: {error}", make_room)
            _leave(db, path)
            raise
    db.row_factory = sqlite3.Row
    return db


def _prepare(db: sqlite3.Connection, path: Path, *, joins: bool) -> None:
    """Set a connection up to write; the first of a yard brings the file up to date."""
    # Fetched, for what its commit has met is raised behind the row that it answers with.
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"cannot open the ledger {path}: its journal mode stays {mode!r}")
    for pragma in _PRAGMAS:
        db.execute(pragma)
    if not joins:
        db.execute("PRAGMA user_version").fetchone()  # the first read makes the log
        sync_names(path.resolve().parent)  # SQLite does, and ignores when it fails
        if failure_of(path).exists():
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


def _is_in_doubt(error: Exception, path: Path) -> bool:
    """Whether a sync may have failed while a ledger was opened."""
    if isinstance(error, OSError):
        return True
    is_io = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
    return is_io and not found_no_room(error, path)


def _leave(db: sqlite3.Connection, path: Path) -> None:
    """Close a connection and leave the log as it is: the last to close is one that cannot write."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(connect(path, read_only=True)):
        db.close()
    db.close()


def _connected(path: Path, *, joins: bool) -> sqlite3.Connection:
    """Connect to a ledger, or to an empty file whose name is durable.

    What has no schema is left from a first start that was cut short: nothing is stored in it, but a
    sync of it may have failed, so it is made anew.
    """
    db = sqlite3.connect(path, isolation_level=None)
    try:
        version = _check_identity(db, path)
    except BatchyardError:
        _leave(db, path)
        raise
    if version or joins:
        return db
    db.close()
    real = path.resolve()
    for suffix in ("", "-journal", "-wal", "-shm"):
        real.with_name(real.name + suffix).unlink(missing_ok=True)
    real.touch(mode=0o600)
    sync_names(real.parent)
    return sqlite3.connect(path, isolation_level=None)


def _count_none_as_copied(path: Path) -> None:
    """Let the next checkpoint copy the whole log.

    While another program has the ledger open, be it idle, the index of the log lives on, which
    tells how much of that was copied to the file; but no sync may have followed, or one that
    failed. Done before anything is connected: to close a file lets go of all locks of its process.

    Raises:
        ConfigError: another program is at a checkpoint.
        OSError: it cannot be written.
    """
    real = path.resolve()
    index = real.with_name(real.name + "-shm")
    with contextlib.suppress(FileNotFoundError), index.open("r+b", buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _CHECKPOINTING_AT)
        except (BlockingIOError, PermissionError):  # which of them depends on the system
            raise ConfigError(
                f"another program holds the ledger {path}: close it, then start again"
            ) from None
        os.pwrite(file.fileno(), bytes(4), _COPIED_AT)


def _fold(db: sqlite3.Connection, path: Path) -> None:
    """Write all that the log holds to the file, durably, and begin the log anew.

    A sync of the log may have failed: what can be read of it may be on no disk, and no later sync
    would say so. What is appended behind such a gap is lost with it. It is written again first, or
    a power cut might leave half a copy and half a log.

    Raises:
        StoreError: another program holds the file.
        sqlite3.Error, OSError: it cannot be read or written.
    """
    real = path.resolve()
    with real.with_name(real.name + "-wal").open("r+b", buffering=0) as log:
        while piece := log.read(limits.MIB):
            log.seek(-len(piece), os.SEEK_CUR)
            log.write(piece)
        crash.point("fold_written")
        os.fsync(log.fileno())
    crash.point("fold_synced")
    is_held, *_ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if is_held:
        raise StoreError(f"cannot clear the log of {path}: another program holds the file")
    crash.point("folded")


def found_no_room(error: BaseException, path: Path) -> bool:
    """Whether a write has failed for want of room, and nothing was changed. Blocks.

    SQLite tells that of a full disk alone. A quota, or a limit on the size of files, is a failed
    write to it like any other, which it takes back as it does that on a full disk; so it is tried
    whether anything else could be written. A sync that fails has an error of its own, and whatever
    its reason is no want of room.

    Args:
        error: of a transaction, a checkpoint or an opening.
        path: of the ledger.
    """
    code = getattr(error, "sqlite_errorcode", 0)
    return code == sqlite3.SQLITE_FULL or (
        code == sqlite3.SQLITE_IOERR_WRITE and not _may_grow(path)
    )


def found_no_room_to_open(error: BaseException, path: Path) -> bool:
    """Whether a ledger may be opened once more when there is room. Blocks.

    Here that the index of the log finds no room is no harm either: it is built anew by the next
    try, which is to the log what a start after a kill is.
    """
    cause = error.__cause__ if isinstance(error, StoreError) and error.__cause__ else error
    code = getattr(cause, "sqlite_errorcode", 0)
    is_index = code == sqlite3.SQLITE_IOERR_SHMSIZE
    return found_no_room(cause, path) or (is_index and not _may_grow(path))


def _may_grow(path: Path) -> bool:
    """Whether a file and its log may."""
    real = path.resolve()
    lengths = [0]
    for name in (real.name, f"{real.name}-wal"):
        with contextlib.suppress(OSError):
            lengths.append(real.with_name(name).stat().st_size)
    return has_room(real.parent, max(lengths))


def failure_of(path: Path) -> Path:
    """Return where it is noted that writing to a ledger has failed, for the next start."""
    return path.with_suffix(".failed")


def note_failure(path: Path, why: str, make_room: Callable[[], bool] = no_room) -> None:
    """Note beside a ledger that writing to it has failed, if so much can still be written. Blocks.

    Whoever worked then ends for that, and not for its shards. The ledger cannot be told any more:
    nothing is written to it after a failure. What a crash of the machine takes of the note is none
    of its business, so it is not synced.

    Args:
        path: of the ledger.
        why: for people. The note counts without it, too.
        make_room: asked when the note finds the disk full; whether it is worth another try.
    """
    with contextlib.suppress(OSError):
        descriptor = with_room(lambda: _open_note(path), make_room)
        try:
            os.write(descriptor, f"{why}\n".encode())
        finally:
            os.close(descriptor)


def _open_note(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    return os.open(failure_of(path), flags, 0o600)


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


def _check_identity(db: sqlite3.Connection, path: Path) -> int:
    """Refuse a file that is not ours before anything is written to it; return its version.

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
        return int(version)
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
    return 0
