"""A disk as a recording tells it: what may be on it after a power cut at any moment.

The model is the one that POSIX promises and nothing more. What was written to a file is durable
when a sync of that file, begun after the write had returned, has returned. A name (a new file or
directory, a rename, an unlink) is durable when a sync of its directory has returned likewise. What
is not durable may be there, or not, or in part, each piece for itself and in any order.

Moments are integers. An operation has two: its entry and its return. A cut at moment `t` has seen
everything that happened before `t`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECTOR = 512
NEVER = 1 << 62
"""When an operation returned that never did."""


@dataclass(frozen=True, slots=True)
class Span:
    """When an operation was entered and when it returned."""

    entry: int
    exit: int


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes put at an offset, or with no bytes a new length."""

    when: Span
    offset: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Naming:
    """One change of a directory: names that go, and at most one that comes, at once."""

    when: Span
    gone: tuple[str, ...]
    name: str = ""
    node: Node | None = None


@dataclass(eq=False, slots=True)
class File:
    """A file, whatever it is called."""

    born: str
    """The path under which it was made, below the data directory."""
    writes: list[Write] = field(default_factory=list)
    syncs: list[Span] = field(default_factory=list)

    def size(self) -> int:
        size = 0
        for write in self.writes:
            end = write.offset + len(write.data or b"")
            size = end if write.data is None else max(size, end)
        return size


@dataclass(eq=False, slots=True)
class Directory:
    """A directory: its present names, and how they came about."""

    born: str
    entries: dict[str, Node] = field(default_factory=dict)
    changes: list[Naming] = field(default_factory=list)
    syncs: list[Span] = field(default_factory=list)

    def change(
        self, when: Span, *, gone: tuple[str, ...] = (), name: str = "", node: Node | None = None
    ) -> None:
        for old in gone:
            self.entries.pop(old, None)
        if node is not None:
            self.entries[name] = node
        self.changes.append(Naming(when, gone, name, node))


Node = File | Directory

Fate = Literal["lost", "kept", "names", "bytes", "some", "torn"]
FATES: tuple[Fate, ...] = ("lost", "kept", "names", "bytes", "some", "torn")
"""What becomes of the unsynced: all lost; all kept; only names kept; only bytes kept; each piece by
chance, also within a write; everything up to a write that is torn."""


def no_node(_: Node) -> bool:
    """Return False: every sync counts, and no name is durable before one."""
    return False


@dataclass(frozen=True)
class Cut:
    """A power cut."""

    moment: int
    fate: Fate
    rng: random.Random
    ignored: Callable[[Node], bool] = no_node
    """Nodes whose syncs are taken for absent: to show that the harness would notice."""
    certain: Callable[[Node], bool] = no_node
    """Nodes whose changes are durable at once."""

    def tree(self, root: Directory) -> dict[str, bytes | None]:
        """Return what is on the disk: bytes by path, None for a directory."""
        return dict(self._walk(root, ""))

    def _walk(self, directory: Directory, at: str) -> Iterator[tuple[str, bytes | None]]:
        for name, node in sorted(self._names(directory).items()):
            if isinstance(node, File):
                yield at + name, self._bytes(node)
            else:
                yield at + name, None
                yield from self._walk(node, f"{at}{name}/")

    def _durable_until(self, node: Node) -> int:
        """Return the moment before which everything that had returned is durable."""
        if self.certain(node):
            return self.moment
        if self.ignored(node):
            return -1
        return max((s.entry for s in node.syncs if s.exit < self.moment), default=-1)

    def _names(self, directory: Directory) -> dict[str, Node]:
        until = self._durable_until(directory)
        found: dict[str, Node] = {}
        for change in directory.changes:
            if change.when.entry >= self.moment:
                continue
            if change.when.exit >= until and not self._keeps_name():
                continue
            for name in change.gone:
                found.pop(name, None)
            if change.node is not None:
                found[change.name] = change.node
        return found

    def _keeps_name(self) -> bool:
        if self.fate in {"some", "torn"}:
            return self.rng.random() < 0.5
        return self.fate in {"kept", "names"}

    def _bytes(self, file: File) -> bytes:
        until = self._durable_until(file)
        seen = [write for write in file.writes if write.when.entry < self.moment]
        torn = None
        if self.fate == "torn":
            loose = [write for write in seen if write.when.exit >= until]
            torn = self.rng.choice(loose) if loose else None
        data = bytearray()
        for write in seen:
            # Under way at the cut: it may have done nothing yet, however much else was kept.
            if write.when.exit < until:
                _put(data, write.offset, write.data)
            elif self.fate in {"kept", "bytes"}:
                if write.when.exit < self.moment:
                    _put(data, write.offset, write.data)
            elif self.fate == "some":
                self._put_some(data, write)
            elif write is torn:
                self._put_torn(data, write)
                break
            elif self.fate == "torn":
                _put(data, write.offset, write.data)
        return bytes(data)

    def _put_some(self, data: bytearray, write: Write) -> None:
        """Keep a write, or lose it, or its length alone, or some of its sectors."""
        chance = self.rng.random()
        if chance < 0.4 or write.data is None:
            if chance < 0.4:
                _put(data, write.offset, write.data)
            return
        if chance < 0.7:
            return
        end = write.offset + len(write.data)
        if len(data) < end:  # what was never written reads as zeros
            _put(data, end, None)
        if chance < 0.8:
            return
        start = write.offset
        while start < end:
            stop = min((start // SECTOR + 1) * SECTOR, end)
            if self.rng.random() < 0.5:
                _put(data, start, write.data[start - write.offset : stop - write.offset])
            start = stop

    def _put_torn(self, data: bytearray, write: Write) -> None:
        if write.data is None:
            return
        kept = self.rng.randint(0, len(write.data))
        if self.rng.random() < 0.5:
            end = (write.offset + kept) // SECTOR * SECTOR
            kept = max(0, end - write.offset)
        _put(data, write.offset, write.data[:kept])


def _put(data: bytearray, offset: int, new: bytes | None) -> None:
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    if new is None:
        del data[offset:]
    else:
        data[offset : offset + len(new)] = new


def write_tree(tree: dict[str, bytes | None], root: Path) -> None:
    """Make an image real, below a new directory."""
    root.mkdir()
    for path, data in tree.items():
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)
