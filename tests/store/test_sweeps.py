"""Of many processes that share a ledger one keeps house at a time, and each could."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from batchyard import limits
from batchyard.clock import SystemClock, steady_us
from batchyard.dispatch.keeper import Keeper
from batchyard.ledger import Want
from batchyard.ledger.postgres import PostgresLedger
from batchyard.segments.directory import DirectorySegments
from batchyard.testing.clock import ManualClock
from store.making import add

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from batchyard.ledger import Ledger

pytestmark = pytest.mark.anyio

SECOND, LEASE = limits.SECOND_US, limits.LEASE_US


class Passing(SystemClock):
    """The clock of a host, on which time can pass."""

    passed_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.passed_s


@pytest.fixture
async def several(url: str) -> AsyncIterator[Callable[..., PostgresLedger]]:
    """Opens the same ledger for another process."""
    opened = []

    def open_one(clock: Any, *, database_time: bool = True) -> PostgresLedger:
        opened.append(PostgresLedger(url, clock, database_time=database_time))
        return opened[-1]

    yield open_one
    for each in opened:
        await each.close()


async def test_of_all_processes_one_begins_a_sweep_and_the_next_when_that_is_a_while_ago(
    several: Callable[..., PostgresLedger],
) -> None:
    ledgers = [several(ManualClock(), database_time=False) for _ in range(4)]
    for now in (LEASE, LEASE + SECOND):
        begun = await asyncio.gather(*(each.begin_sweep(now, now + SECOND) for each in ledgers))
        assert sorted(begun) == [False, False, False, True]
        assert not await ledgers[0].begin_sweep(now + SECOND - 1, now + 2 * SECOND)


class Counting:
    """A ledger of which the sweeps are counted."""

    def __init__(self, real: Ledger) -> None:
        self._real = real
        self.looked = self.swept = self.tidied = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def begin_sweep(self, lease_now: int, lease_us: int) -> bool:
        self.looked += 1
        return await self._real.begin_sweep(lease_now, lease_us)

    async def forget_creates(self, now_us: int) -> None:
        self.swept += 1
        await self._real.forget_creates(now_us)

    def tidy(self) -> None:
        self.tidied += 1


class Longest:
    """Jitter that is what a test says."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def uniform(self, low: float, high: float) -> float:
        assert low <= self._factor <= high
        return self._factor


@pytest.mark.parametrize(("processes", "least"), [(1, 1.0), (8, 1 / 8)])
@pytest.mark.parametrize("factor", [0.5, 1.5])
async def test_each_process_looks_and_tidies_while_few_sweep(
    several: Callable[..., PostgresLedger],
    tmp_path: Path,
    processes: int,
    least: float,
    factor: float,
) -> None:
    clock = ManualClock()
    counts = [Counting(several(clock, database_time=False)) for _ in range(processes)]
    store, jitter = DirectorySegments(tmp_path / "s"), Longest(factor)
    running = []
    for each in counts:
        rng: Any = jitter
        ledger: Any = each
        keeper = Keeper(ledger, store, clock, owner="", tidy=each.tidy, interval_s=4.0, rng=rng)
        running.append(asyncio.create_task(keeper.run()))
    for _ in range(6):
        await clock.wait_for_sleepers(processes)
        await clock.advance(4.0 * factor)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    looked = sum(each.looked for each in counts)
    assert looked >= 6 * processes
    assert sum(each.tidied for each in counts) >= looked - processes
    assert sum(each.swept for each in counts) == pytest.approx(least * looked, abs=1)


async def test_who_does_not_sweep_can_as_soon_as_it_is_to(
    several: Callable[..., PostgresLedger],
) -> None:
    clock = Passing()
    one, other = several(clock), several(clock)
    await add(one, "a")
    for _ in range(5):
        now = steady_us(clock)
        assert await one.begin_sweep(now, now + LEASE) is (clock.passed_s == 0)
        assert not await other.begin_sweep(now, now + LEASE)
        clock.passed_s += LEASE / SECOND / 4
    assert await one.claim("dead", "up/m", steady_us(clock) - SECOND, 1)
    assert await other.take_back(steady_us(clock), but="") == 1, "it had a whole lease before"


async def test_who_writes_anyway_writes_no_row_to_keep_contact(
    several: Callable[..., PostgresLedger], url: str
) -> None:
    clock = Passing()
    busy, idle = several(clock), several(clock)
    wants = [Want(pool="up/m", slots=64, busy=0, note=None)]
    for _ in range(3):
        now = steady_us(clock)
        await busy.share("busy", now, now + LEASE, wants, lease_now=now)
        for each in (busy, idle):
            await each.begin_sweep(now, now + LEASE)
        clock.passed_s += 6.0
    with psycopg.connect(url) as db:
        owners = db.execute("SELECT owner FROM shares WHERE pool = '#contact'").fetchall()
    assert idle._contact is not None
    assert owners == [(idle._contact._name,)]
