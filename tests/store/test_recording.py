"""The order in which results become durable: written, synced, committed, ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits, result, segments
from batchyard.dispatch.adopt import Adopted
from batchyard.dispatch.ending import read_manifest
from batchyard.dispatch.recorder import Recorder
from batchyard.dispatch.shard import Request, ShardRun
from batchyard.errors import DiskFull, StoreError
from batchyard.testing.clock import ManualClock
from batchyard.upstream import Reply
from store.making import LEASE, NOW, add, take
from store.working import Working
from store.yards import message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.ledger import Ledger
    from batchyard.segments import Segments
    from batchyard.upstream import Call, Outcome

pytestmark = pytest.mark.anyio


class Watched:
    """A ledger, segments and an appender that note what is asked of them, in order."""

    def __init__(self, ledger: Ledger, store: Segments) -> None:
        self.seen: list[str] = []
        self.ledger: Any = _Noting(ledger, self.seen, ("commit", "end_all"))
        self.store: Any = _Appending(store, self.seen)


class _Noting:
    def __init__(self, real: Any, seen: list[str], names: Sequence[str]) -> None:
        self._real = real
        self._seen = seen
        self._names = names

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            self._seen.append(name)
        return getattr(self._real, name)


class _Appending(_Noting):
    def __init__(self, real: Any, seen: list[str]) -> None:
        super().__init__(real, seen, ("put",))

    def appender(self, name: str) -> Any:
        return _Noting(self._real.appender(name), self._seen, ("append", "sync", "close"))


async def opened(ledger: Ledger, store: Segments, requests: int, name: str = "a") -> ShardRun:
    batch = await add(ledger, name, requests=requests)
    store.put(segments.requests_name(batch.id), [b"x"])
    claim = await take(ledger, "me")
    return ShardRun(claim, [Request(f"r{n}", b"{}") for n in range(requests)], Adopted())


def answer(shard: ShardRun) -> None:
    task: Any = object()
    request = shard.take(task)
    assert request is not None
    line = result.unsent(request.custom_id, "canceled")
    shard.settle(request.custom_id, "canceled", line)


class Running:
    """A recorder that runs, and a clock that lets it."""

    def __init__(self, watched: Watched) -> None:
        self.clock = ManualClock(NOW)
        self.forgotten: list[ShardRun] = []
        self.recorder = Recorder(
            watched.ledger, watched.store, self.clock, "me", self.forgotten.append
        )

    async def finish(self) -> None:
        self.recorder.finish()
        await self.recorder.run()


async def test_a_shard_is_written_synced_committed_and_then_its_batch_ends(
    ledger: Ledger, store: Segments
) -> None:
    watched = Watched(ledger, store)
    running = Running(watched)
    shard = await opened(ledger, store, 2)
    for _ in range(2):
        answer(shard)
    running.recorder.note(shard)
    await running.finish()
    assert watched.seen == ["append", "sync", "commit", "close", "put", "end_all"]
    assert running.forgotten == [shard]
    (extent,) = read_manifest(store, shard.claim.batch)
    assert store.size(extent.segment) == extent.length
    batch = await ledger.get("w", shard.claim.batch)
    assert batch is not None
    assert batch.counts.canceled == 2


async def test_a_shard_that_is_not_done_is_synced_at_the_end_and_not_committed(
    ledger: Ledger, store: Segments
) -> None:
    watched = Watched(ledger, store)
    running = Running(watched)
    shard = await opened(ledger, store, 2)
    answer(shard)
    running.recorder.note(shard)
    await running.finish()
    assert watched.seen == ["append", "sync"]
    running.recorder.close(shard)


async def test_a_shard_that_was_committed_is_not_taken_up_again(
    ledger: Ledger, store: Segments
) -> None:
    watched = Watched(ledger, store)
    running = Running(watched)
    shard = await opened(ledger, store, 1)
    answer(shard)
    running.recorder.note(shard)
    await running.finish()
    watched.seen.clear()
    running.recorder.note(shard)
    running.recorder.close(shard)
    await running.finish()
    assert watched.seen == []


async def test_a_commit_that_is_refused_loses_the_shard(ledger: Ledger, store: Segments) -> None:
    watched = Watched(ledger, store)
    running = Running(watched)
    shard = await opened(ledger, store, 1)
    await ledger.take_back(LEASE + 1, but="")
    answer(shard)
    running.recorder.note(shard)
    await running.finish()
    assert watched.seen == ["append", "sync", "commit", "close"]
    assert shard.lost
    assert running.forgotten == [shard]


class Answering:
    """Answers at once."""

    name = "up"
    billing = "simulated"
    fetches_urls = True
    unset_key = None

    async def send(self, call: Call) -> Outcome:
        return Reply(200, message(call.custom_id))


async def test_a_renewal_that_finds_a_shard_committed_before_the_commit_returns_loses_nothing(
    ledger: Ledger, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    watched, upstream = Watched(ledger, store), Answering()
    at_work = Working(watched.ledger, store, upstream, requests=1, slots=1, owner="me")  # type: ignore[arg-type]
    real = watched.ledger.commit

    async def commit(*arguments: Any) -> Any:
        committed = await real(*arguments)
        await at_work.worker._renew()
        return committed

    watched.ledger.commit = commit
    await at_work.create()
    async with at_work.running():
        while "end_all" not in watched.seen:
            await at_work.clock.advance(0.1)
            await asyncio.sleep(0.001)
    assert "lost shard" not in caplog.text


async def test_a_worker_that_slept_while_its_batch_was_deleted_loses_that_shard_alone(
    ledger: Ledger, store: Segments
) -> None:
    watched = Watched(ledger, store)
    running = Running(watched)
    shards = [await opened(ledger, store, 2, name) for name in "abc"]
    for shard in shards[1:]:
        answer(shard)
        running.recorder.note(shard)
    await running.recorder._write_all()  # one has a segment by then, and one has not
    await ledger.take_back(LEASE + 1, but="")
    for shard in shards[:2]:
        store.delete_batch(shard.claim.batch)
    for shard in shards:
        while not shard.is_done:
            answer(shard)
        running.recorder.note(shard)
    await running.finish()
    assert all(shard.lost for shard in shards)
    assert sorted(s.key for s in running.forgotten) == sorted(s.key for s in shards)


async def test_commits_go_on_while_the_results_of_a_batch_are_read_once_more(
    ledger: Ledger, store: Segments
) -> None:
    watched = Watched(ledger, store)
    has_read = asyncio.Event()

    async def results(batch_id: str) -> Any:
        await has_read.wait()
        return await ledger.results(batch_id)

    watched.ledger.results = results
    running = Running(watched)
    recording = asyncio.create_task(running.recorder.run())
    for number, name in enumerate("ab", 1):
        shard = await opened(ledger, store, 1, name)
        answer(shard)
        running.recorder.note(shard)
        while len(running.forgotten) < number:
            await running.clock.advance(0.01)
            await asyncio.sleep(0.001)
    assert watched.seen.count("commit") == 2
    assert "put" not in watched.seen
    has_read.set()
    running.recorder.finish()
    await recording
    assert "end_all" in watched.seen


async def test_a_lost_shard_is_not_written(ledger: Ledger, store: Segments) -> None:
    watched = Watched(ledger, store)
    running = Running(watched)
    shard = await opened(ledger, store, 1)
    answer(shard)
    running.recorder.note(shard)
    shard.lose()
    running.recorder.close(shard)
    await running.finish()
    assert watched.seen == []


async def test_a_failing_disk_ends_the_recorder_and_nothing_is_committed(
    ledger: Ledger, store: Segments
) -> None:
    watched = Watched(ledger, store)
    running = Running(watched)
    shard = await opened(ledger, store, 1)
    answer(shard)

    def fail(name: str) -> Any:
        raise StoreError(f"cannot begin segment {name}: Input/output error")

    watched.store.appender = fail
    running.recorder.note(shard)
    with pytest.raises(ExceptionGroup) as failed:
        await running.finish()
    assert failed.group_contains(StoreError, match="Input/output error")
    assert "commit" not in watched.seen


async def test_answers_wait_while_the_disk_is_far_behind(ledger: Ledger, store: Segments) -> None:
    watched = Watched(ledger, store)
    running = Running(watched)
    shard = await opened(ledger, store, 2)
    task: Any = object()
    request = shard.take(task)
    assert request is not None
    line = b"x" * (limits.UNWRITTEN_BYTES_MAX + 1)
    shard.settle(request.custom_id, "canceled", line)
    assert running.recorder.has_room
    running.recorder.note(shard)
    assert not running.recorder.has_room
    waiting = asyncio.ensure_future(running.recorder.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await running.finish()
    await waiting
    assert running.recorder.has_room
    running.recorder.close(shard)


def full(name: str) -> Any:
    raise DiskFull(f"cannot begin segment {name}: No space left on device")


async def test_a_full_disk_loses_nothing_and_is_tried_again(
    ledger: Ledger, store: Segments
) -> None:
    watched = Watched(ledger, store)
    running = Running(watched)
    shard = await opened(ledger, store, 1)
    answer(shard)
    real, watched.store.appender = watched.store.appender, full
    working = asyncio.ensure_future(running.recorder.run())
    running.recorder.note(shard)
    while running.recorder.has_room:
        await running.clock.advance(limits.FLUSH_INTERVAL_S)
        await asyncio.sleep(0.001)
    waiting = asyncio.ensure_future(running.recorder.room())
    for _ in range(3):
        await running.clock.advance(limits.DISK_FULL_WAIT_S)
        await asyncio.sleep(0.001)
    assert not waiting.done(), "slots pause while the disk is full"
    assert watched.seen == []
    watched.store.appender = real
    while not waiting.done():
        await running.clock.advance(limits.DISK_FULL_WAIT_S)
        await asyncio.sleep(0.001)
    running.recorder.finish()
    await working
    assert watched.seen == ["append", "sync", "commit", "close", "put", "end_all"]


async def test_a_process_that_ends_does_not_wait_for_a_full_disk(
    ledger: Ledger, store: Segments
) -> None:
    watched = Watched(ledger, store)
    running = Running(watched)
    shard = await opened(ledger, store, 1)
    answer(shard)
    watched.store.appender = full
    running.recorder.note(shard)
    await running.finish()
    assert watched.seen == []


async def test_writing_goes_on_while_a_commit_takes_its_time(
    ledger: Ledger, store: Segments
) -> None:
    watched = Watched(ledger, store)
    running = Running(watched)
    first = await opened(ledger, store, 1)
    second = ShardRun(first.claim, [Request(f"q{n}", b"{}") for n in range(2)], Adopted())
    real, gate = watched.ledger.commit, asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        await gate.wait()
        return await real(*arguments)

    watched.ledger.commit = slow
    working = asyncio.ensure_future(running.recorder.run())
    for number, shard in enumerate((first, second), start=1):
        answer(shard)
        running.recorder.note(shard)
        while watched.seen.count("append") < number:
            await running.clock.advance(limits.FLUSH_INTERVAL_S)
            await asyncio.sleep(0.001)
    assert not first.closed, "its commit is under way"
    gate.set()
    running.recorder.finish()
    await working
    assert first.closed
    running.recorder.close(second)
