"""A sync that fails, at every place: what counts as stored afterwards is there after a power cut.

The kernel of these tests does what real ones do: what a failed sync could not write it calls clean,
so that later syncs succeed and leave it out, in the same process and in those that follow. Names in
a directory fare like bytes in a file.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import segments
from batchyard.dispatch.adopt import adopt
from batchyard.errors import DeadSegment, StoreError
from batchyard.segments import directory, syncing
from batchyard.segments.directory import DirectorySegments
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
    created: set[str] = field(default_factory=set)
    extents: list[Extent] = field(default_factory=list)
    ended: bool = False

    def live(self) -> bool:
        """Let one process live until it has failed or done everything; whether it has."""
        try:
            store = DirectorySegments(self.root)
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
            appender.append(BYTES[n : n + 1])
            self._try(lambda _, appender=appender: appender.sync(), store)
        first.append(BYTES[4:])  # not synced when the process ends
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


def fail_everywhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let each sync fail once, in a story of its own; return how many there were."""
    for place in range(1, PLACES_MAX):
        kernel = Kernel(place)
        monkeypatch.setattr(directory.os, "fdatasync", kernel.fdatasync)
        monkeypatch.setattr(directory.os, "fsync", kernel.fsync)
        yard = Yard(root / f"{place}" / "segments")
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


def test_wherever_a_sync_fails_what_is_stored_afterwards_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = fail_everywhere(tmp_path, monkeypatch)
    assert places > 25


def _no_mark(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(directory, "mark", lambda _: None)


def _unread_mark(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(directory, "is_marked", lambda _: False)


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
        fail_everywhere(tmp_path, monkeypatch)


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
