"""The data directory of a yard: one process holds it, and others find that process through it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING, TextIO, TypeVar

from batchyard import wire
from batchyard.disk import sync_names, with_room
from batchyard.errors import ConfigError, DataDirectoryInUse
from batchyard.server import orphans
from batchyard.server.disk import give_up_ballast

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

T = TypeVar("T")

_WAITS = 200
_WAITS_BEFORE_END = 40
_WAIT_S = 0.05


def lock(data: Path) -> TextIO:
    """Take a data directory for this process, and hold it as long as the file is open.

    Worker processes hold it too. Those of a server that was killed are about to end: they are
    waited for, ten seconds at the most. After two of them they are ended, for they may be frozen.

    Raises:
        DataDirectoryInUse: another process has it.
        ConfigError: it cannot be made or written.
    """
    try:
        _make(data)
        file = _with_room(data, lambda: (data / "lock").open("a+", encoding="utf-8"))
    except OSError as error:
        raise _unusable(data, error) from None
    for left in reversed(range(_WAITS)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _holder(file)
            if left and holder is not None and not _is_alive(holder):
                if left == _WAITS - _WAITS_BEFORE_END:
                    orphans.end(data)
                time.sleep(_WAIT_S)
                continue
            file.close()
            raise DataDirectoryInUse(_in_use(data, holder)) from None
        break
    orphans.clear(data)
    try:
        _with_room(data, lambda: _write_holder(file))
        _with_room(data, lambda: (data / "spool").mkdir(mode=0o700, exist_ok=True))
    except OSError as error:
        with contextlib.suppress(OSError):  # of what could not be written
            file.close()
        raise _unusable(data, error) from None
    return file


def _with_room(data: Path, write: Callable[[], T]) -> T:
    """Write; where there is no room for it, give the ballast up and write once more.

    Little is written here, and on a full disk it mostly has its room already. But what holds it may
    be gone, or empty after a power cut.
    """
    return with_room(write, lambda: give_up_ballast(data))


def _write_holder(file: TextIO) -> None:
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()


def _holder(file: TextIO) -> int | None:
    file.seek(0)
    text = file.read(20).strip()
    return int(text) if text.isdigit() else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _in_use(data: Path, holder: int | None) -> str:
    text = f"data directory {data} is in use by another batchyard process"
    if holder is None:
        return text
    if _is_alive(holder):
        return f"{text} (pid {holder})"
    return (
        f"data directory {data} is in use by a worker process of a server that has ended "
        f"(pid {holder}); end it, such as with: fuser -k {data / 'lock'}"
    )


def _unusable(data: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot use data directory {data}: {error.strerror}")


# Of directories that nobody makes names in: somebody else's, of mounts, of read-only file systems.
_NOT_MADE_HERE = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS, errno.ENOTSUP}


def _make(data: Path) -> None:
    """Make a directory whose name survives a power cut, and those above it.

    One after the other, so that a start that is cut short leaves at most the name of the lowest in
    doubt. A name whose sync has failed is taken back: of a second one the kernel would say nothing.
    """
    data = data.absolute()
    missing = [path for path in (data, *data.parents) if not path.exists()]
    there = missing[-1].parent if missing else data
    if there == data:
        data.mkdir(exist_ok=True)  # says so where it is something else
    try:
        sync_names(there.parent)
    except OSError as error:
        if error.errno not in _NOT_MADE_HERE:
            raise
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        try:
            sync_names(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                path.rmdir()
            raise


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
