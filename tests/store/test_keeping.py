"""What ends a batch and what keeps house, over real stores."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import threading
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits, segments
from batchyard.dispatch.ending import end_batch, end_batches, read_manifest
from batchyard.dispatch.keeper import Keeper
from batchyard.errors import DamagedError, DiskFull, SegmentRefused
from batchyard.model import Counts, Extent, Tokens
from batchyard.segments.directory import DirectorySegments
from batchyard.testing.clock import ManualClock
from store.making import LEASE, NOW, add, make_commit, make_held, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from batchyard.ledger import Claim, Ledger
    from batchyard.model import Batch
    from batchyard.segments import Segments

pytestmark = pytest.mark.anyio


async def done(ledger: Ledger, store: Segments, name: str, *, at: int = NOW) -> Batch:
    """Create a batch of two shards and commit both; it is finished and has not ended."""
    pool = f"up/{name}"
    batch = await add(ledger, name, pool, pool, at=at)
    store.put(segments.requests_name(batch.id), [b"x"])
    for _ in range(2):
        claim = await take(ledger, pool=pool)
        await ledger.commit("me", [make_commit(claim, extents=[written(store, claim)])])
    return batch


def written(store: Segments, claim: Claim) -> Extent:
    """Write what an attempt has answered, as long as the lines of its number."""
    appender = store.appender(f"{segments.results_prefix(claim.batch, claim.index)}1.aa")
    appender.append([b"0123456%02d\n" % claim.index])
    appender.sync()
    appender.close()
    (extent,) = appender.extents()
    return extent


def extents_of(batch: Batch) -> list[Extent]:
    """Return what the manifest of a batch that `done` has made must name."""
    lines = [(0, b"012345600\n"), (1, b"012345601\n")]
    return [
        Extent(f"{segments.results_prefix(batch.id, index)}1.aa", len(line), (zlib.crc32(line),))
        for index, line in lines
    ]


class Before:
    """Passes on to a ledger, and calls back before one of its methods."""

    def __init__(self, real: Ledger, name: str, call: Callable[[], None]) -> None:
        self._real = real
        self._name = name
        self._call = call

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            self._call()
        return getattr(self._real, name)


async def test_the_manifest_is_there_before_the_end_can_be_seen(
    ledger: Ledger, store: Segments
) -> None:
    batch = await done(ledger, store, "a")
    seen: list[list[Extent]] = []
    watched: Any = Before(ledger, "end_all", lambda: seen.append(read_manifest(store, batch.id)))
    await end_batch(watched, store, ManualClock(NOW), batch.id)
    assert seen == [extents_of(batch)]
    ended = await ledger.get("w", batch.id)
    assert ended is not None
    assert (ended.status, ended.tokens) == ("ended", Tokens(2, 4, 6, 8))


async def test_ending_a_batch_again_leaves_its_manifest_as_it_is(
    ledger: Ledger, store: Segments
) -> None:
    batch = await done(ledger, store, "a")
    for _ in range(2):
        await end_batch(ledger, store, ManualClock(NOW), batch.id)
    assert len(read_manifest(store, batch.id)) == 2


async def test_an_end_that_was_cut_short_after_the_manifest_is_made_up_by_a_sweep(
    ledger: Ledger, store: Segments
) -> None:
    batch = await done(ledger, store, "a")
    store.put(segments.manifest_name(batch.id), [b"whatever was there"])
    await Keeper(ledger, store, ManualClock(NOW), owner="me").sweep()
    ended = await ledger.get("w", batch.id)
    assert ended is not None
    assert ended.status == "ended"
    assert len(read_manifest(store, batch.id)) == 2


async def test_a_batch_that_does_not_add_up_stays_open_and_others_end(
    ledger: Ledger, store: Segments, caplog: pytest.LogCaptureFixture
) -> None:
    bad = await add(ledger, "bad", "up/bad")
    store.put(segments.requests_name(bad.id), [b"x"])
    claim = await take(ledger, pool="up/bad")
    extents = [written(store, claim)]
    await ledger.commit("me", [make_commit(claim, extents=extents, counts=Counts(succeeded=1))])
    good = await done(ledger, store, "good")
    with caplog.at_level(logging.ERROR):
        await Keeper(ledger, store, ManualClock(NOW), owner="me").sweep()
    assert bad.id in caplog.text
    assert await ledger.get("w", bad.id) == bad
    ended = await ledger.get("w", good.id)
    assert ended is not None
    assert ended.status == "ended"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"batch":"b","extents":[["s","1"]]}'])
async def test_a_damaged_manifest_is_an_error_that_names_it(store: Segments, data: bytes) -> None:
    name = segments.manifest_name("msgbatch_a")
    store.put(name, [data])
    with pytest.raises(DamagedError, match=name):
        read_manifest(store, "msgbatch_a")


async def test_a_manifest_is_json_for_people_too(ledger: Ledger, store: Segments) -> None:
    batch = await done(ledger, store, "a")
    await end_batch(ledger, store, ManualClock(NOW), batch.id)
    name = segments.manifest_name(batch.id)
    assert json.loads(store.read(name, 0, store.size(name))) == {
        "batch": batch.id,
        "extents": [[e.segment, e.length, list(e.blocks)] for e in extents_of(batch)],
    }


@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
async def test_a_shard_whose_results_the_disk_has_damaged_is_taken_up_again_before_the_end(
    ledger: Ledger, tmp_path: Path, how: str
) -> None:
    store = DirectorySegments(tmp_path / "segments")
    batch = await done(ledger, store, "a")
    damaged = extents_of(batch)[1]
    path = tmp_path / "segments" / damaged.segment
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if how == "cut" else data[:-2] + b"X\n")
    keeper = Keeper(ledger, store, ManualClock(NOW), owner="me")
    await keeper.sweep()
    assert await ledger.get("w", batch.id) == batch
    assert await ledger.finished() == []
    assert (await ledger.progress(batch.id)).counts == Counts(succeeded=2)
    claim = await take(ledger, pool="up/a")
    assert (claim.index, claim.attempt, claim.frozen) == (1, 2, (damaged,))
    aside = Extent(damaged.segment, 0)
    new = Extent(f"{segments.results_prefix(batch.id, 1)}2.bb", len(data), damaged.blocks)
    (tmp_path / "segments" / new.segment).write_bytes(data)
    await ledger.commit("me", [make_commit(claim, extents=[aside, new])])
    await keeper.sweep()
    ended = await ledger.get("w", batch.id)
    assert ended is not None
    assert (ended.status, ended.counts) == ("ended", Counts(succeeded=4))
    assert read_manifest(store, batch.id) == [extents_of(batch)[0], new]


class HeldUp(DirectorySegments):
    """Writes no manifest until it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.is_asked, self.may_write = threading.Event(), threading.Event()

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        self.is_asked.set()
        assert self.may_write.wait(60)
        super().put(name, chunks)


@pytest.mark.parametrize("when", ["before the end", "after the end"])
async def test_a_manifest_that_comes_late_ends_nothing_and_takes_the_place_of_none(
    ledger: Ledger, tmp_path: Path, when: str
) -> None:
    """Meanwhile results that it names were damaged, and made again."""
    store, slow = (kind(tmp_path / "segments") for kind in (DirectorySegments, HeldUp))
    batch = await done(ledger, store, "a")
    late = asyncio.create_task(end_batch(ledger, slow, ManualClock(NOW), batch.id))
    assert await asyncio.to_thread(slow.is_asked.wait, 60)
    damaged = extents_of(batch)[1]
    path = tmp_path / "segments" / damaged.segment
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"X\n")
    keeper = Keeper(ledger, store, ManualClock(NOW), owner="me")
    await keeper.sweep()
    claim = await take(ledger, pool="up/a")
    new = Extent(f"{segments.results_prefix(batch.id, 1)}2.bb", len(data), damaged.blocks)
    (tmp_path / "segments" / new.segment).write_bytes(data)
    again = [Extent(damaged.segment, 0), new]
    await ledger.commit("me", [make_commit(claim, extents=again)])

    async def come() -> None:
        slow.may_write.set()
        await late

    if when == "before the end":
        await come()
        assert await ledger.get("w", batch.id) == batch
    await keeper.sweep()
    if when == "after the end":
        await come()
    ended = await ledger.get("w", batch.id)
    assert ended is not None
    assert ended.status == "ended"
    assert store.size(segments.manifest_name(batch.id)), "it is there, and does not count"
    assert read_manifest(store, batch.id) == [extents_of(batch)[0], new]


async def test_only_done_shards_of_an_open_batch_can_be_reopened(
    ledger: Ledger, store: Segments
) -> None:
    batch = await done(ledger, store, "a")
    await ledger.reopen(batch.id, [0])
    claim = await take(ledger, pool="up/a")
    await ledger.reopen(batch.id, [0])
    assert await ledger.renew("me", LEASE, [make_held(claim)]), "its lease was taken away"
    await ledger.commit("me", [make_commit(claim, extents=[extents_of(batch)[0]])])
    await end_batch(ledger, store, ManualClock(NOW), batch.id)
    await ledger.reopen(batch.id, [0, 1])
    ended = await ledger.get("w", batch.id)
    assert ended is not None
    assert ended.status == "ended"
    assert await ledger.pools_ready() == []


# House keeping -----------------------------------------------------------------------------------


async def test_a_sweep_takes_back_leases_of_others_only(ledger: Ledger, store: Segments) -> None:
    await add(ledger, "a", "up/m", "up/m")
    await take(ledger, "me")
    await take(ledger, "dead")
    clock = ManualClock(NOW)
    await clock.advance((LEASE + 1) / limits.SECOND_US)  # leases are in time that is never set
    await Keeper(ledger, store, clock, owner="me").sweep()
    assert [claim.index for claim in await ledger.claim("me", "up/m", LEASE, 9)] == [1]


async def test_results_are_archived_29_days_after_the_creation_and_the_batch_stays(
    ledger: Ledger, store: Segments
) -> None:
    batch = await done(ledger, store, "a")
    clock = ManualClock(NOW)
    keeper = Keeper(ledger, store, clock, owner="me")
    await end_batch(ledger, store, clock, batch.id)
    ended = await ledger.get("w", batch.id)
    assert ended is not None
    await clock.advance(limits.RETENTION_US / limits.SECOND_US - 1)
    await keeper.sweep()
    assert await ledger.get("w", batch.id) == ended
    assert store.batches() == [batch.id]
    await clock.advance(1)
    for _ in range(2):
        await keeper.sweep()
        archived = await ledger.get("w", batch.id)
        assert archived == dataclasses.replace(ended, archived_us=NOW + limits.RETENTION_US)
        assert store.batches() == []
    assert await ledger.known("w", "key-a", NOW) is None, "the create call was not forgotten"


async def outdated(ledger: Ledger, store: Segments, number: int) -> ManualClock:
    """End so many batches; return the clock of a time when all of them are to be archived."""
    made = [await done(ledger, store, f"old{n}") for n in range(number)]
    await end_batches(ledger, store, ManualClock(NOW), [batch.id for batch in made])
    assert len(store.batches()) == number
    return ManualClock(NOW + limits.RETENTION_US)


@pytest.fixture
def _few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchyard.dispatch.keeper._ARCHIVE_AT_ONCE", 3)


@pytest.mark.usefixtures("_few_at_once")
async def test_one_sweep_archives_all_that_is_due_however_many(
    ledger: Ledger, store: Segments
) -> None:
    clock = await outdated(ledger, store, 8)
    assert not await Keeper(ledger, store, clock, owner="me").sweep(), "nothing is left to do"
    assert store.batches() == []
    assert await ledger.outdated(NOW, 9) == []


class SlowClock(ManualClock):
    """Passes by half an interval of the sweeps whenever somebody looks."""

    looked = 0

    def monotonic_s(self) -> float:
        self.looked += 1
        return self.looked * limits.KEEPER_INTERVAL_S / 2


@pytest.mark.usefixtures("_few_at_once")
async def test_archiving_for_longer_than_an_interval_lets_the_other_duties_in_between(
    ledger: Ledger, store: Segments
) -> None:
    clock = SlowClock((await outdated(ledger, store, 11)).now_us())
    seen: list[int] = []
    watched: Any = Before(ledger, "take_back", lambda: seen.append(len(store.batches())))
    keeping = asyncio.create_task(Keeper(watched, store, clock, owner="me").run())
    await asyncio.wait_for(clock.wait_for_sleepers(1), 60)
    keeping.cancel()
    assert seen == [11, 5, 0], "after two rounds of three each, and without a sleep"
    assert store.batches() == []


@pytest.mark.usefixtures("_few_at_once")
async def test_what_cannot_be_marked_as_archived_is_tried_once_in_a_sweep(
    ledger: Ledger, store: Segments
) -> None:
    clock = await outdated(ledger, store, 3)
    tried: list[str] = []

    class Deaf(Before):
        async def archive(self, batch_id: str, _: int) -> None:
            tried.append(batch_id)

    deaf: Any = Deaf(ledger, "", lambda: None)
    assert not await Keeper(deaf, store, clock, owner="me").sweep()
    assert sorted(tried) == ["msgbatch_old0", "msgbatch_old1", "msgbatch_old2"]


async def test_an_open_batch_is_never_archived(ledger: Ledger, store: Segments) -> None:
    batch = await add(ledger, "a")
    store.put(segments.requests_name(batch.id), [b"x"])
    later = ManualClock(NOW + 2 * limits.RETENTION_US)
    await Keeper(ledger, store, later, owner="me").sweep()
    assert await ledger.get("w", batch.id) == batch
    assert store.batches() == [batch.id]


async def test_what_is_refused_when_its_batch_is_archived_is_removed_a_minute_later(
    ledger: Ledger, store: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = await outdated(ledger, store, 2)
    real, refused = store.delete_batch, store.batches()[:1]

    def delete_batch(batch_id: str) -> None:
        if batch_id in refused:
            raise SegmentRefused(f"cannot delete {batch_id}")
        real(batch_id)

    monkeypatch.setattr(store, "delete_batch", delete_batch)
    keeper = Keeper(ledger, store, clock, owner="me")
    await keeper.sweep()
    assert store.batches() == refused
    refused.clear()
    await clock.advance(limits.REFUSED_WAIT_S)
    await keeper.sweep()
    assert store.batches() == []


async def test_a_disk_that_is_too_full_to_end_a_batch_is_freed_by_archiving_another(
    ledger: Ledger, store: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = await outdated(ledger, store, 1)
    (old,) = store.batches()
    batch = await done(ledger, store, "new", at=clock.now_us())
    real = store.put

    def put(name: str, chunks: Iterable[bytes]) -> None:
        if old in store.batches():
            raise DiskFull("no room")
        real(name, chunks)

    monkeypatch.setattr(store, "put", put)
    keeper = Keeper(ledger, store, clock, owner="me")
    with contextlib.suppress(DiskFull):  # of a bucket it is a failure like others
        await keeper.sweep()
    assert store.batches() == [batch.id]
    await keeper.sweep()
    ended = await ledger.get("w", batch.id)
    assert ended is not None
    assert ended.status == "ended"


async def test_only_segments_that_no_batch_needs_are_leftovers(
    ledger: Ledger, store: Segments
) -> None:
    clock = ManualClock(NOW)
    keeper = Keeper(ledger, store, clock, owner="me")
    kept = await done(ledger, store, "kept")
    await end_batch(ledger, store, clock, kept.id)
    opened = await add(ledger, "open")
    store.put(segments.requests_name(opened.id), [b"x"])
    # A create that was cut short before its row, and an archiving before its bytes were gone.
    store.put(segments.requests_name("msgbatch_never"), [b"x"])
    archived = await done(ledger, store, "archived")
    await end_batch(ledger, store, clock, archived.id)
    await ledger.archive(archived.id, NOW)
    await keeper.clear_leftovers()
    assert store.batches() == sorted([kept.id, opened.id])


async def test_where_others_create_too_only_old_segments_are_leftovers(
    ledger: Ledger, store: Segments
) -> None:
    store.put(segments.requests_name("msgbatch_never"), [b"x"])
    written = store.written_us("msgbatch_never")
    assert written is not None
    assert store.written_us("msgbatch_none") is None
    clock = ManualClock(written + limits.LEFTOVERS_AGE_US - limits.SECOND_US)
    keeper = Keeper(ledger, store, clock, owner="me")
    await keeper.clear_leftovers(limits.LEFTOVERS_AGE_US)
    assert store.batches() == ["msgbatch_never"], "its create may be under way"
    await clock.advance(2)
    await keeper.clear_leftovers(limits.LEFTOVERS_AGE_US)
    assert store.batches() == []


async def test_a_flood_of_small_batches_ends_in_a_few_transactions(
    ledger: Ledger, store: Segments
) -> None:
    number = 2 * limits.ENDS_AT_ONCE + 1
    batches = [await done(ledger, store, f"flood{n}") for n in range(number)]
    seen: list[str] = []
    watched: Any = Before(ledger, "end_all", lambda: seen.append("transaction"))
    await end_batches(watched, store, ManualClock(NOW), [batch.id for batch in batches])
    assert len(seen) == 3
    for batch in batches:
        ended = await ledger.get("w", batch.id)
        assert ended is not None
        assert ended.status == "ended"
        assert read_manifest(store, batch.id) == extents_of(batch)
