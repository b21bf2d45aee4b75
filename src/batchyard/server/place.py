"""The data directory of a yard: one process holds it, and others find that process through it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, TextIO

from batchyard import wire
from batchyard.errors import ConfigError, DataDirectoryInUse

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path


def lock(data: Path) -> TextIO:
    """Take a data directory for this process, and hold it as long as the file is open.

    Raises:
        DataDirectoryInUse: another process has it.
        ConfigError: it cannot be made or written.
    """
    try:
        _make(data)
        (data / "spool").mkdir(mode=0o700, exist_ok=True)
        file = (data / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise _unusable(data, error) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read(20).strip()
        raise DataDirectoryInUse(
            f"data directory {data} is in use by another batchyard process"
            + (f" (pid {holder})" if holder.isdigit() else "")
        ) from None
    try:
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
    except OSError as error:
        raise _unusable(data, error) from None
    return file


def _unusable(data: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot use data directory {data}: {error.strerror}")


def _make(data: Path) -> None:
    """Make a directory whose name survives a power cut, and those above it."""
    missing = [path for path in (data, *data.parents) if not path.exists()]
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Also when it is there already: an earlier start may have been cut short.
    for path in {data, *missing}:
        descriptor = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def published(data: Path, ready: Mapping[str, object]) -> Generator[None]:
    """Write where the yard is to be found, for other processes of this machine, while it runs.

    Raises:
        ConfigError: it cannot be written.
    """
    endpoint = data / "server.json"
    temporary = endpoint.with_suffix(".new")
    try:
        temporary.write_bytes(wire.encode(ready))
        temporary.replace(endpoint)
    except OSError as error:
        raise _unusable(data, error) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # or it would hide why the yard ends
            endpoint.unlink()
