"""A store that refuses one segment stops one shard, and nothing else; in each ledger."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path
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
from helpers_ports import Port
from helpers_refusing import Refusing
from store.making import LEASE, NOW, make_batch, make_commit, s3
from store.working import Working, create, until
from store.yards import message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchyard.ledger import Ledger
    from batchyard.segments import Segments
    from batchyard.upstream import Call, Outcome

pytestmark = pytest.mark.anyio

BATCH = "msgbatch_a"
REQUESTS = segments.requests_name(BATCH)


class Answering:
    """Answers at once, and keeps count."""

    name = "up"
    billing = "simulated"
    fetches_urls = True
    unset_key = None

    def __init__(self) -> None:
        self.calls = 0
        self.on_call: Callable[[], None] = lambda: None

    async def send(self, call: Call) -> Outcome:
        self.calls += 1
        self.on_call()
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
        await until(what, lambda: self.seconds(0.2))

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
    bucket_url = s3().url("away")
    with Port() as nobody:
        monkeypatch.setenv("AWS_ENDPOINT_URL", nobody.url)
        bucket = ObjectSegments(bucket_url)
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


def close_folder(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """Let the system say of a folder, and all in it, that it may not or cannot be looked into."""

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            is_inside = not isinstance(path, int) and folder in Path(path).parents
            if is_inside or (real is not os.stat and str(path) == str(folder)):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *args, **options)

        return call

    for name in ("open", "scandir", "stat", "mkdir", "unlink"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    if number == errno.EACCES:
        accessible = os.access
        monkeypatch.setattr(
            os,
            "access",
            lambda path, how: how == os.F_OK or (path != folder and accessible(path, how)),
        )


@pytest.mark.parametrize("inner", ["", "r"])
def test_a_folder_that_may_not_be_looked_into_is_refused_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    store = DirectorySegments(tmp_path / "s")
    other = "msgbatch_b"
    for batch in (BATCH, other):
        store.put(segments.requests_name(batch), [b"abc"])
        store.appender(segments.result_name(batch, 0, 1)).close()
    (left,) = store.names(segments.results_prefix(BATCH, 0))
    close_folder(monkeypatch, tmp_path / "s" / segments.batch_prefix(BATCH) / inner, errno.EACCES)
    calls: list[Callable[[], Any]] = [
        lambda: store.names(segments.results_prefix(BATCH, 0)),
        lambda: store.size(left),
        lambda: store.sync(left),
        lambda: store.appender(segments.result_name(BATCH, 0, 2)),
        lambda: store.check_writable(BATCH),
        lambda: store.delete_batch(BATCH),
    ]
    if not inner:
        calls += [
            lambda: store.put(segments.manifest_name(BATCH), [b"x"]),
            lambda: read_manifest(store, BATCH),
            lambda: store.appender(segments.result_name(BATCH, 0, 2)),
        ]
    for call in calls:
        with pytest.raises(SegmentRefused, match=r"[Pp]ermission denied"):
            call()
    store.check_writable(other)
    store.appender(segments.result_name(other, 0, 2)).close()
    assert len(store.names(segments.results_prefix(other, 0))) == 2
    assert store.batches() == [BATCH, other]
    store.delete_batch(other)
    monkeypatch.undo()
    assert store.names(segments.results_prefix(BATCH, 0)) == [left]


def test_a_folder_that_the_disk_cannot_read_is_damaged_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectorySegments(tmp_path / "s")
    for batch in (BATCH, "msgbatch_b"):
        store.put(segments.requests_name(batch), [b"abc"])
    spread = tmp_path / "s" / segments.batch_prefix(BATCH)
    close_folder(monkeypatch, spread, errno.EIO)
    for prefix in (segments.results_prefix(BATCH, 0), f"{segments.batch_prefix(BATCH)}/manifest."):
        with pytest.raises(DamagedError, match="cannot be listed: Input/output error"):
            store.names(prefix)
    with pytest.raises(DamagedError):
        read_manifest(store, BATCH)
    with pytest.raises(SegmentRefused, match="cannot delete"):
        store.delete_batch(BATCH)
    close_folder(monkeypatch, spread.parent, errno.EIO)
    assert store.batches() == ["msgbatch_b"], "nobody's leftovers are there"


REFUSALS = [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR]


@pytest.mark.parametrize("number", REFUSALS)
def test_a_folder_that_takes_no_files_whatever_its_rights_is_refused_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = DirectorySegments(tmp_path / "s")
    for batch in (BATCH, "msgbatch_b"):
        store.put(segments.requests_name(batch), [b"abc"])
    refuse_new(monkeypatch, f"{BATCH}/r/", number)
    with pytest.raises(SegmentRefused, match=f"cannot write to .*{BATCH}/r: {os.strerror(number)}"):
        store.check_writable(BATCH)
    store.check_writable("msgbatch_b")
    monkeypatch.undo()
    store.check_writable(BATCH)
    assert not list(tmp_path.rglob("r/*")), "nothing is left of the looks"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_is_full_or_fails_refuses_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = DirectorySegments(tmp_path / "s")
    store.put(REQUESTS, [b"abc"])
    refuse_new(monkeypatch, "/r/", number)
    store.check_writable(BATCH)


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


async def commit_all(ledger: Ledger, store: Segments) -> dict[str, str]:
    """Let all batches be done; return where the results of each are."""
    names = {}
    for claim in await ledger.claim_fresh("me", "up/m", LEASE, 9):
        appender = store.appender(segments.result_name(claim.batch, claim.index, claim.attempt))
        appender.append([b"lines of it\n"])
        appender.sync()
        appender.close()
        await ledger.commit("me", [make_commit(claim, extents=appender.extents())])
        names[claim.batch] = appender.name
    return names


async def test_a_batch_whose_results_are_refused_ends_later_and_others_now(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectorySegments(tmp_path / "s")
    busy = Busy(ledger, store)
    await busy.create_both()
    forbid(monkeypatch, (await commit_all(ledger, store))[BATCH])
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


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("inner", ["", "r"])
async def test_a_batch_whose_folder_is_refused_is_not_paid_for_and_waits_alone(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: int, inner: str
) -> None:
    busy = Busy(ledger, DirectorySegments(tmp_path / "s"))
    await busy.create_both()
    if attempt == 2:
        await ledger.claim("before", "up/m", LEASE, 9)
        await ledger.release("before")
    folder = tmp_path / "s" / segments.batch_prefix(BATCH) / inner
    close_folder(monkeypatch, folder, errno.EACCES)
    async with busy.running():
        await busy.until(lambda: busy.has_ended(busy.other.id))
        await busy.until(lambda: _is_told(busy))
        assert busy.upstream.calls == 2
        monkeypatch.undo()
        await busy.seconds(limits.REFUSED_WAIT_S)
        await busy.until(lambda: busy.has_ended(BATCH))
        assert busy.upstream.calls == 3
        assert await busy.told() == "{}"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
async def test_a_folder_that_is_refused_while_its_results_come_ends_one_process_and_no_more(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whatever its rights say."""
    busy = Busy(ledger, DirectorySegments(tmp_path / "s"), owner=None)
    await busy.create_both()
    with monkeypatch.context() as patch:
        busy.upstream.on_call = lambda: refuse_new(patch, f"{BATCH}/r/", number)
        running = asyncio.create_task(busy.worker.run())
        await busy.until(lambda: _is_done(running))
        with pytest.raises(ExceptionGroup) as caught:
            await running
        assert caught.group_contains(StoreError, match=os.strerror(number))
        again = Busy(ledger, busy.store, owner=None)
        async with again.running():
            await again.until(lambda: again.has_ended(busy.other.id))
            await again.until(lambda: _is_told(again))
            await again.seconds(limits.REFUSED_WAIT_S)
            calls = busy.upstream.calls + again.upstream.calls
            assert calls <= 5, "it is asked again at no start"
            patch.undo()
            await again.seconds(limits.REFUSED_WAIT_S)
            await again.until(lambda: again.has_ended(BATCH))


def refuse_new(monkeypatch: pytest.MonkeyPatch, part: str, number: int = errno.EACCES) -> None:
    """Let the system refuse to make files below a part of their path."""
    real = os.open

    def opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_CREAT and part in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", opened)


async def _is_done(task: asyncio.Task[None]) -> bool:
    return task.done()


async def test_results_that_cannot_be_listed_hold_up_their_shard_alone(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = Busy(ledger, DirectorySegments(tmp_path / "s"))
    await busy.create_both()
    await ledger.claim("before", "up/m", LEASE, 9)
    await ledger.release("before")
    close_folder(monkeypatch, tmp_path / "s" / segments.batch_prefix(BATCH) / "r", errno.EIO)
    async with busy.running():
        await busy.until(lambda: busy.has_ended(busy.other.id))

        async def is_told() -> bool:
            return "cannot be listed: Input/output error" in await busy.told()

        await busy.until(is_told)
        assert busy.upstream.calls == 2
        monkeypatch.undo()  # the disk gives it again, and nobody has to start anything
        await busy.until(lambda: busy.has_ended(BATCH))


@pytest.mark.parametrize("part", ["", "r"])
async def test_a_file_in_the_place_of_a_folder_stops_its_batch_and_no_other(
    ledger: Ledger, tmp_path: Path, part: str
) -> None:
    store = DirectorySegments(tmp_path / "s")
    busy = Busy(ledger, store)
    await busy.create_both()
    await ledger.claim("before", "up/m", LEASE, 9)  # so that what it left is looked for
    await ledger.release("before")
    folder = tmp_path / "s" / segments.batch_prefix(BATCH) / part
    shutil.rmtree(folder)
    folder.write_bytes(b"somebody's")
    async with busy.running():
        await busy.until(lambda: busy.has_ended(busy.other.id))

        async def is_told() -> bool:
            return bool(await busy.told())

        await busy.until(is_told)
        assert busy.upstream.calls == 2
    store.delete_batch(BATCH)
    assert folder.exists() == (not part), "what has taken the place of all of it is not ours"


async def test_a_batch_whose_manifest_is_refused_ends_later_and_others_now(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectorySegments(tmp_path / "s")
    busy = Busy(ledger, store)
    await busy.create_both()
    await commit_all(ledger, store)
    finished = sorted(await ledger.finished())
    refuse_new(monkeypatch, BATCH)
    await end_batches(ledger, store, busy.clock, finished)
    assert [await busy.has_ended(each) for each in finished] == [False, True]
    monkeypatch.undo()
    await end_batches(ledger, store, busy.clock, finished)
    assert await busy.has_ended(BATCH)


async def test_a_batch_whose_folder_of_results_was_left_out_by_a_restore_is_paid_once(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    busy = Busy(ledger, DirectorySegments(tmp_path / "s"))
    await busy.create_both()
    (tmp_path / "s" / segments.batch_prefix(BATCH) / "r").rmdir()
    async with busy.running():
        await busy.until(lambda: busy.has_ended(BATCH))
        await busy.until(lambda: busy.has_ended(busy.other.id))
    assert busy.upstream.calls == 3
    assert "deleted" not in caplog.text


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
