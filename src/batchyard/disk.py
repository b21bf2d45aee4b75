"""What all share that write to a disk of this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from typing import TYPE_CHECKING, TypeVar

from batchyard import crash, limits
from batchyard.errors import is_disk_full

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

T = TypeVar("T")

_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})


def no_room() -> bool:
    """Return that no room can be made on a full disk."""
    return False


def with_room(write: Callable[[], T], make_room: Callable[[], bool]) -> T:
    """Write; where the disk is full, make room and write once more.

    Args:
        write: what writes; it leaves nothing where it finds no room, or may be done again.
        make_room: whether it is worth another try.

    Raises:
        OSError: of the last try.
    """
    try:
        return write()
    except OSError as error:
        if not is_disk_full(error) or not make_room():
            raise
    return write()


def has_room(directory: Path, length: int = 0) -> bool:
    """Return whether files may grow by a mebibyte. It is tried: of quotas nothing else tells.

    Args:
        directory: in which they are.
        length: that one of them has already.
    """
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            return os.pwrite(file.fileno(), bytes(limits.MIB), length) == limits.MIB
    except OSError as error:
        return not is_disk_full(error)


def patiently(opens: Callable[[], int]) -> int:
    """Open a file. Where there is no descriptor left, wait a minute for one: blocks.

    Args:
        opens: returns the descriptor.

    Raises:
        OSError: it cannot be opened.
    """
    for _ in range(limits.DESCRIPTOR_TRIES):
        try:
            return opens()
        except OSError as error:
            if error.errno not in _NO_DESCRIPTOR:
                raise
        time.sleep(limits.DESCRIPTOR_WAIT_S)
    return opens()


@contextlib.contextmanager
def opened(directory: Path) -> Generator[int]:
    """Have a descriptor of a directory for a while: `patiently`."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = patiently(lambda: os.open(directory, flags))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_names(directory: Path) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: it cannot be opened, or what is on the disk is unknown.
    """
    with opened(directory) as descriptor:
        crash.point("names")
        os.fsync(descriptor)
        crash.point("names_synced")
