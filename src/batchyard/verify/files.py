"""What lies in a data directory: names, kinds and permissions. Reads no contents."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchyard import segments
from batchyard.errors import shown
from batchyard.segments.syncing import MARK
from batchyard.verify.findings import Reporter, Rule
from batchyard.verify.ledger import FILE
from batchyard.verify.results import attempt_of
from batchyard.verify.rows import is_batch_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SEGMENTS = "segments"
SPOOL = "spool"
WORKERS = "workers"
"""Where a server writes down its worker processes, by their ids, while they run."""
GIVEN_UP = "given-up"
"""Where the files of batches are that an operator has given up. Nobody looks at them any more."""
_FILES = frozenset(
    {FILE, f"{FILE}-wal", f"{FILE}-shm", f"{FILE}-journal", "lock", "server.json", "server.new"}
    | {"ballast", "ledger.failed"}
)
_OTHERS = 0o077  # files are made 0600, directories 0700
_SPREAD = re.compile(r"[0-9a-f]{2}")
_TEMPORARY = re.compile(r"\.(requests|manifest(\.[0-9]+)?\.json|probe)\.[0-9a-f]{16}")


@dataclass(slots=True)
class BatchFiles:
    """The segments of one batch."""

    exists: bool = True
    manifest: int | None = None
    """The number of the manifest that counts; None if there is none."""
    results: set[str] = field(default_factory=set)
    """Last name parts of its result segments."""


class Tree:
    """A data directory."""

    def __init__(self, data: Path, report: Reporter) -> None:
        self._data = data
        self._report = report
        self.root = data / SEGMENTS
        self.is_whole = True
        """Whether every directory that was asked for could be listed."""

    @property
    def is_yard(self) -> bool:
        """Whether a yard has ever worked here."""
        return any((self._data / name).exists() for name in (FILE, SEGMENTS))

    def check_top(self) -> None:
        """Check the directory itself and what lies next to the segments."""
        self._check_mode(self._data.stat().st_mode, ".")
        for entry in self._list(self._data, ""):
            mode = self._mode(entry, entry.name)
            if entry.name in {SEGMENTS, SPOOL, GIVEN_UP, WORKERS} and stat.S_ISDIR(mode):
                continue
            if entry.name not in _FILES or not stat.S_ISREG(mode):
                self._stranger(entry.name, entry.name)
        for entry in self._list(self._data / SPOOL, SPOOL):
            name = f"{SPOOL}/{entry.name}"
            self._report.add(Rule.LEFTOVER, "of a body that was being received", segment=name)
        for entry in self._list(self._data / WORKERS, WORKERS):
            name = f"{WORKERS}/{entry.name}"
            if entry.name.isdigit() and stat.S_ISREG(self._mode(entry, name)):
                self._report.add(Rule.LEFTOVER, "of a worker process that ended", segment=name)
            else:
                self._stranger(entry.name, name)

    def check_spread(self, needed: Mapping[str, bool]) -> None:
        """Look for segments that no batch needs.

        Args:
            needed: by batch id, whether its segments are: not when it is archived.
        """
        for spread in self._list(self.root, SEGMENTS):
            if not _SPREAD.fullmatch(spread.name) or not self._is_directory(spread, spread.name):
                self._stranger(spread.name, f"{SEGMENTS}/{spread.name}")
                continue
            for entry in self._list(self.root / spread.name, f"{SEGMENTS}/{spread.name}"):
                name = f"{spread.name}/{entry.name}"
                is_ours = is_batch_id(entry.name) and name == segments.batch_prefix(entry.name)
                if not is_ours or not self._is_directory(entry, name):
                    self._stranger(entry.name, name)
                elif entry.name not in needed:
                    self._report.add(
                        Rule.LEFTOVER, "of no batch; the next start removes it", segment=name
                    )
                elif not needed[entry.name]:
                    self._report.add(
                        Rule.LEFTOVER,
                        "of a batch that is archived; the next start removes it",
                        batch=entry.name,
                        segment=name,
                    )

    def batch(self, batch: str) -> BatchFiles:
        """List the segments of a batch, and check what else lies beside them."""
        prefix = segments.batch_prefix(batch)
        found = BatchFiles(exists=(self.root / prefix).is_dir())
        for entry in self._list(self.root / prefix, prefix):
            name = f"{prefix}/{entry.name}"
            mode = self._mode(entry, name)
            if entry.name == "r" and stat.S_ISDIR(mode):
                continue
            if (number := segments.set_aside_of(entry.name)) is not None:
                found.manifest = max(found.manifest or 0, number)
            elif entry.name not in {"requests", MARK}:
                self._stranger(entry.name, name, batch)
        for entry in self._list(self.root / prefix / "r", f"{prefix}/r"):
            name = f"{prefix}/r/{entry.name}"
            is_file = stat.S_ISREG(self._mode(entry, name))
            if attempt_of(entry.name) is None or not is_file:
                self._stranger(entry.name, name, batch)
            else:
                found.results.add(entry.name)
        return found

    def _list(self, path: Path, name: str) -> Iterator[os.DirEntry[str]]:
        """Yield what a directory holds, by name; nothing when there is none."""
        try:
            with os.scandir(path) as entries:
                yield from sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self.is_whole = False
            self._report.add(Rule.UNREADABLE, f"cannot be listed: {error.strerror}", segment=name)

    def _is_directory(self, entry: os.DirEntry[str], name: str) -> bool:
        return stat.S_ISDIR(self._mode(entry, name))

    def _mode(self, entry: os.DirEntry[str], name: str) -> int:
        """Return type and permissions of an entry, which is not followed, and check the latter."""
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except OSError as error:
            self._report.add(Rule.UNREADABLE, f"{error.strerror}", segment=name)
            return 0
        self._check_mode(mode, name)
        return mode

    def _check_mode(self, mode: int, name: str) -> None:
        if not stat.S_ISLNK(mode) and mode & _OTHERS:
            text = f"mode {stat.S_IMODE(mode):04o}: others than its owner may use it"
            self._report.add(Rule.MODE, text, segment=name)

    def _stranger(self, name: str, path: str, batch: str | None = None) -> None:
        if batch is not None and _TEMPORARY.fullmatch(name):
            text = "of a file that was being written"
            self._report.add(Rule.LEFTOVER, text, batch=batch, segment=path)
            return
        text = f"{shown(name)} is no name that a yard makes, or no file of that kind"
        self._report.add(Rule.STRANGER, text, batch=batch, segment=path)
