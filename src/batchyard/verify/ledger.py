"""Read the rows of a ledger file, which may be damaged, without touching it.

Even a reader of SQLite writes beside a file in WAL mode (its shared memory), and a yard that was
killed leaves what it committed last in the log only. So both are copied and the copy is opened.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from batchyard.errors import StoreError
from batchyard.ledger.dialect import sqlite_schema
from batchyard.ledger.sqlite_file import APPLICATION_ID, SCHEMA_VERSION
from batchyard.verify import log
from batchyard.verify.findings import Reporter, Rule
from batchyard.verify.rows import BatchRow, CreateRow, ShardRow, read

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

T = TypeVar("T", BatchRow, ShardRow, CreateRow)

FILE = "ledger.db"
_LOG = f"{FILE}-wal"
_COPIED = (FILE, _LOG, f"{FILE}-journal")

_BATCHES = "SELECT * FROM batches ORDER BY seq"
_IDS = "SELECT id FROM batches"
_SHARDS = "SELECT * FROM shards WHERE batch = ? ORDER BY idx"
_SHARDS_ORPHANED = (
    "SELECT batch, count(*) AS shards FROM shards"
    " WHERE batch NOT IN (SELECT id FROM batches) GROUP BY batch"
)
_CREATES = "SELECT * FROM creates"
_OBJECTS = "SELECT type, name FROM sqlite_master"


class State(Enum):
    """What can be learned from a ledger."""

    READABLE = auto()
    EMPTY = auto()
    """It knows no batch: a yard would start on it, and remove all segments."""
    UNREADABLE = auto()
    """A yard would not start on it."""


class LedgerFile:
    """The rows of a ledger. Rows that cannot be read are findings."""

    def __init__(self, db: sqlite3.Connection, report: Reporter) -> None:
        self._db = db
        self._report = report
        self.is_whole = True
        """Whether all rows that were asked for could be read."""

    def ids(self) -> set[str]:
        """Return the id of every batch."""
        return {str(row["id"]) for row in self._rows(_IDS)}

    def batches(self) -> Iterator[BatchRow]:
        """Yield the batches in order of their creation."""
        return self._read(_BATCHES, (), BatchRow, Rule.BATCH_ROW)

    def shards(self, batch: str) -> list[ShardRow]:
        """Return the shards of a batch by index."""
        return list(self._read(_SHARDS, (batch,), ShardRow, Rule.SHARD_ROW))

    def creates(self) -> Iterator[CreateRow]:
        """Yield the create calls that may be repeated."""
        return self._read(_CREATES, (), CreateRow, Rule.CREATE_ROW)

    def orphans(self) -> Iterator[tuple[str, int]]:
        """Yield ids that have shards and no batch, with the number of shards."""
        for row in self._rows(_SHARDS_ORPHANED):
            yield str(row["batch"]), row["shards"]

    def _read(
        self, statement: str, bound: tuple[str, ...], kind: type[T], rule: Rule
    ) -> Iterator[T]:
        for row in self._rows(statement, bound):
            try:
                yield read(row, kind)
            except ValueError as error:
                name = str(row.get("id") or row.get("batch"))
                shard = row.get("idx")
                self._report.add(
                    rule,
                    f"a row cannot be read: {error}",
                    batch=name,
                    shard=shard if isinstance(shard, int) else None,
                )

    def _rows(self, statement: str, bound: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
        try:
            for row in self._db.execute(statement, bound):
                yield dict(row)
        except sqlite3.Error as error:
            self.is_whole = False
            self._report.add(Rule.LEDGER_DAMAGED, f"rows cannot be read: {error}", segment=FILE)


@contextlib.contextmanager
def opened(data: Path, report: Reporter) -> Generator[LedgerFile | State]:
    """Open a copy of the ledger of a data directory, or say why there is nothing to read in it.

    Raises:
        StoreError: it cannot be copied.
    """
    with tempfile.TemporaryDirectory(prefix="batchyard-check-") as directory:
        copy = Path(directory)
        try:
            for name in _COPIED:
                if (data / name).is_file():
                    shutil.copyfile(data / name, copy / name)
        except OSError as error:
            raise StoreError(f"cannot copy {error.filename}: {error.strerror}") from None
        if not (copy / FILE).exists():
            report.add(Rule.LEDGER_MISSING, "the ledger is not there", segment=FILE)
            yield State.EMPTY
            return
        _check_log(copy / _LOG, report)
        with contextlib.closing(sqlite3.connect(copy / FILE, isolation_level=None)) as db:
            db.row_factory = sqlite3.Row
            db.text_factory = _text
            db.execute("PRAGMA trusted_schema = OFF")
            state = _state(db, copy / FILE, report)
            yield LedgerFile(db, report) if state is State.READABLE else state


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _check_log(path: Path, report: Reporter) -> None:
    if not path.exists():
        return
    with path.open("rb") as file:
        found = log.scan(file)
    if found.lost:
        report.add(
            Rule.LEDGER_LOG,
            "damaged: committed transactions after this place are not read",
            segment=_LOG,
            offset=found.end,
        )
    elif found.more:
        report.add(
            Rule.UNFINISHED,
            "the last transaction is not whole: cut off before it was acknowledged, or damaged",
            segment=_LOG,
            offset=found.end,
        )


def _state(db: sqlite3.Connection, path: Path, report: Reporter) -> State:
    """Check whose file it is and whether it is sound."""

    def add(rule: Rule, text: str) -> None:
        report.add(rule, text, segment=FILE)

    try:
        application = _pragma(db, "application_id")
        version = _pragma(db, "user_version")
        objects = {(row["type"], row["name"]) for row in db.execute(_OBJECTS)}
        if not (application or version or objects):
            if path.stat().st_size and not _pragma(db, "page_count"):
                add(Rule.LEDGER_DAMAGED, "it is not a database")
                return State.UNREADABLE
            # Opened for the first time and cut off: the next start makes the tables.
            add(Rule.UNFINISHED, "it has no tables yet")
            return State.EMPTY
        if application != APPLICATION_ID:
            add(Rule.LEDGER_FOREIGN, "it is a database of another program")
            return State.UNREADABLE
        if not 1 <= version <= SCHEMA_VERSION:
            add(Rule.LEDGER_FOREIGN, f"schema version {version}; known are 1 to {SCHEMA_VERSION}")
            return State.UNREADABLE
        if version == SCHEMA_VERSION:
            for kind, name in sorted(_objects_expected() - objects):
                add(Rule.LEDGER_DAMAGED, f"{kind} {name} is missing")
        _check_integrity(db, add)
    except sqlite3.Error as error:
        add(Rule.LEDGER_DAMAGED, f"it cannot be read: {error}")
        return State.UNREADABLE
    return State.READABLE


def _check_integrity(db: sqlite3.Connection, add: Callable[[Rule, str], None]) -> None:
    try:
        for (text,) in db.execute("PRAGMA integrity_check"):
            for line in str(text).splitlines():
                if line != "ok" and not line.startswith("***"):  # a heading
                    add(Rule.LEDGER_DAMAGED, line)
    except sqlite3.Error as error:  # so bad that it gives up; other tables may be sound
        add(Rule.LEDGER_DAMAGED, f"the integrity check failed: {error}")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    statements = {
        "application_id": "PRAGMA application_id",
        "user_version": "PRAGMA user_version",
        "page_count": "PRAGMA page_count",
    }
    return int(db.execute(statements[name]).fetchone()[0])


def _objects_expected() -> set[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for statement in sqlite_schema():
            db.execute(statement)
        return {(kind, name) for kind, name in db.execute(_OBJECTS)}
