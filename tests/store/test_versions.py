"""Programs of two versions on one PostgreSQL ledger, while one replaces the other."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.rows import dict_row

from batchyard.clock import SystemClock
from batchyard.errors import ConfigError, StoreError
from batchyard.ledger import dialect, postgres_schema
from batchyard.ledger.postgres import PostgresLedger
from batchyard.ledger.postgres_schema import Step
from batchyard.model import Counts
from store.making import LEASE, NOW, add, finish, make_commit, postgres_url, take

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent
CURRENT = postgres_schema.SCHEMA_VERSION


def opened(url: str) -> PostgresLedger:
    return PostgresLedger(url, SystemClock(), database_time=False)


class Older:
    """A process of the version before: its tables, if there are none, and its statements."""

    def __init__(self, url: str) -> None:
        self.db = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        texts = (HERE / "statements_3.sql").read_text("utf-8")
        parts = re.split(r"^-- name: (\w+)\n", texts, flags=re.MULTILINE)
        found = zip(parts[1::2], parts[2::2], strict=True)
        self.statements = {
            name: dialect.postgres_statement(text, own_clock=False).encode() for name, text in found
        }

    def make_tables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        schema = (HERE / "schema_3.sql").read_text("utf-8")
        with monkeypatch.context() as patch:
            patch.setattr(dialect, "_read", lambda _: schema)
            for statement in dialect.postgres_schema():
                self.db.execute(statement.encode())
        self.db.execute(
            "CREATE TABLE batchyard_ledger (one INTEGER PRIMARY KEY CHECK (one = 1),"
            " version INTEGER NOT NULL)"
        )
        self.db.execute("INSERT INTO batchyard_ledger (one, version) VALUES (1, 3)")

    def run(self, name: str, **bound: object) -> list[Mapping[str, Any]]:
        cursor = self.db.execute(self.statements[name], bound)
        return cursor.fetchall() if cursor.description else [{"changed": cursor.rowcount}]


@pytest.fixture
def older(url: str) -> Any:
    process = Older(url)
    yield process
    process.db.close()


def create(older: Older, name: str) -> None:
    """Accept a batch of two shards as the older version does."""
    (batch,) = older.run(
        "batch_insert",
        id=name,
        workspace="w",
        requests=4,
        version="2023-06-01",
        betas="",
        user_profile=None,
        billing="standard",
        priority=1,
        created_us=NOW,
        expires_us=NOW + 1,
    )
    for idx in range(2):
        older.run(
            "shard_insert",
            batch=name,
            idx=idx,
            seq=batch["seq"],
            workspace="w",
            pool="up/m",
            off=0,
            len=9,
            crc=None,
            n=2,
            priority=1,
            head=int(not idx),
        )


async def test_work_of_the_older_version_goes_on_with_both_at_work(
    older: Older, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    older.make_tables(monkeypatch)
    create(older, "msgbatch_old")
    (first,) = older.run(
        "claim", owner="old", pool="up/m", workspace="w", priority=1, seq=1, limit=1, lease_us=LEASE
    )
    ledger = opened(url)  # which migrates, with the older process at work
    second = await take(ledger, "new")
    assert (first["idx"], second.index, second.failures) == (0, 1, 0)
    fence = {"owner": "old", "batch": "msgbatch_old", "idx": 0, "attempt": 1}
    none = {"succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    older.run("renew", **fence, **none, inflight=1, lease_us=LEASE)
    assert older.run("held", **fence)
    done = none | {"succeeded": 2, "tokens": "[0,0,0,0]", "manifest": "[]"}
    assert older.run("commit", **fence, **done) == [{"changed": 1}]
    await ledger.commit("new", [make_commit(second, counts=Counts(2))])
    assert older.run("is_finished", batch="msgbatch_old") == [{"id": "msgbatch_old"}]
    assert await ledger.finished() == ["msgbatch_old"]
    await ledger.close()


async def test_what_the_newer_version_accepts_and_sets_free_the_older_one_claims(
    older: Older, url: str
) -> None:
    ledger = opened(url)
    batch = await add(ledger, "a")
    await take(ledger, "new")
    assert await ledger.take_back(LEASE + 1, but="") == 1
    (claim,) = older.run(
        "claim", owner="old", pool="up/m", workspace="w", priority=1, seq=1, limit=1, lease_us=LEASE
    )
    assert (claim["batch"], claim["attempt"]) == (batch.id, 2)
    assert older.run("release", owner="old") == [{"changed": 1}]
    await finish(ledger, batch)
    await ledger.close()


async def test_every_statement_of_the_older_version_can_be_run(older: Older, url: str) -> None:
    await opened(url).close()
    for text in older.statements.values():
        unknown = re.sub(rb"%\(\w+\)s", b"NULL", text).replace(b"%%", b"%")
        older.db.execute(b"EXPLAIN " + unknown)


async def test_migrated_tables_are_those_that_a_new_database_gets(
    older: Older, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older.make_tables(monkeypatch)
    fresh = postgres_url(tmp_path / "fresh")
    found = []
    for each in (url, fresh):
        await opened(each).close()
        with psycopg.connect(each) as db:
            columns = db.execute(
                "SELECT table_name, column_name, data_type, collation_name, is_nullable,"
                " regexp_replace(column_default, '.*(?=::)', '') FROM information_schema.columns"
                " WHERE table_schema = current_schema() ORDER BY table_name, column_name"
            ).fetchall()
            indexes = db.execute(
                "SELECT tablename, regexp_replace(indexdef, 'at_[0-9a-f]+[.]', '', 'g')"
                " FROM pg_indexes WHERE schemaname = current_schema() ORDER BY indexname"
            ).fetchall()
        found.append((columns, indexes))
    ours = [c for c in found[0][0] if c[:2] != ("batchyard_ledger", "compatible")]
    assert ours == [c for c in found[1][0] if c[:2] != ("batchyard_ledger", "compatible")]
    assert found[0][1] == found[1][1]


# Newer than ours ---------------------------------------------------------------------------------


def pretend(monkeypatch: pytest.MonkeyPatch, version: int, steps: dict[int, Step]) -> None:
    """Be the program of a later version."""
    monkeypatch.setattr(postgres_schema, "SCHEMA_VERSION", version)
    monkeypatch.setattr(postgres_schema, "_STEPS", postgres_schema._STEPS | steps)


NEXT = Step(
    before=(b"ALTER TABLE batches ADD COLUMN later INTEGER NOT NULL DEFAULT 7",),
    after=(b"ALTER TABLE batches DROP COLUMN user_profile",),
)
AFTER_NEXT = Step(before=(b"ALTER TABLE batches ADD COLUMN much_later INTEGER",))


async def test_the_next_version_adds_at_once_and_takes_away_only_when_ours_is_gone(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = opened(url)
    batch = await add(ours, "a")
    with monkeypatch.context() as patch:
        pretend(patch, CURRENT + 1, {CURRENT: NEXT})
        theirs = await asyncio.gather(*(asyncio.to_thread(opened, url) for _ in range(3)))
    started = opened(url)  # of our version, beside the next one
    for each in (ours, *theirs, started):
        assert await each.get("w", batch.id) == batch
    await add(started, "b")
    with psycopg.connect(url) as db:
        assert db.execute("SELECT DISTINCT later FROM batches").fetchall() == [(7,)]
    for each in (ours, *theirs, started):
        await each.close()
    with monkeypatch.context() as patch:
        pretend(patch, CURRENT + 2, {CURRENT: NEXT, CURRENT + 1: AFTER_NEXT})
        await opened(url).close()
    with psycopg.connect(url) as db:
        columns = "SELECT * FROM batches LIMIT 0"
        names = {column.name for column in db.execute(columns).description or ()}
    assert names >= {"later", "much_later"}
    assert "user_profile" not in names
    with pytest.raises(ConfigError, match=rf"version {CURRENT + 2}, for .* {CURRENT + 1} or later"):
        opened(url)


async def test_a_version_that_is_skipped_is_migrated_to_the_one_before_too(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(url).close()
    pretend(monkeypatch, CURRENT + 2, {CURRENT: NEXT, CURRENT + 1: AFTER_NEXT})
    await opened(url).close()
    with psycopg.connect(url) as db:
        row = db.execute("SELECT version, compatible FROM batchyard_ledger").fetchone()
    assert row == (CURRENT + 2, CURRENT + 1)


async def test_tables_that_are_not_compatible_are_refused_and_left_alone(url: str) -> None:
    await opened(url).close()
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE batchyard_ledger SET version = 99, compatible = 98")
        with pytest.raises(ConfigError, match=r"schema version 99, .* 98 or later; .* 3 to 4"):
            opened(url)
        row = db.execute("SELECT version, compatible FROM batchyard_ledger").fetchone()
    assert row == (99, 98)


async def test_a_transaction_that_holds_the_tables_delays_a_migration_and_no_other(
    older: Older, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits behind the change may go on now and then; in the end the start fails."""
    older.make_tables(monkeypatch)
    monkeypatch.setattr(postgres_schema, "_PATIENCE", b"SET LOCAL lock_timeout = '50ms'")
    with psycopg.connect(url) as busy:
        busy.execute("SELECT * FROM shards")
        with pytest.raises(StoreError, match="cannot be changed"):
            opened(url)
        older.run("newest")
    await opened(url).close()
    with psycopg.connect(url) as db:
        assert db.execute("SELECT version FROM batchyard_ledger").fetchone() == (CURRENT,)
