"""Where the report of a document lies, and how it gets there whole.

Names come from other people's files: no name leaves the output folder, follows a link, or holds a
control character. A report is written under one temporary name inside the run's own folder, synced
and renamed, so the tree of reports never holds a half of one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import unicodedata
from typing import TYPE_CHECKING

from batchyard import crash
from batchyard.client import durable
from batchyard.client.problems import NeedsAttention, Unwritable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STATE_DIR = ".batchyard"
ERRORS_FILE = "errors.jsonl"
RECEIPT_FILE = "receipt.json"
_RESERVED = frozenset({ERRORS_FILE, RECEIPT_FILE})
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
_NAME_BYTES_MAX = 240  # file systems allow 255; the rest is for a hash
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def output_names(keys: Sequence[tuple[str, bool]], suffix: str) -> list[str]:
    """Return the path of each report below the output folder, all different.

    `notes.rst` becomes `notes.md`; if that is somebody else's name too, both keep theirs in full
    (`notes.rst.md`). Names that would be one on a file system without case get a hash.

    Args:
        keys: the key of each document, and whether it is a row (then it has no suffix of its own).
        suffix: of the reports, such as `.md`.
    """
    short = [_clean(_without_suffix(key, is_row=is_row)) + suffix for key, is_row in keys]
    full = [_clean(key) + suffix for key, _ in keys]
    names = _resolved(short, full)
    hashed = [
        f"{name.removesuffix(suffix)}~{hashlib.sha256(key.encode()).hexdigest()[:8]}{suffix}"
        for name, (key, _) in zip(names, keys, strict=True)
    ]
    names = _resolved(names, hashed)
    if len({_folded(name) for name in names}) != len(names):
        raise AssertionError("two reports have one name")
    return names


def _resolved(names: Sequence[str], instead: Sequence[str]) -> list[str]:
    """Return `names`, with the other name wherever two are the same or one is reserved."""
    count: dict[str, int] = {}
    for name in names:
        folded = _folded(name)
        count[folded] = count.get(folded, 0) + 1
    # A report cannot have the name of a folder that another report needs.
    folders = {_folded(name[:at]) for name in names for at, char in enumerate(name) if char == "/"}
    taken = folders | _RESERVED
    return [
        other if count[_folded(name)] > 1 or _folded(name) in taken else name
        for name, other in zip(names, instead, strict=True)
    ]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _without_suffix(key: str, *, is_row: bool) -> str:
    head, slash, name = key.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return key if is_row or not (stem and dot) else f"{head}{slash}{stem}"


def _clean(key: str) -> str:
    """Return `key` as a relative path of safe names."""
    parts = [part for part in key.split("/") if part not in {"", "."}]
    names = [_clean_name(part) for part in parts] or ["_"]
    if _folded(names[0]) == STATE_DIR:
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


class Tree:
    """The output folder of a run, for writing reports."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._partial = out / STATE_DIR / "report.partial"

    def write(self, name: str, text: str) -> None:
        """Write one report; on return it is whole and durable.

        Raises:
            NeedsAttention: a folder on the way is a link or a file.
            Unwritable: the disk is full, read-only or broken.
        """
        data = text.encode("utf-8", "replace")
        *folders, last = name.split("/")
        fd = os.open(self._out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for folder in folders:
                fd = self._enter(fd, folder, name)
            if _holds(fd, last, data):
                return
            durable.write_synced(self._partial, [data])
            crash.point("report_before_rename")
            os.rename(self._partial, last, dst_dir_fd=fd)
            os.fsync(fd)
        except OSError as error:
            kind = Unwritable if error.errno in _DISK else NeedsAttention
            raise kind(f"{self._out / name} cannot be written: {error.strerror or error}") from None
        finally:
            os.close(fd)

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
