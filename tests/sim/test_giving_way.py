"""A worker that cannot do its work lets another one have it, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits
from batchyard.dispatch import pool
from batchyard.dispatch.adopt import Adopted
from batchyard.dispatch.keeper import Keeper
from batchyard.dispatch.routes import Route, Routes
from batchyard.dispatch.shard import Request, ShardRun
from batchyard.dispatch.worker import Worker
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.segments.directory import DirectorySegments
from batchyard.testing.clock import ManualClock
from batchyard.upstream import Call, Failure, FailureKind, Outcome, Reply
from helpers_inline import InlineExecutor
from sim.caching import error_body
from store.making import NOW, make_batch
from store.working import create
from store.yards import message

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.model import Batch

NET = Failure(FailureKind.CONNECT, "no route")
KEY = Reply(401, error_body("authentication_error"))
FORBIDDEN = Reply(403, error_body("permission_error"))
BUSY = Reply(529, error_body("overloaded_error"))


class Host:
    """A worker with its keeper, and the upstream as it is seen from there."""

    name = "up"
    billing = "simulated"
    fetches_urls = True
    unset_key = None

    def __init__(self, pair: Pair, owner: str, slots: int) -> None:
        self._pair = pair
        self.trouble: Outcome | None = None
        self.taken = self.refused = 0
        upstreams: Any = {"up": self}
        self.worker = Worker(
            ledger=pair.ledger,
            store=pair.store,
            upstreams=upstreams,
            routes=Routes([Route("up")]),
            slots={"up": slots},
            clock=pair.clock,
            rng=random.Random(owner),
            owner=owner,
        )
        keeper = Keeper(pair.ledger, pair.store, pair.clock, owner=owner, interval_s=5.0)
        works = self.worker.run(), keeper.run()
        self.tasks = [asyncio.create_task(work) for work in works]

    async def send(self, call: Call) -> Outcome:
        if self.trouble is not None or call.custom_id in self._pair.forbidden:
            self.refused += 1
            outcome = self.trouble or FORBIDDEN
            await self._pair.clock.sleep(1.0)
            return outcome
        self.taken += 1
        self._pair.taken[call.custom_id] += 1
        await self._pair.clock.sleep(50.0 if call.custom_id in self._pair.slow else 1.0)
        return Reply(200, message(call.custom_id))


class Pair:
    """Two hosts and one ledger."""

    def __init__(self, root: Path) -> None:
        asyncio.get_running_loop().set_default_executor(InlineExecutor())
        self.clock = ManualClock(NOW)
        self.ledger = SqliteLedger(root / "ledger.db", threads=InlineExecutor)
        self.store = DirectorySegments(root / "segments")
        self.taken = Counter[str]()
        self.slow = frozenset[str]()
        """Requests whose calls take 50 s, and 1 s the others'."""
        self.forbidden = frozenset[str]()
        """Requests that are refused for their own sake."""
        self.hosts: list[Host] = []

    def start(self, slots: int) -> Host:
        host = Host(self, f"host-{len(self.hosts)}", slots)
        self.hosts.append(host)
        return host

    async def create(self, name: str, shards: int) -> Batch:
        batch = make_batch(name, requests=40 * shards)
        await create(self.ledger, self.store, batch, shards)
        return batch

    async def end(self, batch: Batch, within_s: float) -> None:
        """Let a batch end, and check that each of its requests was called once."""
        until_s = self.clock.monotonic_s() + within_s
        while (found := await self.ledger.get("w", batch.id)) and found.ended_us is None:
            assert self.clock.monotonic_s() < until_s, "it does not end"
            assert not any(task.done() for host in self.hosts for task in host.tasks)
            await self.clock.advance(0.5)
        assert found is not None
        assert found.counts.errored == len(self.forbidden)
        assert found.counts.succeeded == batch.requests - len(self.forbidden)
        whole = {f"r{n}" for n in range(batch.requests)} - self.forbidden
        assert self.taken == Counter(dict.fromkeys(whole, 1))
        self.taken.clear()

    async def close(self) -> None:
        for host in self.hosts:
            for task in host.tasks:
                task.cancel()
        await asyncio.gather(
            *(t for host in self.hosts for t in host.tasks), return_exceptions=True
        )
        await self.ledger.close()


@pytest.mark.parametrize(
    ("trouble", "slots", "shards"),
    [(NET, 16, 20), (KEY, 16, 6), (NET, 64, 6), (KEY, 64, 30), (BUSY, 64, 6)],
    ids=["net-few", "key-few-idle", "net-many-idle", "key-many", "busy-many-idle"],
)
def test_what_a_worker_that_is_cut_off_holds_is_done_by_another_and_nothing_is_called_twice(
    root: Path, trouble: Outcome, slots: int, shards: int
) -> None:
    """Also by one that had no work until then, which nobody knew of."""

    async def story() -> None:
        pair = Pair(root)
        pair.slow = frozenset({"r0"})
        batch = await pair.create("a", shards)
        one = pair.start(slots)
        await pair.clock.advance(2.5)
        two = pair.start(slots)
        await pair.clock.advance(3.0 if shards > 6 else 0.0)
        one.trouble = trouble
        await pair.end(batch, within_s=40 * shards / slots + 130.0)
        assert one.taken > 0
        assert two.taken > 0
        refused = one.refused
        await pair.clock.advance(40.0)
        assert one.refused == refused, "nothing is left there"
        one.trouble = None
        again = await pair.create("b", 10)
        one.taken = 0
        await pair.end(again, within_s=100.0)
        assert slots < limits.SLOTS_DIVIDED_MIN or one.taken > 0, "it finds that all is well again"
        await pair.close()

    asyncio.run(story())


@pytest.mark.parametrize(("trouble", "slots"), [(NET, 16), (KEY, 64)], ids=["net-few", "key-many"])
def test_a_trouble_of_all_workers_ends_for_all(root: Path, trouble: Outcome, slots: int) -> None:
    async def story() -> None:
        pair = Pair(root)
        batch = await pair.create("a", 20)
        hosts = [pair.start(slots) for _ in range(2)]
        await pair.clock.advance(4.0)
        for host in hosts:
            host.trouble = trouble
        await pair.clock.advance(100.0)
        for host in hosts:
            host.trouble = None
        await pair.end(batch, within_s=200.0)
        await pair.close()

    asyncio.run(story())


def test_a_worker_that_is_alone_goes_on_with_what_it_offered_to_others(root: Path) -> None:
    """It offers some of its work, as others may be there of which nobody knows."""

    async def story() -> None:
        pair = Pair(root)
        batch = await pair.create("a", 20)
        one = pair.start(64)
        await pair.clock.advance(2.5)
        one.trouble = NET
        await pair.clock.advance(600.0)
        one.trouble = None
        await pair.end(batch, within_s=120.0)
        await pair.close()

    asyncio.run(story())


@pytest.mark.parametrize("slots", [16, 64])
def test_requests_that_are_refused_to_all_are_not_handed_to_and_fro(root: Path, slots: int) -> None:
    """Their tries would be forgotten each time, and nobody would come to what lies behind them."""

    async def story() -> None:
        pair = Pair(root)
        pair.forbidden = frozenset(f"r{n}" for n in range(100))
        batch = await pair.create("a", 5)
        for _ in range(2):
            pair.start(slots)
        await pair.end(batch, within_s=1_200.0)
        await pair.close()

    asyncio.run(story())


def test_few_slots_go_back_when_the_trouble_of_one_is_long_over_and_that_of_the_other_begins(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_TROUBLE_KEPT_S", 60.0)

    async def story() -> None:
        pair = Pair(root)
        batch = await pair.create("a", 24)
        one, two = pair.start(16), pair.start(16)
        await pair.clock.advance(5.0)
        first, second = (one, two) if one.taken else (two, one)
        first.trouble = NET
        await pair.clock.advance(40.0)
        assert second.taken > 0
        first.trouble, second.trouble = None, NET
        await pair.end(batch, within_s=200.0)
        await pair.close()

    asyncio.run(story())


def test_a_shard_is_not_at_rest_before_all_its_results_are_durable(root: Path) -> None:
    async def story() -> None:
        store, ledger = DirectorySegments(root / "segments"), SqliteLedger(root / "ledger.db")
        await create(ledger, store, make_batch("a", requests=2))
        (claim,) = await ledger.claim("me", "up/m", NOW, 1)
        shard = ShardRun(claim, [Request("r0", b"{}"), Request("r1", b"{}")], Adopted())
        assert shard.is_at_rest
        task = asyncio.create_task(asyncio.sleep(0))
        assert shard.take(task) is not None
        assert shard.is_at_rest, "only waiting for its call"
        shard.sent += 1
        assert not shard.is_at_rest
        shard.answered += 1
        shard.fail("r0", "api_error", "no", None)
        assert not shard.is_at_rest
        shard.take_lines()
        shard.wrote()
        shard.synced(shard.written)
        assert shard.is_at_rest
        await task
        await ledger.close()

    asyncio.run(story())
