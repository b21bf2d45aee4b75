"""A bucket that refuses the results of one batch stops that batch, and no worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from batchyard import limits, segments
from batchyard.clock import SystemClock
from batchyard.dispatch.keeper import Keeper
from batchyard.errors import SegmentRefused, StoreError
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.model import Counts
from batchyard.segments.objects import ObjectSegments
from batchyard.segments.refused import Refused
from batchyard.testing import ManualClock
from helpers_refusing import Refusing
from store.making import NOW, add, finish, s3
from store.test_refused import BATCH, Busy, commit_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from batchyard.clock import Clock
    from batchyard.ledger import Ledger

pytestmark = pytest.mark.anyio

FOLDER = f"{segments.batch_prefix(BATCH)}/r/"
SHARDS = 3


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
    with Refusing(s3().environment["AWS_ENDPOINT_URL"]) as opened:
        monkeypatch.setenv("AWS_ENDPOINT_URL", opened.endpoint)
        monkeypatch.setattr(limits, "OBJECTS_RETRY_S", 0.2)
        monkeypatch.setattr("batchyard.segments.objects._PAUSE_S", 0.01)
        yield opened


@pytest.fixture
def bucket(proxy: Refusing, tmp_path: Path) -> ObjectSegments:
    return ObjectSegments(s3().url(f"unwritable/{tmp_path.name}"))


class Passing(SystemClock):
    """A clock on which time can pass."""

    passed_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.passed_s


def give_clock(monkeypatch: pytest.MonkeyPatch, bucket: ObjectSegments, clock: Clock) -> None:
    monkeypatch.setattr(bucket, "_clock", clock)
    monkeypatch.setattr(bucket, "_refused", Refused(clock.monotonic_s))


def puts_to(bucket: ObjectSegments, folder: str) -> str:
    """Return what the writes to a folder begin with, and no reads."""
    return f"PUT /yard/{bucket._store.prefix}/{folder}"


@pytest.mark.parametrize(("status", "only_writes"), [(403, True), (403, False), (507, True)])
async def test_results_of_one_batch_that_are_refused_are_paid_once_and_end_no_worker(
    ledger: Ledger,
    proxy: Refusing,
    bucket: ObjectSegments,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    only_writes: bool,
) -> None:
    busy = Busy(ledger, bucket, shards=SHARDS)
    give_clock(monkeypatch, bucket, busy.clock)
    await busy.create_both()
    proxy.refused = {puts_to(bucket, FOLDER)} if only_writes else {f"/{FOLDER}"}
    proxy.status = status
    async with busy.running():
        await busy.until(lambda: busy.has_ended(busy.other.id))

        async def is_told() -> bool:
            return f"again each minute: cannot write segment {FOLDER}" in await busy.told()

        await busy.until(is_told)
        for _ in range(3):
            await busy.seconds(limits.REFUSED_WAIT_S)
        assert busy.upstream.calls <= SHARDS + 2, "not one of them is called twice"
        another = Busy(ledger, ObjectSegments(bucket_url(bucket)), owner="another")
        await ledger.release("me")
        async with another.running():
            for _ in range(40):
                await another.seconds(0.2)
            assert another.upstream.calls == 0, "it looks before it pays"
        await ledger.release("another")
        proxy.refused = set()
        await busy.seconds(limits.REFUSED_WAIT_S)
        await busy.until(lambda: busy.has_ended(BATCH))
    found = await ledger.get("w", BATCH)
    assert found is not None
    assert found.counts == Counts(succeeded=SHARDS)


def bucket_url(bucket: ObjectSegments) -> str:
    return s3().url(str(bucket._store.prefix))


async def test_a_bucket_that_refuses_the_results_of_all_ends_the_worker(
    ledger: Ledger, proxy: Refusing, bucket: ObjectSegments
) -> None:
    busy = Busy(ledger, bucket)
    await busy.create_both()
    proxy.refused = {"PUT "}
    running = asyncio.create_task(busy.worker.run())

    async def is_done() -> bool:
        return running.done()

    await busy.until(is_done)
    with pytest.raises(ExceptionGroup) as caught:
        await running
    assert caught.group_contains(StoreError, match=r"cannot write segment .*403")
    assert not caught.group_contains(SegmentRefused)


async def test_a_bucket_that_takes_no_writes_ends_no_keeper_and_is_tried_at_the_next_sweep(
    ledger: Ledger, proxy: Refusing, bucket: ObjectSegments, caplog: pytest.LogCaptureFixture
) -> None:
    busy = Busy(ledger, bucket)
    await busy.create_both()
    await commit_all(ledger, bucket)
    keeper = Keeper(ledger, bucket, busy.clock, owner="")
    proxy.refused = {"PUT ", "POST "}
    await keeper.sweep()
    assert "batches cannot end now" in caplog.text
    assert not await busy.has_ended(BATCH)
    proxy.refused = set()
    await keeper.sweep()
    assert await busy.has_ended(BATCH)


async def test_a_bucket_that_is_away_ends_no_keeper(
    proxy: Refusing, bucket: ObjectSegments, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = SqliteLedger(tmp_path / "l.db")
    clock = ManualClock(NOW + limits.RETENTION_US)
    keeper = Keeper(ledger, bucket, clock, owner="")
    await finish(ledger, await add(ledger, "old"))
    proxy.refused = {"/"}
    await keeper.sweep()
    assert "archiving cut short" in caplog.text
    looking = asyncio.create_task(keeper.clear_old_leftovers())
    await clock.wait_for_sleepers(1)
    assert "leftovers are not looked for" in caplog.text
    looking.cancel()
    await ledger.close()


def test_a_folder_that_may_not_be_listed_is_refused_alone(
    proxy: Refusing, bucket: ObjectSegments
) -> None:
    prefix = segments.results_prefix(BATCH, 0)
    proxy.refused = {"%2Fr%2F0%2F"}
    with pytest.raises(SegmentRefused, match=r"cannot list .*403"):
        bucket.names(prefix)
    proxy.refused = {"list-type"}
    with pytest.raises(StoreError, match=r"cannot list .*403") as caught:
        bucket.names(prefix)
    assert not isinstance(caught.value, SegmentRefused)


def test_a_manifest_that_is_refused_alone_holds_up_its_batch_alone(
    proxy: Refusing, bucket: ObjectSegments, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Passing()
    give_clock(monkeypatch, bucket, clock)
    name = segments.manifest_name(BATCH)
    proxy.refused = {puts_to(bucket, name)}
    for _ in range(3):  # asked for once: each sweep comes back to it
        with pytest.raises(SegmentRefused, match=r"cannot write segment .*403"):
            bucket.put(name, [b"{}"])
    assert len(proxy.seen) == 1
    clock.passed_s += limits.REFUSED_WAIT_S + 1
    proxy.refused = {"PUT "}
    with pytest.raises(StoreError, match=r"cannot write segment .*403") as caught:
        bucket.put(name, [b"{}"])
    assert not isinstance(caught.value, SegmentRefused)
    proxy.refused = set()
    bucket.put(name, [b"{}"])
    assert bucket.read(name, 0, 2) == b"{}"


def test_what_is_taken_up_again_is_not_tried_for_each_of_its_shards(
    proxy: Refusing, bucket: ObjectSegments, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Passing()
    give_clock(monkeypatch, bucket, clock)
    bucket.check_writable(BATCH, is_again=True)
    proxy.refused = {"PUT "}
    bucket.check_writable(BATCH, is_again=True)
    assert not proxy.seen
    clock.passed_s += limits.REFUSED_WAIT_S + 1
    with pytest.raises(StoreError):
        bucket.check_writable(BATCH, is_again=True)


def test_a_part_that_is_refused_leaves_room_for_what_was_appended_meanwhile(
    proxy: Refusing, bucket: ObjectSegments, monkeypatch: pytest.MonkeyPatch
) -> None:
    appender = bucket.appender(segments.result_name(BATCH, 0, 1))
    appender.append([b"first\n"])
    create = bucket.create

    def append_meanwhile(name: str, data: bytes) -> None:
        appender.append([b"second, longer\n"])
        create(name, data)

    monkeypatch.setattr(bucket, "create", append_meanwhile)
    proxy.refused = {puts_to(bucket, FOLDER)}
    with pytest.raises(SegmentRefused):
        appender.sync()
    assert bucket.backlog._bytes == 0
    appender.close()
    assert bucket.backlog._bytes == 0


def test_what_was_too_large_is_tried_as_large_after_a_minute(
    proxy: Refusing, bucket: ObjectSegments, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Passing()
    give_clock(monkeypatch, bucket, clock)
    proxy.refused, proxy.least = {puts_to(bucket, FOLDER)}, 1_000
    name = segments.result_name(BATCH, 0, 1)
    bucket.check_writable(BATCH, is_again=True)
    with pytest.raises(SegmentRefused):
        bucket.create(name, bytes(2_000))
    for passed_s, seen in [(0.0, 1), (limits.REFUSED_WAIT_S + 1, 2), (0.0, 2)]:
        clock.passed_s += passed_s
        with pytest.raises(SegmentRefused):
            bucket.check_writable(BATCH)
        assert len(proxy.seen) == seen
    proxy.refused = set()
    clock.passed_s += limits.REFUSED_WAIT_S + 1
    bucket.check_writable(BATCH)
    bucket.create(name, bytes(2_000))
    proxy.refused = {"PUT "}
    bucket.check_writable(BATCH)
    with pytest.raises(StoreError) as caught:
        bucket.create(segments.result_name(BATCH, 1, 1), bytes(2_000))
    assert not isinstance(caught.value, SegmentRefused), "a full bucket takes small ones only"
    names = bucket.names(f"{segments.batch_prefix(BATCH)}/")
    assert names == [name], "nothing that was tried is left"
    assert bucket.batches() == [BATCH]
