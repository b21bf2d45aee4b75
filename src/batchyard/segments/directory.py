"""Segments as files in one directory tree of one machine.

Durable means: `fdatasync` of the file returned, and `fsync` of the directory that names it. A sync
that failed is never repeated: the kernel may have dropped the pages, so a second one would lie; see
`syncing.py`.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from batchyard import crash, ids, limits, segments
from batchyard.checksum import Checksums
from batchyard.errors import (
    DamagedError,
    DeadSegment,
    DiskFull,
    SegmentRefused,
    SegmentsGone,
    StoreError,
    is_disk_full,
)
from batchyard.model import Extent
from batchyard.segments.syncing import Syncs, is_marked, mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

T = TypeVar("T")

# What a disk, or a file system with checksums, says of bytes that it has and cannot give.
_UNREADABLE = frozenset({errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)})
_MODE_DIRECTORY = 0o700
_MODE_FILE = 0o600
_MAKES_MAX = 20


class _Unreadable(DamagedError):
    """A disk could not read what it has."""


def _twice(read: Callable[[], T]) -> T:
    """Return what `read` does, tried once more: answers that were paid for are at stake."""
    try:
        return read()
    except _Unreadable:
        return read()


class DirectorySegments:
    """A segment store below `root`."""

    sync_interval_s = limits.SYNC_INTERVAL_S
    syncs_at_once = 1  # the disk is one
    repairs_itself = False

    def __init__(self, root: Path) -> None:
        self._root = root
        self.syncs = Syncs()
        try:
            _make_directories(root)
            # Also at a later start: the first may have been cut short.
            self.syncs.directory(root.parent, str(root.parent))
        except OSError as error:
            raise StoreError(f"cannot use {root}: {error}") from error
        except StoreError:
            with contextlib.suppress(OSError):  # one that holds something was durable before
                root.rmdir()  # so that the next start makes it anew
            raise

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a whole segment; see the protocol."""
        draft = FileDraft(self, name)
        unsettled = 0
        try:
            for chunk in chunks:
                draft.write(chunk)
                unsettled += len(chunk)
                if unsettled >= limits.SETTLE_BYTES:
                    draft.settle()
                    unsettled = 0
            draft.commit()
        except OSError as error:  # of the chunks; those of the draft are named there
            raise _error(error, f"cannot write segment {name}") from error
        finally:
            draft.abandon()

    def draft(self, name: str, spool: Path) -> FileDraft:
        """Begin a segment that is written while its content arrives; see the protocol."""
        return FileDraft(self, name)

    def appender(self, name: str) -> FileAppender:
        """Begin a segment to append to."""
        try:
            return FileAppender(self._root, name, self.syncs)
        except FileNotFoundError as error:
            raise _gone(self._root, name) from error
        except OSError as error:
            raise _error(error, f"cannot begin segment {name}") from error

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes."""

        def run() -> bytes:
            with self._reading(name, offset, length) as descriptor:
                return _read_exactly(descriptor, offset, length)

        return _twice(run)

    def read_into(self, name: str, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset` on."""

        def run() -> None:
            left, at = into, offset
            with self._reading(name, offset, len(into)) as descriptor:
                while left:
                    count = os.preadv(descriptor, [left], at)
                    if not count:
                        raise EOFError("it ends before")
                    left = left[count:]
                    at += count

        _twice(run)

    @contextlib.contextmanager
    def _reading(self, name: str, offset: int, length: int) -> Iterator[int]:
        """Open a segment, and say what is wrong with it when it cannot be read."""
        try:
            descriptor = os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DamagedError(f"segment {name} is not there") from None
        except OSError as error:
            if error.errno in _UNREADABLE:
                raise _Unreadable(f"segment {name} cannot be opened: {error.strerror}") from error
            kind = SegmentRefused if isinstance(error, PermissionError) else StoreError
            raise kind(f"cannot open segment {name}: {error}") from error
        try:
            yield descriptor
        except EOFError:
            end = offset + length
            raise DamagedError(f"segment {name} is shorter than {end} bytes") from None
        except OSError as error:
            if error.errno in _UNREADABLE:
                raise _Unreadable(
                    f"segment {name} cannot be read at {offset}: {error.strerror}"
                ) from error
            raise StoreError(f"cannot read segment {name} at {offset}: {error}") from error
        finally:
            os.close(descriptor)

    def size(self, name: str) -> int:
        """Return the bytes of a segment."""
        try:
            return (self._root / name).stat().st_size
        except FileNotFoundError:
            raise DamagedError(f"segment {name} is not there") from None
        except OSError as error:
            if error.errno in _UNREADABLE:
                raise DamagedError(f"segment {name} cannot be found: {error.strerror}") from error
            raise StoreError(f"cannot find segment {name}: {error}") from error

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with `prefix`, sorted."""
        parent, _, start = prefix.rpartition("/")
        try:
            with os.scandir(self._root / parent) as entries:
                found = [e.name for e in entries if e.name.startswith(start) and e.is_file()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"cannot list segments {prefix}: {error}") from error
        return sorted(f"{parent}/{name}" for name in found)

    def sync(self, name: str) -> None:
        """Make a segment durable that another process wrote and left; see the protocol."""
        path = self._root / name
        crash.point("left_sync")
        try:
            if is_marked(path.parent):
                raise DeadSegment(f"segment {name}: a sync of its batch has failed")
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _sync_result(self.syncs, descriptor, path, name, is_named=False)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreError(f"cannot sync segment {name}: {error}") from error
        crash.point("left_synced")

    def delete_batch(self, batch_id: str) -> None:
        """Remove all segments of a batch."""
        directory = self._root / segments.batch_prefix(batch_id)
        try:
            for part in (directory / "r", directory):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(part)
                crash.point("delete_part")
        except OSError as error:
            kind = SegmentRefused if isinstance(error, PermissionError) else StoreError
            raise kind(f"cannot delete the segments of {batch_id}: {error}") from error

    def batches(self) -> list[str]:
        """Return the ids of all batches that have segments."""
        return sorted(path.name for path in self._root.glob("??/*") if path.is_dir())

    def written_us(self, batch_id: str) -> int | None:
        """Return when the newest segment of a batch was written last."""
        root = self._root / segments.batch_prefix(batch_id)
        try:
            found = [path.stat().st_mtime_ns // 1_000 for path in root.rglob("*") if path.is_file()]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot find the segments of {batch_id}: {error}") from error
        return max(found, default=None)

    def create(self, name: str) -> tuple[Path, Path, int]:
        """Make the file that becomes segment `name`, in the directory of its batch.

        Returns:
            The path of the segment, that of the file until then, and its descriptor.

        Raises:
            OSError: it cannot be made.
        """
        path = self._root / name
        temporary = path.with_name(f".{path.name}.{ids.nonce()}")
        self._make_batch(path.parent)
        return path, temporary, _create(temporary)

    def _make_batch(self, directory: Path) -> None:
        """Make the directories of a batch, each durable in its parent."""
        if directory.exists():
            return
        # Made anew when nothing is in it: its name may be what a failed sync has lost.
        with contextlib.suppress(OSError):
            directory.parent.rmdir()
        for left in reversed(range(_MAKES_MAX)):
            try:
                _make_directories(directory / "r")
                break
            except FileNotFoundError:  # another create has done the same at this moment
                if not left:
                    raise
        crash.point("batch_made")
        # Those above too when they were there: another create may have just made them, its own
        # sync still to come. They stay, as this batch is in them.
        for each in (self._root, directory.parent, directory):
            self.syncs.directory(each, f"directory {each}")
            crash.point("batch_named")


class FileDraft:
    """A file that gets its name when it is whole and durable."""

    def __init__(self, store: DirectorySegments, name: str) -> None:
        self._name = name
        self._syncs = store.syncs
        try:
            self._path, self._temporary, self._descriptor = store.create(name)
        except OSError as error:
            raise _error(error, f"cannot write segment {name}") from error
        self._helper: ThreadPoolExecutor | None = None
        self._settling: Future[None] | None = None
        self._view: memoryview | None = None
        self._is_open = True

    def write(self, data: bytes) -> None:
        """Write at the end; see the protocol."""
        try:
            _write_all(self._descriptor, data)
        except OSError as error:
            raise _error(error, f"cannot write segment {self._name}") from error

    def view(self) -> memoryview:
        """Return all that was written; see the protocol."""
        if self._view is None:
            try:
                size = os.fstat(self._descriptor).st_size
                mapped = mmap.mmap(self._descriptor, size, access=mmap.ACCESS_READ)
            except OSError as error:
                raise _error(error, f"cannot map segment {self._name}") from error
            self._view = memoryview(mapped)
        return self._view

    def settle(self) -> None:
        """Begin to sync what was written, unless that is under way; see the protocol."""
        if self._settling is not None:
            if not self._settling.done():
                return
            self._settling.result()
        if self._helper is None:
            self._helper = ThreadPoolExecutor(1, "settling")
        self._settling = self._helper.submit(self._sync)

    def _sync(self) -> None:
        self._syncs.file(self._descriptor, f"segment {self._name}")

    def commit(self) -> None:
        """Make it durable and give it its name; see the protocol."""
        crash.point("put_written")
        if self._settling is not None:
            self._settling.result()
        self._sync()
        crash.point("put_synced")
        try:
            self._temporary.replace(self._path)
            crash.point("put_renamed")
            self._syncs.directory(self._path.parent, f"segment {self._name}")
        except OSError as error:
            raise _error(error, f"cannot write segment {self._name}") from error
        crash.point("put_done")

    def abandon(self) -> None:
        """Close and remove the file; see the protocol."""
        if not self._is_open:
            return
        self._is_open = False
        if self._helper is not None:
            self._helper.shutdown()  # waits: the descriptor is in use
        os.close(self._descriptor)
        with contextlib.suppress(OSError):  # it is there only when something went wrong
            self._temporary.unlink()


class FileAppender:
    """One file that grows. Its own process is the only one that ever writes to it."""

    def __init__(self, root: Path, name: str, syncs: Syncs) -> None:
        self.name = name
        self._syncs = syncs
        self._root = root
        self._path = root / name
        self._descriptor = _create(self._path)
        self._length = 0
        self._checksums = Checksums()
        self._named = False

    def append(self, chunks: Sequence[bytes]) -> None:
        """Write `chunks` at the end; see the protocol."""
        data = b"".join(chunks)
        crash.point("append")
        try:
            _write_all(self._descriptor, data)
        except OSError as error:
            failure = _error(error, f"cannot append to segment {self.name}")
            if isinstance(failure, DiskFull):
                self._take_back()
            raise failure from error
        crash.point("appended")
        self._length += len(data)
        self._checksums.add(data)

    def _take_back(self) -> None:
        """Remove what a write has left that a full disk cut short."""
        try:
            os.ftruncate(self._descriptor, self._length)
        except OSError as error:
            raise StoreError(f"cannot truncate segment {self.name}: {error}") from error

    def extents(self) -> tuple[Extent, ...]:
        """Return all that was appended, with its checksums."""
        if not self._length:
            return ()
        return (Extent(self.name, self._length, self._checksums.blocks),)

    def sync(self) -> None:
        """Make everything that was appended durable."""
        crash.point("sync")
        try:
            _sync_result(self._syncs, self._descriptor, self._path, self.name, is_named=self._named)
        except FileNotFoundError as error:
            raise _gone(self._root, self.name) from error
        self._named = True
        crash.point("synced")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _error(error: OSError, what: str) -> StoreError:
    if is_disk_full(error):
        return DiskFull(f"{what}: {error.strerror}")
    return StoreError(f"{what}: {error}")


def _gone(root: Path, name: str) -> StoreError:
    """Return what it means that the directory is not there in which a segment is written."""
    if root.exists():
        return SegmentsGone(f"segment {name} was deleted while it was written")
    return StoreError(f"cannot write segment {name}: {root} is not there")


def _create(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, _MODE_FILE)


def _sync_result(syncs: Syncs, descriptor: int, path: Path, name: str, *, is_named: bool) -> None:
    """Sync a result segment, and its name unless that was done.

    Raises:
        FileNotFoundError: its directory is not there.
        StoreError: that failed, and its batch is marked.
    """
    try:
        syncs.file(descriptor, f"segment {name}")
        if not is_named:
            crash.point("synced_unnamed")
            syncs.directory(path.parent, f"segment {name}")
    except StoreError:
        mark(path.parent)
        raise


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _make_directories(path: Path) -> None:
    for missing in reversed(list(_missing(path))):
        missing.mkdir(_MODE_DIRECTORY, exist_ok=True)


def _missing(path: Path) -> Iterator[Path]:
    while not path.is_dir():
        yield path
        path = path.parent


def _read_exactly(descriptor: int, offset: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise EOFError("it ends before")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
