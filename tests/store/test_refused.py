"""A store that refuses one segment stops one shard, and nothing else; in each ledger."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits, segments
from batchyard.dispatch.ending import end_batches, read_manifest
from batchyard.dispatch.keeper import Keeper
from batchyard.errors import DamagedError, SegmentRefused, StoreError
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.model import Counts
from batchyard.segments.directory import DirectorySegments
from batchyard.segments.objects import ObjectSegments
from batchyard.testing.clock import ManualClock
from batchyard.upstream import Reply
from helpers_refusing import Refusing
from store.making import LEASE, NOW, make_batch, make_commit, s3
from store.working import Working, create
from store.yards import message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from batchyard.ledger import Ledger
    from batchyard.upstream import Call, Outcome

pytestmark = pytest.mark.anyio

BATCH = "msgbatch_a"
REQUESTS = segments.requests_name(BATCH)


class Answering:
    """Answers at once, and keeps count."""

    name = "up"
    billing = "simulated"
    fetches_urls = True

    def __init__(self) -> None:
        self.calls = 0

    async def send(self, call: Call) -> Outcome:
        self.calls += 1
        return Reply(200, message(call.custom_id))


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
    with Refusing(s3().environment["AWS_ENDPOINT_URL"]) as opened:
        monkeypatch.setenv("AWS_ENDPOINT_URL", opened.endpoint)
        monkeypatch.setattr(limits, "OBJECTS_RETRY_S", 0.2)
        yield opened


@pytest.fixture
def bucket(proxy: Refusing, tmp_path: Path) -> ObjectSegments:
    return ObjectSegments(s3().url(f"refused/{tmp_path.name}"))


class Busy(Working):
    """A worker, and two batches."""

    def __init__(
        self, ledger: Ledger, store: Any, shards: int = 1, owner: str | None = "me"
    ) -> None:
        self.upstream = Answering()
        upstream: Any = self.upstream
        super().__init__(ledger, store, upstream, requests=shards, slots=4, owner=owner)
        self.shards = shards
        self.other = make_batch("b", requests=2)

    async def create_both(self) -> None:
        await self.create(self.shards)
        await create(self.ledger, self.store, self.other)

    async def until(self, what: Callable[[], Any]) -> None:
        for _ in range(600):
            if await what():
                return
            await self.seconds(0.2)
        raise AssertionError("it never happened")

    async def seconds(self, seconds: float) -> None:
        """Let time pass, and what is done in threads."""
        await self.clock.advance(seconds)
        await asyncio.sleep(0.004)

    async def has_ended(self, batch_id: str) -> bool:
        found = await self.ledger.get("w", batch_id)
        assert found is not None
        return found.status == "ended"

    async def told(self) -> str:
        """Return what is told of the first batch's damages."""
        account = await self.worker.account(BATCH)
        return str(account.damaged) if account is not None else ""


# The store ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 503])
def test_one_object_that_is_refused_is_told_from_a_store_that_fails(
    proxy: Refusing, bucket: ObjectSegments, status: int
) -> None:
    proxy.status = status
    other = segments.requests_name("msgbatch_b")
    for name in (REQUESTS, other):
        bucket.put(name, [b"abc"])
    proxy.refused = {f"GET /yard/{_path_of(bucket)}/{REQUESTS}", f"{REQUESTS} HEAD"}
    with pytest.raises(SegmentRefused, match=f"{status}"):
        bucket.read(REQUESTS, 0, 3)
    assert bucket.read(other, 0, 3) == b"abc"
    proxy.refused = {"HEAD "}
    with pytest.raises(SegmentRefused, match="cannot find"):
        bucket.size(REQUESTS)
    proxy.refused = {"/yard"}
    for call in (lambda: bucket.read(REQUESTS, 0, 3), lambda: bucket.size(REQUESTS)):
        with pytest.raises(StoreError) as caught:
            call()
        assert not isinstance(caught.value, SegmentRefused | DamagedError)


def test_a_store_that_does_not_answer_refuses_nothing(
    proxy: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    bucket = ObjectSegments(s3().url("away"))
    with pytest.raises(StoreError) as caught:
        bucket.read(REQUESTS, 0, 3)
    assert not isinstance(caught.value, SegmentRefused)


def test_a_file_that_may_not_be_read_is_refused_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectorySegments(tmp_path / "s")
    store.put(REQUESTS, [b"abc"])
    forbid(monkeypatch, "requests")
    with pytest.raises(SegmentRefused, match="Permission denied"):
        store.read(REQUESTS, 0, 3)
    monkeypatch.undo()
    assert store.read(REQUESTS, 0, 3) == b"abc"


def forbid(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """Let the system refuse to open what ends so: tests may run as root, who may everything."""
    real = os.open

    def opened(path: Any, *args: Any, **options: Any) -> int:
        if str(path).endswith(ending):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", opened)


def _path_of(bucket: ObjectSegments) -> str:
    return str(bucket._store.prefix)


# The worker --------------------------------------------------------------------------------------


async def test_a_refused_batch_waits_alone_and_ends_when_it_is_given(
    ledger: Ledger, proxy: Refusing, bucket: ObjectSegments, caplog: pytest.LogCaptureFixture
) -> None:
    busy = Busy(ledger, bucket, shards=3)
    await busy.create_both()
    proxy.refused = {f"{REQUESTS}"}
    async with busy.running():
        await busy.until(lambda: busy.has_ended(busy.other.id))
        assert busy.upstream.calls == 2
        assert "asked for again each minute: cannot read segment" in await busy.told()
        assert "403 Forbidden" in await busy.told()

        async def is_said() -> bool:
            said = [each for each in caplog.messages if each.startswith(f"refused shard={BATCH}")]
            assert len(said) <= 3, "once for each shard"
            return len(said) == 3

        await busy.until(is_said)
        for _ in range(4):
            await busy.seconds(limits.REFUSED_WAIT_S)
        assert await is_said()
        assert not await busy.has_ended(BATCH)
        proxy.refused = set()
        await busy.until(lambda: busy.has_ended(BATCH))
        assert await busy.told() == "{}"
    found = await ledger.get("w", BATCH)
    assert found is not None
    assert found.counts == Counts(succeeded=3)
    assert busy.upstream.calls == 5


async def test_a_refused_shard_never_fails_and_is_for_others_when_its_lease_has_ended(
    ledger: Ledger, proxy: Refusing, bucket: ObjectSegments
) -> None:
    busy = Busy(ledger, bucket)
    await busy.create_both()
    proxy.refused = {REQUESTS}
    async with busy.running():
        await busy.until(lambda: busy.has_ended(busy.other.id))
        assert await ledger.take_back(LEASE * 2, but="") == 1
        (claim,) = await ledger.claim("other", "up/m", LEASE * 2, 1)
        assert (claim.batch, claim.failures, claim.attempt) == (BATCH, 0, 2)
        proxy.refused = set()
        await busy.seconds(limits.REFUSED_WAIT_S)
        for _ in range(20):
            await busy.seconds(0.2)
        assert busy.upstream.calls == 2, "the other one has it"


async def test_a_refused_shard_that_is_canceled_meanwhile_is_not_sent(
    ledger: Ledger, proxy: Refusing, bucket: ObjectSegments
) -> None:
    busy = Busy(ledger, bucket, owner=None)
    await busy.create_both()
    proxy.refused = {REQUESTS}
    async with busy.running():
        await busy.until(lambda: busy.has_ended(busy.other.id))
        await ledger.cancel("w", BATCH, busy.clock.now_us())
        proxy.refused = set()
        await busy.until(lambda: busy.has_ended(BATCH))
        assert busy.upstream.calls == 2


async def test_results_that_are_refused_are_not_made_again(
    ledger: Ledger, proxy: Refusing, bucket: ObjectSegments
) -> None:
    """Neither what a row names nor what is found beside it."""
    first = Busy(ledger, bucket)
    await create(ledger, bucket, first.batch)  # type: ignore[arg-type]
    (claim,) = await ledger.claim("before", "up/m", LEASE, 1)
    appender = bucket.appender(segments.result_name(BATCH, 0, claim.attempt))
    line = b'{"custom_id":"r0","result":{"type":"canceled"}}\n'
    appender.append([line])
    appender.sync()
    await ledger.release("before")
    for frozen in (False, True):
        busy = Busy(ledger, bucket)
        proxy.refused = {f"{segments.batch_prefix(BATCH)}/r/0/"}
        async with busy.running():
            await busy.until(lambda busy=busy: _is_told(busy))
            assert busy.upstream.calls == 0
        await ledger.release("me")
        if not frozen:
            (claim,) = await ledger.claim("between", "up/m", LEASE, 1)
            assert claim.frozen == ()
            await ledger.adopt("between", claim, appender.extents(), has_gained=True)
            await ledger.release("between")
    proxy.refused = set()
    busy = Busy(ledger, bucket)
    async with busy.running():
        await busy.until(lambda: busy.has_ended(BATCH))
        assert busy.upstream.calls == 0
    (extent,) = read_manifest(bucket, BATCH)
    assert bucket.read(extent.segment, 0, extent.length) == line


async def _is_told(busy: Busy) -> bool:
    return "asked for again" in await busy.told()


async def test_a_batch_whose_results_are_refused_ends_later_and_others_now(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectorySegments(tmp_path / "s")
    busy = Busy(ledger, store)
    await busy.create_both()
    for claim in await ledger.claim_fresh("me", "up/m", LEASE, 9):
        appender = store.appender(segments.result_name(claim.batch, claim.index, claim.attempt))
        appender.append([b"lines of it\n"])
        appender.sync()
        appender.close()
        await ledger.commit("me", [make_commit(claim, extents=appender.extents())])
        if claim.batch == BATCH:
            forbid(monkeypatch, appender.name)
    finished = sorted(await ledger.finished())
    assert finished == [BATCH, busy.other.id]
    await end_batches(ledger, store, busy.clock, finished)
    assert [await busy.has_ended(each) for each in finished] == [False, True]
    monkeypatch.undo()
    await end_batches(ledger, store, busy.clock, [BATCH], is_sweep=True)
    assert await busy.has_ended(BATCH)
    found = await ledger.get("w", BATCH)
    assert found is not None
    assert found.counts == Counts(succeeded=1), "nothing was set aside"


async def test_leftovers_that_may_not_be_deleted_do_not_end_the_keeper(
    proxy: Refusing, bucket: ObjectSegments, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = SqliteLedger(tmp_path / "l.db")
    clock = ManualClock(NOW + 30 * limits.DAY_US * 365)
    keeper = Keeper(ledger, bucket, clock, owner="")
    bucket.put(REQUESTS, [b"abc"])
    proxy.refused = {"DELETE ", "?delete"}
    await keeper.clear_leftovers()
    assert "refused cannot delete the segments of msgbatch_a" in caplog.text
    assert bucket.read(REQUESTS, 0, 3) == b"abc"
    proxy.refused = set()
    await keeper.clear_leftovers()
    assert bucket.batches() == []
    await ledger.close()


async def test_a_worker_that_ends_with_its_store_gives_everything_back_and_nothing_has_failed(
    ledger: Ledger, proxy: Refusing, bucket: ObjectSegments
) -> None:
    busy = Busy(ledger, bucket)
    await busy.create_both()
    proxy.refused = {"/yard"}
    running = asyncio.create_task(busy.worker.run())
    for _ in range(600):
        if running.done():
            break
        await busy.seconds(0.2)
    with pytest.raises(ExceptionGroup) as caught:
        await running
    assert caught.group_contains(StoreError, match="cannot read segment")
    proxy.refused = set()
    claims = [claim for _ in range(2) for claim in await ledger.claim("other", "up/m", NOW, 9)]
    assert [(claim.batch, claim.failures) for claim in claims] == [(BATCH, 0), (busy.other.id, 0)]
