"""Where the report of a document lies, and how it gets there whole.

Names come from other people's files: no name leaves the output folder, follows a link, or holds a
control character. A report is written under a temporary name inside the run's own folder, synced
and renamed, so the tree of reports never holds a half of one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard import crash
from batchyard.client.problems import NeedsAttention, Unwritable
from batchyard.client.running import durable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

STATE_DIR = ".batchyard"
ERRORS_FILE = "errors.jsonl"
RECEIPT_FILE = "receipt.json"
TABLES = {"jsonl": "results.jsonl", "csv": "results.csv", "parquet": "results.parquet"}
RESERVED = frozenset({ERRORS_FILE, RECEIPT_FILE, *TABLES.values()})
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
_NAME_BYTES_MAX = 240  # file systems allow 255; the rest is for a hash
GROUP_FILES, FOLDERS_OPEN = 2_000, 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def output_names(keys: Sequence[tuple[str, bool]], suffix: str) -> list[str]:
    """Return the path of each report below the output folder, all different.

    `notes.rst` becomes `notes.md`; if that is somebody else's name too, both keep theirs in full
    (`notes.rst.md`). Names that would be one on a file system without case get a hash.

    Args:
        keys: the key of each document, and whether it is a row (then it has no suffix of its own).
        suffix: of the reports, such as `.md`.
    """
    short = [clean(without_suffix(key, is_row=is_row)) + suffix for key, is_row in keys]
    full = [clean(key) + suffix for key, _ in keys]
    names = _resolved(short, full)
    hashed = [
        f"{name.removesuffix(suffix)}~{hashlib.sha256(key.encode()).hexdigest()[:8]}{suffix}"
        for name, (key, _) in zip(names, keys, strict=True)
    ]
    names = _resolved(names, hashed)
    if len({folded(name) for name in names}) != len(names):
        raise AssertionError("two reports have one name")
    return names


def _resolved(names: Sequence[str], instead: Sequence[str]) -> list[str]:
    """Return `names`, with the other name wherever two are the same or one is reserved."""
    count: dict[str, int] = {}
    for name in names:
        one = folded(name)
        count[one] = count.get(one, 0) + 1
    # A report cannot have the name of a folder that another report needs.
    folders = {folded(name[:at]) for name in names for at, char in enumerate(name) if char == "/"}
    taken = folders | RESERVED
    return [
        other if count[folded(name)] > 1 or folded(name) in taken else name
        for name, other in zip(names, instead, strict=True)
    ]


def folded(name: str) -> str:
    """Return what two names share that a file system may take for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def without_suffix(key: str, *, is_row: bool) -> str:
    """Return a key without its ending; a row has none."""
    head, slash, name = key.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return key if is_row or not (stem and dot) else f"{head}{slash}{stem}"


def clean(key: str) -> str:
    """Return `key` as a relative path of safe names."""
    parts = [part for part in key.split("/") if part not in {"", "."}]
    names = [_clean_name(part) for part in parts] or ["_"]
    if folded(names[0]) == STATE_DIR:
        names[0] = "_" + names[0]
    return "/".join(names)


def _clean_name(name: str) -> str:
    if name == "..":
        return "__"
    safe = "".join("_" if unicodedata.category(char)[0] == "C" else char for char in name)
    data = safe.encode()
    if len(data) <= _NAME_BYTES_MAX - 20:
        return safe
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return data[: _NAME_BYTES_MAX - 40].decode("utf-8", "ignore") + "~" + digest


@dataclass(slots=True)
class _Waiting:
    """A report under a temporary name, not synced yet."""

    partial: str
    folder: int
    name: str


class Tree:
    """The output folder of a run, for writing reports, some at a time.

    A group is written under temporary names, synced, then renamed, then each folder synced once. A
    report is whole or absent at any moment.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._state = out / STATE_DIR
        self._waiting: list[_Waiting] = []
        self._folders: dict[tuple[str, ...], int] = {}
        self._partials: int | None = None  # the folder of the temporary names, open while grouped

    def write(self, name: str, text: str) -> None:
        """Write one report; on return it is whole and durable.

        Raises:
            NeedsAttention, Unwritable: as `add`.
        """
        with self.grouped():
            self.add(name, text)

    @contextlib.contextmanager
    def grouped(self) -> Iterator[None]:
        """Make what is added in the block durable by its end, also when it is left by an error.

        Raises:
            NeedsAttention, Unwritable: as `add`.
        """
        try:
            yield
            self.flush()
        except (NeedsAttention, Unwritable):
            self._waiting.clear()
            raise
        except BaseException:
            self.flush()
            raise
        finally:
            for fd in self._folders.values():
                os.close(fd)
            self._folders.clear()
            if self._partials is not None:
                os.close(self._partials)
                self._partials = None
            for left in self._state.glob("report*.partial"):  # of a process that was killed
                left.unlink(missing_ok=True)

    def add(self, name: str, text: str) -> None:
        """Write one report; `flush`, or the end of the group, makes it durable.

        Raises:
            NeedsAttention: a folder on the way is a link or a file.
            Unwritable: the disk is full, read-only or broken.
        """
        data = text.encode("utf-8", "replace")
        *folders, last = name.split("/")
        with self._naming(name):
            fd = self._opened(tuple(folders), name)
            if _holds(fd, last, data):
                return
            if self._partials is None:
                self._partials = durable.opened(self._state)
            partial = f"report-{len(self._waiting)}.partial"
            file = os.open(f"{self._state}/{partial}", durable.NEW, 0o644)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
            finally:
                os.close(file)
            # Not before: what waits gets its name, also when the run is interrupted here.
            self._waiting.append(_Waiting(partial, fd, last))
        if len(self._waiting) >= GROUP_FILES:
            self.flush()

    def flush(self) -> None:
        """Put everything that was added under its name; on return it is whole and durable.

        Raises:
            NeedsAttention, Unwritable: as `add`.
        """
        folders = {each.folder for each in self._waiting}
        if self._waiting:
            assert self._partials is not None
            with self._naming(self._waiting[-1].name):
                names = [each.partial for each in self._waiting]
                durable.sync_files(self._state, names, self._partials)
        for each in self._waiting:
            crash.point("report_before_rename")
            with self._naming(each.name):
                os.rename(f"{self._state}/{each.partial}", each.name, dst_dir_fd=each.folder)
        for fd in folders:
            with self._naming(""):
                os.fsync(fd)
        self._waiting.clear()

    @contextlib.contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Say which report an error of the disk is about."""
        try:
            yield
        except OSError as error:
            kind = Unwritable if error.errno in _DISK else NeedsAttention
            raise kind(f"{self._out / name} cannot be written: {error.strerror or error}") from None

    def _opened(self, folders: tuple[str, ...], name: str) -> int:
        """Return the descriptor of a folder, open until the end of the group."""
        if folders not in self._folders:
            if len(self._folders) >= FOLDERS_OPEN:
                self.flush()
                for fd in self._folders.values():
                    os.close(fd)
                self._folders.clear()
            fd = os.open(self._out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for folder in folders:
                    fd = self._enter(fd, folder, name)
            except BaseException:
                os.close(fd)
                raise
            self._folders[folders] = fd
        return self._folders[folders]

    def _enter(self, fd: int, folder: str, name: str) -> int:
        try:
            try:
                os.mkdir(folder, 0o755, dir_fd=fd)
                os.fsync(fd)
            except FileExistsError:
                pass
            inner = os.open(folder, _FOLDER, dir_fd=fd)
        except OSError as error:
            if error.errno in _DISK:
                raise
            raise NeedsAttention(
                f"{self._out / name} cannot be written: {folder} is not a folder of its own "
                f"({error.strerror})"
            ) from None
        os.close(fd)
        return inner


def _holds(fd: int, name: str, data: bytes) -> bool:
    """Whether the file has these bytes already: a run that goes on does not write it again."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return False
    with os.fdopen(file, "rb") as opened:
        return os.fstat(file).st_size == len(data) and opened.read() == data
