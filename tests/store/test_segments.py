"""Segments, whatever they stand on: whole or not at all, exact lengths, nothing rewritten."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import stat
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits, segments
from batchyard.errors import ConfigError, DamagedError, SegmentsGone, StoreError
from batchyard.model import Extent
from batchyard.segments import directory
from batchyard.segments.directory import DirectorySegments
from batchyard.segments.objects import ObjectSegments
from batchyard.server import stores
from store.making import s3

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchyard.segments import Segments

BATCH = "msgbatch_01abc"
REQUESTS = segments.requests_name(BATCH)


def _result(shard: int = 0, attempt: int = 1, nonce: str = "aa") -> str:
    return f"{segments.results_prefix(BATCH, shard)}{attempt}.{nonce}"


def _append(store: Segments, name: str, *chunks: bytes) -> tuple[Extent, ...]:
    """Append some bytes, each chunk synced by itself, and let go."""
    appender = store.appender(name)
    for chunk in chunks or (b"x",):
        appender.append([chunk])
        appender.sync()
    extents = appender.extents()
    appender.close()
    return extents


@given(st.text(st.characters(categories=["Ll", "Nd"]), min_size=1), st.integers(0, 1_000))
def test_names_are_below_the_batch_and_shards_do_not_share_a_prefix(batch: str, shard: int) -> None:
    prefix = segments.batch_prefix(batch)
    assert re.fullmatch(r"[0-9a-f]{2}/.+", prefix)
    for name in (segments.requests_name(batch), segments.manifest_name(batch)):
        assert name.startswith(prefix + "/")
    assert segments.results_prefix(batch, shard).startswith(f"{prefix}/r/")
    assert (
        not segments.results_prefix(batch, shard * 10).startswith(
            segments.results_prefix(batch, shard)
        )
        or shard == 0
    )


@pytest.mark.parametrize("set_aside", [0, 1, 9, 10, 99_999])
def test_the_name_of_a_manifest_tells_how_much_was_set_aside(set_aside: int) -> None:
    name = segments.manifest_name(BATCH, set_aside)
    assert segments.set_aside_of(name) == set_aside
    assert segments.set_aside_of(name.rpartition("/")[2]) == set_aside


@pytest.mark.parametrize(
    "name",
    [
        "manifest",
        "manifest.json.1",
        "manifest.0.json",
        "manifest.01.json",
        "manifest.x.json",
        "manifest..json",
        ".manifest.json.0123456789abcdef",
        "a-manifest.json",
        "requests",
    ],
)
def test_other_names_are_of_no_manifest(name: str) -> None:
    assert segments.set_aside_of(name) is None


def test_the_name_of_a_result_segment_tells_its_attempt_and_so_does_each_part_of_it(
    store: Segments,
) -> None:
    store.put(segments.requests_name(BATCH), [b"x"])  # results come after requests
    appender = store.appender(segments.result_name(BATCH, 12, 34))
    for line in (b"a\n", b"b\n"):
        appender.append([line])
        appender.sync()
    assert {segments.attempt_of(extent.segment) for extent in appender.extents()} == {34}
    appender.close()


def test_a_put_segment_reads_back_exactly(store: Segments) -> None:
    store.put(REQUESTS, [b"ab", memoryview(b"cd"), b"", b"e" * 3_000_000])
    assert store.size(REQUESTS) == 3_000_004
    assert store.read(REQUESTS, 0, 4) == b"abcd"
    assert store.read(REQUESTS, 2, 3) == b"cde"
    assert store.read(REQUESTS, 4, 3_000_000) == b"e" * 3_000_000
    assert store.read(REQUESTS, 3_000_004, 0) == b""


def test_an_exception_in_the_middle_of_a_put_leaves_nothing(store: Segments) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x" * 3_000_000
        raise ValueError("the body is bad")

    with pytest.raises(ValueError, match="the body is bad"):
        store.put(REQUESTS, chunks())
    assert store.names(f"{segments.batch_prefix(BATCH)}/") == []
    with pytest.raises(StoreError):
        store.size(REQUESTS)


def test_a_draft_is_there_when_it_is_committed_and_not_before(
    store: Segments, tmp_path: Path
) -> None:
    draft = store.draft(REQUESTS, tmp_path)
    draft.write(b"ab")
    draft.settle()
    draft.write(b"c" * 3_000_000)
    draft.settle()
    prefix = f"{segments.batch_prefix(BATCH)}/"
    with pytest.raises(DamagedError):
        store.size(REQUESTS)
    assert draft.view() == b"ab" + b"c" * 3_000_000
    draft.commit()
    draft.abandon()
    draft.abandon()
    assert [name for name in store.names(prefix) if "/r/" not in name] == [REQUESTS]
    assert store.read(REQUESTS, 0, 3_000_002) == b"ab" + b"c" * 3_000_000


def test_a_draft_that_is_abandoned_leaves_nothing(store: Segments, tmp_path: Path) -> None:
    draft = store.draft(REQUESTS, tmp_path)
    draft.write(b"x" * 100_000)
    draft.settle()
    draft.abandon()
    draft.abandon()
    assert store.names(f"{segments.batch_prefix(BATCH)}/") == []
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "segments"])
    store.put(REQUESTS, [b"the name is free"])


def test_bytes_are_read_into_memory_exactly_or_not_at_all(store: Segments) -> None:
    store.put(REQUESTS, [bytes(range(100))])
    into = bytearray(40)
    store.read_into(REQUESTS, 30, memoryview(into))
    assert into == bytes(range(30, 70))
    store.read_into(REQUESTS, 99, memoryview(into)[:1])
    assert into[:2] == bytes([99, 31])
    with pytest.raises(DamagedError):
        store.read_into(REQUESTS, 90, memoryview(into))
    with pytest.raises(DamagedError):
        store.read_into(segments.manifest_name(BATCH), 0, memoryview(into))


def test_a_failing_disk_in_the_middle_of_a_put_leaves_nothing(store: Segments) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match=r"cannot write segment .*No space left"):
        store.put(REQUESTS, chunks())
    assert store.names(f"{segments.batch_prefix(BATCH)}/") == []


def test_while_it_is_being_put_a_segment_does_not_exist(store: Segments) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x"
        with pytest.raises(StoreError):
            others.submit(store.size, REQUESTS).result()

    with ThreadPoolExecutor(1) as others:
        store.put(REQUESTS, chunks())
    assert store.size(REQUESTS) == 1


def test_a_second_put_takes_the_place_of_the_first_whole(store: Segments) -> None:
    """The manifest may be written by two workers at once; both write the same."""
    store.put(REQUESTS, [b"first"])
    store.put(REQUESTS, [b"2"])
    assert store.read(REQUESTS, 0, store.size(REQUESTS)) == b"2"


def test_an_appended_segment_grows_and_tells_its_length(store: Segments) -> None:
    store.put(REQUESTS, [b"x"])
    appender = store.appender(_result())
    assert appender.name == _result()
    appender.append([b"one\n", b"two\n"])
    appender.append([])
    appender.append([b"3\n"])
    appender.sync()
    appender.sync()
    assert appender.extents() == (Extent(_result(), 10, (zlib.crc32(b"one\ntwo\n3\n"),)),)
    appender.close()
    assert store.read(_result(), 0, 10) == b"one\ntwo\n3\n"


def test_extents_are_all_that_was_synced_in_the_order_in_which_it_was_appended(
    store: Segments,
) -> None:
    store.put(REQUESTS, [b"x"])
    extents = _append(store, _result(), b"one\n", b"", b"two\n", b"3\n")
    data = [store.read(extent.segment, 0, extent.length) for extent in extents]
    assert b"".join(data) == b"one\ntwo\n3\n"
    assert [extent.blocks for extent in extents] == [(zlib.crc32(part),) for part in data]
    assert {extent.segment for extent in extents} <= set(
        store.names(segments.results_prefix(BATCH, 0))
    )


def test_an_appender_that_nothing_was_appended_to_has_no_extents(store: Segments) -> None:
    store.put(REQUESTS, [b"x"])
    appender = store.appender(_result())
    appender.sync()
    assert appender.extents() == ()
    appender.close()


def test_an_appender_refuses_a_name_that_was_used(store: Segments) -> None:
    store.put(REQUESTS, [b"x"])
    appender = store.appender(_result())
    appender.append([b"mine"])
    appender.sync()

    def begin_another() -> None:
        another = store.appender(_result())
        another.append([b"other"])
        another.sync()

    with pytest.raises(StoreError, match=r"cannot begin segment|is there already"):
        begin_another()
    appender.close()
    with pytest.raises(StoreError, match=r"cannot begin segment|is there already"):
        begin_another()
    assert store.read(_result(), 0, 4) == b"mine"


@pytest.mark.parametrize(("offset", "length"), [(0, 6), (5, 1), (4, 2), (100, 1)])
def test_a_read_beyond_the_end_is_an_error_and_never_short(
    store: Segments, offset: int, length: int
) -> None:
    store.put(REQUESTS, [b"12345"])
    with pytest.raises(StoreError, match="is shorter than"):
        store.read(REQUESTS, offset, length)


def test_what_is_not_there_is_an_error_that_names_it(store: Segments) -> None:
    for use in (
        lambda: store.size(REQUESTS),
        lambda: store.read(REQUESTS, 0, 1),
        lambda: store.sync(REQUESTS),
    ):
        with pytest.raises(StoreError, match=re.escape(REQUESTS)):
            use()


def test_names_are_those_of_one_shard_sorted(store: Segments) -> None:
    store.put(REQUESTS, [b"x"])
    names = [_result(1, 1), _result(1, 2, "b"), _result(1, 2, "a"), _result(11, 1), _result(0, 1)]
    for name in names:
        _append(store, name)
    assert store.names(segments.results_prefix(BATCH, 1)) == sorted(names[:3])
    assert store.names(segments.results_prefix(BATCH, 11)) == [names[3]]
    assert store.names(segments.results_prefix(BATCH, 7)) == []
    assert store.names(segments.results_prefix("msgbatch_none", 7)) == []


def test_deleting_a_batch_removes_all_of_it_and_nothing_else(store: Segments) -> None:
    other = segments.requests_name("msgbatch_other")
    store.put(REQUESTS, [b"x"])
    store.put(other, [b"y"])
    _append(store, _result())
    assert store.batches() == sorted([BATCH, "msgbatch_other"])
    store.delete_batch(BATCH)
    store.delete_batch(BATCH)
    assert store.batches() == ["msgbatch_other"]
    assert store.names(f"{segments.batch_prefix(BATCH)}/r/") == []
    assert store.read(other, 0, 1) == b"y"


# The object store ------------------------------------------------------------------------------


def _objects() -> ObjectSegments:
    return ObjectSegments(s3().url(f"objects-{next(_COUNT)}"))


_COUNT = itertools.count()


def test_a_part_that_was_written_though_its_answer_was_lost_is_not_a_second_one() -> None:
    store = _objects()
    store.create(_result(), b"mine")
    store.create(_result(), b"mine")
    with pytest.raises(StoreError, match="is there already"):
        store.create(_result(), b"other")
    assert store.read(_result(), 0, 4) == b"mine"


def test_who_appends_waits_while_too_much_is_not_yet_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "UNWRITTEN_BYTES_MAX", 5)
    store = _objects()
    first, second = store.appender(_result(1)), store.appender(_result(2))
    first.append([b"123456"])
    with ThreadPoolExecutor(1) as others:
        waiting = others.submit(second.append, [b"7"])
        assert not waiting.done()
        first.sync()
        waiting.result()
        second.append([b"89012"])
        waiting = others.submit(first.append, [b"3"])
        store.create(f"{_result(2)}", b"the name is taken")
        with pytest.raises(StoreError, match="is there already"):
            second.sync()
        with pytest.raises(StoreError, match="is there already"):
            waiting.result()


def test_the_urls_that_people_are_told_of_name_the_bucket_and_the_path_below_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    with pytest.raises(ConfigError) as refused:
        ObjectSegments("ftp://host/path")
    with pytest.raises(ConfigError) as unfit:
        stores.check("postgresql://host/db", "ftp://host/path", "all", 1)
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    for text in (str(refused.value), str(unfit.value), page):
        urls = set(re.findall(r"\b(?:s3|gs|az)://[a-z/]+", text))
        assert {url[:2] for url in urls} == {"s3", "gs", "az"}
        for url in urls:
            opened = ObjectSegments(url)._store
            bucket = opened.config.get("bucket") or opened.config["container_name"]
            assert (bucket in {"bucket", "container"}, opened.prefix) == (True, "path"), url


@pytest.mark.parametrize("url", ["ftp://host/path", "s3:///path", "bucket/path"])
def test_what_is_no_url_of_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/path"):
        ObjectSegments(url)


# The directory ---------------------------------------------------------------------------------


def test_files_and_directories_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)  # the modes are ours, not those of the umask
    try:
        root = tmp_path / "a" / "segments"
        store = DirectorySegments(root)
        store.put(REQUESTS, [b"x"])
        store.appender(_result()).close()
    finally:
        os.umask(before)
    modes = {
        path.relative_to(tmp_path): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
    }
    assert {path: mode for path, mode in modes.items() if mode not in {0o600, 0o700}} == {}
    for path, mode in modes.items():
        assert mode == (0o700 if (tmp_path / path).is_dir() else 0o600), path


def test_a_symbolic_link_in_the_place_of_a_new_segment_is_not_followed(tmp_path: Path) -> None:
    store = DirectorySegments(tmp_path / "segments")
    store.put(REQUESTS, [b"x"])
    target = tmp_path / "target"
    (tmp_path / "segments" / _result()).symlink_to(target)
    with pytest.raises(StoreError):
        store.appender(_result())
    assert not target.exists()


class _Syncs:
    """Watches the system calls that make things durable, in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(directory.os, name, self._watched(name, getattr(os, name)))

    def _watched(self, kind: str, real: object) -> object:
        def call(descriptor: int) -> None:
            target = Path(f"/proc/self/fd/{descriptor}").readlink()
            self.seen.append(f"{kind} {target}")
            real(descriptor)  # type: ignore[operator]

        return call


def test_a_put_is_durable_file_first_then_each_directory_that_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "segments"
    store = DirectorySegments(root)
    syncs = _Syncs(monkeypatch)
    store.put(REQUESTS, [b"x"])
    batch = root / segments.batch_prefix(BATCH)
    kinds = [re.sub(r"\.requests\.\w+$", "<temporary>", seen) for seen in syncs.seen]
    assert f"fdatasync {batch}/<temporary>" in kinds
    assert kinds[-1] == f"fsync {batch}"  # the new name itself
    assert {f"fsync {root}", f"fsync {batch.parent}"} <= set(kinds)


def test_an_appender_syncs_its_bytes_and_once_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "segments"
    store = DirectorySegments(root)
    store.put(REQUESTS, [b"x"])
    appender = store.appender(_result())
    syncs = _Syncs(monkeypatch)
    for _ in range(2):
        appender.append([b"x"])
        appender.sync()
    appender.close()
    path = root / _result()
    assert syncs.seen == [f"fdatasync {path}", f"fsync {path.parent}", f"fdatasync {path}"]


def test_syncing_what_another_process_left_syncs_its_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "segments"
    store = DirectorySegments(root)
    store.put(REQUESTS, [b"x"])
    store.appender(_result()).close()
    syncs = _Syncs(monkeypatch)
    store.sync(_result())
    path = root / _result()
    assert syncs.seen == [f"fdatasync {path}", f"fsync {path.parent}"]


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_a_sync_that_fails_is_an_error_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = DirectorySegments(tmp_path / "segments")
    store.put(REQUESTS, [b"x"])
    appender = store.appender(_result())
    appender.append([b"x"])
    tries = []

    def fail(descriptor: int) -> None:
        tries.append(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(directory.os, call, fail)
    with pytest.raises(StoreError, match=r"cannot sync segment .*Input/output"):
        appender.sync()
    assert len(tries) == 1
    with pytest.raises(StoreError, match=r"cannot (sync|write) segment"):
        store.put(segments.manifest_name(BATCH), [b"x"])
    appender.close()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectorySegments(tmp_path / "segments")
    store.put(REQUESTS, [b"x"])
    appender = store.appender(_result())
    real = os.write
    monkeypatch.setattr(directory.os, "write", lambda fd, data: real(fd, data[:3]))
    appender.append([b"0123456789"])
    (extent,) = appender.extents()
    assert extent.length == 10
    monkeypatch.undo()
    appender.close()
    assert store.read(_result(), 0, 10) == b"0123456789"


@pytest.mark.parametrize("call", ["open", "pread"])
def test_what_a_disk_cannot_read_is_read_once_more_and_then_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = DirectorySegments(tmp_path / "segments")
    store.put(REQUESTS, [b"12345"])
    real = getattr(os, call)
    failing = 1

    def disturbed(*args: object) -> object:
        nonlocal failing
        failing -= 1
        if failing >= 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args)

    monkeypatch.setattr(directory.os, call, disturbed)
    assert store.read(REQUESTS, 0, 5) == b"12345"
    failing = 2
    with pytest.raises(DamagedError, match=r"cannot be (opened|read at 0): Input/output"):
        store.read(REQUESTS, 0, 5)


def test_what_is_written_for_a_batch_that_was_deleted_is_gone_and_a_lost_root_is_an_error(
    tmp_path: Path,
) -> None:
    store = DirectorySegments(tmp_path / "segments")
    store.put(REQUESTS, [b"x"])
    appender = store.appender(_result())
    appender.append([b"one\n"])
    store.delete_batch(BATCH)
    with pytest.raises(SegmentsGone, match="was deleted while it was written"):
        appender.sync()
    with pytest.raises(SegmentsGone, match="was deleted while it was written"):
        store.appender(_result(1))
    store.put(REQUESTS, [b"x"])
    second = store.appender(_result())
    (tmp_path / "segments" / _result()).unlink()
    (tmp_path / "segments" / _result()).parent.rmdir()
    with pytest.raises(StoreError, match="is not there") as raised:  # not by a delete
        second.sync()
    assert not isinstance(raised.value, SegmentsGone)
    second.close()
    shutil.rmtree(tmp_path / "segments")
    with pytest.raises(StoreError, match="is not there") as raised:
        appender.sync()
    assert not isinstance(raised.value, SegmentsGone)
    appender.close()
