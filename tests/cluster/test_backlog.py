"""The open work, as it is read over a connection of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from batchyard.clock import SystemClock
from batchyard.cluster import status
from batchyard.errors import ConfigError
from batchyard.ledger import backlog
from batchyard.ledger.backlog import BacklogReader
from batchyard.ledger.open_work import Taken, Waiting
from batchyard.model import Counts
from store.making import LEASE, add, make_commit, make_held, take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from batchyard.ledger.postgres import PostgresLedger

pytestmark = pytest.mark.anyio


@pytest.fixture
async def reader(ledger: PostgresLedger, url: str) -> AsyncIterator[BacklogReader]:
    opened = BacklogReader(url, SystemClock())
    yield opened
    await opened.close()


async def test_it_is_what_waits_by_pool_and_what_each_worker_has_taken_up(
    ledger: PostgresLedger, reader: BacklogReader
) -> None:
    assert await reader.read() == backlog.Backlog()
    await add(ledger, "a", "up/m", "up/m", "up/m", "gpu/x", requests=5)
    first, second = await take(ledger, "one"), await take(ledger, "two")
    held = make_held(first, inflight=2, counts=Counts(succeeded=3))
    await ledger.renew("one", LEASE, [held])
    found = await reader.read()
    assert found.waiting == (
        Waiting(pool="gpu/x", shards=1, requests=5),
        Waiting(pool="up/m", shards=1, requests=5),
    )
    assert found.taken == (
        Taken(owner="one", pool="up/m", shards=1, requests=2, inflight=2),
        Taken(owner="two", pool="up/m", shards=1, requests=5, inflight=0),
    )
    await ledger.commit("two", [make_commit(second)])
    assert [taken.owner for taken in (await reader.read()).taken] == ["one"]


async def test_what_waits_is_counted_up_to_a_number_of_shards(
    ledger: PostgresLedger, reader: BacklogReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "SHARDS_COUNTED_MAX", 3)
    await add(ledger, "a", *["up/m"] * 5, requests=7)
    (found,) = (await reader.read()).waiting
    assert (found.shards, found.requests, found.is_more) == (3, 21, True)


async def test_shards_that_are_set_apart_wait_too(
    ledger: PostgresLedger, reader: BacklogReader, url: str
) -> None:
    await add(ledger, "a", "up/m", "up/m", requests=5)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE shards SET state = -1 WHERE idx = 1")
    assert sum(each.requests for each in (await reader.read()).waiting) == 10


async def test_a_database_that_no_yard_has_used_is_left_as_it_is(url: str) -> None:
    with pytest.raises(ConfigError, match="no yard has used this database yet"):
        BacklogReader(url, SystemClock())
    with psycopg.connect(url) as db:
        schema = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()"
        assert db.execute(schema).fetchone() == (0,)


async def test_a_status_joins_actors_with_what_the_ledger_says_they_do(
    ledger: PostgresLedger, reader: BacklogReader
) -> None:
    await add(ledger, "a", "up/m", "up/m", requests=5)
    await take(ledger, "workers-1")
    await take(ledger, "plain")
    node = status.Node(id="n1", host="h1", is_alive=True, resources={"CPU": 4.0, "GPU": 0.0})
    actors = [
        status.Actor(name="workers-1", state="working", node="n1", pid=7),
        status.Actor(name="workers-2", state="silent"),
    ]
    found = status.described([node], actors, await reader.read())
    work = {"pool": "up/m", "shards": 1, "requests": 5, "in_flight": 0}
    assert found["workers"] == [
        {"name": "workers-1", "group": "workers", "state": "working", "node": "n1", "host": "h1",
         "pid": 7, "work": [work]},
        {"name": "workers-2", "group": "workers", "state": "silent", "node": None, "host": None,
         "pid": None, "work": []},
    ]  # fmt: skip
    assert found["elsewhere"] == [{"owner": "plain", "work": [work]}]
    assert found["waiting"] == []
