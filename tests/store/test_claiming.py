"""When a worker asks the ledger for more, and when it need not, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.segments.directory import DirectorySegments
from batchyard.upstream import Reply
from helpers_inline import InlineExecutor
from store.making import LEASE, make_batch
from store.working import Working, create

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batchyard.testing.clock import ManualClock
    from batchyard.upstream import Call, Outcome

pytestmark = pytest.mark.anyio

POOL = "up/m"
ANSWER = (
    b'{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"text","text":"x"}],'
    b'"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}'
)


class Counted:
    """A ledger as many machines share one, that counts what is asked of it."""

    poll_s = limits.SHARED_POLL_S
    renew_s = limits.SHARED_RENEW_INTERVAL_S

    def __init__(self, real: SqliteLedger) -> None:
        self.real = real
        self.calls: Counter[str] = Counter()
        self.probes = 0
        """For more of a batch."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        if not inspect.iscoroutinefunction(found):
            return found

        def counted(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            self.probes += name == "claim" and options.get("turn") is not None
            return found(*args, **options)

        return counted


class Slow:
    """An upstream that takes its time, for each call another one."""

    billing = "simulated"
    fetches_urls = True
    unset_key = None
    name = "up"
    clock: ManualClock

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.called = self.answered = 0

    async def send(self, call: Call) -> Outcome:
        self.called += 1
        await self.clock.sleep(self.seconds * (0.5 + self.called * 7 % 20 / 20))
        self.answered += 1
        return Reply(200, ANSWER)


class Small(Working):
    """One of several workers, on a ledger that answers at once."""

    def __init__(self, root: Path, *, requests: int, slots: int, answers_in_s: float) -> None:
        asyncio.get_running_loop().set_default_executor(InlineExecutor())
        self.counted = Counted(SqliteLedger(root / "l.db", threads=InlineExecutor))
        self.upstream = Slow(answers_in_s)
        ledger: Any = self.counted
        store = DirectorySegments(root / "s")
        super().__init__(ledger, store, self.upstream, requests=requests, slots=slots, owner="me")
        self.upstream.clock = self.clock

    async def since(self, seconds: float) -> tuple[Counter[str], int]:
        """Let time pass; return what was asked of the ledger, and how many probes that were."""
        calls, probes = self.counted.calls.copy(), self.counted.probes
        await self.clock.advance(seconds)
        return self.counted.calls - calls, self.counted.probes - probes


@contextlib.asynccontextmanager
async def beside_a_large_batch(root: Path, *, shards: int, taken: int = 0) -> AsyncIterator[Small]:
    """Run a worker that holds a small batch, and has enough of a large one, of which more waits.

    Args:
        root: of its files.
        shards: of the small batch.
        taken: of these, those that `other` holds.
    """
    small = Small(root, requests=4, slots=8, answers_in_s=1_000.0)
    await small.create(shards)
    if taken:
        assert len(await small.ledger.claim("gone", POOL, LEASE, shards - taken)) == shards - taken
        assert len(await small.ledger.claim("other", POOL, LEASE, taken)) == taken
        await small.ledger.release("gone")
    async with small.running():
        await small.clock.advance(3.0)
        large = make_batch("large", requests=600, workspace="z")
        await create(small.ledger, small.store, large, 3)
        await small.clock.advance(3.0)
        assert (large.id, 0) in small.worker._held
        yield small
    await small.counted.real.close()


async def test_nothing_more_is_asked_of_a_batch_whose_only_shard_is_held(tmp_path: Path) -> None:
    async with beside_a_large_batch(tmp_path, shards=1) as small:
        await small.clock.advance(30.0)
        assert small.counted.probes == 0
        assert small.counted.calls["pools_ready"] > 15  # it has looked
        assert small.counted.calls["claim"] == 0


async def test_a_batch_that_has_no_more_is_asked_again_when_leases_are_renewed(
    tmp_path: Path,
) -> None:
    async with beside_a_large_batch(tmp_path, shards=2) as small:
        assert {index for batch, index in small.worker._held if batch == small.batch.id} == {0, 1}
        probes = (await small.since(10 * small.ledger.renew_s))[1]
        assert 9 <= probes <= 11


async def test_a_shard_that_another_worker_gives_back_is_found(tmp_path: Path) -> None:
    async with beside_a_large_batch(tmp_path, shards=2, taken=1) as small:
        await small.clock.advance(20.0)
        mine = {index for batch, index in small.worker._held if batch == small.batch.id}
        assert mine == {0}
        await small.ledger.release("other")
        await small.clock.advance(small.ledger.renew_s + 2.0)
        assert (small.batch.id, 1) in small.worker._held


async def test_calls_look_for_no_more_where_the_ledger_had_none_a_moment_ago(
    tmp_path: Path,
) -> None:
    small = Small(tmp_path, requests=400, slots=100, answers_in_s=5.0)
    await small.create()
    async with small.running():
        await small.clock.advance(6.0)
        before = small.upstream.called
        calls, _ = await small.since(5.0)
        assert small.upstream.called - before >= 80
        assert small.worker._pools[POOL].is_hungry
        assert calls["pools_ready"] <= 10
        new = make_batch("new", requests=4, workspace="other")
        await create(small.ledger, small.store, new)
        await small.clock.advance(1.6 * small.ledger.poll_s + 20.0)
        ended = await small.ledger.get("other", new.id)
        assert ended is not None
        assert ended.status == "ended"
    await small.counted.real.close()
