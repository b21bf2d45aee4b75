"""Read the files of a data directory: never more than a block at a time, never to write."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.errors import ConfigError, DamagedError, DataDirectoryInUse, StoreError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

BLOCK_BYTES = limits.MIB
"""Also what one checksum of an extent covers."""

# A name may have been replaced by a link or a pipe: neither is followed or waited for.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@contextlib.contextmanager
def held(data: Path, *, alone: bool = False) -> Generator[None]:
    """Keep yards away from a data directory; other checks may read it too, unless `alone`.

    The lock is the one of `server/place.py`, taken shared and without writing to its file. A
    directory without that file was never a yard's, or is a copy: nobody can hold it.

    Raises:
        DataDirectoryInUse: a yard has it.
        ConfigError: it cannot be read.
    """
    try:
        descriptor = os.open(data / "lock", _FLAGS)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise ConfigError(f"cannot read {data}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 20).strip()
            raise DataDirectoryInUse(
                f"data directory {data} is in use by a running yard"
                + (f" (pid {holder.decode()})" if holder.isdigit() else "")
                + "; stop it, or check a copy"
            ) from None
        yield
    finally:
        os.close(descriptor)


class File:
    """An open file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def blocks(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield exactly `length` bytes from `offset`, in blocks of `BLOCK_BYTES`, the last shorter.

        Raises:
            DamagedError: there are fewer.
            StoreError: they cannot be read.
        """
        end = offset + length
        while offset < end:
            block = self._read(offset, min(BLOCK_BYTES, end - offset))
            offset += len(block)
            yield block

    def _read(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            try:
                part = os.pread(self._descriptor, length, offset)
            except OSError as error:
                raise StoreError(f"cannot be read at {offset}: {error.strerror}") from None
            if not part:
                raise DamagedError(f"ends at {offset}")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)


@contextlib.contextmanager
def opened(path: Path) -> Generator[File]:
    """Open a regular file.

    Raises:
        DamagedError: it is not there, or not a regular file.
        StoreError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        raise DamagedError("is not there") from None
    except OSError as error:
        raise StoreError(f"cannot be opened: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DamagedError("is not a regular file")
        yield File(descriptor)
    finally:
        os.close(descriptor)
