"""The write-ahead log of a ledger, as a killed process leaves it, cut and damaged everywhere."""

from __future__ import annotations

import io
import shutil
import sqlite3
import struct
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from batchyard.verify.log import Log, scan
from store.yards import NAMES, Maker, checked

if TYPE_CHECKING:
    from pathlib import Path

HEADER = 32
PAGE = 512
FRAME = 24 + PAGE


@pytest.fixture
def log(tmp_path: Path) -> bytes:
    """The log of a small database with ten committed rows, each in a transaction of its own."""
    path = tmp_path / "small.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA page_size = 512")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (n INTEGER, text TEXT)")
        for n in range(10):
            db.execute("INSERT INTO t VALUES (?, ?)", (n, "x" * 600))
        shutil.copy(path, tmp_path / "empty.db")  # before closing brings the rows into it
        return path.with_name("small.db-wal").read_bytes()


def rows_of(log: bytes, tmp_path: Path) -> int:
    """Return how many rows SQLite finds with this log beside a database that is empty."""
    path = tmp_path / "read.db"
    for name in (path, path.with_name("read.db-shm")):
        name.unlink(missing_ok=True)
    shutil.copy(tmp_path / "empty.db", path)
    path.with_name("read.db-wal").write_bytes(log)
    with closing(sqlite3.connect(path)) as db:
        try:
            return int(db.execute("SELECT count(*) FROM t").fetchone()[0])
        except sqlite3.OperationalError:  # no such table: its creation is lost as well
            return -1


def read(log: bytes) -> Log:
    return scan(io.BytesIO(log))


def commits_of(log: bytes) -> list[int]:
    """Return where each transaction ends."""
    found = []
    for at in range(HEADER, len(log), FRAME):
        _, pages = struct.unpack_from(">2I", log, at)
        if pages:
            found.append(at + FRAME)
    return found


def test_a_whole_log_holds(log: bytes) -> None:
    assert read(log) == Log(len(log), more=False, lost=False)
    assert commits_of(log)[-1] == len(log)


def test_a_log_of_nothing_holds() -> None:
    assert read(b"") == Log(0, more=False, lost=False)


def test_a_log_may_be_cut_anywhere_and_ends_at_a_transaction(log: bytes) -> None:
    commits = commits_of(log)
    for length in range(0, len(log), 31):
        found = read(log[:length])
        assert not found.lost, length
        assert found.end == max(
            (end for end in commits if end <= length),
            default=min(length, HEADER) // HEADER * HEADER,
        )
        assert found.more or length - found.end < 24, "less than a frame may go unsaid"


def test_a_damaged_byte_before_the_last_transaction_is_told_as_loss(
    log: bytes, tmp_path: Path
) -> None:
    assert rows_of(log, tmp_path) == 10
    for at in range(0, commits_of(log)[-2], 211):
        damaged = log[:at] + bytes([log[at] ^ 0x10]) + log[at + 1 :]
        assert read(damaged).lost, at
        assert rows_of(damaged, tmp_path) < 9, "SQLite says nothing and reads less"


def test_a_damaged_byte_in_the_last_transaction_may_be_a_crash(log: bytes) -> None:
    first = commits_of(log)[-2]
    for at in range(first, len(log), 11):
        damaged = log[:at] + bytes([log[at] ^ 0x10]) + log[at + 1 :]
        found = read(damaged)
        assert (found.end, found.lost) == (first, False), at


def test_the_rest_of_an_earlier_generation_is_nothing(log: bytes) -> None:
    """After a checkpoint the log begins anew with other salts, over the old frames."""
    older = bytearray(log)
    for at in range(HEADER, len(log), FRAME):
        older[at + 8 : at + 16] = b"\x01" * 8
    end = commits_of(log)[2]
    assert read(log[:end] + bytes(older[end:])) == Log(end, more=False, lost=False)


def test_what_unfinished_transactions_left_behind_is_no_loss(log: bytes) -> None:
    """Power cuts tore two transactions, and a shorter one was written over the start of each."""
    commits = commits_of(log)
    rest = [log[commits[n] + FRAME : commits[n + 1]] for n in (5, 7)]
    assert all(len(part) >= 2 * FRAME for part in rest)
    found = read(log[: commits[4]] + b"".join(rest))
    assert found == Log(commits[4], more=True, lost=False)


@pytest.mark.anyio
async def test_what_only_the_log_holds_is_read(tmp_path: Path) -> None:
    """A yard that was killed has checkpointed nothing."""
    maker = Maker(tmp_path / "data")
    await maker.create("ended", 6)
    await maker.finish(["succeeded"])
    await maker.create("part", 6)
    copy = shutil.copytree(tmp_path / "data", tmp_path / "killed")
    await maker.ledger.close()
    assert (copy / "ledger.db-wal").stat().st_size > 10_000
    before = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    found = checked(copy)
    assert found.findings == []
    assert found.summary.batches == 2
    assert {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()} == before

    log = copy / "ledger.db-wal"
    data = log.read_bytes()
    log.write_bytes(data[:5_000] + b"\xff" + data[5_001:])
    damaged = checked(copy)
    assert "ledger-log" in damaged.rules
    log.write_bytes(data[:-1])
    torn = checked(copy)
    assert torn.rules.count("unfinished") == 1
    assert not [f for f in torn.errors if f.batch == NAMES["ended"]]
