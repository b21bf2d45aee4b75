"""The tables of the PostgreSQL ledger: whose they are, of which version, and how they are made.

Any number of processes may start at the same time, through a pooler too: nothing here lasts longer
than its transaction. All tables are made in one, so that of two processes that make them one fails
whole and finds those of the other; migrations hold the row that says the version.

A program works on tables of its own version, and on newer ones that still are compatible with it:
processes of two neighbouring versions run side by side while one replaces the other. For that, each
step to a version has two parts. What is added for it (`before`) is done by its first process; what
only the version before it needs is taken away (`after`) by the first process of the version after
it. Versions further apart do not run side by side: the older one refuses to start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import errors

from batchyard.errors import ConfigError, StoreError
from batchyard.ledger.dialect import postgres_schema

if TYPE_CHECKING:
    import psycopg

SCHEMA_VERSION = 4
FIRST_VERSION = 3
"""The first version that there was on PostgreSQL."""


class Step(NamedTuple):
    """How tables get to the next version, with processes of the one before still at work."""

    before: tuple[bytes, ...] = ()
    """What is added: columns with defaults, tables, indexes."""
    after: tuple[bytes, ...] = ()
    """What is taken away when no process of the version before is left."""


# By the version that they start from.
_STEPS: dict[int, Step] = {
    3: Step(
        before=(
            b"ALTER TABLE shards ADD COLUMN failures INTEGER NOT NULL DEFAULT 0",
            b"ALTER TABLE shards ADD COLUMN at_risk INTEGER NOT NULL DEFAULT 0",
            b"CREATE INDEX shards_apart ON shards (pool, failures, seq, idx) WHERE state = -1",
            b'ALTER TABLE shares ADD COLUMN told TEXT COLLATE "C"',
            (
                b'CREATE TABLE accounts (batch TEXT COLLATE "C" NOT NULL,'
                b' owner TEXT COLLATE "C" NOT NULL, told_us BIGINT NOT NULL,'
                b' told TEXT COLLATE "C" NOT NULL, PRIMARY KEY (batch, owner))'
            ),
            b"CREATE INDEX accounts_told ON accounts (told_us)",
        ),
    ),
}

_BEGIN = b"BEGIN"
_EXISTS = b"SELECT to_regclass('batchyard_ledger') IS NOT NULL AS is_there"
_VERSION = b"SELECT * FROM batchyard_ledger"
# Whoever holds this migrates; the table itself is changed, so that a row would not be enough.
_LOCK = b"LOCK TABLE batchyard_ledger IN ACCESS EXCLUSIVE MODE"
# Tables of version 3 do not say with what they are compatible.
_ADD_COMPATIBLE = (
    b"ALTER TABLE batchyard_ledger ADD COLUMN IF NOT EXISTS compatible INTEGER NOT NULL DEFAULT 3"
)
_SET_VERSION = b"UPDATE batchyard_ledger SET version = %(version)s, compatible = %(compatible)s"
_CREATE = (
    b"CREATE TABLE batchyard_ledger (one INTEGER PRIMARY KEY CHECK (one = 1),"
    b" version INTEGER NOT NULL, compatible INTEGER NOT NULL)"
)
_INSERT = (
    b"INSERT INTO batchyard_ledger (one, version, compatible) VALUES (1, %(version)s, %(version)s)"
)
# The changes wait for the transactions under way, and all others wait behind them: not for long.
_PATIENCE = b"SET LOCAL lock_timeout = '5s'"
_TRIES = 5


def prepare(db: psycopg.Connection[dict[str, Any]], where: str) -> None:
    """Make or migrate the tables, unless another process has.

    Args:
        db: a connection that begins no transaction by itself.
        where: the address, for messages.

    Raises:
        ConfigError: the tables are of another program, or of a version that is not compatible.
        StoreError: another transaction holds the tables, and does not let go of them.
        psycopg.Error: the database failed.
    """
    for left in reversed(range(_TRIES)):
        try:
            _prepare(db, where)
            db.commit()
        except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
            db.rollback()  # all that waited behind us goes on meanwhile
            if not left:
                raise StoreError(
                    f"ledger {where}: its tables cannot be changed, another transaction holds "
                    f"them: {error}"
                ) from None
        except (errors.UniqueViolation, errors.DuplicateTable, errors.DuplicateObject) as error:
            db.rollback()  # another process was faster; or the names belong to another program
            if not left:
                raise ConfigError(
                    f"ledger {where}: holds tables of another program: {error}"
                ) from None
        except BaseException:
            db.rollback()
            raise
        else:
            return


def _prepare(db: psycopg.Connection[dict[str, Any]], where: str) -> None:
    db.execute(_BEGIN)
    found = db.execute(_EXISTS).fetchone()
    assert found is not None
    if not found["is_there"]:
        db.execute(_CREATE)
        for statement in postgres_schema():
            db.execute(statement.encode())
        db.execute(_INSERT, {"version": SCHEMA_VERSION})
        return
    version, compatible = _versions(db)
    if version < FIRST_VERSION or compatible > SCHEMA_VERSION:
        raise ConfigError(
            f"ledger {where}: has schema version {version}, for programs of version {compatible} "
            f"or later; this program knows versions {FIRST_VERSION} to {SCHEMA_VERSION}"
        )
    if version < SCHEMA_VERSION:
        db.execute(_PATIENCE)
        db.execute(_LOCK)
        _migrate(db, *_versions(db))  # another process may have, meanwhile


def _versions(db: psycopg.Connection[dict[str, Any]]) -> tuple[int, int]:
    """Return the version of the tables, and the oldest that they are compatible with."""
    row = db.execute(_VERSION).fetchone()
    if row is None:
        return 0, 0
    return row["version"], row.get("compatible", FIRST_VERSION)


def _migrate(db: psycopg.Connection[dict[str, Any]], version: int, compatible: int) -> None:
    """Bring tables to our version, and leave them usable by programs of the one before."""
    db.execute(_ADD_COMPATIBLE)
    for step in range(version, SCHEMA_VERSION):
        for change in _STEPS[step].before:
            db.execute(change)
    for step in range(compatible, SCHEMA_VERSION - 1):
        for change in _STEPS[step].after:
            db.execute(change)
    bound = {
        "version": max(version, SCHEMA_VERSION),
        "compatible": max(compatible, SCHEMA_VERSION - 1),
    }
    db.execute(_SET_VERSION, bound)
