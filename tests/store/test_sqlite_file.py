"""The file of the SQLite ledger: whose it is, what survives, and how its statements find rows."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import helpers_seed
from batchyard.errors import ConfigError, StoreError
from batchyard.ledger import dialect, sqlite, sqlite_file
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.model import Tokens
from store.making import LEASE, NOW, add, make_commit, make_held, take

if TYPE_CHECKING:
    from collections.abc import Iterator

anyio = pytest.mark.anyio


def _foreign(path: Path, *, wal: bool = False) -> None:
    db = sqlite3.connect(path)
    if wal:
        db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE theirs (x)")
    db.commit()
    db.close()


def _other_application(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA application_id = 77")
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()


def _versioned(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 5")
    db.commit()
    db.close()


def _newer(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA application_id = {sqlite_file.APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {sqlite_file.SCHEMA_VERSION + 1}")
    db.execute("CREATE TABLE future (x)")
    db.commit()
    db.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_foreign, "is a database of another program"),
        (lambda path: _foreign(path, wal=True), "is a database of another program"),
        (_other_application, "is a database of another program"),
        (_newer, "has schema version 5; this program knows versions 1 to 4"),
        (lambda path: path.write_bytes(random.Random(1).randbytes(5_000)), "is not a ledger"),
        (lambda path: path.write_bytes(b"x"), "is not a ledger"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 600), "is not a ledger"),
        (_versioned, "is a database of another program"),
    ],
    ids=["foreign", "wal", "other-application", "newer", "random", "one-byte", "header", "version"],
)
def test_a_file_that_is_not_ours_is_refused_with_its_name_and_not_written_to(
    tmp_path: Path, make: object, words: str
) -> None:
    path = tmp_path / "ledger.db"
    make(path)  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        SqliteLedger(path)
    assert str(path) in caught.value.message
    assert path.read_bytes() == before


def test_a_directory_in_the_place_of_the_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot open the ledger"):
        SqliteLedger(tmp_path)


@anyio
async def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.touch()
    ledger = SqliteLedger(path)
    await add(ledger, "a")
    await ledger.close()


@anyio
async def test_a_path_with_characters_of_a_url_is_a_plain_path(tmp_path: Path) -> None:
    odd = tmp_path / "a?b#c%20d&mode=memory"
    odd.mkdir()
    ledger = SqliteLedger(odd / "ledger.db")
    await add(ledger, "a")
    assert await ledger.get("w", "msgbatch_a") is not None
    await ledger.close()
    assert [path.name for path in tmp_path.iterdir()] == [odd.name]


@anyio
async def test_each_acknowledged_step_is_in_a_copy_taken_at_that_moment(tmp_path: Path) -> None:
    """As after a crash: the files as they are while the ledger is open, its log included."""
    live = tmp_path / "live"
    live.mkdir()
    ledger = SqliteLedger(live / "ledger.db")
    copies = 0

    async def reopened() -> SqliteLedger:
        nonlocal copies
        copies += 1
        copy = tmp_path / f"copy{copies}"
        shutil.copytree(live, copy)
        (copy / "ledger.db-shm").unlink(missing_ok=True)  # lost with the process
        return SqliteLedger(copy / "ledger.db")

    batch = await add(ledger, "a", "up/m", "up/m")
    copy = await reopened()
    assert await copy.get("w", batch.id) == batch
    await copy.close()

    claims = await ledger.claim("me", "up/m", LEASE, 2)
    copy = await reopened()
    assert (await take(copy)).attempt == 2  # the fence is as durable as the rest
    await copy.close()

    commits = [make_commit(claim) for claim in claims]
    await ledger.commit("me", commits[:1])
    copy = await reopened()
    assert (await copy.results(batch.id))[0].extents == commits[0].extents
    assert await copy.finished() == []
    await copy.close()

    await ledger.commit("me", commits[1:])
    copy = await reopened()
    assert await copy.finished() == [batch.id]
    await copy.close()

    await ledger.end(batch.id, NOW, Tokens())
    copy = await reopened()
    assert await copy.get("w", batch.id) == await ledger.get("w", batch.id)
    assert await copy.finished() == []
    await copy.close()

    await ledger.delete("w", batch.id, NOW)
    copy = await reopened()
    assert await copy.get("w", batch.id) is None
    assert await copy.page("w", limit=1, after=batch.id, before=None) is not None
    await copy.close()
    await ledger.close()


@anyio
async def test_a_log_that_is_torn_anywhere_leaves_a_prefix_of_what_was_done(
    tmp_path: Path,
) -> None:
    """A power cut may tear the end of the log, which was not acknowledged then; never more."""
    live = tmp_path / "live"
    live.mkdir()
    ledger = SqliteLedger(live / "ledger.db")
    lengths = []  # of the log after each create
    for number in range(8):
        await add(ledger, f"{number}")
        lengths.append((live / "ledger.db-wal").stat().st_size)
    database = (live / "ledger.db").read_bytes()
    log = (live / "ledger.db-wal").read_bytes()
    rng = random.Random(helpers_seed.seed("BATCHYARD_TORN_SEED"))
    torn = tmp_path / "torn"
    for _ in range(40):
        cut = rng.randint(0, len(log))
        shutil.rmtree(torn, ignore_errors=True)
        torn.mkdir()
        (torn / "ledger.db").write_bytes(database)
        (torn / "ledger.db-wal").write_bytes(log[:cut])
        copy = SqliteLedger(torn / "ledger.db")
        page = await copy.page("w", limit=50, after=None, before=None)
        assert page is not None
        found = [batch.id for batch in page.batches]
        acknowledged = sum(length <= cut for length in lengths)
        assert found == [f"msgbatch_{n}" for n in reversed(range(len(found)))]
        assert len(found) >= acknowledged
        await copy.close()
    await ledger.close()


@anyio
async def test_every_transaction_is_synced_to_the_disk(tmp_path: Path) -> None:
    """A kill alone would not show it: the setting is what makes a power cut harmless."""
    ledger = SqliteLedger(tmp_path / "ledger.db")
    settings = await ledger._writer.run(
        lambda db: [
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "trusted_schema")
        ]
    )
    assert settings == ["wal", 2, 0]
    read_only = await ledger._reader.run(lambda db: db.execute("PRAGMA query_only").fetchone()[0])
    assert read_only == 1
    await ledger.close()


@anyio
async def test_a_file_of_a_ledger_is_read_by_nobody_else(tmp_path: Path) -> None:
    """The umask of `serve` decides; here it is only not widened."""
    before = os.umask(0o077)
    try:
        ledger = SqliteLedger(tmp_path / "ledger.db")
        await add(ledger, "a")
        modes = {path.name: path.stat().st_mode & 0o077 for path in tmp_path.iterdir()}
        assert set(modes.values()) == {0}, modes
        await ledger.close()
    finally:
        os.umask(before)


# Plans ---------------------------------------------------------------------------------------

# What may walk over a whole index: only of open batches, of running shards or of suspected ones,
# which are few.
_SMALL = (
    "SCAN b USING INDEX batches_open",
    "SCAN batches USING INDEX batches_open",
    "SCAN shards USING INDEX shards_running",
    "SCAN shards USING INDEX shards_apart",
)
_WHOLE = {"left_others"}  # the first few in the order of its index, when a person gives one up


@pytest.fixture(scope="module", params=["empty", "filled and analyzed"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[sqlite3.Connection]:
    path = tmp_path_factory.mktemp("plans") / "ledger.db"
    db = sqlite_file.connect(path, read_only=False)
    if request.param != "empty":
        _fill(db)
    yield db
    db.close()


@pytest.mark.parametrize("name", sorted(sqlite_file.SQL))
def test_no_statement_walks_over_a_whole_table(database: sqlite3.Connection, name: str) -> None:
    text = sqlite_file.SQL[name]
    bound = dict.fromkeys(re.findall(r":(\w+)", text), 1)
    plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {text}", bound)]
    tables = re.compile(r"SCAN (shards|batches|creates|deleted|b|s)\b")
    walks = [step for step in plan if tables.match(step) and step not in _SMALL]
    assert not walks or name in _WHOLE, f"{name}: {plan}"


def _fill(db: sqlite3.Connection) -> None:
    """Many ended batches, few open ones with many shards, and statistics that say so."""
    db.execute("BEGIN")
    db.executemany(
        "INSERT INTO batches (id, workspace, requests, version, betas, billing, created_us,"
        " expires_us, ended_us) VALUES (?, 'w', 1, '', '', 'standard', ?, ?, ?)",
        [(f"b{n}", n, n, None if n % 50 == 0 else n) for n in range(1_000)],
    )
    db.executemany(
        "INSERT INTO shards (batch, idx, seq, workspace, pool, off, len, n, state)"
        " VALUES (?, ?, 1, 'w', 'p', 0, 0, 1, ?)",
        [(f"b{n}", idx, idx % 3) for n in range(0, 1_000, 50) for idx in range(60)],
    )
    db.executemany(
        "INSERT INTO deleted (workspace, id, seq, deleted_us) VALUES ('w', ?, ?, ?)",
        [(f"d{n}", n, n) for n in range(1_000)],
    )
    db.execute("ANALYZE")
    db.execute("COMMIT")


def _old_file(path: Path, version: int) -> None:
    """Make a file as the program of that version left it: two batches, one of them half done."""
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(Path(__file__).with_name(f"schema_{version}.sql").read_text("utf-8"))
        db.executemany(
            "INSERT INTO batches (id, workspace, requests, version, betas, billing, created_us,"
            " expires_us) VALUES (?, 'w', ?, '2023-06-01', 'b', 'standard', 5, ?)",
            [("msgbatch_old", 6, NOW), ("msgbatch_next", 2, NOW)],
        )
        db.executemany(
            "INSERT INTO shards (batch, idx, seq, workspace, pool, off, len, n, state, attempt,"
            " owner) VALUES (?, ?, ?, 'w', ?, 0, 10, 2, ?, ?, ?)",
            [
                ("msgbatch_old", 0, 1, "up/m", 1, 3, "someone"),
                ("msgbatch_old", 1, 1, "up/m", 0, 0, None),
                ("msgbatch_old", 2, 1, "up/n", 0, 0, None),
                ("msgbatch_next", 0, 2, "up/m", 0, 0, None),
            ],
        )
        if version >= 3:
            db.execute("UPDATE shards SET head = 1 WHERE idx IN (0, 2)")
        db.execute(f"PRAGMA application_id = {sqlite_file.APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {version}")


@anyio
@pytest.mark.parametrize("version", [1, 2, 3])
async def test_a_file_of_an_older_version_is_opened_and_keeps_what_it_holds(
    tmp_path: Path, version: int
) -> None:
    path = tmp_path / "ledger.db"
    _old_file(path, version)
    for _ in ("migrated", "as it is"):
        ledger = sqlite.SqliteLedger(path)
        old = await ledger.get("w", "msgbatch_old")
        assert old is not None
        assert (old.requests, old.created_us, old.user_profile) == (6, 5, None)
        assert old.priority == "normal"
        await ledger.close()
    with sqlite3.connect(path) as found, sqlite3.connect(":memory:") as fresh:
        for statement in dialect.sqlite_schema():
            fresh.execute(statement)
        columns = "SELECT name, type FROM pragma_table_info(?) ORDER BY name"
        for table in ("batches", "shards", "creates", "deleted", "shares", "accounts"):
            rows = [db.execute(columns, (table,)).fetchall() for db in (found, fresh)]
            assert rows[0] == rows[1], table
        assert _objects(found) == _objects(fresh)
        assert found.execute("PRAGMA user_version").fetchone()[0] == sqlite_file.SCHEMA_VERSION


@anyio
@pytest.mark.parametrize("version", [1, 2, 3])
async def test_the_work_of_an_older_file_goes_on_and_what_has_not_begun_is_known(
    tmp_path: Path, version: int
) -> None:
    _old_file(tmp_path / "ledger.db", version)
    ledger = sqlite.SqliteLedger(tmp_path / "ledger.db")
    fresh = await ledger.claim_fresh("me", "up/m", LEASE, 9)
    assert [(c.batch, c.index, c.attempt) for c in fresh] == [
        ("msgbatch_old", 0, 4),
        ("msgbatch_next", 0, 1),
    ]
    rest = [await take(ledger), await take(ledger, pool="up/n")]
    assert [(claim.batch, claim.index) for claim in rest] == [
        ("msgbatch_old", 1),
        ("msgbatch_old", 2),
    ]
    await ledger.close()


@anyio
async def test_a_migration_that_is_cut_short_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    _old_file(path, 2)
    with closing(sqlite3.connect(path)) as db, db:  # the last step will fail
        db.execute("CREATE TABLE shares (x)")
    with pytest.raises(StoreError):
        sqlite.SqliteLedger(path)
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 2
        names = [name for (name,) in db.execute("SELECT name FROM pragma_table_info('shards')")]
        assert "priority" not in names
        db.execute("DROP TABLE shares")
    ledger = sqlite.SqliteLedger(path)
    assert await ledger.get("w", "msgbatch_old") is not None
    await ledger.close()


# Several processes ---------------------------------------------------------------------------


@anyio
async def test_a_transaction_that_another_program_holds_up_is_begun_again(
    tmp_path: Path,
) -> None:
    """Such as a backup or a shell: nothing has happened then, so nothing is in doubt."""
    ledger = SqliteLedger(tmp_path / "ledger.db")
    await ledger._writer.run(lambda db: db.execute("PRAGMA busy_timeout = 1"))
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        class Letting(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if "another program" in record.getMessage():
                    seen.append(record)
                    let_go.set()

        seen: list[logging.LogRecord] = []
        let_go = threading.Event()
        logger = logging.getLogger("batchyard.ledger.sqlite_connection")
        handler = Letting()
        logger.addHandler(handler)
        try:
            adding = asyncio.create_task(add(ledger, "a"))
            await asyncio.to_thread(let_go.wait, 30)
            assert not adding.done()
            other.execute("ROLLBACK")
            await adding
        finally:
            logger.removeHandler(handler)
    assert seen
    assert await ledger.get("w", "msgbatch_a") is not None
    await ledger.close()


@anyio
async def test_a_file_that_stays_locked_is_a_failure_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchyard.ledger.sqlite_connection._BEGINS_MAX", 3)
    ledger = SqliteLedger(tmp_path / "ledger.db")
    await ledger._writer.run(lambda db: db.execute("PRAGMA busy_timeout = 1"))
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            await add(ledger, "a")
        other.execute("ROLLBACK")
    await ledger.close()


async def _failures(path: Path) -> int:
    """Open a ledger as a start does; return the failures of its only shard, and hold that."""
    ledger = SqliteLedger(path)
    claim = await take(ledger)
    await ledger.close()
    return claim.failures


@anyio
@pytest.mark.parametrize("joins", [False, True], ids=["the server", "a worker"])
async def test_an_end_because_writing_failed_is_no_failure_of_a_shard_and_the_next_end_may_be(
    tmp_path: Path, joins: bool
) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path, shared=True)
    await add(ledger, "a")
    await take(ledger)
    broken = SqliteLedger(path, shared=True, joins=True) if joins else ledger
    with pytest.raises(StoreError, match="no such table"):
        await broken._writer.run(lambda t: t.execute("DELETE FROM no_table"))
    with pytest.raises(StoreError, match="no such table"):
        await broken.spare("me")
    assert "no such table" in (tmp_path / "ledger.failed").read_text()
    assert (tmp_path / "ledger.failed").stat().st_mode & 0o777 == 0o600
    for each in {ledger, broken}:
        await each.close()
    assert await _failures(path) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["ledger.db"]
    assert await _failures(path) == 1


@anyio
async def test_a_read_that_fails_leaves_no_note_for_the_process_may_go_on(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    with pytest.raises(StoreError):
        await ledger._reader.run(lambda t: t.execute("SELECT * FROM no_table"))
    assert not (tmp_path / "ledger.failed").exists()
    await ledger.close()


@anyio
async def test_where_no_note_can_be_left_the_failure_is_raised_all_the_same(
    tmp_path: Path,
) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    (tmp_path / "ledger.failed").mkdir()
    with pytest.raises(StoreError, match="no such table"):
        await ledger._writer.run(lambda t: t.execute("DELETE FROM no_table"))
    with pytest.raises(StoreError, match="no such table"):
        await ledger.failure()
    await ledger.close()
    assert await _opens(tmp_path / "ledger.db"), "and nothing there stops the next start"


async def _opens(path: Path) -> bool:
    ledger = SqliteLedger(path)
    is_there = list(await ledger.pools_ready()) == []
    await ledger.close()
    return is_there


@anyio
async def test_a_second_process_joins_without_taking_anything_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    server = SqliteLedger(path, shared=True)
    await add(server, "a", "up/m", "up/m")
    worker = SqliteLedger(path, shared=True, joins=True)
    claim = await take(worker, "one")
    another = SqliteLedger(path, shared=True, joins=True)
    assert (await take(another, "two")).index == 1
    assert [r.index for r in await worker.renew("one", LEASE, [make_held(claim)])] == [0]
    assert (await worker.commit("one", [make_commit(claim)])).accepted
    for ledger in (worker, another, server):
        await ledger.close()


@anyio
async def test_writers_of_several_processes_wait_for_each_other_and_never_fail(
    tmp_path: Path,
) -> None:
    """Each transaction waits for the lock, not for SQLite, which would poll and give up."""
    path = tmp_path / "ledger.db"
    ledgers = [SqliteLedger(path, shared=True)]
    ledgers += [SqliteLedger(path, shared=True, joins=True) for _ in range(3)]
    for ledger in ledgers:
        await ledger._writer.run(lambda db: db.execute("PRAGMA busy_timeout = 0"))
    await asyncio.gather(
        *(add(ledger, f"{who}x{n}") for who, ledger in enumerate(ledgers) for n in range(25))
    )
    page = await ledgers[0].page("w", limit=200, after=None, before=None)
    assert page is not None
    assert len(page.batches) == 100
    for ledger in reversed(ledgers):
        await ledger.close()


def _objects(db: sqlite3.Connection) -> dict[str, str | None]:
    """Return tables and indexes; of those that no version has altered, how they were made."""
    altered = ("batches", "shards", "shares")
    return {
        name: None if name in altered or sql is None else re.sub(r"--[^\n]*|\s", "", sql)
        for name, sql in db.execute("SELECT name, sql FROM sqlite_master")
    }
