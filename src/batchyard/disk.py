"""What all share that write to a disk of this machine."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from batchyard import crash

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


def no_room() -> bool:
    """Return that no room can be made on a full disk."""
    return False


@contextlib.contextmanager
def opened(directory: Path) -> Generator[int]:
    """Have a descriptor of a directory for a while."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
