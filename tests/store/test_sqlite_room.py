"""A ledger that finds no room where the disk has some: its files may not grow.

To SQLite that is a failed write like any other, as a quota is.
"""

from __future__ import annotations

import resource
import sqlite3
from typing import TYPE_CHECKING

import pytest

from batchyard.errors import DiskFull, StoreError
from batchyard.ledger import sqlite_file, sqlite_log
from batchyard.ledger.sqlite import SqliteLedger
from helpers_inline import InlineExecutor
from store.making import add

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

anyio = pytest.mark.anyio


def limit(size: int | None) -> None:
    """Let no file of this process grow beyond a size."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


@pytest.fixture(autouse=True)
def _limited() -> Iterator[None]:
    before, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    limit(before)


def opened(path: Path, make_room: Callable[[], bool] = lambda: False) -> SqliteLedger:
    return SqliteLedger(path, threads=InlineExecutor, make_room=make_room)


@anyio
async def test_neither_a_commit_nor_a_checkpoint_that_finds_no_room_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, added = tmp_path / "ledger.db", []
    monkeypatch.setattr(sqlite_log, "_PAGES", 40)
    ledger = opened(path)

    async def grow(until: Callable[[], bool]) -> None:
        for _ in range(10_000):
            if until():
                return
            await add(ledger, f"{len(added)}")
            added.append(f"{len(added)}")
        raise AssertionError("it does not grow")

    await grow(lambda: path.stat().st_size > 500_000)
    limit(path.stat().st_size)
    with pytest.raises(DiskFull, match="no room"):
        await grow(lambda: False)
    assert "the ledger's log grows" in caplog.text
    with pytest.raises(DiskFull, match="no room"):
        await add(ledger, "again")
    assert await ledger.get("w", f"msgbatch_{added[-1]}") is not None
    assert not sqlite_file.failure_of(path).exists()
    limit(None)
    size = path.stat().st_size
    await grow(lambda: path.stat().st_size > size)
    await ledger.close()
    after = opened(path)
    for number in added:
        assert await after.get("w", f"msgbatch_{number}") is not None
    assert await after.get("w", "msgbatch_again") is None
    await after.close()


@anyio
async def test_a_transaction_that_finds_no_room_asks_for_some_once(tmp_path: Path) -> None:
    asked: list[None] = []

    def make_room() -> bool:
        asked.append(None)
        limit(None)
        return True

    ledger = opened(tmp_path / "ledger.db", make_room)
    limit((tmp_path / "ledger.db-wal").stat().st_size)
    await add(ledger, "1")
    assert len(asked) == 1
    await ledger.close()


# Up to the first the index of the log finds no room, up to the second the log of a new ledger.
@anyio
@pytest.mark.parametrize(("size", "is_new"), [(1_000, False), (33_000, True)])
async def test_a_ledger_that_is_opened_without_room_asks_for_some_once(
    tmp_path: Path, size: int, is_new: bool
) -> None:
    path, asked = tmp_path / "ledger.db", []
    if not is_new:
        sqlite_file.connect(path, read_only=False).close()

    def refuse() -> bool:
        asked.append(False)
        return False

    def make_room() -> bool:
        asked.append(True)
        limit(None)
        return True

    limit(size)
    with pytest.raises(StoreError, match="disk I/O error"):
        opened(path, refuse)
    await opened(path, make_room).close()
    assert asked == [False, True]
    assert not sqlite_file.failure_of(path).exists(), "nothing is in doubt"


@pytest.mark.parametrize(
    ("code", "is_for_want_of_room"),
    [
        (sqlite3.SQLITE_FULL, True),
        (sqlite3.SQLITE_IOERR_WRITE, True),
        (sqlite3.SQLITE_IOERR_FSYNC, False),
        (sqlite3.SQLITE_IOERR_DIR_FSYNC, False),
        (sqlite3.SQLITE_IOERR_SHMSIZE, False),
        (sqlite3.SQLITE_IOERR, False),
    ],
)
def test_only_a_write_may_be_tried_again_and_never_a_sync(
    tmp_path: Path, code: int, is_for_want_of_room: bool
) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    limit(1_000)
    assert sqlite_file.found_no_room(error, tmp_path / "ledger.db") == is_for_want_of_room
    limit(None)
    is_full = code == sqlite3.SQLITE_FULL
    assert sqlite_file.found_no_room(error, tmp_path / "ledger.db") == is_full, "there is room"
