"""The checkpoints of the SQLite ledger: when they come, and how long its log becomes."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from typing import TYPE_CHECKING

import pytest

from batchyard.ledger import sqlite_file, sqlite_log
from batchyard.ledger.sqlite import SqliteLedger
from helpers_inline import InlineExecutor
from store.making import add

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

anyio = pytest.mark.anyio

PAGES = 40
LONG = 4 * PAGES
FRAME_BYTES = 4096 + 24
AT_ONCE = 30
"""More pages than one create of these tests writes."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_log, "_PAGES", PAGES)
    monkeypatch.setattr(sqlite_log, "_PAGES_TO_WAIT", LONG)


def pages_of(path: Path) -> int:
    """Return for how many pages the log has ever had room since it was made."""
    return path.with_name(path.name + "-wal").stat().st_size // FRAME_BYTES


def opened(path: Path, *, joins: bool = False, shared: bool = False) -> SqliteLedger:
    return SqliteLedger(path, threads=InlineExecutor, shared=shared, joins=joins)


def checkpoints(ledger: SqliteLedger) -> list[str]:
    """Return a list to which those to come are added."""
    found: list[str] = []
    db = ledger._writer._db
    assert db is not None
    db.set_trace_callback(lambda said: found.append(said) if "wal_checkpoint" in said else None)
    return found


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Read all the time, as a backup does."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM batches").fetchone()
        yield reader


async def grow(ledger: SqliteLedger, path: Path, pages: int) -> int:
    """Add batches until the log has so many more pages; return how many batches."""
    end = pages_of(path) + pages
    for number in range(10_000):
        if pages_of(path) >= end:
            return number
        await add(ledger, f"{random.randbytes(8).hex()}")
    raise AssertionError("the log does not grow")


def test_it_is_long_exactly_from_the_page_on_at_which_it_is_due(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with contextlib.closing(sqlite_file.connect(path, read_only=False)) as db:
        db.execute("CREATE TABLE pages (x)")
        db.execute("PRAGMA wal_checkpoint(RESTART)")
        with contextlib.closing(sqlite3.connect(path)) as reader:
            log = sqlite_log.Log(path)
            for begun in range(3):
                for number in range(1, 3 * PAGES):
                    db.execute("INSERT INTO pages VALUES (1)")  # one page of the log
                    assert log.is_long() == (number >= PAGES), (begun, number)
                log.checkpoint(db)
                assert reader.execute("SELECT count(*) FROM pages").fetchone()[0]
            log.close()


def test_a_log_of_which_nothing_was_ever_written_is_not_long(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    sqlite_file.connect(path, read_only=False).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("SELECT count(*) FROM batches").fetchone()
        log = sqlite_log.Log(path)
        assert pages_of(path) == 0
        assert not log.is_long()
        log.close()


@anyio
@pytest.mark.parametrize("processes", [1, 3])
async def test_the_log_stays_short_whoever_writes(tmp_path: Path, processes: int) -> None:
    path = tmp_path / "ledger.db"
    ledgers = [opened(path, shared=processes > 1)]
    ledgers += [opened(path, shared=True, joins=True) for _ in range(1, processes)]
    done = [checkpoints(ledger) for ledger in ledgers]
    before = pages_of(path)  # of the schema
    for number in range(60):
        for who, ledger in enumerate(ledgers):
            await add(ledger, f"{who}x{number}")
            assert pages_of(path) <= max(before, PAGES) + AT_ONCE
    assert all(done), "each process does its part"
    for ledger in reversed(ledgers):
        await ledger.close()


@anyio
async def test_a_checkpoint_that_a_reader_holds_up_is_not_tried_again_at_each_commit(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    ledger = opened(path)
    done = checkpoints(ledger)
    await ledger._writer.run(lambda t: t.execute("PRAGMA busy_timeout = 1"))
    with reading(path):
        number = await grow(ledger, path, LONG - PAGES)
        assert 1 <= len(done) <= LONG // PAGES < number // 2
        assert not [said for said in done if "RESTART" in said], "nobody waits so far"
        await grow(ledger, path, 4 * LONG)
        waited = [said for said in done if "RESTART" in said]
        assert 3 <= len(waited) <= 5, "it waits for readers, and seldom"
        long = pages_of(path)
    done.clear()
    await grow(ledger, path, PAGES)  # up to where the next one is due
    while not done:
        await add(ledger, f"{random.randbytes(8).hex()}")
    long = pages_of(path)
    for n in range(200):
        await add(ledger, f"after{n}")
    assert pages_of(path) == long, "it was begun anew"
    assert len(done) > 5, "and is as long as ever"
    await ledger.close()


@anyio
async def test_after_a_failure_of_another_process_the_log_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    server = opened(path, shared=True)
    worker = opened(path, shared=True, joins=True)
    sqlite_file.note_failure(path, "a sync of another process")
    done = [checkpoints(ledger) for ledger in (server, worker)]
    for number in range(30):
        await add(server, f"s{number}")
        await add(worker, f"w{number}")
    before = path.read_bytes()
    await worker.close()
    await server.close()
    assert done == [[], []]
    assert path.read_bytes() == before, "the end writes nothing either"
    assert pages_of(path) > PAGES
    again = opened(path)
    page = await again.page("w", limit=100, after=None, before=None)
    assert page is not None
    assert len(page.batches) == 60
    await again.close()
