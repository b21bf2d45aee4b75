"""More segments of results than files may be open: each is written all the same, and durable."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batchyard import limits, segments
from batchyard.errors import DiskFull, SegmentsGone, StoreError
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


def open_files(folder: Path, pid: int | str = "self") -> list[str]:
    """Return the names of the files below a folder that a process has open."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
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


def test_a_file_that_is_closed_makes_room_for_the_next_also_for_one_that_was_begun_before(
    store: DirectorySegments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = name_of(0), name_of(1)
    appenders = [store.appender(name) for name in (first, second)]
    appenders[1].append([b"one\n"])
    appenders[0].close()
    data = noted(monkeypatch, "fdatasync")
    for text in (b"two\n", b"three\n"):
        appenders[1].append([text])
        assert open_files(tmp_path) == [Path(second).name]
    assert data == []
    appenders[1].sync()
    assert data == [Path(second).name]
    appenders[1].close()
    assert open_files(tmp_path) == []
    assert store.read(second, 0, 14) == b"one\ntwo\nthree\n"


def test_where_there_is_no_descriptor_one_is_waited_for(
    store: DirectorySegments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DESCRIPTOR_WAIT_S", 0)
    opens, tries = os.open, 0

    def short(*args: object, **options: object) -> int:
        nonlocal tries
        tries += 1
        if tries % 4:
            raise OSError(errno.EMFILE, "Too many open files")
        return opens(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", short)
    first, second = store.appender(name_of(0)), store.appender(name_of(1))
    for appender in (first, second):
        appender.append([b"one\n"])
        appender.sync()
        appender.close()
    assert tries == 20, "two that are made, one that is opened again, two folders"
    monkeypatch.setattr(limits, "DESCRIPTOR_TRIES", 2)
    with pytest.raises(StoreError, match="Too many open files"):
        store.appender(name_of(2))


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
    with pytest.raises(SegmentsGone, match=r"cannot be opened again: .*No such file"):
        second.append([b"two\n"])
    second.sync()  # nothing is left to be done
    first.close()
    second.close()


class NarrowYard(Yard):
    """A yard that may have 600 files and connections open: 193 calls, 21 files of results."""

    def command(self) -> list[str]:
        return ["sh", "-c", 'ulimit -n 600; exec "$@"', "sh", *super().command()]


def test_as_many_batches_of_one_as_there_are_calls_are_answered_all_at_once(tmp_path: Path) -> None:
    prompts = [f"narrow-{n}|hold:narrow" for n in range(193)]
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


def test_a_file_that_is_gone_when_it_is_opened_again_is_made_again(tmp_path: Path) -> None:
    """The batch's answers are made again, as where a kept file was damaged; no other is."""
    names = [f"gone-{n}" for n in range(25)]
    with Upstream() as upstream, NarrowYard(tmp_path / "data", upstream.url, slots=400) as yard:
        made = [
            yard.create([request(name), request(f"{name}-late|hold:gone")])["id"] for name in names
        ]
        for batch_id in made:
            yard.wait_progress(batch_id, lambda told: told["results"] == 1)
        files = {batch_id: next(yard.data.glob(f"segments/??/{batch_id}/r/*")) for batch_id in made}
        assert yard.process is not None
        kept = open_files(yard.data / "segments", yard.process.pid)
        apart = [batch_id for batch_id, file in files.items() if file.name not in kept]
        assert len(apart) == 4
        lost = apart[0]
        files[lost].unlink()
        upstream.gate("gone").open()
        for batch_id in made:
            yard.wait_ended(batch_id)
            assert len(yard.results(batch_id)) == 2
        calls = {name: upstream.number(f"{name}-") + upstream.counts[name] for name in names}
        assert sum(calls.values()) <= 2 * len(names) + 2
        assert upstream.counts[names[made.index(lost)]] == 2
        assert yard.stop() == 0
