"""Workers that divide slots and limits through each ledger, in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from batchyard import limits
from batchyard.clock import SystemClock, steady_us
from batchyard.dispatch import waiting
from batchyard.dispatch.accounts import Accounts
from batchyard.dispatch.ceilings import Ceilings, Limit
from batchyard.dispatch.gate import Gates
from batchyard.dispatch.limiter import Signal
from batchyard.dispatch.pool import Pool
from batchyard.dispatch.sharing import Sharing, Size
from batchyard.ledger import Rest, Want
from batchyard.server.assemble import opened
from batchyard.server.config import Config, UpstreamConfig
from batchyard.testing.clock import ManualClock
from helpers_upstream import DEADLINE_S
from store.making import NOW, add, make_batch, postgres_url, s3
from store.working import create

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.ledger import Ledger

pytestmark = pytest.mark.anyio

NAME = "up/m"
_PAUSED = waiting.Held("paused", "bad key", 12.0)


class SetClock(ManualClock):
    """A clock whose wall time is set, and followed at once."""

    off_us = 0

    def now_us(self) -> int:
        return super().now_us() + self.off_us


class Member:
    """One worker's part of a pool."""

    def __init__(self, owner: str, ledger: Ledger, slots: int, *, is_divided: bool = True) -> None:
        self.clock = SetClock(NOW)
        self.accounts = Accounts()
        self.pool = Pool(NAME, None, 0, now_s=self.clock.monotonic_s)
        ceilings = Ceilings({"up": [Limit(("*",), requests=6_000)]})
        self.pool.gate = Gates(self.clock, ceilings).of(NAME, slots)
        self.sharing = Sharing(
            owner, ledger, self.clock, self.accounts, lambda _: Size(slots, is_divided=is_divided)
        )

    async def ask(self) -> int:
        """Ask as at a renewal; return the slots that it may fill."""
        await self.sharing.ask({NAME: self.pool}, [])
        return self.pool.slots

    @property
    def part(self) -> float:
        """Of the configured limit."""
        (ceiling,) = self.pool.gate.limiter.ceilings
        assert ceiling.requests is not None
        return ceiling.requests.part

    @property
    def rate(self) -> float | None:
        return self.pool.gate.limiter.pace.rate

    def learn(self, rate: float) -> None:
        """Find out what the upstream allows this worker."""
        self.pool.gate.limiter.pace.take_over(rate, self.clock.monotonic_s())


async def test_configured_and_learned_limits_are_divided_by_the_workers_that_are_there(
    ledger: Ledger,
) -> None:
    one, two, three = (Member(name, ledger, 120) for name in ("one", "two", "three"))
    assert await one.ask() == 120
    one.learn(90.0)
    for _ in range(2):  # slots are given up at the next renewal of who has them
        await two.ask()
        await one.ask()
    assert (await one.ask(), await two.ask()) == (60, 60)
    assert [one.rate, two.rate] == [pytest.approx(45.0)] * 2
    assert [m.part for m in (one, two)] == [0.5, 0.5]
    for _ in range(3):
        for member in (one, two, three):
            await member.ask()
    assert [m.pool.slots for m in (one, two, three)] == [40, 40, 40]
    assert [m.rate for m in (one, two, three)] == [pytest.approx(30.0)] * 3
    assert await two.sharing.ask({}, []) == []
    assert not two.sharing.has_asked
    for _ in range(2):
        for member in (one, three):
            await member.ask()
    assert [m.pool.slots for m in (one, three)] == [60, 60]
    assert [m.rate for m in (one, three)] == [pytest.approx(45.0)] * 2


async def test_a_worker_that_came_back_with_what_it_knew_keeps_it(ledger: Ledger) -> None:
    one, two = Member("one", ledger, 64), Member("two", ledger, 64)
    await one.ask()
    one.learn(50.0)
    two.learn(7.0)
    for _ in range(2):
        await two.ask()
        await one.ask()
    await two.ask()
    assert (two.rate, two.pool.slots) == (7.0, 32)


async def test_the_one_worker_of_few_slots_has_all_of_what_is_allowed(ledger: Ledger) -> None:
    few = limits.SLOTS_DIVIDED_MIN - 1
    one, two = Member("one", ledger, few), Member("two", ledger, few)
    await one.ask()
    one.learn(20.0)
    for _ in range(3):
        await two.ask()
        await one.ask()
    assert (one.pool.slots, two.pool.slots) == (few, 0)
    assert (one.rate, two.rate) == (20.0, None)
    assert one.part == 1.0


async def test_a_worker_without_slots_leaves_what_it_holds_to_one_that_has_them_after_a_while(
    ledger: Ledger,
) -> None:
    few = limits.SLOTS_DIVIDED_MIN - 1
    one, two = Member("one", ledger, few), Member("two", ledger, few)
    assert (await one.ask(), await two.ask()) == (few, 0)
    for seconds, gives_way in ((29.0, False), (1.0, True)):
        for member in (one, two):
            await member.clock.advance(seconds)
            await member.ask()
        assert (one.pool.gives_way, two.pool.gives_way) == (False, gives_way)
    await one.sharing.ask({}, [])
    assert (await two.ask(), two.pool.gives_way) == (few, False)


@pytest.mark.parametrize("slots", [16, 64])
@pytest.mark.parametrize("how", ["no work", "left", "died"])
async def test_what_the_last_worker_of_a_pool_has_learned_is_handed_on_to_the_next(
    ledger: Ledger, slots: int, how: str
) -> None:
    one, two = Member("one", ledger, slots), Member("two", ledger, slots)
    await one.ask()
    one.learn(20.0)
    await one.ask()
    if slots < limits.SLOTS_DIVIDED_MIN:
        assert await two.ask() == 0
    if how == "no work":
        await one.sharing.ask({}, [])
    else:
        await ledger.release("one", has_died=how == "died")
    assert await two.ask() == slots
    assert two.rate == pytest.approx(20.0)
    await two.sharing.ask({}, [])
    late = Member("late", ledger, slots)
    await late.clock.advance((limits.LEARNED_KEPT_US + limits.LEASE_US) / limits.SECOND_US + 1)
    assert await late.ask() == slots
    assert late.rate is None, "that is too long ago"


class Minute:
    """A worker with several pools of one upstream, which calls as fast as it is let."""

    def __init__(self, owner: str, ledger: Ledger, slots: int, models: str) -> None:
        self.clock = ManualClock(NOW)
        gates = Gates(self.clock, Ceilings({"up": [Limit(("*",), requests=600)]}))
        self.pools = {f"up/{m}": Pool(f"up/{m}", None, 0) for m in models}
        for name, pool in self.pools.items():
            pool.gate = gates.of(name, slots)
        self.sharing = Sharing(owner, ledger, self.clock, Accounts(), lambda _: Size(slots))
        self.calls = 0

    async def second(self, *, is_done: bool = False) -> None:
        await self.sharing.ask({} if is_done else self.pools, [])
        for pool in () if is_done else self.pools.values():
            limiter, now_s = pool.gate.limiter, self.clock.monotonic_s()
            for tenth in range(10):
                while pool.slots and limiter.wait_s(now_s + tenth / 10) <= 0.0:
                    limiter.end(limiter.start(now_s + tenth / 10), now_s, Signal.TAKEN)
                    self.calls += 1
        await self.clock.advance(1.0)


@pytest.mark.parametrize("slots", [16, 64])
@pytest.mark.parametrize("models", ["ab", "abc+d", "a+b", "ab+ab", "a+b+c"])
async def test_a_limit_of_several_models_is_kept_by_all_workers_together(
    ledger: Ledger, slots: int, models: str
) -> None:
    workers = [
        Minute(f"worker-{number}", ledger, slots, its)
        for number, its in enumerate(models.split("+"))
    ]
    for _ in range(60):
        for worker in workers:
            await worker.second()
    calls = [worker.calls for worker in workers]
    assert 0.93 * 600 <= sum(calls) <= 600 + 10 + len(workers), calls


async def test_a_part_of_a_limit_goes_back_to_those_who_still_have_work(ledger: Ledger) -> None:
    one, two = Minute("one", ledger, 64, "a"), Minute("two", ledger, 64, "b")
    for _ in range(10):
        await one.second()
        await two.second()
    before = one.calls
    for _ in range(30):
        await two.second(is_done=True)
        await one.second()
    assert 0.95 * 300 <= one.calls - before <= 310
    before = one.calls + two.calls
    for _ in range(30):
        await two.second()
        await one.second()
    assert 0.9 * 300 <= one.calls + two.calls - before <= 310, "a newcomer adds nothing"


async def test_slots_that_are_in_each_worker_are_not_divided(ledger: Ledger) -> None:
    one, two = (Member(name, ledger, 64, is_divided=False) for name in ("one", "two"))
    one.learn(20.0)
    for _ in range(2):
        assert (await one.ask(), await two.ask()) == (64, 64)
    assert (one.rate, two.rate) == (20.0, None)
    await one.ask()
    await two.ask()
    assert [one.part, two.part] == [0.5, 0.5], "a limit that is written down is one of all"


async def test_what_a_worker_sees_and_counts_is_in_the_ledger_after_each_renewal(
    ledger: Ledger,
) -> None:
    batch = await add(ledger, "a")
    one = Member("one", ledger, 64)
    one.pool.pause("wrong key", one.clock.monotonic_s() + 12.0)
    account = one.accounts.of(batch.id)
    account.calls = 3
    account.failed("r1", 1, "HTTP 401", "wrong key")
    await one.ask()
    (told,) = await ledger.tellings(steady_us(one.clock))
    (held,) = waiting.load(told.told).held
    assert (held.reason, held.detail, held.left_s) == ("paused", "wrong key", 12.0)
    assert told.note == "wrong key"
    assert told.left_us == limits.LEASE_US
    await one.ask()
    (told,) = await ledger.tellings(steady_us(one.clock))
    assert waiting.load(told.told).rate_max == 100.0
    ((owner, text),) = await ledger.accounts(batch.id)
    assert owner == "one"
    assert '"HTTP 401":1' in text


@pytest.mark.parametrize("off_us", [limits.HOUR_US, -limits.HOUR_US], ids=["late", "early"])
async def test_slots_are_never_granted_twice_when_one_worker_follows_a_set_clock_first(
    ledger: Ledger, off_us: int
) -> None:
    one, two = Member("one", ledger, 64), Member("two", ledger, 64)
    assert await one.ask() == 64
    two.clock.off_us = off_us
    assert await two.ask() == 0, "the other has them all"
    assert {told.owner for told in await ledger.tellings(steady_us(two.clock))} == {"one", "two"}
    for member in (one, two):
        await member.ask()
    assert (one.pool.slots, two.pool.slots) == (32, 32)
    one.clock.off_us = off_us  # now it is told, too
    for member in (one, two):
        assert await member.ask() == 32


# One process that is an API and a worker ---------------------------------------------------------


async def test_an_api_that_works_too_answers_for_all_workers_and_not_for_its_own_only(
    tmp_path: Path,
) -> None:
    config = Config(
        host="127.0.0.1",
        port=0,
        data=tmp_path,
        public_url=None,
        allowed_hosts=frozenset(),
        ledger=postgres_url(tmp_path),
        segments=s3().url(tmp_path.name),
        upstreams=(UpstreamConfig(name="up", url="simulated:"),),
    )
    clock = SystemClock()
    async with opened(config, clock) as yard:
        told = waiting.Told(slots=9, busy=9, rate_max=2.0, held=(_PAUSED,))
        lease = steady_us(clock) + limits.LEASE_US
        want = Want(pool=NAME, slots=64, busy=9, note="bad key", told=waiting.dump(told))
        await yard.ledger.share("other", NOW, lease, [want], lease_now=steady_us(clock))
        assert yard.worker.cancel_takes_s == limits.NEWS_AGE_MAX * yard.ledger.poll_s
        working = asyncio.create_task(yard.worker.run())
        async with asyncio.timeout(DEADLINE_S):
            while not yard.worker.troubles([NAME]):
                await asyncio.sleep(0.01)
        (why,) = yard.worker.explain("msgbatch_a", {NAME: Rest(9, 3, 0)})
        assert (why.reason, why.detail) == ("paused", "bad key")
        assert yard.worker.rate_max(NAME) == 2.0
        assert yard.worker.told_us([NAME]) is not None
        batch = make_batch("a", requests=3)
        await create(yard.ledger, yard.store, batch)
        yard.worker.wake()
        async with asyncio.timeout(DEADLINE_S):  # it works, too: this is over long since
            while (found := await yard.ledger.get("w", batch.id)) and found.status != "ended":
                await asyncio.sleep(0.01)
        yard.worker.leave()
        await working
