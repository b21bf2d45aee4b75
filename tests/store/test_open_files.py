"""More segments of results than files may be open: each is written all the same, and durable."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batchyard import segments
from batchyard.errors import DiskFull, SegmentsGone
from batchyard.segments import writing
from batchyard.segments.directory import DirectorySegments
from helpers_upstream import Upstream
from helpers_yard import Yard, request

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = "msgbatch_01abc"
REQUESTS = segments.requests_name(BATCH)


def name_of(shard: int) -> str:
    return segments.result_name(BATCH, shard, 1)


@pytest.fixture
def store(tmp_path: Path) -> DirectorySegments:
    """Return a store that keeps one file of results open."""
    made = DirectorySegments(tmp_path / "segments", files_max=1)
    made.put(REQUESTS, [b"x"])
    return made


def open_files(folder: Path) -> list[str]:
    """Return the names of the files below a folder that this process has open."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            target = each.readlink()
        except FileNotFoundError:  # that of the listing
            continue
        if target.is_relative_to(folder):
            found.append(target.name)
    return sorted(found)


def noted(monkeypatch: pytest.MonkeyPatch, call: str) -> list[str]:
    """Return the names of the files that a call of `os` is made with from now on."""
    seen: list[str] = []
    real: Callable[[int], None] = getattr(os, call)

    def noting(descriptor: int) -> None:
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, call, noting)
    return seen


def test_no_more_files_are_kept_open_and_what_they_hold_is_durable_at_once(
    store: DirectorySegments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name_of(shard) for shard in range(3)]
    files = [Path(name).name for name in names]
    appenders = [store.appender(name) for name in names]
    data, directories = noted(monkeypatch, "fdatasync"), noted(monkeypatch, "fsync")
    for text in (b"one\n", b"two\n"):
        for appender in appenders:
            appender.append([text])
            assert open_files(tmp_path) == files[:1]
    assert data == files[1:] * 2
    assert directories == ["r", "r"], "each new name, once"
    for appender in appenders:
        appender.sync()
        assert sum(extent.length for extent in appender.extents()) == 8
    assert data == [*files[1:] * 2, files[0]], "what is durable is not synced again"
    for appender in appenders:
        appender.close()
    assert open_files(tmp_path) == []
    assert [store.read(name, 0, 8) for name in names] == [b"one\ntwo\n"] * 3


def test_a_file_that_is_closed_makes_room_for_the_next(
    store: DirectorySegments, tmp_path: Path
) -> None:
    for shard in range(3):
        name = name_of(shard)
        appender = store.appender(name)
        assert open_files(tmp_path) == [Path(name).name]
        appender.close()


def test_what_a_full_disk_cut_short_is_taken_back_there_too(
    store: DirectorySegments, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = store.appender(name_of(0)), store.appender(name_of(1))
    second.append([b"one\n"])
    write = os.write

    def short(descriptor: int, data: memoryview) -> int:
        if len(data) < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:2])

    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "write", short)
        with pytest.raises(DiskFull):
            second.append([b"two\n"])
    second.append([b"two\n"])
    (extent,) = second.extents()
    assert store.read(extent.segment, 0, extent.length) == b"one\ntwo\n"
    assert store.size(extent.segment) == 8
    first.close()
    second.close()


def test_a_batch_that_was_deleted_meanwhile_is_gone(store: DirectorySegments) -> None:
    first, second = store.appender(name_of(0)), store.appender(name_of(1))
    second.append([b"one\n"])
    store.delete_batch(BATCH)
    with pytest.raises(SegmentsGone, match="was deleted while it was written"):
        second.append([b"two\n"])
    second.sync()  # nothing is left to be done
    first.close()
    second.close()


class NarrowYard(Yard):
    """A yard that may have 600 files and connections open: 215 calls, 43 files of results."""

    def command(self) -> list[str]:
        return ["sh", "-c", 'ulimit -n 600; exec "$@"', "sh", *super().command()]


def test_as_many_batches_of_one_as_there_are_calls_are_answered_all_at_once(tmp_path: Path) -> None:
    prompts = [f"narrow-{n}|hold:narrow" for n in range(215)]
    with Upstream() as upstream, NarrowYard(tmp_path / "data", upstream.url, slots=400) as yard:
        made = [yard.create([request(prompt)])["id"] for prompt in prompts]
        upstream.wait_calls("narrow-", len(prompts))
        upstream.gate("narrow").open()
        for prompt, batch_id in zip(prompts, made, strict=True):
            yard.wait_ended(batch_id)
            (result,) = yard.results(batch_id).values()
            assert result["type"] == "succeeded", prompt
        assert upstream.number("narrow-") == len(prompts), "a call was made twice"
        log = yard.read_log()
        assert yard.stop() == 0
    assert "Traceback" not in log
    assert "Too many open files" not in log
