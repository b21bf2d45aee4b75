"""The files of a directory of segments that are being written, and what their errors mean."""

from __future__ import annotations

import contextlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from batchyard import crash, ids
from batchyard.checksum import Checksums
from batchyard.disk import patiently
from batchyard.errors import DiskFull, SegmentRefused, SegmentsGone, StoreError, is_disk_full
from batchyard.model import Extent
from batchyard.segments.syncing import last_mark

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from batchyard.segments.syncing import Syncs

REQUESTS = "requests"
"""The name of the requests in the directory of a batch: while it is there, the batch is."""
_MODE = 0o600
_APPENDING = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


class FileDraft:
    """A file that gets its name when it is whole and durable."""

    def __init__(self, path: Path, name: str, syncs: Syncs) -> None:
        """Make the file, in the directory of its batch.

        Args:
            path: of the segment.
            name: of it.
            syncs: of the store.

        Raises:
            OSError: it cannot be made.
        """
        self._name = name
        self._syncs = syncs
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{ids.nonce()}")
        self._descriptor = create(self._temporary)
        self._helper: ThreadPoolExecutor | None = None
        self._settling: Future[None] | None = None
        self._view: memoryview | None = None
        self._is_open = True

    def write(self, data: bytes) -> None:
        """Write at the end; see the protocol."""
        try:
            _write_all(self._descriptor, data)
        except OSError as error:
            raise error_of(error, f"cannot write segment {self._name}") from error

    def view(self) -> memoryview:
        """Return all that was written; see the protocol."""
        if self._view is None:
            try:
                size = os.fstat(self._descriptor).st_size
                mapped = mmap.mmap(self._descriptor, size, access=mmap.ACCESS_READ)
            except OSError as error:
                raise error_of(error, f"cannot map segment {self._name}") from error
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
            since = last_mark(self._path)
            self._temporary.replace(self._path)
            crash.point("put_renamed")
            _sync_name(self._syncs, self._path, self._path, self._name, since)
        except OSError as error:
            raise error_of(error, f"cannot write segment {self._name}") from error
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


class OpenFiles:
    """How many files of results are kept open at once. Threads share it, to within a few."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: set[FileAppender] = set()

    def keep(self, file: FileAppender) -> bool:
        """Return whether a file is kept open from now on, until `leave`."""
        if len(self._kept) >= self._most:
            return False
        self._kept.add(file)
        return True

    def leave(self, file: FileAppender) -> None:
        """Take notice that a file is not open any more."""
        self._kept.discard(file)


class FileAppender:
    """One file that grows. Its own process is the only one that ever writes to it.

    Where too many are open, it is opened for each `append`, and made durable there: an error of the
    disk is told only to who had the file open when it happened.
    """

    def __init__(
        self, root: Path, name: str, syncs: Syncs, since: int | None, files: OpenFiles
    ) -> None:
        """Make the file.

        Args:
            root: of the store.
            name: of the segment.
            syncs: of the store.
            since: the mark that the batch has already.
            files: of the store.

        Raises:
            OSError: it cannot be made.
        """
        self.name = name
        self._syncs = syncs
        self._since = since
        self._files = files
        self._root = root
        self._path = root / name
        descriptor = patiently(lambda: create(self._path))
        self._descriptor: int | None = descriptor
        if not files.keep(self):
            self._descriptor = None
            os.close(descriptor)
        self._length = 0
        self._checksums = Checksums()
        self._named = False

    def append(self, chunks: Sequence[bytes]) -> None:
        """Write `chunks` at the end; see the protocol."""
        data = b"".join(chunks)
        if self._descriptor is None and self._files.keep(self):
            self._descriptor = self._open()
        if self._descriptor is not None:
            self._append(self._descriptor, data)
            return
        descriptor = self._open()
        try:
            self._append(descriptor, data)
            self._sync(descriptor)
        finally:
            with contextlib.suppress(OSError):  # it has been synced, or has failed before
                os.close(descriptor)

    def _open(self) -> int:
        """Open the file again; all that is in it is durable.

        Raises:
            SegmentsGone: who opens the shard next finds out why it cannot be opened.
        """
        try:
            return patiently(lambda: os.open(self._path, _APPENDING))
        except OSError as error:
            raise SegmentsGone(f"segment {self.name} cannot be opened again: {error}") from error

    def _append(self, descriptor: int, data: bytes) -> None:
        crash.point("append")
        try:
            _write_all(descriptor, data)
        except OSError as error:
            failure = error_of(error, f"cannot append to segment {self.name}")
            if isinstance(failure, DiskFull):
                self._take_back(descriptor)
            raise failure from error
        crash.point("appended")
        self._length += len(data)
        self._checksums.add(data)

    def _take_back(self, descriptor: int) -> None:
        """Remove what a write has left that a full disk cut short."""
        try:
            os.ftruncate(descriptor, self._length)
        except OSError as error:
            raise StoreError(f"cannot truncate segment {self.name}: {error}") from error

    def extents(self) -> tuple[Extent, ...]:
        """Return all that was appended, with its checksums."""
        if not self._length:
            return ()
        return (Extent(self.name, self._length, self._checksums.blocks),)

    def sync(self) -> None:
        """Make everything that was appended durable."""
        if self._descriptor is not None:
            self._sync(self._descriptor)

    def _sync(self, descriptor: int) -> None:
        crash.point("sync")
        try:
            sync_result(
                self._syncs,
                descriptor,
                self._path,
                self.name,
                since=self._since,
                is_named=self._named,
            )
        except FileNotFoundError as error:
            raise gone(self._root, self.name) from error
        except OSError as error:  # of what lies around it: `Syncs` raises no other
            failure = error_of(error, f"cannot sync segment {self.name}")
            if isinstance(failure, DiskFull):  # which would say that nothing was written
                failure = StoreError(str(failure))
            raise failure from error
        self._named = True
        crash.point("synced")

    def close(self) -> None:
        """Close the file."""
        self._files.leave(self)
        if self._descriptor is not None:
            os.close(self._descriptor)

    def remove(self) -> None:
        """Remove the file; see the protocol."""
        with contextlib.suppress(OSError):  # then it is a leftover, as after a kill
            self._path.unlink()


def error_of(error: OSError, what: str) -> StoreError:
    """Return what an error of a call means for who made it."""
    if is_disk_full(error):
        return DiskFull(f"{what}: {error.strerror}")
    is_refused = isinstance(error, PermissionError | NotADirectoryError)
    kind = SegmentRefused if is_refused else StoreError
    return kind(f"{what}: {error}")


def gone(root: Path, name: str) -> StoreError:
    """Return what it means that the directory is not there in which a segment is written."""
    directory = (root / name).parent
    if root.exists() and not directory.with_name(REQUESTS).exists():
        return SegmentsGone(f"segment {name} was deleted while it was written")
    return StoreError(f"cannot write segment {name}: {directory} is not there")


def create(path: Path) -> int:
    """Make a file to append to; return its descriptor."""
    return os.open(path, _APPENDING | os.O_CREAT | os.O_EXCL, _MODE)


def sync_result(
    syncs: Syncs, descriptor: int, path: Path, name: str, *, since: int | None, is_named: bool
) -> None:
    """Sync a result segment, and its name unless that was done.

    Args:
        syncs: of the store.
        descriptor: of the segment.
        path: of it.
        name: of it.
        since: as `_sync_name` has it.
        is_named: whether its name was synced.

    Raises:
        StoreError: that failed, and its batch is marked.
        FileNotFoundError, OSError: as `_sync_name`.
    """
    try:
        syncs.file(descriptor, f"segment {name}")
    except StoreError:
        syncs.mark(path.parent)
        raise
    if not is_named:
        crash.point("synced_unnamed")
        _sync_name(syncs, path, path.parent, name, since)


def _sync_name(syncs: Syncs, path: Path, beside: Path, name: str, since: int | None) -> None:
    """Sync the name of a segment.

    Args:
        syncs: of the store.
        path: of the segment.
        beside: what the mark of its batch lies beside.
        name: of the segment.
        since: the mark that its batch had before it got its name.

    Raises:
        FileNotFoundError: its directory is not there.
        StoreError: that failed, and its batch is marked; or it did so in another process.
        OSError: that cannot be told.
    """
    try:
        syncs.directory(path.parent, f"segment {name}")
    except StoreError:
        syncs.mark(beside)
        raise
    if last_mark(beside) not in {None, since}:
        raise StoreError(
            f"cannot sync segment {name}: another process has failed to sync its batch"
        )


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
