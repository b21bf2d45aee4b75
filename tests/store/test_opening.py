"""What a worker does to the leases and failures of its shards, in virtual time, in each ledger."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits, segments
from batchyard.clock import steady_us
from batchyard.dispatch.adopt import Adopted
from batchyard.dispatch.shard import ShardRun
from batchyard.dispatch.suspects import Suspects
from batchyard.errors import DamagedError, DiskFull
from batchyard.segments.directory import DirectorySegments
from store.making import LEASE, NOW, add, take
from store.working import Working

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batchyard.ledger import Claim, Ledger
    from batchyard.upstream import Call, Outcome

pytestmark = pytest.mark.anyio

_IDLE_STEPS = 20
LONG_AFTER = NOW + 1_000 * limits.LEASE_US


class Silent:
    """Never answers."""

    name = "up"
    billing = "simulated"
    fetches_urls = True
    unset_key = None

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def send(self, call: Call) -> Outcome:
        self.called.set()
        await asyncio.Event().wait()
        raise AssertionError("it ended")


class Slow(DirectorySegments):
    """Reads nothing until it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.may_read = threading.Event()

    def read(self, name: str, offset: int, length: int) -> bytes:
        assert self.may_read.wait(60)
        return super().read(name, offset, length)


class Watched:
    """A ledger that counts the leases which are renewed, and the calls that are under way.

    Its disk may be full for as many renewals as are set.
    """

    def __init__(self, real: Ledger) -> None:
        self._real = real
        self.renewed = 0
        self.full = 0
        self._under_way = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def watched(*args: Any, **options: Any) -> Any:
            if name == "renew" and self.full:
                self.full -= 1
                raise DiskFull("the ledger has no room")
            self._under_way += 1
            try:
                return await found(*args, **options)
            finally:
                self._under_way -= 1
                if name == "renew":
                    self.renewed += len(args[2])

        return watched

    async def settle(self) -> None:
        """Wait until nobody calls, and nobody who was answered calls again."""
        idle = 0
        while idle < _IDLE_STEPS:
            await asyncio.sleep(0.001 if self._under_way else 0)
            idle = 0 if self._under_way else idle + 1


class One(Working):
    """A batch of one request, and one of several workers."""

    def __init__(self, ledger: Ledger, store: DirectorySegments) -> None:
        self.upstream, self.watched = Silent(), Watched(ledger)
        watched: Any = self.watched
        super().__init__(watched, store, self.upstream, requests=1, slots=64, owner="me")

    async def renewals(self, number: int) -> None:
        """Let so many pass, each to its end."""
        for _ in range(number):
            await self.clock.advance(self.ledger.renew_s)
            await self.watched.settle()

    async def failures(self) -> int:
        """Return how often the shard has failed, by its next claim."""
        claims = await self.ledger.claim("other", "up/m", LONG_AFTER, 1)
        assert len(claims) == 1
        return claims[0].failures


@contextlib.asynccontextmanager
async def in_flight(ledger: Ledger, root: Path) -> AsyncIterator[One]:
    """Run a worker whose one call is in flight."""
    one = One(ledger, DirectorySegments(root / "s"))
    await one.create()
    async with one.running():
        while not one.upstream.called.is_set():
            await one.renewals(1)
        await one.renewals(1)  # which tells that a call was made
        yield one


async def test_leases_are_renewed_as_often_as_the_ledger_wants_and_hold(
    ledger: Ledger, tmp_path: Path
) -> None:
    async with in_flight(ledger, tmp_path) as one:
        before = one.watched.renewed
        for _ in range(60):
            await one.clock.advance(1)
            await one.quiet()
        assert one.watched.renewed - before == pytest.approx(60 / ledger.renew_s, abs=1)
        assert await ledger.take_back(steady_us(one.clock), but="") == 0


async def test_a_worker_killed_after_two_renewals_with_a_call_in_flight_is_counted(
    ledger: Ledger, tmp_path: Path
) -> None:
    async with in_flight(ledger, tmp_path) as one:
        await one.renewals(2)
        await ledger.release("me", has_died=True)
        assert await one.failures() == 1


@pytest.mark.parametrize("full", [0, 2])
async def test_a_shard_that_cannot_harm_any_more_is_told_before_its_lease_is_due(
    ledger: Ledger, tmp_path: Path, full: int
) -> None:
    """Again, where the ledger had no room for it."""
    async with in_flight(ledger, tmp_path) as one:
        before = one.watched.renewed
        while one.watched.renewed == before:
            await one.clock.advance(limits.RENEW_INTERVAL_S)
            await one.quiet()
        one.worker.cancel("msgbatch_a")
        one.watched.full = full
        for _ in range(full + 1):
            await one.clock.advance(limits.RENEW_INTERVAL_S)
            await one.quiet()
        assert not one.watched.full
        await ledger.release("me", has_died=True)
        assert await one.failures() == 0


async def test_a_worker_that_was_frozen_takes_the_failure_back(
    ledger: Ledger, tmp_path: Path
) -> None:
    async with in_flight(ledger, tmp_path) as one:
        assert await ledger.take_back(LONG_AFTER, but="") == 1
        (claim,) = await ledger.claim("other", "up/m", LONG_AFTER, 1)
        assert claim.failures == 1
        await one.renewals(3)
        await one.quiet()
        await ledger.release("other")
        assert await one.failures() == 0


async def test_a_worker_that_is_ended_with_its_process_counts_nothing_as_failed(
    ledger: Ledger, tmp_path: Path
) -> None:
    """As when another part of it has met a store that failed."""
    async with in_flight(ledger, tmp_path) as one:
        pass
    assert await ledger.take_back(LONG_AFTER, but="") == 1
    assert await one.failures() == 0


async def test_a_shard_is_renewed_while_it_is_opened_and_dropped_when_lost(
    ledger: Ledger, tmp_path: Path
) -> None:
    store = Slow(tmp_path / "s")
    one = One(ledger, store)
    await one.create()
    try:
        async with one.running():
            while ("msgbatch_a", 0) not in one.worker._opening:
                await one.renewals(1)
            await one.renewals(40)
            assert await ledger.take_back(steady_us(one.clock), but="") == 0
            assert await ledger.take_back(LONG_AFTER, but="") == 1
            (claim,) = await ledger.claim("other", "up/m", LONG_AFTER, 1)
            await one.renewals(2)
            assert ("msgbatch_a", 0) not in one.worker._opening
            store.may_read.set()
            await one.renewals(3)
            assert not one.upstream.called.is_set(), "another has it"
            assert claim.attempt == 2
    finally:
        store.may_read.set()


async def test_a_shard_whose_requests_cannot_be_read_never_fails(
    ledger: Ledger, tmp_path: Path
) -> None:
    one = One(ledger, DirectorySegments(tmp_path / "s"))
    await one.create()
    (tmp_path / "s" / segments.requests_name("msgbatch_a")).unlink()
    async with one.running():
        while (await one.worker.account("msgbatch_a")) is None:
            await one.renewals(1)
        await one.renewals(2)
        assert await ledger.take_back(LONG_AFTER, but="") == 1
        assert await one.failures() == 0


# Suspects ----------------------------------------------------------------------------------------


async def suspect(ledger: Ledger, name: str) -> None:
    """Create a batch whose shard has failed as often as sets it apart."""
    await add(ledger, name)
    for _ in range(limits.FAILURES_TO_SET_APART):
        await take(ledger)
        await ledger.release("me", has_died=True)


def run_of(claim: Claim) -> ShardRun:
    return ShardRun(claim, [], Adopted())


def suspects_of(ledger: Ledger, began_s: float = -limits.SETTLING_S) -> Suspects:
    async def renew() -> None:
        pass

    return Suspects("me", ledger, renew, began_s)


async def test_the_last_suspect_is_blamed_for_ten_probations_and_not_for_ever(
    ledger: Ledger,
) -> None:
    await suspect(ledger, "a")
    suspects = suspects_of(ledger)
    (claim,) = await suspects.claim("up/m", LEASE, {}, set(), 0.0)
    shard = run_of(claim)
    suspects.opened(shard)
    last_s = 10 * limits.PROBATION_S
    held = replace(shard.held(), at_risk=True)
    assert suspects.to_tell([held], last_s - 1.0, is_due=True)[0].at_risk
    assert not suspects.to_tell([held], last_s, is_due=True)[0].at_risk


async def test_workers_that_end_one_after_the_other_take_up_no_suspect(ledger: Ledger) -> None:
    """Whatever ends them, it is not that shard."""
    await suspect(ledger, "a")
    for life in range(20):
        assert await suspects_of(ledger, life).claim("up/m", LEASE, {}, set(), life + 4.9) == ()
    (claim,) = await suspects_of(ledger, 20.0).claim("up/m", LEASE, {}, set(), 25.0)
    assert claim.failures == limits.FAILURES_TO_SET_APART


async def test_no_other_suspect_is_claimed_while_the_last_one_is_opened(ledger: Ledger) -> None:
    await suspect(ledger, "a")
    await suspect(ledger, "b")
    suspects = suspects_of(ledger)
    (claim,) = await suspects.claim("up/m", LEASE, {}, set(), 0.0)
    key = (claim.batch, claim.index)
    assert await suspects.claim("up/m", LEASE, {}, {key}, 1.0) == ()
    (other,) = await suspects.claim("up/m", LEASE, {}, set(), 2.0)
    assert other.batch != claim.batch, "the first was lost"


@pytest.mark.parametrize("number", [errno.EIO, errno.EUCLEAN, errno.EBADMSG])
@pytest.mark.parametrize("call", ["open", "stat"])
def test_a_segment_that_the_disk_cannot_find_any_more_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    store = DirectorySegments(tmp_path / "s")
    name = segments.requests_name("msgbatch_a")
    store.put(name, [b"abc"])

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, "of the disk")

    with monkeypatch.context() as patch:
        patch.setattr(f"os.{call}", fails)
        with pytest.raises(DamagedError, match="of the disk"):
            store.read(name, 0, 3) if call == "open" else store.size(name)
    assert store.read(name, 0, 3) == b"abc"
