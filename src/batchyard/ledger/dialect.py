"""One text of SQL for two databases: what each needs to be written differently. Pure.

The statements and the schema are in the words that SQLite and PostgreSQL share. What they do not
share is few, and is exchanged word for word:

    in the text                        SQLite          PostgreSQL
    :name                              as it is        %(name)s
    greatest(a, b)                     max(a, b)       as it is
    INDEXED BY index                   as it is        nothing
    /* FOR UPDATE ... */               a comment       its content
    SELECT value FROM json_each(a)     as it is        SELECT json_array_elements_text(a::json)
    :lease_us, :lease_now              as they are     in the time of the database, see below
    column types and table options     as they are     those of PostgreSQL

Leases are in the steady time of a machine (`clock.steady_us`). Where processes are on several
hosts, only the clock of the database counts: a moment of a process is that far from now in the
database too.
"""

from __future__ import annotations

import re
from importlib import resources

_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")
_LEASES = re.compile(r"(?<!:):(lease_us|lease_now)\b")
_DATABASE_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

_PARTS = r"SELECT json_array_elements_text(\1::json)"

# Counts fit in four bytes; these do not.
_WIDE = re.compile(r"^(\s+(?:\w+_us|seq|off|len|crc)\s+)INTEGER", flags=re.MULTILINE)
_TYPES = (
    ("INTEGER PRIMARY KEY AUTOINCREMENT", "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"),
    (" TEXT", ' TEXT COLLATE "C"'),  # names are compared by their bytes, as everywhere else
    (" BLOB", " BYTEA"),
    (" STRICT, WITHOUT ROWID", ""),
    (" STRICT", ""),
)


def statements() -> dict[str, str]:
    """Return every statement by name, in the common words."""
    text = _read("statements.sql")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def sqlite_statement(text: str) -> str:
    """Return a statement as SQLite takes it."""
    return text.replace("greatest(", "max(")


def postgres_statement(text: str, *, own_clock: bool) -> str:
    """Return a statement as PostgreSQL takes it, through psycopg.

    Args:
        text: in the common words.
        own_clock: whether leases are in the time of the database. The parameter `:host_now` is
            the steady time of this process then.
    """
    text = re.sub(r"--[^\n]*", "", text)
    text = re.sub(r"/\* (FOR UPDATE.*?) \*/", r"\1", text)
    text = re.sub(r" INDEXED BY \w+", "", text)
    text = re.sub(r"SELECT value FROM json_each\((:\w+)\)", _PARTS, text)
    if own_clock:
        text = _LEASES.sub(rf"(:\1 - :host_now + {_DATABASE_NOW})", text)
    return _PARAMETER.sub(r"%(\1)s", text).strip().rstrip(";")


def sqlite_schema() -> list[str]:
    """Return the statements that make an empty ledger in SQLite."""
    return _single(_read("schema.sql"))


def postgres_schema() -> list[str]:
    """Return the statements that make an empty ledger in PostgreSQL."""
    text = _read("schema.sql")
    text = text.replace(*_TYPES[0])
    text = _WIDE.sub(r"\1BIGINT", text)
    for ours, theirs in _TYPES[1:]:
        text = text.replace(ours, theirs)
    return _single(text)


def _single(text: str) -> list[str]:
    return list(filter(str.strip, re.sub(r"--[^\n]*", "", text).split(";")))


def _read(name: str) -> str:
    return resources.files("batchyard.ledger").joinpath(name).read_text("utf-8")
