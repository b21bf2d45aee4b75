"""What only PostgreSQL has to prove: connections that break, other clocks, several writers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest

from batchyard import limits
from batchyard.clock import SystemClock, steady_us
from batchyard.errors import ConfigError, Overloaded, RateLimited, StoreError
from batchyard.ledger import Want
from batchyard.ledger.postgres import PostgresLedger, shown_url
from batchyard.model import Tokens
from helpers_proxy import Proxy
from store.making import (
    LEASE,
    NOW,
    add,
    finish,
    make_batch,
    make_commit,
    make_held,
    make_key,
    make_shards,
    no_standby,
    postgres,
    postgres_url,
    take,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from helpers_proxy import When

pytestmark = pytest.mark.anyio


# Connections that break --------------------------------------------------------------------------


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy(postgres().port) as opened:
        yield opened


@pytest.fixture
async def behind(proxy: Proxy, url: str) -> AsyncIterator[PostgresLedger]:
    """The same ledger, over connections that can be broken."""
    through = url.replace(f":{postgres().port}/", f":{proxy.port}/")
    opened = PostgresLedger(through, SystemClock(), database_time=False)
    yield opened
    await opened.close()


WHENS = pytest.mark.parametrize("when", ["before", "after"])


@WHENS
@pytest.mark.parametrize("replaces", [False, True])
async def test_a_create_whose_commit_was_cut_is_there_once_and_is_not_its_own_repeat(
    behind: PostgresLedger, proxy: Proxy, when: When, replaces: bool
) -> None:
    proxy.break_next_commit(when)
    batch, key = make_batch("a"), make_key("k", replaces=replaces)
    assert await behind.create(batch, make_shards("up/m"), key, queued_max=3) is None
    assert proxy.broken == 1
    assert await behind.get("w", batch.id) == batch
    assert (await behind.progress(batch.id)).shards == 1
    with pytest.raises(RateLimited):  # it counts once
        await behind.create(make_batch("b"), make_shards("up/m"), make_key("l"), queued_max=3)


@WHENS
async def test_a_claim_whose_commit_was_cut_takes_no_second_shard(
    behind: PostgresLedger, proxy: Proxy, when: When
) -> None:
    batch = await add(behind, "a", "up/m", "up/m")
    proxy.break_next_commit(when)
    claim = await take(behind)
    assert (claim.index, claim.attempt) == (0, 1)
    assert (await behind.progress(batch.id)).shards_done == 0
    assert [c.index for c in await behind.claim("other", "up/m", LEASE, 9)] == [1]
    assert [r.index for r in await behind.renew("me", LEASE, [make_held(claim)])] == [0]


@WHENS
async def test_a_void_claim_whose_commit_was_cut_is_the_same_claim(
    behind: PostgresLedger, proxy: Proxy, when: When
) -> None:
    batch = await add(behind, "a", "up/m", "up/m")
    await behind.cancel("w", batch.id, NOW)
    proxy.break_next_commit(when)
    claims = await behind.claim_void("me", NOW, LEASE, 1)
    assert [(c.index, c.attempt) for c in claims] == [(claims[0].index, 1)]
    assert len(await behind.claim_void("other", NOW, LEASE, 9)) == 1


@WHENS
async def test_commit_end_and_delete_whose_commits_were_cut_have_happened(
    behind: PostgresLedger, proxy: Proxy, when: When
) -> None:
    batch = await add(behind, "a")
    claim = await take(behind)
    proxy.break_next_commit(when)
    committed = await behind.commit("me", [make_commit(claim)])
    assert (committed.accepted, committed.finished) == ({(batch.id, 0)}, (batch.id,))
    proxy.break_next_commit(when)
    await behind.end(batch.id, NOW, Tokens())
    ended = await behind.get("w", batch.id)
    assert ended is not None
    assert ended.status == "ended"
    proxy.break_next_commit(when)
    assert await behind.delete("w", batch.id, NOW)
    assert await behind.get("w", batch.id) is None
    assert not await behind.delete("w", batch.id, NOW)
    assert proxy.broken == 3


async def test_a_client_is_told_to_come_again_while_a_worker_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "LEDGER_AWAY_WAIT_S", 0.2)
    proxy = Proxy(postgres().port)
    with proxy:
        through = postgres_url(tmp_path).replace(f":{postgres().port}/", f":{proxy.port}/")
        ledger = PostgresLedger(through, SystemClock(), database_time=False)
        batch = await add(ledger, "a")
    with pytest.raises(Overloaded) as refused:
        await ledger.get("w", batch.id)
    assert refused.value.retry_after_s
    waiting = asyncio.ensure_future(ledger.claim("me", "up/m", LEASE, 1))
    with pytest.raises(Overloaded):
        await ledger.cancel("w", batch.id, NOW)
    assert not waiting.done()
    assert "the ledger is away" in caplog.text
    await ledger.close()
    with pytest.raises(StoreError, match="closed"):
        await waiting


async def test_what_a_client_was_told_to_repeat_is_not_done_once_the_database_lets_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its repeat may have come through another process meanwhile, and be another batch."""
    ledger = PostgresLedger(url, SystemClock(), database_time=False)
    try:
        monkeypatch.setattr(limits, "LEDGER_AWAY_WAIT_S", 0.2)
        with psycopg.connect(url) as db:
            db.execute("LOCK creates")
            with pytest.raises(Overloaded):
                await ledger.create(make_batch("a"), make_shards("up/m"), make_key("k"))
        await ledger.claim("me", "up/m", LEASE, 1)  # what was queued before it is over
        assert await ledger.get("w", make_batch("a").id) is None
    finally:
        await ledger.close()


# Clocks that differ ------------------------------------------------------------------------------


class _Wrong(SystemClock):
    """The clock of a host that is hours off, and was started as many hours sooner or later."""

    def __init__(self, hours: float) -> None:
        super().__init__()
        self.hours = hours
        self.slept_s = 0.0

    def now_us(self) -> int:
        return super().now_us() + round(self.hours * limits.HOUR_US)

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.slept_s + self.hours * 3_600


async def test_leases_are_in_the_time_of_the_database_whatever_the_hosts_say(url: str) -> None:
    early, late = _Wrong(-1), _Wrong(+1)
    one, two = PostgresLedger(url, early), PostgresLedger(url, late)
    try:
        await add(one, "a", "up/m", "up/m")
        long = await one.claim("one", "up/m", steady_us(early) + limits.LEASE_US, 1)
        over = await two.claim("two", "up/m", steady_us(late) - limits.SECOND_US, 1)
        await _reach(one, early)
        await _reach(two, late)
        assert await one.take_back(steady_us(early), but="") == 1, "what is over is over"
        assert await two.take_back(steady_us(late), but="") == 0, "and what is not is not"
        held = [make_held(claim) for claim in (*long, *over)]
        assert [r.index for r in await one.renew("one", steady_us(early), held)] == [long[0].index]
    finally:
        await one.close()
        await two.close()


async def _reach(ledger: PostgresLedger, clock: _Wrong) -> None:
    """Let a whole lease pass, with sweeps; nothing is over as they see it."""
    for _ in range(5):
        assert await ledger.take_back(steady_us(clock) - limits.DAY_US, but="") == 0
        clock.slept_s += limits.LEASE_US / limits.SECOND_US / 4


async def test_no_lease_is_taken_before_a_whole_one_of_unbroken_contact(
    proxy: Proxy, url: str
) -> None:
    clock = _Wrong(0)
    through = url.replace(f":{postgres().port}/", f":{proxy.port}/")
    ledger = PostgresLedger(through, clock)
    try:
        await add(ledger, "a")
        past = steady_us(clock) - limits.SECOND_US
        assert await ledger.claim("dead", "up/m", past, 1)
        assert await ledger.take_back(steady_us(clock), but="") == 0
        await _reach(ledger, clock)
        proxy.break_next_commit("before")
        await ledger.renew("me", past, [])
        assert await ledger.take_back(steady_us(clock), but="") == 0, "it was away in between"
        await _reach(ledger, clock)
        assert await ledger.take_back(steady_us(clock), but="") == 1
    finally:
        await ledger.close()


@contextlib.contextmanager
def _locked(url: str) -> Iterator[None]:
    """Let whoever writes rows of shards wait, and nobody else."""
    with psycopg.connect(url) as db:
        db.execute("SELECT 1 FROM shards FOR UPDATE")
        yield


@pytest.mark.parametrize("how", ["standby", "lock"])
async def test_a_stall_over_a_connection_that_stands_ends_no_lease(how: str, url: str) -> None:
    """Who lives could not renew either, and comes second when it is over."""
    clock = _Wrong(0)
    ledger = PostgresLedger(url, clock)
    try:
        await add(ledger, "a")
        assert await ledger.claim("alive", "up/m", steady_us(clock), 1)
        await _reach(ledger, clock)
        with no_standby() if how == "standby" else _locked(url):
            sweep = asyncio.ensure_future(ledger.take_back(steady_us(clock), but=""))
            event = {"standby": "SyncRep", "lock": "Lock"}[how]
            await asyncio.to_thread(wait_for, event, url)
            clock.slept_s += limits.LEASE_US / limits.SECOND_US
        assert await sweep == 0
        assert await ledger.take_back(steady_us(clock), but="") == 0
        await _reach(ledger, clock)
        assert await ledger.take_back(steady_us(clock), but="") == 1
    finally:
        await ledger.close()


@pytest.mark.parametrize("slots", [16, 64])
async def test_slots_of_leases_that_ended_in_an_outage_are_not_granted_twice(
    slots: int, url: str
) -> None:
    clock = _Wrong(0)
    one, two = PostgresLedger(url, clock), PostgresLedger(url, clock)
    wants = [Want(pool="up/m", slots=slots, busy=0, note=None)]

    async def ask(name: str, ledger: PostgresLedger, lease_us: int) -> int:
        now = steady_us(clock)
        granted = await ledger.share(name, NOW, now + lease_us, wants, lease_now=now)
        return granted["up/m"].slots

    try:
        assert await ask("one", one, -limits.SECOND_US) == slots
        assert await ask("two", two, limits.LEASE_US) == 0, "the calls of the other go on"
        await _reach(two, clock)
        assert await ask("two", two, limits.LEASE_US) == slots, "it had a whole lease for a renewal"
    finally:
        for each in (one, two):
            await each.close()


# Several writers ---------------------------------------------------------------------------------


async def _several(url: str, number: int) -> list[PostgresLedger]:
    return [PostgresLedger(url, SystemClock(), database_time=False) for _ in range(number)]


async def test_of_claims_at_the_same_time_no_two_take_the_same_shard(url: str) -> None:
    ledgers = await _several(url, 4)
    try:
        await add(ledgers[0], "a", *["up/m"] * 40)

        async def drain(ledger: PostgresLedger, owner: str) -> list[int]:
            found: list[int] = []
            while claims := await ledger.claim(owner, "up/m", LEASE, 3):
                assert len(claims) <= 3
                found += [claim.index for claim in claims]
            return found

        parts = await asyncio.gather(*(drain(each, f"o{n}") for n, each in enumerate(ledgers)))
        assert sorted(index for part in parts for index in part) == list(range(40))
    finally:
        for each in ledgers:
            await each.close()


async def test_of_creates_under_one_key_at_the_same_time_one_is_added(url: str) -> None:
    ledgers = await _several(url, 4)
    try:
        answers = await asyncio.gather(
            *(
                each.create(make_batch(f"b{n}"), make_shards("up/m"), make_key("k"))
                for n, each in enumerate(ledgers)
            )
        )
        assert answers.count(None) == 1
        page = await ledgers[0].page("w", limit=9, after=None, before=None)
        assert page is not None
        (added,) = page.batches
        assert {known.batch.id for known in answers if known is not None} == {added.id}
    finally:
        for each in ledgers:
            await each.close()


async def test_whoever_commits_last_finds_the_batch_finished(url: str) -> None:
    one, two = await _several(url, 2)
    try:
        for number in range(10):
            batch = await add(one, f"b{number}", "up/m", "up/m")
            claims = await one.claim("me", "up/m", LEASE, 2)
            done = await asyncio.gather(
                *(
                    each.commit("me", [make_commit(claim)])
                    for each, claim in zip((one, two), claims, strict=True)
                )
            )
            assert any(batch.id in committed.finished for committed in done)
            assert await one.end(batch.id, NOW, Tokens())
    finally:
        await one.close()
        await two.close()


async def test_slots_that_are_divided_at_the_same_time_are_never_more_than_there_are(
    url: str,
) -> None:
    ledgers = await _several(url, 4)
    wants = [Want(pool=p, slots=n, busy=0, note=None) for p, n in (("up/n", 64), ("up/m", 16))]
    try:
        for _ in range(5):
            granted = await asyncio.gather(
                *(each.share(f"o{n}", NOW, LEASE, wants) for n, each in enumerate(ledgers))
            )
            for want in wants:
                assert sum(each[want.pool].slots for each in granted) <= want.slots
    finally:
        for each in ledgers:
            await each.close()


async def test_who_asks_for_no_more_slots_than_it_has_holds_nobody_off(url: str) -> None:
    one, two = await _several(url, 2)
    half_us = limits.LEASE_US // 2

    def locked() -> object:
        """Return something that is another with each transaction that takes the lock."""
        with psycopg.connect(url, autocommit=True) as db:
            return db.execute("SELECT xmin::text FROM shares WHERE owner = ''").fetchone()

    async def ask(name: str, ledger: PostgresLedger, at: int = NOW, busy: int = 0) -> bool:
        before = locked()
        wants = [Want(pool="up/m", slots=64, busy=busy, note=None)]
        await ledger.share(name, at, at + limits.LEASE_US, wants)
        return locked() != before

    try:
        assert await ask("one", one), "the first takes all"
        assert not await ask("two", two), "and leaves none"
        assert not await ask("one", one), "gives up half"
        assert await ask("two", two), "and the other takes it"
        for _ in range(2):
            assert not await ask("one", one, busy=32)
            assert not await ask("two", two)
        assert not await ask("one", one, at=NOW + half_us)
        assert await ask("two", two, at=NOW + half_us + 1), "what soon runs out is not its own"
    finally:
        await one.close()
        await two.close()


# A process that is frozen in the middle of its statements. The bound on its transaction is short.
_RENEWS = """
import asyncio, sys
from batchyard import limits
limits.LEDGER_IDLE_S = 0.2
from batchyard.clock import SystemClock
from batchyard.ledger import Held
from batchyard.ledger.postgres import PostgresLedger
from batchyard.model import Counts

async def renew():
    ledger = PostgresLedger(sys.argv[1], SystemClock(), database_time=False)
    rest = {"attempt": 1, "inflight": 1, "counts": Counts()}
    held = [Held(batch="msgbatch_a", index=n, **rest) for n in range(400)]
    while True:
        renewed = await ledger.renew("frozen", int(sys.argv[2]), held)
        print(len(renewed), flush=True)

asyncio.run(renew())
"""


async def test_what_a_process_has_locked_that_is_frozen_anywhere_is_free_again(
    postgres_ledger: PostgresLedger, url: str
) -> None:
    await add(postgres_ledger, "a", *["up/m"] * 400)
    assert len(await postgres_ledger.claim("frozen", "up/m", LEASE, 400)) == 400
    command = [sys.executable, "-c", _RENEWS, url, str(LEASE)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        psycopg.connect(url, autocommit=True) as db,
    ):
        assert process.stdout is not None
        try:
            db.execute("SET lock_timeout = '30s'")
            for _ in range(10):
                assert process.stdout.readline() == b"400\n"
                process.send_signal(signal.SIGSTOP)
                db.execute("UPDATE shards SET inflight = 0")
                process.send_signal(signal.SIGCONT)
        finally:
            process.kill()


# Tables ------------------------------------------------------------------------------------------


async def test_processes_that_start_at_the_same_time_make_one_set_of_tables(url: str) -> None:
    opened = await asyncio.gather(
        *(
            asyncio.to_thread(PostgresLedger, url, SystemClock(), database_time=False)
            for _ in range(4)
        )
    )
    batch = await add(opened[0], "a")
    assert [await each.get("w", batch.id) for each in opened] == [batch] * 4
    for each in opened:
        await each.close()


async def test_a_database_of_another_program_is_refused_and_left_alone(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("CREATE TABLE shards (mine INTEGER)")
        with pytest.raises(ConfigError, match="tables of another program"):
            PostgresLedger(url, SystemClock())
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()"
        assert db.execute(tables).fetchone() == (1,)


async def test_a_password_is_in_no_message(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "s3cr3t"
    base = f"postgresql://yard:{secret}@127.0.0.1"
    for url in (
        f"{base}:1/x",
        f"{base}:{postgres().port}/none",
        f"{base}:99999999/x",
        f"{base}/x?y=1",
    ):
        with pytest.raises((ConfigError, StoreError)) as refused:
            PostgresLedger(url, SystemClock())
        assert secret not in str(refused.value)
        assert secret not in shown_url(url)
    assert secret not in caplog.text
    assert shown_url(f"{base}:1/x?password={secret}") == "postgresql://yard@127.0.0.1:1/x"


async def test_an_ended_batch_leaves_no_rows_of_its_shards(
    postgres_ledger: PostgresLedger, url: str
) -> None:
    batch = await add(postgres_ledger, "a", "up/m", "up/m")
    await finish(postgres_ledger, batch)
    with psycopg.connect(url) as db:
        assert db.execute("SELECT count(*) FROM shards").fetchone() == (0,)
        plan = db.execute("EXPLAIN SELECT min(pool) FROM shards WHERE state = 0").fetchall()
    assert re.search("shards_(ready|fresh)|Seq Scan", str(plan))
