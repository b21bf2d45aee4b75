"""A bucket that takes no results, is silent, or gives one object only to others."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits, segments
from batchyard.clock import SystemClock
from batchyard.dispatch.accounts import Accounts
from batchyard.dispatch.keeper import Keeper
from batchyard.dispatch.opening import Opening
from batchyard.errors import DamagedError, SegmentRefused, StoreError
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.segments.directory import DirectorySegments
from batchyard.segments.objects import ObjectSegments
from batchyard.server import assemble, config
from batchyard.testing.clock import ManualClock
from helpers_refusing import Refusing
from store.making import LEASE, NOW, add, make_batch, postgres_url, s3
from store.working import create

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from batchyard.ledger import Ledger
    from batchyard.segments import Segments

pytestmark = pytest.mark.anyio

BATCH = "msgbatch_a"
REQUESTS = segments.requests_name(BATCH)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
    with Refusing(s3().environment["AWS_ENDPOINT_URL"]) as opened:
        monkeypatch.setenv("AWS_ENDPOINT_URL", opened.endpoint)
        monkeypatch.setattr("batchyard.segments.objects._PAUSE_S", 0.01)
        yield opened


@pytest.fixture
def bucket(proxy: Refusing, tmp_path: Path) -> ObjectSegments:
    return ObjectSegments(s3().url(f"bucket/{tmp_path.name}"))


# Results that cannot be written ------------------------------------------------------------------


def test_a_bucket_that_takes_results_is_left_as_it_was(
    proxy: Refusing, bucket: ObjectSegments
) -> None:
    bucket.check_creates()
    assert bucket.batches() == []
    proxy.refused = {"DELETE ", "?delete"}
    bucket.check_creates()
    (left,) = bucket.batches()
    assert left.startswith("probe_"), "it is a leftover that is cleared away later"
    (name,) = bucket.names(f"{segments.batch_prefix(left)}/")
    assert bucket.size(name) == 1, "versions of it may be kept for ever, for each start"


def test_a_bucket_without_create_only_writes_is_refused(
    proxy: Refusing, bucket: ObjectSegments
) -> None:
    proxy.dropped = {"if-none-match"}
    with pytest.raises(StoreError, match="create-only"):
        bucket.check_creates()
    assert bucket.batches() == []


def test_a_bucket_that_may_not_be_listed_is_refused(
    proxy: Refusing, bucket: ObjectSegments
) -> None:
    proxy.refused = {"list-type"}
    with pytest.raises(StoreError, match=r"cannot list .*403"):
        bucket.check_creates()


@pytest.mark.parametrize("role", ["all", "worker"])
async def test_nothing_is_claimed_where_no_results_can_be_written(
    proxy: Refusing, bucket: ObjectSegments, tmp_path: Path, role: str
) -> None:
    proxy.refused = {"/r/"}
    loaded = config.load(
        file=None,
        environment={},
        data=tmp_path,
        upstreams=["sim=simulated:"],
        ledger=postgres_url(tmp_path),
        segments=s3().url(f"bucket/{tmp_path.name}"),
        role=role,
    )
    opened: Any = assemble.opened(loaded, SystemClock())
    if role == "worker":
        opened = assemble.opened_worker(loaded, SystemClock(), "me")
    with pytest.raises(StoreError, match=r"takes no results: .*403"):
        await opened.__aenter__()
    async with assemble.opened(replace(loaded, role="api"), SystemClock()) as yard:
        assert not await yard.ledger.take_back(LEASE, but=""), "it answers what has ended before"


# Results whose writing has no answer -------------------------------------------------------------


@pytest.fixture
def impatient(proxy: Refusing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectSegments:
    """Return a bucket that is waited for one second, not a minute."""
    monkeypatch.setattr(limits, "OBJECTS_CALL_TIMEOUT_S", 1.0)
    monkeypatch.setattr(limits, "OBJECTS_LOOK_TIMEOUT_S", 1.0)
    monkeypatch.setattr(limits, "OBJECTS_DOUBT_S", 0.2)
    return ObjectSegments(s3().url(f"impatient/{tmp_path.name}"))


def test_a_part_is_written_when_a_silent_bucket_answers_again(
    proxy: Refusing, impatient: ObjectSegments
) -> None:
    """Also where it had taken the part, and only its answer was lost."""
    proxy.refused, proxy.is_silent, proxy.times = {"PUT "}, True, 2
    name = segments.result_name(BATCH, 0, 1)
    impatient.create(name, b"a line\n")
    assert impatient.read(name, 0, 7) == b"a line\n"
    assert proxy.times == 0


def test_a_part_whose_first_writing_is_still_under_way_is_written_again(
    proxy: Refusing, bucket: ObjectSegments
) -> None:
    proxy.refused, proxy.status, proxy.times = {"PUT "}, 409, 3
    name = segments.result_name(BATCH, 0, 1)
    bucket.create(name, b"a line\n")
    assert bucket.read(name, 0, 7) == b"a line\n"
    with pytest.raises(StoreError, match="is there already"):
        bucket.create(name, b"another\n")


def test_a_bucket_that_stays_silent_ends_it(
    proxy: Refusing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(limits, "OBJECTS_CALL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(limits, "OBJECTS_LOOK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(limits, "OBJECTS_RETRY_S", 2.4)
    bucket = ObjectSegments(s3().url("silent"))
    proxy.refused, proxy.is_silent = {"PUT "}, True
    with pytest.raises(StoreError, match="cannot write segment"):
        bucket.create(segments.result_name(BATCH, 0, 1), b"a line\n")
    assert len(proxy.seen) >= 3


def test_what_no_repeat_would_change_is_not_repeated(
    proxy: Refusing, bucket: ObjectSegments
) -> None:
    proxy.refused = {"PUT "}
    with pytest.raises(StoreError, match="403"):
        bucket.create(segments.result_name(BATCH, 0, 1), b"a line\n")
    assert len(proxy.seen) == 2, "and one that tells whether another is taken"


# One object that fails, of a bucket that answers --------------------------------------------------


@pytest.fixture
def doubting(proxy: Refusing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectSegments:
    """Return a bucket in which what fails is looked at after a moment, and waited for long."""
    monkeypatch.setattr(limits, "OBJECTS_DOUBT_S", 1.5)
    monkeypatch.setattr(limits, "OBJECTS_RETRY_S", 600.0)
    bucket = ObjectSegments(s3().url(f"doubting/{tmp_path.name}"))
    bucket.put(REQUESTS, [b"abcdef"])
    return bucket


@pytest.mark.timeout(150)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_object_that_fails_alone_is_refused_soon_and_then_at_once(
    proxy: Refusing, doubting: ObjectSegments, method: str
) -> None:
    def ask() -> object:
        return doubting.read(REQUESTS, 0, 3) if method == "GET" else doubting.size(REQUESTS)

    path = f"{doubting._store.prefix}/{REQUESTS}"
    proxy.refused, proxy.status = {f"{method} /yard/{path}"}, 503
    with pytest.raises(SegmentRefused, match="503"):
        ask()
    assert len(proxy.seen) > 2, "it was tried for a while"
    proxy.seen.clear()
    for _ in range(3):
        with pytest.raises(SegmentRefused, match="503"):
            ask()
    assert len(proxy.seen) == 3, "one try each"
    proxy.refused = set()
    assert ask() in {b"abc", 6}
    proxy.refused, proxy.times = {f"{method} /yard/{path}"}, 1
    assert ask() in {b"abc", 6}, "it is in doubt no more"


@pytest.mark.timeout(150)
def test_one_that_is_silent_alone_is_refused_soon(
    proxy: Refusing, impatient: ObjectSegments
) -> None:
    impatient.put(REQUESTS, [b"abcdef"])
    proxy.refused, proxy.is_silent = {f"{REQUESTS}"}, True
    with pytest.raises(SegmentRefused):
        impatient.read(REQUESTS, 0, 3)


@pytest.mark.timeout(150)
def test_a_bucket_that_fails_as_a_whole_is_waited_for(
    proxy: Refusing, doubting: ObjectSegments
) -> None:
    # How often it is asked until it is asked for something else, is a matter of time.
    proxy.refused, proxy.status, proxy.counted_from = {"/yard"}, 503, "list-type"
    proxy.times = 4
    assert doubting.read(REQUESTS, 0, 3) == b"abc"
    assert proxy.times == 0


@pytest.mark.timeout(150)
def test_a_client_who_has_begun_to_read_waits_for_an_object_that_fails(
    proxy: Refusing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(limits, "OBJECTS_DOUBT_S", 0.0)
    bucket = ObjectSegments(s3().url(f"begun/{tmp_path.name}"))
    bucket.put(REQUESTS, [b"abcdef"])
    proxy.refused, proxy.status, proxy.times = {REQUESTS}, 503, 4
    into = bytearray(3)
    bucket.read_into(REQUESTS, 3, memoryview(into))
    assert into == b"def"
    assert proxy.times == 0
    proxy.times = 4
    with pytest.raises(SegmentRefused):
        bucket.read(REQUESTS, 3, 3)


def test_a_segment_that_is_cut_is_damaged_and_not_refused(doubting: ObjectSegments) -> None:
    for offset in (0, 5, 6, 60):
        with pytest.raises(DamagedError, match="shorter"):
            doubting.read(REQUESTS, offset, 7)


class Hanging(DirectorySegments):
    """Refuses the requests of one batch, after ten seconds."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.clock: Late | None = None
        self.asked = 0

    def read(self, name: str, offset: int, length: int) -> bytes:
        if name == REQUESTS and self.clock is not None:
            self.asked += 1
            self.clock.late_s += 10.0
            raise SegmentRefused("it hangs")
        return super().read(name, offset, length)


class Late(ManualClock):
    """May be moved in a thread."""

    late_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.late_s


async def test_requests_that_hang_are_asked_for_once_a_minute_not_for_each_shard(
    tmp_path: Path,
) -> None:
    ledger, store = SqliteLedger(tmp_path / "l.db"), Hanging(tmp_path / "s")
    await create(ledger, store, make_batch("a", requests=12), 12)
    clock = Late(NOW)
    opening = Opening("me", ledger, store, clock, Accounts(), asyncio.Event())
    claims = await ledger.claim("me", "up/m", LEASE, 12)
    store.clock = clock
    for asked in (1, 2):
        opening.add(claims)
        assert [await opening.open(claim) for claim in claims] == [None] * 12
        assert store.asked == asked
        clock.late_s += limits.REFUSED_WAIT_S
    store.clock = None
    opening.add(claims)
    assert all([await opening.open(claim) for claim in claims])
    await ledger.close()


# Leftovers ---------------------------------------------------------------------------------------


async def test_leftovers_are_looked_for_a_few_batches_at_a_time(
    ledger: Ledger, store: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchyard.dispatch.keeper._LEFTOVERS_AT_ONCE", 3)
    kept = [(await add(ledger, f"kept{n}")).id for n in range(12)]
    left = [f"msgbatch_left{n}" for n in range(300)]
    crowded = [each for each in left if segments.batch_prefix(each).startswith("4")]
    for batch_id in (*kept, *crowded):
        store.put(segments.requests_name(batch_id), [b"x"])
    spread = [each for name in store.spreads() for each in store.batches(name)]
    assert sorted(spread) == store.batches()
    asked: list[Sequence[str]] = []

    class Watched:
        async def live(self, batch_ids: Sequence[str]) -> frozenset[str]:
            asked.append(batch_ids)
            return await ledger.live(batch_ids)

    watched: Any = Watched()
    await Keeper(watched, store, ManualClock(NOW), owner="me").clear_leftovers()
    assert store.batches() == sorted(kept)
    assert max(map(len, asked)) <= 3
    assert sorted(each for some in asked for each in some) == sorted([*kept, *crowded])
