"""Of several processes on one file none takes work from another that could not write either."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from batchyard import limits
from batchyard.clock import SystemClock, steady_us
from batchyard.errors import DiskFull
from batchyard.ledger import Want
from batchyard.ledger.sqlite import SqliteLedger
from store.making import NOW, add, make_held

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from batchyard.ledger import Claim

pytestmark = pytest.mark.anyio

LEASE, LEASE_S = limits.LEASE_US, limits.LEASE_US / limits.SECOND_US


class Passing(SystemClock):
    """The clock of a machine, on which time can pass."""

    passed_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.passed_s


@pytest.fixture
def clock() -> Passing:
    return Passing()


@pytest.fixture
async def several(tmp_path: Path, clock: Passing) -> AsyncIterator[Callable[[], SqliteLedger]]:
    """Opens the same ledger for another process, the server first."""
    opened: list[SqliteLedger] = []

    def open_one() -> SqliteLedger:
        path = tmp_path / "ledger.db"
        opened.append(SqliteLedger(path, shared=True, joins=bool(opened), clock=clock))
        return opened[-1]

    yield open_one
    for each in reversed(opened):
        await each.close()


async def _reach(ledger: SqliteLedger, clock: Passing) -> None:
    """Let a whole lease pass, with sweeps; nothing is over as they see it."""
    for _ in range(5):
        assert await ledger.take_back(0, but="") == 0
        clock.passed_s += LEASE_S / 4


async def _claim(ledger: SqliteLedger, clock: Passing) -> Claim:
    """Claim for a worker that does not renew, as far as anybody sees."""
    await add(ledger, "a")
    (claim,) = await ledger.claim("worker", "up/m", steady_us(clock) + LEASE, 1)
    return claim


@contextlib.contextmanager
def _held_by_another_program(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def _fill_the_disk(server: SqliteLedger) -> None:
    """Have one write that finds no room."""
    run = server._writer.run
    (pages,) = await run(lambda t: t.execute("PRAGMA page_count").fetchone())
    await run(lambda t: t.execute(f"PRAGMA max_page_count = {pages}").fetchone())
    with pytest.raises(DiskFull):
        await run(lambda t: t.execute("CREATE TABLE large AS SELECT zeroblob(1000000)"))
    await run(lambda t: t.execute(f"PRAGMA max_page_count = {2 * pages + 100}").fetchone())


async def test_work_is_taken_from_a_worker_that_alone_could_not_renew_for_a_whole_lease(
    several: Callable[[], SqliteLedger], clock: Passing
) -> None:
    server = several()
    await _claim(server, clock)
    await _reach(server, clock)
    assert await server.take_back(steady_us(clock), but="") == 1


@pytest.mark.parametrize("how", ["the disk was full", "another held the file", "all were frozen"])
async def test_after_a_time_in_which_nobody_could_renew_nothing_is_taken_for_a_lease(
    several: Callable[[], SqliteLedger], clock: Passing, tmp_path: Path, how: str
) -> None:
    server = several()
    await _claim(server, clock)
    await _reach(server, clock)
    match how:
        case "the disk was full":
            await _fill_the_disk(server)
        case "another held the file":
            with _held_by_another_program(tmp_path / "ledger.db"):
                sweep = asyncio.ensure_future(server.take_back(steady_us(clock), but=""))
                clock.passed_s += LEASE_S
            assert await sweep == 0
        case "all were frozen":
            clock.passed_s += LEASE_S
    assert await server.take_back(steady_us(clock), but="") == 0
    await _reach(server, clock)
    assert await server.take_back(steady_us(clock), but="") == 1, "it had the time, and is dead"


async def test_a_renewal_that_waited_gives_a_whole_lease(
    several: Callable[[], SqliteLedger], clock: Passing, tmp_path: Path
) -> None:
    server, worker = several(), several()
    claim = await _claim(server, clock)
    with _held_by_another_program(tmp_path / "ledger.db"):
        until = steady_us(clock) + LEASE
        renewal = asyncio.ensure_future(worker.renew("worker", until, [make_held(claim)]))
        await asyncio.sleep(0)  # it is asked for, and cannot be had yet
        clock.passed_s += 2 * LEASE_S
    assert [each.index for each in await renewal] == [0]
    ((lease_us,),) = await server._reader.run(
        lambda t: t.execute("SELECT lease_us FROM shards").fetchall()
    )
    assert lease_us >= until + 2 * LEASE


@pytest.mark.parametrize("how", ["claim", "fresh", "apart", "void"])
async def test_a_claim_that_waited_gives_a_whole_lease(
    several: Callable[[], SqliteLedger], clock: Passing, tmp_path: Path, how: str
) -> None:
    server, worker = several(), several()
    batch = await add(server, "a")
    until = steady_us(clock) + LEASE
    match how:
        case "claim":
            claiming = worker.claim("worker", "up/m", until, 1)
        case "fresh":
            claiming = worker.claim_fresh("worker", "up/m", until, 1)
        case "apart":
            await server._writer.run(lambda t: t.execute("UPDATE shards SET state = -1"))
            claiming = worker.claim_apart("worker", "up/m", until)
        case "void":
            await server.cancel("w", batch.id, NOW)
            claiming = worker.claim_void("worker", NOW, until, 1)
    with _held_by_another_program(tmp_path / "ledger.db"):
        waiting = asyncio.ensure_future(claiming)
        await asyncio.sleep(0)  # it is asked for, and cannot be had yet
        clock.passed_s += 2 * LEASE_S
    assert len(await waiting) == 1
    ((lease_us,),) = await server._reader.run(
        lambda t: t.execute("SELECT lease_us FROM shards").fetchall()
    )
    assert lease_us >= until + 2 * LEASE


async def test_slots_of_workers_that_were_frozen_are_granted_to_nobody_else_for_a_lease(
    several: Callable[[], SqliteLedger], clock: Passing
) -> None:
    one, two = several(), several()

    async def ask(ledger: SqliteLedger, owner: str) -> int:
        now = steady_us(clock)
        wants = [Want(pool="up/m", slots=64, busy=0, note=None)]
        return (await ledger.share(owner, now, now + LEASE, wants, lease_now=now))["up/m"].slots

    assert await ask(one, "one") == 64
    assert await ask(two, "two") == 0
    clock.passed_s += 2 * LEASE_S
    assert await ask(two, "two") == 0, "one fills them still"
    for _ in range(6):
        clock.passed_s += LEASE_S / 4
        granted = await ask(two, "two")
    assert granted == 64, "it is gone"
