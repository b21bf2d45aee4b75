"""Workers that divide slots and limits through each ledger, in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchyard import limits
from batchyard.dispatch import waiting
from batchyard.dispatch.accounts import Accounts
from batchyard.dispatch.ceilings import Ceilings, Limit
from batchyard.dispatch.gate import Gates
from batchyard.dispatch.pool import Pool
from batchyard.dispatch.sharing import Sharing, Size
from batchyard.testing.clock import ManualClock
from store.making import NOW, add

if TYPE_CHECKING:
    from batchyard.ledger import Ledger

pytestmark = pytest.mark.anyio

NAME = "up/m"


class Member:
    """One worker's part of a pool."""

    def __init__(self, owner: str, ledger: Ledger, slots: int, *, is_divided: bool = True) -> None:
        self.clock = ManualClock(NOW)
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
    assert [m.pool.gate.limiter.part for m in (one, two)] == [0.5, 0.5]
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
    assert one.pool.gate.limiter.part == 1.0


async def test_slots_that_are_in_each_worker_are_not_divided(ledger: Ledger) -> None:
    one, two = (Member(name, ledger, 64, is_divided=False) for name in ("one", "two"))
    one.learn(20.0)
    for _ in range(2):
        assert (await one.ask(), await two.ask()) == (64, 64)
    assert (one.rate, two.rate) == (20.0, None)


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
    (told,) = await ledger.tellings(one.clock.now_us())
    (held,) = waiting.load(told.told).held
    assert (held.reason, held.detail, held.left_s) == ("paused", "wrong key", 12.0)
    assert told.note == "wrong key"
    assert told.left_us == limits.LEASE_US
    await one.ask()
    (told,) = await ledger.tellings(one.clock.now_us())
    assert waiting.load(told.told).rate_max == 100.0
    ((owner, text),) = await ledger.accounts(batch.id)
    assert owner == "one"
    assert '"HTTP 401":1' in text
