"""Files that are whole or absent, and logs whose last line may be torn but no other.

Knows nothing of what it writes. Every function returns only when the disk has the bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_TOGETHER_MIN = 64  # files
_SYNCS_AT_ONCE = 8
# Not overlay: an error of the file system below it may be reported there alone.
_SYNCED_AS_ONE = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs"})
NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the disk the name of the file, which a failed write does not know."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def sync_directory(path: Path) -> None:
    """Make renames and new names in `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(path):
            os.fsync(fd)
    finally:
        os.close(fd)


def opened(folder: Path) -> int:
    """Return the descriptor of a folder, for `sync_files`; who opens it closes it."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sync_files(folder: Path, names: Sequence[str], opened_before: int) -> None:
    """Make files of a folder durable, together: nothing else is known to be when it returns.

    One call for the whole file system where that is as good, because a commit of its journal for
    each of thousands of small files takes most of the time of a run. What others have written there
    meanwhile is synced as well, which is why a few files are synced one by one.

    Args:
        folder: where they are.
        names: in it.
        opened_before: `opened(folder)` from before the first of them was written. A descriptor is
            told of the errors of writing back since it was opened, and of one before that only as
            long as nobody else was. Source: Linux, syncfs(2) and its error sequences.

    Raises:
        OSError: one of them may not be on disk.
    """
    import ctypes  # noqa: PLC0415 - who only looks at a run starts without it
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    if len(names) >= _TOGETHER_MIN and syncs_as_one(folder):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(opened_before) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(folder))
        return
    with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:  # the disk commits them together
        list(pool.map(_sync_file, (folder / name for name in names)))


def syncs_as_one(folder: Path) -> bool:
    """Whether `syncfs` proves what an `fsync` of each file would: local, and errors are reported.

    Source: Linux, syncfs(2): errors of writing back are reported since 5.8. A file system in user
    space may do nothing at all.
    """
    if sys.platform != "linux":
        return False
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if version is None or (int(version[1]), int(version[2])) < (5, 8):
        return False
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return is_synced_as_one(mounts, number)


def is_synced_as_one(mounts: str, number: str) -> bool:
    """Whether the file system of a device is one of those, by the arguments of `file_system`."""
    return file_system(mounts, number) in _SYNCED_AS_ONE


def file_system(mounts: str, number: str) -> str | None:
    """Return the kind of the file system of a device, None when it is not mounted.

    Args:
        mounts: the text of `/proc/self/mountinfo`.
        number: of the device, such as `8:1`.
    """
    for line in mounts.splitlines():
        mount, _, kind = line.partition(" - ")
        if number in mount.split()[2:3]:
            return kind.split(" ", 1)[0]
    return None


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with naming(path):
            os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, chunks: Iterable[bytes]) -> int:
    """Write `chunks` to `path`, synced but not renamed; return the number of bytes."""
    total = 0
    with naming(path), os.fdopen(os.open(path, NEW, 0o644), "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            total += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return total


def write(path: Path, chunks: Iterable[bytes]) -> int:
    """Write `path` so that it is either absent (or as before) or whole; return its bytes."""
    partial = path.with_name(path.name + ".partial")
    total = write_synced(partial, chunks)
    partial.replace(path)
    sync_directory(path.parent)
    return total


def append(path: Path, at: int, chunks: Iterable[bytes]) -> None:
    """Put `chunks` behind the first `at` bytes of a file, in the place of what stood there."""
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with naming(path), os.fdopen(os.open(path, flags), "wb") as file:
        file.truncate(at)
        file.seek(at)
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


class Log:
    """An append-only file of lines; each line is on disk when `append` returns.

    After a failed append nothing more can be appended here: whether the line is on disk is for the
    next process to find out, which reads the file anew.
    """

    def __init__(self, path: Path) -> None:
        is_new = not path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o644)
        self._is_broken = False
        self._drop_torn_line()
        if is_new:
            sync_directory(path.parent)

    def append(self, line: bytes) -> None:
        """Write one line, without its end.

        Raises:
            OSError: it is not certain that the line is on disk, now or since an earlier failure.
        """
        if self._is_broken:
            raise OSError("an earlier line could not be written; a new process can go on")
        data = line + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            self._write(data)
        except OSError:
            self._is_broken = True
            # A torn line in the middle would damage the log, and a whole one that was reported as
            # failed would be recorded twice.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
                os.fsync(self._fd)
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _write(self, data: bytes) -> None:
        written = os.write(self._fd, data)
        if written != len(data):
            raise OSError(f"only {written} of {len(data)} bytes were written")
        os.fsync(self._fd)

    def _drop_torn_line(self) -> None:
        size = os.fstat(self._fd).st_size
        data = os.pread(self._fd, size, 0)
        end = data.rfind(b"\n") + 1
        if end != size:
            os.ftruncate(self._fd, end)
            os.fsync(self._fd)


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a log, without a torn last one; empty when there is no file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return data[: data.rfind(b"\n") + 1].splitlines()
