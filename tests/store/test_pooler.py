"""The ledger behind a pooler: every transaction in another session, and nothing left in any.

All tests of a ledger are here once more, over connections of which none is its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import psycopg
import pytest

from batchyard.clock import SystemClock
from batchyard.ledger import Want
from batchyard.ledger.postgres import PostgresLedger
from helpers_pooler import Pooler
from store import test_ledger
from store.making import LEASE, NOW, add, make_commit, postgres, postgres_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from batchyard.ledger import Ledger

pytestmark = pytest.mark.anyio

globals().update(
    {name: found for name, found in vars(test_ledger).items() if name.startswith("test_")}
)


@pytest.fixture(scope="module")
def pooler() -> Iterator[Pooler]:
    with Pooler(postgres().port) as opened:
        yield opened


@pytest.fixture
def pooled_url(pooler: Pooler, tmp_path: Path) -> str:
    return postgres_url(tmp_path).replace(f":{postgres().port}/", f":{pooler.port}/")


@pytest.fixture
def open_ledger(pooler: Pooler, pooled_url: str) -> Iterator[Callable[[], Ledger]]:
    before = pooler.transactions
    yield lambda: PostgresLedger(pooled_url, SystemClock(), database_time=False)
    assert pooler.transactions > before
    assert pooler.left == []


async def test_many_connections_share_few_sessions(
    open_ledger: Callable[[], Ledger], pooler: Pooler
) -> None:
    ledgers = [open_ledger() for _ in range(4)]  # of two connections each
    try:
        await add(ledgers[0], "a", *["up/m"] * 24)

        async def work(ledger: Ledger, owner: str) -> list[int]:
            found: list[int] = []
            while claims := await ledger.claim(owner, "up/m", LEASE, 2):
                wants = [Want(pool="up/m", slots=64, busy=0, note=None)]
                assert (await ledger.share(owner, NOW, LEASE, wants))["up/m"].slots <= 64
                commits = [make_commit(claim) for claim in claims]
                assert len((await ledger.commit(owner, commits)).accepted) == len(claims)
                found += [claim.index for claim in claims]
            return found

        parts = await asyncio.gather(*(work(each, f"o{n}") for n, each in enumerate(ledgers)))
        assert sorted(index for part in parts for index in part) == list(range(24))
    finally:
        for each in ledgers:
            await each.close()


def test_what_a_client_leaves_in_a_session_is_seen_and_gone(tmp_path: Path) -> None:
    """Otherwise the tests above could not fail."""
    with Pooler(postgres().port) as pooler:
        url = postgres_url(tmp_path).replace(f":{postgres().port}/", f":{pooler.port}/")
        with psycopg.connect(url, autocommit=True) as db:
            first = db.execute("SELECT pg_backend_pid()").fetchone()
            assert first != db.execute("SELECT pg_backend_pid()").fetchone()
            assert pooler.left == []
            db.execute("SET statement_timeout = 5000")
            assert db.execute("SHOW statement_timeout").fetchone() == ("0",)
            db.execute("LISTEN news")
            db.execute("SELECT pg_advisory_lock(1)")
            db.execute("CREATE TEMPORARY TABLE mine (a INTEGER)")
            with pytest.raises(psycopg.errors.InvalidSqlStatementName):
                db.execute("SELECT 1", prepare=True)
        kinds = [found.split()[0] for found in pooler.left]
        assert kinds == ["setting", "listens", "lock", "table", "prepared"]
