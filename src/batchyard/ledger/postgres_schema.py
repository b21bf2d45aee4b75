"""The tables of the PostgreSQL ledger: whose they are, of which version, and how they are made.

Any number of processes may start at the same time, through a pooler too: nothing here lasts longer
than its transaction. All tables are made in one, so that of two processes that make them one fails
whole and finds those of the other; migrations hold the row that says the version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import errors

from batchyard.errors import ConfigError
from batchyard.ledger.dialect import postgres_schema

if TYPE_CHECKING:
    import psycopg

SCHEMA_VERSION = 3
FIRST_VERSION = 3
"""The first version that there was on PostgreSQL."""
# What tables of an older version need, by that version, in the transaction that finds them.
_MIGRATIONS: dict[int, tuple[bytes, ...]] = {}

_BEGIN = b"BEGIN"
_EXISTS = b"SELECT to_regclass('batchyard_ledger') IS NOT NULL AS is_there"
_VERSION = b"SELECT version FROM batchyard_ledger FOR UPDATE"
_SET_VERSION = b"UPDATE batchyard_ledger SET version = %(version)s"
_CREATE = (
    b"CREATE TABLE batchyard_ledger (one INTEGER PRIMARY KEY CHECK (one = 1),"
    b" version INTEGER NOT NULL)"
)
_INSERT = b"INSERT INTO batchyard_ledger (one, version) VALUES (1, %(version)s)"
_TRIES = 5


def prepare(db: psycopg.Connection[dict[str, Any]], where: str) -> None:
    """Make or migrate the tables, unless another process has.

    Args:
        db: a connection that begins no transaction by itself.
        where: the address, for messages.

    Raises:
        ConfigError: the tables are of another program, or of another version.
        psycopg.Error: the database failed.
    """
    for left in reversed(range(_TRIES)):
        try:
            _prepare(db, where)
            db.commit()
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
    row = db.execute(_VERSION).fetchone()
    version = 0 if row is None else row["version"]
    if not FIRST_VERSION <= version <= SCHEMA_VERSION:
        raise ConfigError(
            f"ledger {where}: has schema version {version}; this program knows versions "
            f"{FIRST_VERSION} to {SCHEMA_VERSION}"
        )
    for step in range(version, SCHEMA_VERSION):
        for change in _MIGRATIONS[step]:
            db.execute(change)
    if version != SCHEMA_VERSION:
        db.execute(_SET_VERSION, {"version": SCHEMA_VERSION})
