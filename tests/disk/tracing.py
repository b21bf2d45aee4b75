"""The system calls of a real yard, recorded by strace and read back as operations on a disk.

strace stops a thread at the entry and at the return of each call that it traces, one stop after the
other, so the order of its lines is an order in which things really happened, threads included.
Memory that is mapped is not seen; of what the yard writes, that is only the shared-memory index of
the ledger (`-shm`), which a start rebuilds and which is therefore never part of an image.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from disk.volume import NEVER, Cut, Directory, File, Node, Span, Write
from helpers_upstream import DEADLINE_S
from helpers_yard import Yard, poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

MISSING = (
    "strace is not there: these tests watch and disturb the system calls of a real server with it. "
    "`make strace` installs it as root on Debian and Ubuntu; elsewhere install the package strace"
)
# `?`: not on every architecture.
CALLS = (
    "openat,?open,?creat,write,pwrite64,writev,pwritev,?pwritev2,sendto,sendmsg,fdatasync,fsync,"
    "ftruncate,fallocate,?rename,renameat,?renameat2,?unlink,unlinkat,?mkdir,mkdirat,?rmdir,"
    "?link,linkat,?symlink,symlinkat"
)
# Of the data directory, but part of no image: rebuilt by every start, or of no meaning.
UNSEEN = ("-shm", "/ballast")
STRING_BYTES_MAX = 20_000_000

_LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>(.*)|(\w+)\((.*))", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_DESCRIPTOR = re.compile(r"(?:\d+|AT_FDCWD)<([^<>]*(?:<[^>]*>)?[^>]*)>")
_RESULT = re.compile(r"\) += (-?\d+|\?)")


def strace() -> str:
    """Return the path of strace, or fail with a sentence."""
    found = shutil.which("strace")
    assert found is not None, MISSING
    return found


class TracedYard(Yard):
    """A yard under strace. The process is still ours to signal: the tracer is its child."""

    def __init__(self, data: Path, upstream: str, **options: object) -> None:
        super().__init__(data, upstream, **options)  # type: ignore[arg-type]
        self.traces: list[Path] = []
        self.tracing: tuple[str, ...] = (
            "-yy",
            "-xx",
            "-s",
            str(STRING_BYTES_MAX),
            "-e",
            f"trace={CALLS}",
        )

    def command(self) -> list[str]:
        trace = self.data.with_name(f"{self.data.name}.trace{len(self.traces)}")
        self.traces.append(trace)
        options = ["-D", "-f", "-q", "--seccomp-bpf", "-o", str(trace), *self.tracing]
        return [strace(), *options, *super().command()]


class Disturbed:
    """strace on a yard that runs, to make system calls of it fail. A context manager."""

    def __init__(
        self, yard: Yard, call: str, what: str, *only: Path, also: str = "", pid: int | None = None
    ) -> None:
        """Describe the disturbance.

        Args:
            yard: a running one.
            call: which calls.
            what: what happens to them, such as `error=EIO:when=3`: the third in each thread.
            only: of these files; of any by default.
            also: further calls that are reported, and do not fail.
            pid: of the process, if it is not the server itself.
        """
        assert yard.process is not None
        pid = yard.process.pid if pid is None else pid
        self._report = yard.data.with_name(yard.data.name + ".disturbed")
        traced = f"{call},{also}" if also else call
        self._command = [strace(), "-f", "-o", str(self._report), "-e", f"trace={traced}"]
        self._command += ["-e", f"inject={call}:{what}", "-p", str(pid)]
        self._command += [f"--trace-path={path}" for path in only]

    def __enter__(self) -> Self:
        self._strace = subprocess.Popen(self._command, stderr=subprocess.PIPE)
        assert self._strace.stderr is not None
        line = self._strace.stderr.readline()
        assert b"attached" in line, line
        return self

    def __exit__(self, *_: object) -> None:
        self._strace.terminate()  # it lets go of a process that is still there
        try:
            self._strace.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._strace.kill()
            raise

    @property
    def report(self) -> list[str]:
        """The calls so far."""
        return self._report.read_text("ascii", "replace").splitlines()

    @property
    def injected(self) -> int:
        """How many calls have failed so far."""
        return sum("(INJECTED)" in line for line in self.report)


@dataclass
class Call:
    """One system call: its arguments as strace shows them, and what it returned."""

    name: str
    arguments: str
    when: Span
    result: int | None = None
    """None: it never returned, because the process was killed."""

    @property
    def strings(self) -> list[bytes]:
        found = _STRING.findall(self.arguments)
        assert not any(dots for _, dots in found), "strace has cut a string short"
        return [bytes.fromhex(text.replace("\\x", "")) for text, _ in found]

    @property
    def on(self) -> str:
        """What its first descriptor is: a path, or how strace calls a socket."""
        found = _DESCRIPTOR.match(self.arguments)
        return _text(found[1]) if found else ""

    @property
    def descriptor(self) -> int:
        return int(self.arguments[: self.arguments.index("<")])


def _text(shown: str) -> str:
    return bytes.fromhex(shown.replace("\\x", "")).decode() if shown[:2] == "\\x" else shown


def read_calls(trace: Path, first: int) -> tuple[list[Call], int]:
    """Return the calls of a trace by entry, and the moment after the last.

    Args:
        trace: of one process, all its threads.
        first: the first moment.
    """
    calls: list[Call] = []
    under_way: dict[str, Call] = {}
    moment = first
    # Not splitlines: it knows more line ends than one.
    for line in trace.read_text("ascii").split("\n"):
        found = _LINE.fullmatch(line)
        if found is None:
            assert not line or "+++" in line or "---" in line, line[:200]
            continue
        thread, resumed, rest, name, arguments = found.groups()
        if resumed is not None:
            call = under_way.pop(thread)
            assert call.name == resumed
            call.arguments += rest
            call.when = Span(call.when.entry, moment)
            call.result = _result(rest)
        elif arguments.endswith("<unfinished ...>"):
            call = Call(name, arguments.removesuffix("<unfinished ...>"), Span(moment, NEVER))
            under_way[thread] = call
            calls.append(call)
        else:
            result = _result(arguments)
            when = Span(moment, NEVER if result is None else moment + 1)
            calls.append(Call(name, arguments, when, result))
        moment += 2
    return calls, moment


def _result(text: str) -> int | None:
    *_, last = _RESULT.finditer(text)
    return None if last[1] == "?" else int(last[1])


@dataclass(frozen=True)
class Sent:
    """Bytes that the yard began to write to a socket."""

    moment: int
    socket: str
    data: bytes


@dataclass
class Recording:
    """What one or more processes in a row did to one data directory."""

    data: Path
    base: Directory = field(default_factory=lambda: Directory("."))
    """The directory that the data directory lies in; only that name of it is known."""
    sent: list[Sent] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    """Those that changed or synced something."""
    moments: list[int] = field(default_factory=lambda: [0])
    """Where each process began, and where the last one ended."""
    _open: dict[int, tuple[File, bool]] = field(default_factory=dict)
    _places: dict[int, int] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.moments[-1]

    def add(self, trace: Path) -> None:
        """Take in the next process, which has ended."""
        poll(lambda: "+++" in tail(trace), lambda: f"strace did not finish {trace}")
        calls, after = read_calls(trace, self.end)
        self._open.clear()
        # By return: a descriptor is what the last `open` that has returned made it.
        for call in sorted(calls, key=lambda call: call.when.exit):
            self._take(call)
        self.moments.append(after)

    def verify(self) -> None:
        """Check that nothing was missed: with all syncs and writes it is what is on the disk."""
        expected = {path: data for path, data in self.present() if not path.endswith(UNSEEN)}
        found = {
            str(path.relative_to(self.data.parent)): None if path.is_dir() else path.read_bytes()
            for path in [self.data, *self.data.rglob("*")]
            if not str(path).endswith(UNSEEN)
        }
        assert sorted(expected) == sorted(found)
        different = [path for path in found if expected[path] != found[path]]
        assert not different, f"the recording misses writes to {different}"

    def present(self) -> Iterator[tuple[str, bytes | None]]:
        """Yield what is on the disk now, if no power is cut."""
        yield from Cut(self.end + 1, "kept", random.Random(0)).tree(self.base).items()

    # One call ---------------------------------------------------------------------------------

    def _take(self, call: Call) -> None:
        if call.result is not None and call.result < 0:
            return
        if call.name in {"write", "writev", "sendto", "sendmsg"} and call.on.startswith("TCP"):
            self.sent.append(Sent(call.when.entry, call.on, b"".join(call.strings)))
            return
        known = self._apply(call)
        if known:
            self.calls.append(call)

    def _apply(self, call: Call) -> bool:
        match call.name:
            case "open" | "openat" | "creat":
                return self._opened(call)
            case "write" | "pwrite64" | "writev" | "pwritev" | "pwritev2":
                return self._wrote(call)
            case "ftruncate":
                return self._truncated(call)
            case "fsync" | "fdatasync":
                return self._synced(call)
            case "mkdir" | "mkdirat" | "unlink" | "unlinkat" | "rmdir" | "rename" | "renameat":
                return self._named(call)
            case "renameat2":
                return self._named(call)
        assert not self._is_ours(self._path(call, 0)), f"unknown: {call.name}({call.arguments}"
        return False

    def _is_ours(self, path: str) -> bool:
        data = str(self.data)
        return (path == data or path.startswith(data + "/")) and not path.endswith(UNSEEN)

    def _path(self, call: Call, number: int) -> str:
        """Return the absolute path that a string among the arguments names."""
        strings = call.strings
        if number >= len(strings):
            return call.on
        path = strings[number].decode("utf-8", "surrogateescape")
        if path.startswith("/") or not call.name.endswith(("at", "at2")):
            return path
        return f"{call.on}/{path}"

    def _parent(self, path: str) -> tuple[Directory, str]:
        """Return the directory of a path of ours, and the name in it."""
        node = self.base
        *above, name = path[len(str(self.data.parent)) + 1 :].split("/")
        for part in above:
            inner = node.entries[part]
            assert isinstance(inner, Directory)
            node = inner
        return node, name

    def _opened(self, call: Call) -> bool:
        if call.result is None:
            return False
        self._open.pop(call.result, None)
        path = self._path(call, 0)
        flags = call.arguments
        if not self._is_ours(path) or "O_TMPFILE" in flags or "O_DIRECTORY" in flags:
            return False
        parent, name = self._parent(path)
        node = parent.entries.get(name)
        if isinstance(node, Directory):
            return False
        changed = False
        if node is None:
            assert "O_CREAT" in flags, call
            node = File(path[len(str(self.data)) + 1 :])
            parent.change(call.when, name=name, node=node)
            changed = True
        if "O_TRUNC" in flags and node.writes:
            node.writes.append(Write(call.when, 0, None))
            changed = True
        self._open[call.result] = (node, "O_APPEND" in flags)
        self._places[call.result] = 0
        return changed

    def _file(self, call: Call) -> tuple[File, bool] | None:
        """Return the file that a call is about, if it is one of ours."""
        if not self._is_ours(call.on.removesuffix(" (deleted)")):
            return None
        return self._open.get(call.descriptor)

    def _wrote(self, call: Call) -> bool:
        found = self._file(call)
        if found is None:
            return False
        file, appends = found
        data = b"".join(call.strings)
        if call.name == "pwrite64":
            offset = int(_arguments(call.arguments)[-1])
        else:
            assert call.name == "write", call.name
            offset = file.size() if appends else self._places[call.descriptor]
        # Killed in the middle: the disk knows how far it came.
        cut_short = call.result is None
        data = _agreed(data, Path(call.on), offset) if cut_short else data[: call.result]
        self._places[call.descriptor] = offset + len(data)
        file.writes.append(Write(call.when, offset, data))
        return True

    def _truncated(self, call: Call) -> bool:
        found = self._file(call)
        if found is None:
            return False
        found[0].writes.append(Write(call.when, int(_arguments(call.arguments)[-1]), None))
        return True

    def _synced(self, call: Call) -> bool:
        path = call.on.removesuffix(" (deleted)")
        if path == str(self.data.parent):
            node: Node = self.base
        elif not self._is_ours(path):
            return False
        else:
            found = self._open.get(call.descriptor)
            if found is not None:
                node = found[0]
            else:
                parent, name = self._parent(path)
                node = parent.entries[name]
        node.syncs.append(call.when)
        return True

    def _named(self, call: Call) -> bool:
        path = self._path(call, 0)
        if not self._is_ours(path):
            return False
        assert call.result is not None, f"killed inside {call.name} of {path}: record again"
        parent, name = self._parent(path)
        if call.name.startswith("mkdir"):
            parent.change(call.when, name=name, node=Directory(path[len(str(self.data)) + 1 :]))
        elif call.name.startswith("rename"):
            target, new = self._parent(self._path(call, 1))
            assert target is parent, "renamed into another directory"
            parent.change(call.when, gone=(name,), name=new, node=parent.entries[name])
        else:
            parent.change(call.when, gone=(name,))
        return True


def _agreed(data: bytes, path: Path, offset: int) -> bytes:
    """Return the part of `data`, from its start, that is in a file at an offset."""
    with path.open("rb") as file:
        file.seek(offset)
        found = file.read(len(data))
    length = next((n for n, (a, b) in enumerate(zip(data, found, strict=False)) if a != b), None)
    return data[: len(found) if length is None else length]


def _arguments(shown: str) -> list[str]:
    """Return the arguments of a call; strings hold no commas, all is hexadecimal."""
    return re.sub(r"\) +=.*", "", shown).strip().split(", ")


def tail(path: Path) -> str:
    """Return the end of a trace: how the process ended stands there."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200))
        return file.read().decode("ascii", "replace")
