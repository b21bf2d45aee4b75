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
from batchyard.errors import ConfigError, DataDirectoryInUse, shown
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
        ConfigError: it cannot be made or written, or is a folder of something else.
    """
    _refuse_others(data)
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


# What a yard has made in its directory, the ledger's files besides.
_YARD = {"ballast", "lock", "segments", "server.json", "spool", "workers"}
_RUN = ".batchyard"  # in the output folder of a run
_DOCUMENTS = {
    ".adoc", ".asciidoc", ".csv", ".docx", ".gif", ".html", ".jpeg", ".jpg", ".jsonl", ".markdown",
    ".md", ".ndjson", ".org", ".parquet", ".pdf", ".png", ".rst", ".tex", ".text", ".tsv", ".txt",
    ".webp",
}  # fmt: skip
_DOCUMENTS_MIN = 3  # a note, or requests to try a yard with, may well lie beside its settings


def _refuse_others(data: Path) -> None:
    """Refuse a folder of documents or reports, so that nothing of a yard is mixed into it.

    Only what is surely one: a directory of a yard, however little is left of it, and a mount must
    never be refused.

    Raises:
        ConfigError: it is such a folder.
    """
    try:
        paths = list(data.iterdir())
    except OSError:  # the start says it in its own words
        return
    if any(path.name in _YARD or path.name.startswith("ledger.") for path in paths):
        return
    found = [path.name for path in paths if path.suffix.lower() in _DOCUMENTS]
    if data / _RUN in paths:
        what = f"the output of a run ({_RUN})"
    elif len(found) >= _DOCUMENTS_MIN:
        what = f"{len(found):,} documents, such as {shown(min(found))},"
    else:
        return
    raise ConfigError(
        f"cannot use data directory {data}: it holds {what} and no yard; "
        f"name a folder of its own, such as --data {data / 'batchyard-data'}"
    )


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
