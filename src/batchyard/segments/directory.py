"""Segments as files in one directory tree of one machine.

Durable means: `fdatasync` of the file returned, and `fsync` of the directory that names it. A sync
that failed is never repeated: the kernel may have dropped the pages, so a second one would lie; see
`syncing.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING, TypeVar

from batchyard import crash, ids, limits, segments
from batchyard.disk import no_room
from batchyard.errors import DamagedError, DeadSegment, SegmentRefused, StoreError
from batchyard.segments.syncing import Syncs, last_mark, make_mark
from batchyard.segments.writing import (
    REQUESTS,
    FileAppender,
    FileDraft,
    OpenFiles,
    create,
    error_of,
    gone,
    sync_result,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

T = TypeVar("T")

# What a disk, or a file system with checksums, says of bytes that it has and cannot give.
_UNREADABLE = frozenset({errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)})
# What it says of what is not there, also where a file has taken the place of its folder.
_ABSENT = (FileNotFoundError, NotADirectoryError)
_MODE_DIRECTORY = 0o700
# What is said of a folder that takes no files, and of no other.
_REFUSALS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR})
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
    comes_back = False

    def __init__(
        self,
        root: Path,
        make_room: Callable[[], bool] = no_room,
        files_max: int = limits.CALLS_MAX,
    ) -> None:
        """Open it, and make it where it is not there.

        Args:
            root: its directory.
            make_room: as `Syncs` has it.
            files_max: how many files of results are kept open.

        Raises:
            StoreError: it cannot be used.
        """
        self._root = root
        self.syncs = Syncs(make_room)
        self.files = OpenFiles(files_max)
        try:
            _make_directories(root)
            crash.point("root_made")
            # Also at a later start: the first may have been cut short.
            self.syncs.directory(root.parent, str(root.parent))
            crash.point("root_named")
        except OSError as error:
            raise StoreError(f"cannot use {root}: {error}") from error
        except StoreError:
            with contextlib.suppress(OSError):  # one that holds something was durable before
                root.rmdir()  # so that the next start makes it anew
            raise

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a whole segment; see the protocol."""
        draft = self._draft(name)
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
            raise error_of(error, f"cannot write segment {name}") from error
        finally:
            draft.abandon()

    def draft(self, name: str, spool: Path) -> FileDraft:
        """Begin a segment that is written while its content arrives; see the protocol."""
        return self._draft(name)

    def _draft(self, name: str) -> FileDraft:
        path = self._root / name
        try:
            self._make_batch(path.parent)
            return FileDraft(path, name, self.syncs)
        except OSError as error:
            raise error_of(error, f"cannot write segment {name}") from error

    def appender(self, name: str) -> FileAppender:
        """Begin a segment to append to."""
        try:
            since = self._prepare((self._root / name).parent)
            return FileAppender(self._root, name, self.syncs, since, self.files)
        except FileNotFoundError as error:
            raise gone(self._root, name) from error
        except OSError as error:
            raise error_of(error, f"cannot begin segment {name}") from error

    def _prepare(self, results: Path) -> int | None:
        """Return the mark of a batch, when the directory of its results is there and durable.

        What copies files may have left it out, empty as it was. It is made again under a mark: a
        kill may leave one whose name was never synced, so in a marked batch that is done each time.

        Raises:
            FileNotFoundError: the batch was deleted.
            OSError: it cannot be made.
        """
        try:
            results.stat()
        except FileNotFoundError:
            results.with_name(REQUESTS).stat()
            make_mark(results)
            crash.point("results_marked")
            results.mkdir(_MODE_DIRECTORY, exist_ok=True)
            crash.point("results_made")
        since = last_mark(results)
        if since is not None:
            try:
                self.syncs.directory(results.parent, f"directory {results.parent}")
            except StoreError:
                self.syncs.mark(results)
                with contextlib.suppress(OSError):  # so that the next start makes it anew
                    results.rmdir()
                raise
            crash.point("results_named")
        return since

    def check_writable(self, batch_id: str, *, is_again: bool = False) -> None:
        """Look whether results may be written; see the protocol."""
        batch = self._root / segments.batch_prefix(batch_id)
        for each in (batch, batch / "r"):
            is_there = os.access(each, os.F_OK)
            if is_there and not os.access(each, os.R_OK | os.W_OK | os.X_OK):
                raise SegmentRefused(f"cannot write to {each}: permission denied")
        # Rights do not tell all: what mounts a folder, or guards the machine, may refuse as well.
        probe = batch / "r" / f".probe.{ids.nonce()}"
        try:
            os.close(create(probe))
        except OSError as error:  # others are for who writes, as is want of room
            if error.errno in _REFUSALS:
                raise SegmentRefused(f"cannot write to {probe.parent}: {error.strerror}") from error
        else:
            with contextlib.suppress(OSError):
                probe.unlink()

    def check_creates(self) -> None:
        """Do nothing: it could be opened, and `check_writable` looks at each batch."""

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
        except _ABSENT:
            raise DamagedError(f"segment {name} is not there") from None
        except OSError as error:
            if error.errno in _UNREADABLE:
                raise _Unreadable(f"segment {name} cannot be opened: {error.strerror}") from error
            raise error_of(error, f"cannot open segment {name}") from error
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
        except _ABSENT:
            raise DamagedError(f"segment {name} is not there") from None
        except OSError as error:
            if error.errno in _UNREADABLE:
                raise DamagedError(f"segment {name} cannot be found: {error.strerror}") from error
            raise error_of(error, f"cannot find segment {name}") from error

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with `prefix`, sorted."""
        parent, _, start = prefix.rpartition("/")
        found = _twice(lambda: _listed(self._root / parent, os.DirEntry.is_file))
        return sorted(f"{parent}/{name}" for name in found if name.startswith(start))

    def sync(self, name: str) -> None:
        """Make a segment durable that another process wrote and left; see the protocol."""
        path = self._root / name
        crash.point("left_sync")
        try:
            if last_mark(path.parent) is not None:
                raise DeadSegment(f"segment {name}: a sync of its batch has failed")
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                sync_result(self.syncs, descriptor, path, name, since=None, is_named=False)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise error_of(error, f"cannot sync segment {name}") from error
        crash.point("left_synced")

    def delete_batch(self, batch_id: str) -> None:
        """Remove all segments of a batch."""
        directory = self._root / segments.batch_prefix(batch_id)
        try:
            with contextlib.suppress(*_ABSENT):  # first: nobody makes `r` again then
                (directory / REQUESTS).unlink()
            for part in (directory / "r", directory):
                with contextlib.suppress(*_ABSENT):
                    shutil.rmtree(part)
                crash.point("delete_part")
        except OSError as error:
            raise _left_over(error, f"cannot delete the segments of {batch_id}") from error

    def spreads(self) -> list[str]:
        """Return the folders over which batches are spread."""
        return [name for name in _listed(self._root, os.DirEntry.is_dir) if len(name) == 2]

    def batches(self, spread: str | None = None) -> list[str]:
        """Return the ids of batches that have segments; see the protocol."""
        found = []
        for folder in self.spreads() if spread is None else [spread]:
            # What cannot be listed is nobody's leftover.
            with contextlib.suppress(DamagedError, SegmentRefused):
                found += _listed(self._root / folder, os.DirEntry.is_dir)
        return sorted(found)

    def written_us(self, batch_id: str) -> int | None:
        """Return when the newest segment of a batch was written last."""
        root = self._root / segments.batch_prefix(batch_id)
        try:
            found = [path.stat().st_mtime_ns // 1_000 for path in root.rglob("*") if path.is_file()]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _left_over(error, f"cannot find the segments of {batch_id}") from error
        return max(found, default=None)

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
            # Another create has done the same at this moment: what was there is gone, or what stood
            # in the way is gone when mkdir looks whether that was a directory.
            except (FileNotFoundError, FileExistsError):
                if not left:
                    raise
        crash.point("batch_made")
        # Those above too when they were there: another create may have just made them, its own
        # sync still to come. They stay, as this batch is in them.
        for each in (self._root, directory.parent, directory):
            self.syncs.directory(each, f"directory {each}")
            crash.point("batch_named")


def _left_over(error: OSError, what: str) -> StoreError:
    """Return what an error means for a batch that is to go: one that cannot be read stays."""
    if error.errno in _UNREADABLE:
        return SegmentRefused(f"{what}: {error}")
    return error_of(error, what)


def _listed(path: Path, is_wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    """Return the names of what a directory holds of a kind; none when it is not there.

    Raises:
        DamagedError: its disk cannot read it.
        SegmentRefused, StoreError: it cannot be listed otherwise.
    """
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if is_wanted(entry)]
    except _ABSENT:
        return []
    except OSError as error:
        if error.errno in _UNREADABLE:
            raise _Unreadable(f"{path} cannot be listed: {error.strerror}") from error
        raise error_of(error, f"cannot list {path}") from error


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
