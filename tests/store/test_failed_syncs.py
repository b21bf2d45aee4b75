"""A sync that fails, at every place: what counts as stored afterwards is there after a power cut.

The kernel of these tests does what real ones do: what a failed sync could not write it calls clean,
so that later syncs succeed and leave it out, in the same process and in those that follow. Names in
a directory fare like bytes in a file.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits, segments
from batchyard.dispatch.adopt import adopt
from batchyard.errors import DeadSegment, DiskFull, StoreError
from batchyard.segments import directory, syncing, writing
from batchyard.segments.directory import DirectorySegments
from batchyard.server.disk import Disk
from store.test_adopt import BATCH, BYTES, KNOWN, make_claim
from store.test_adopt import name as result_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchyard.model import Extent

PLACES_MAX = 100


_SPREAD = segments.batch_prefix(BATCH)[:2]
_IDS = (f"msgbatch_{n}" for n in itertools.count())
NEAR = [*itertools.islice((x for x in _IDS if segments.batch_prefix(x)[:2] == _SPREAD), 12)]
"""Batches whose segments lie beside those of the first."""


@dataclass
class _Node:
    """A file or directory: what of it is on the disk, and what the kernel only says is."""

    bytes: bytearray = field(default_factory=bytearray)
    clean: int = 0
    names: dict[str, int] = field(default_factory=dict)
    clean_names: dict[str, int] = field(default_factory=dict)


class Kernel:
    """The syncs of a machine, one of which fails."""

    def __init__(self, failing: int) -> None:
        self.left = failing
        self.has_failed = False
        self._nodes: dict[int, _Node] = {}
        self._held: list[int] = []

    def fdatasync(self, descriptor: int) -> None:
        node = self._node(descriptor)
        data = Path(f"/proc/self/fd/{descriptor}").read_bytes()
        fails = self._fails()
        start = len(node.bytes) if fails else max(node.clean, len(node.bytes))
        node.clean = max(node.clean, len(data)) if fails else node.clean
        self._raise(fails)
        node.bytes += bytes(start - len(node.bytes)) + data[start:]

    def fsync(self, descriptor: int) -> None:
        node = self._node(descriptor)
        with os.scandir(descriptor) as entries:
            there = {entry.name: self._hold(descriptor, entry) for entry in entries}
        fails = self._fails()
        if fails:
            node.clean_names = there
        self._raise(fails)
        node.names = {
            name: number
            for name, number in there.items()
            if node.clean_names.get(name) != number or node.names.get(name) == number
        }

    def _fails(self) -> bool:
        self.left -= 1
        self.has_failed = self.has_failed or not self.left
        return not self.left

    def _raise(self, fails: bool) -> None:
        if fails:
            raise OSError(errno.EIO, "Input/output error")

    def _node(self, descriptor: int) -> _Node:
        self._held.append(os.dup(descriptor))  # so that no other file ever gets its number
        return self._nodes.setdefault(os.fstat(descriptor).st_ino, _Node())

    def _hold(self, descriptor: int, entry: os.DirEntry[str]) -> int:
        self._held.append(os.open(entry.name, os.O_PATH | os.O_NOFOLLOW, dir_fd=descriptor))
        return entry.inode()

    def after_power_cut(self, root: Path) -> dict[str, bytes]:
        """Return the files below a directory, by name, that are there after a power cut."""
        found: dict[str, bytes] = {}

        def walk(number: int, prefix: str) -> None:
            node = self._nodes.get(number, _Node())
            found[prefix] = bytes(node.bytes)
            for name, inner in node.names.items():
                walk(inner, f"{prefix}/{name}" if prefix else name)

        top = self._nodes[root.parent.stat().st_ino]
        if root.name in top.names:
            walk(top.names[root.name], "")
        return found

    def close(self) -> None:
        for each in self._held:
            os.close(each)


@dataclass
class Yard:
    """Processes one after the other on one directory, and what they said is stored."""

    root: Path
    files_max: int = limits.CALLS_MAX
    created: set[str] = field(default_factory=set)
    extents: list[Extent] = field(default_factory=list)
    ended: bool = False

    def live(self) -> bool:
        """Let one process live until it has failed or done everything; whether it has."""
        try:
            store = DirectorySegments(self.root, files_max=self.files_max)
            for each in set(store.batches()) - self.created:
                store.delete_batch(each)
        except StoreError:
            return False
        done = [self._try(step, store) for step in self._steps()]
        return all(done)

    def _steps(self) -> Iterator[Callable[[DirectorySegments], None]]:
        """Yield what threads of a process do; who fails does not hold up the others."""
        for batch in (NEAR[0], BATCH, NEAR[1]):
            yield lambda store, batch=batch: self._create(store, batch)
        yield self._record
        yield self._adopt
        yield lambda store: self._create(store, NEAR[2])
        yield self._end

    def _try(self, step: Callable[[DirectorySegments], None], store: DirectorySegments) -> bool:
        try:
            step(store)
        except StoreError:
            return False
        return True

    def _create(self, store: DirectorySegments, batch: str) -> None:
        if batch not in self.created:
            store.put(segments.requests_name(batch), [batch.encode()])
            self.created.add(batch)

    def _record(self, store: DirectorySegments) -> None:
        """Begin two shards, as the first process does, and leave them unfinished."""
        if BATCH not in self.created or store.names(segments.results_prefix(BATCH, 0)):
            return
        first, second = (store.appender(result_name(1, nonce)) for nonce in ("aa", "bb"))
        for n, appender in enumerate((first, second, first, second)):
            self._try(lambda _, n=n, appender=appender: appender.append(BYTES[n : n + 1]), store)
            self._try(lambda _, appender=appender: appender.sync(), store)
        self._try(lambda _: first.append(BYTES[4:]), store)  # not synced when the process ends
        for appender in (first, second):
            appender.close()

    def _adopt(self, store: DirectorySegments) -> None:
        if not self.extents and BATCH in self.created:
            adopted = adopt(store, make_claim(), KNOWN)
            self.extents = adopted.extents
            assert adopted.covered == set("abcde"), "what was recorded is not made again"

    def _end(self, store: DirectorySegments) -> None:
        if self.extents and not self.ended:
            store.put(segments.manifest_name(BATCH), [b"all"])
            self.ended = True

    def check(self, found: dict[str, bytes]) -> None:
        assert self.created == {BATCH, *NEAR[:3]}
        for batch in self.created:
            assert found.get(segments.requests_name(batch)) == batch.encode(), "a batch is lost"
        data = b"".join(found.get(e.segment, b"")[: e.length] for e in self.extents)
        assert sorted(data.splitlines(keepends=True)) == sorted(BYTES), "results are lost"
        assert found.get(segments.manifest_name(BATCH)) == b"all"


def fail_everywhere(root: Path, monkeypatch: pytest.MonkeyPatch, files_max: int) -> int:
    """Let each sync fail once, in a story of its own; return how many there were."""
    for place in range(1, PLACES_MAX):
        kernel = Kernel(place)
        monkeypatch.setattr(directory.os, "fdatasync", kernel.fdatasync)
        monkeypatch.setattr(directory.os, "fsync", kernel.fsync)
        yard = Yard(root / f"{place}" / "segments", files_max)
        yard.root.parent.mkdir()
        try:
            lives = 1
            while not yard.live():
                lives += 1
                assert lives < 4, "one failure, one end"
            assert not kernel.has_failed or lives == 2, "a process went on after a failed sync"
            yard.check(kernel.after_power_cut(yard.root))
        finally:
            kernel.close()
        if not kernel.has_failed:
            return place - 1
    raise AssertionError("it never ends")


@pytest.mark.parametrize("files_max", [limits.CALLS_MAX, 1, 0])
def test_wherever_a_sync_fails_what_is_stored_afterwards_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_max: int
) -> None:
    places = fail_everywhere(tmp_path, monkeypatch, files_max)
    assert places > 25


def _no_mark(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(syncing.Syncs, "mark", lambda *_: None)


def _unread_mark(patch: pytest.MonkeyPatch) -> None:
    for module in (directory, writing):
        patch.setattr(module, "last_mark", lambda _: None)


def _going_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(syncing.Syncs, "_check", lambda *_: None)


def _no_new_spread(patch: pytest.MonkeyPatch) -> None:
    def rmdir(self: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "")

    patch.setattr(Path, "rmdir", rmdir)


@pytest.mark.parametrize(
    ("take_away", "noticed"),
    [
        (_no_mark, "results are lost"),
        (_unread_mark, "results are lost"),
        (_going_on, "went on after a failed sync|is lost"),
        (_no_new_spread, "a batch is lost"),
    ],
)
def test_the_kernel_of_these_tests_finds_what_is_taken_away(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    take_away: Callable[[pytest.MonkeyPatch], None],
    noticed: str,
) -> None:
    take_away(monkeypatch)
    with pytest.raises(AssertionError, match=noticed):
        fail_everywhere(tmp_path, monkeypatch, limits.CALLS_MAX)


# Processes at the same time ----------------------------------------------------------------------


def commit_at_once(root: Path) -> list[Extent]:
    """Let three processes work on one batch at the same time; return what they have committed."""
    stores = [DirectorySegments(root) for _ in range(3)]
    stores[0].put(segments.requests_name(BATCH), [b"x"])
    at_work = [
        store.appender(segments.result_name(BATCH, shard, 1)) for shard, store in enumerate(stores)
    ]
    for line in BYTES[:2]:
        for appender in list(at_work):
            appender.append([line])
            try:
                appender.sync()
            except StoreError:  # that process ends
                at_work.remove(appender)
    return [extent for appender in at_work for extent in appender.extents()]


def fail_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let each sync fail once; return how many stories ended with a process that went on."""
    went_on = 0
    for place in range(1, PLACES_MAX):
        kernel = Kernel(place)
        monkeypatch.setattr(directory.os, "fdatasync", kernel.fdatasync)
        monkeypatch.setattr(directory.os, "fsync", kernel.fsync)
        (root / f"{place}").mkdir()
        try:
            committed: list[Extent] = []
            with contextlib.suppress(StoreError):  # of the create
                committed = commit_at_once(root / f"{place}" / "segments")
            found = kernel.after_power_cut(root / f"{place}" / "segments") if committed else {}
        finally:
            kernel.close()
        for extent in committed:
            data = found.get(extent.segment, b"")[: extent.length]
            assert data == b"".join(BYTES[:2]), "results are lost"
        if not kernel.has_failed:
            assert len(committed) == 3
            return went_on
        went_on += bool(committed)
    raise AssertionError("it never ends")


def test_a_process_does_not_believe_its_sync_when_that_of_another_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fail_at_once(tmp_path, monkeypatch) > 3


@pytest.mark.parametrize("take_away", [_no_mark, _unread_mark])
def test_without_the_mark_the_other_process_would_lose_results(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    take_away: Callable[[pytest.MonkeyPatch], None],
) -> None:
    take_away(monkeypatch)
    with pytest.raises(AssertionError, match="results are lost"):
        fail_at_once(tmp_path, monkeypatch)


def test_a_manifest_is_not_believed_when_another_process_has_failed_to_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two may end a batch at the same time, and write the same name."""
    one, two = (DirectorySegments(tmp_path / "segments") for _ in range(2))
    one.put(segments.requests_name(BATCH), [b"x"])
    manifest = segments.manifest_name(BATCH)
    kernel = Kernel(3)  # the sync of a name: the first is of the bytes of one, then those of two
    monkeypatch.setattr(directory.os, "fdatasync", kernel.fdatasync)
    monkeypatch.setattr(directory.os, "fsync", kernel.fsync)
    renamed: list[None] = []

    def point(name: str) -> None:
        if name == "put_renamed" and not renamed:
            renamed.append(None)
            with pytest.raises(StoreError, match="Input/output error"):
                two.put(manifest, [b"all"])

    monkeypatch.setattr(directory.crash, "point", point)
    try:
        with pytest.raises(StoreError, match="another process has failed to sync"):
            one.put(manifest, [b"all"])
    finally:
        kernel.close()
    assert kernel.has_failed


def test_an_older_mark_holds_up_nobody_and_a_new_one_does(tmp_path: Path) -> None:
    store = DirectorySegments(tmp_path / "segments")
    store.put(segments.requests_name(BATCH), [b"x"])
    results = tmp_path / "segments" / segments.batch_prefix(BATCH) / "r"
    syncing.mark(results)
    first, second = (store.appender(result_name(n)) for n in (1, 2))
    first.append(BYTES)
    first.sync()
    syncing.mark(results)
    second.append(BYTES)
    with pytest.raises(StoreError, match="another process has failed to sync"):
        second.sync()
    first.append(BYTES)
    first.sync()  # its name was durable before
    for each in (first, second):
        each.close()


# A directory of results that is not there ---------------------------------------------------------


def recorded_anew(root: Path, *, is_killed: bool) -> Extent:
    """Let a batch lose the empty directory of its results; return what is recorded then.

    Args:
        root: of the store.
        is_killed: whether a process is killed when it has just made it again.
    """
    DirectorySegments(root).put(segments.requests_name(BATCH), [b"x"])
    results = root / segments.batch_prefix(BATCH) / "r"
    results.rmdir()
    for life in range(3):
        try:
            store = DirectorySegments(root)
            if is_killed and not life:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(syncing.Syncs, "directory", _kill)
                    with pytest.raises(_Killed):
                        store.appender(result_name(life))
                assert results.is_dir()
                continue
            appender = store.appender(result_name(life, "aa"))
            appender.append(BYTES)
            appender.sync()
            (extent,) = appender.extents()
        except StoreError:
            continue
        return extent
    raise AssertionError("one failure, one end")


class _Killed(BaseException):
    pass


def _kill(*_: object) -> None:
    raise _Killed


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_directory_of_results_that_is_made_again_is_durable_wherever_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    for place in range(PLACES_MAX):
        kernel = Kernel(place)
        monkeypatch.setattr(directory.os, "fdatasync", kernel.fdatasync)
        monkeypatch.setattr(directory.os, "fsync", kernel.fsync)
        root = tmp_path / f"{place}" / "segments"
        root.parent.mkdir()
        try:
            DirectorySegments(root).put(segments.requests_name(NEAR[0]), [b"x"])
            extent = recorded_anew(root, is_killed=is_killed)
            found = kernel.after_power_cut(root)
        except StoreError:  # of a create
            continue
        finally:
            kernel.close()
        assert found.get(extent.segment) == b"".join(BYTES)
        if place and not kernel.has_failed:
            assert place > 8
            return
    raise AssertionError("it never ends")


# Marks --------------------------------------------------------------------------------------------


def test_on_a_full_disk_the_mark_takes_the_room_of_the_ballast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that has room for nothing else says so of a sync too."""
    disk = Disk(tmp_path, 4096)
    disk.take_ballast()
    ballast = tmp_path / "ballast"
    assert ballast.exists()
    store = DirectorySegments(tmp_path / "segments", disk.give_up_ballast)
    store.put(segments.requests_name(BATCH), [b"x"])
    appender = store.appender(result_name(1))
    appender.append(BYTES)
    real = os.open

    def opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_CREAT and ballast.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, flags, *args, **options)

    def fdatasync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(StoreError, match="No space left") as caught:
        appender.sync()
    assert not isinstance(caught.value, DiskFull), "it is not tried again"
    monkeypatch.undo()
    appender.close()
    assert not ballast.exists()
    with pytest.raises(DeadSegment):
        DirectorySegments(tmp_path / "segments").sync(result_name(1))


def test_a_copy_that_a_crash_cut_short_does_not_take_the_place_of_what_it_is_of(
    tmp_path: Path,
) -> None:
    store = DirectorySegments(tmp_path / "segments")
    store.put(segments.requests_name(BATCH), [b"x"])
    for segment, lines in ((result_name(9), BYTES), (result_name(10), BYTES[:1])):
        appender = store.appender(segment)
        appender.append(lines)
        appender.close()
    syncing.mark(tmp_path / "segments" / segments.batch_prefix(BATCH) / "r")
    with pytest.raises(DeadSegment):
        store.sync(result_name(9))
    adopted = adopt(store, replace(make_claim(), attempt=11), KNOWN)
    assert adopted.covered == set("abcde")
    (extent,) = adopted.extents
    assert segments.attempt_of(extent.segment) == 11
    assert store.read(extent.segment, 0, extent.length) == b"".join(BYTES)
    assert store.read(result_name(9), 0, store.size(result_name(9))) == b"".join(BYTES)


def test_a_copy_that_finds_no_room_leaves_what_it_had_to_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectorySegments(tmp_path / "segments")
    store.put(segments.requests_name(BATCH), [b"x"])
    appender = store.appender(result_name(1))
    appender.append(BYTES)
    appender.close()
    results = tmp_path / "segments" / segments.batch_prefix(BATCH) / "r"
    syncing.mark(results)
    before = sorted(results.iterdir())
    real, writes = os.write, []

    def write(descriptor: int, data: bytes) -> int:
        if len(writes) == 4:  # one each for what a try begins, and one that cuts it short
            raise OSError(errno.ENOSPC, "No space left on device")
        writes.append(real(descriptor, data[:7]))
        return writes[-1]

    monkeypatch.setattr(os, "write", write)
    for _ in range(3):
        with pytest.raises(DiskFull):
            adopt(store, make_claim(), KNOWN)
        assert sorted(results.iterdir()) == before
        writes.clear()
    monkeypatch.undo()
    assert adopt(store, make_claim(), KNOWN).covered == set("abcde")


def test_a_mark_goes_with_its_batch(tmp_path: Path) -> None:
    store = DirectorySegments(tmp_path / "segments")
    store.put(segments.requests_name(BATCH), [b"x"])
    syncing.mark(tmp_path / "segments" / segments.batch_prefix(BATCH) / "r")
    store.delete_batch(BATCH)
    assert list((tmp_path / "segments").glob("*/*")) == []


def test_creates_that_make_the_same_folder_anew_do_not_stand_in_each_others_way(
    tmp_path: Path,
) -> None:
    with ThreadPoolExecutor(len(NEAR)) as threads:
        for turn in range(50):
            store = DirectorySegments(tmp_path / f"{turn}")
            begin = threading.Barrier(len(NEAR))

            def create(batch: str, store: Any = store, begin: Any = begin) -> None:
                begin.wait()
                store.put(segments.requests_name(batch), [b"x"])

            list(threads.map(create, NEAR))
            assert store.batches() == sorted(NEAR)


def test_a_folder_that_is_gone_when_mkdir_looks_what_it_met_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    plain_mkdir = Path.mkdir

    def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
        made.append(path.name)
        if path.name == segments.batch_prefix(BATCH)[:2] and made.count(path.name) == 1:
            raise FileExistsError(17, "File exists", str(path))
        plain_mkdir(path, *arguments, **options)

    store = DirectorySegments(tmp_path / "segments")
    monkeypatch.setattr(Path, "mkdir", mkdir)
    store.put(segments.requests_name(BATCH), [b"x"])
    assert store.batches() == [BATCH]
    assert made.count(segments.batch_prefix(BATCH)[:2]) == 2


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    store = DirectorySegments(tmp_path / "segments")
    (tmp_path / "segments" / segments.batch_prefix(BATCH)[:2]).write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write segment"):
        store.put(segments.requests_name(BATCH), [b"x"])
