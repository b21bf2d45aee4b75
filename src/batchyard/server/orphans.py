"""Worker processes that outlive their server: written down while they run, ended by the next start.

A worker ends when its server has died, as it finds its standard input closed. One that is frozen
cannot, and holds the lock on the data directory. The next server knows it by its process id
together with its start time, so that no other process that got the same id is ever meant.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

_FOLDER = "workers"


def record(data: Path, pid: int) -> None:
    """Write down a worker process that was just started."""
    started = _started(pid)
    if started is None:
        return  # it has ended already, or the system does not tell
    with contextlib.suppress(OSError):  # without it, a frozen one is waited for
        (data / _FOLDER).mkdir(mode=0o700, exist_ok=True)
        (data / _FOLDER / str(pid)).write_text(started, "ascii")


def forget(data: Path, pid: int) -> None:
    """Note that a worker process has ended."""
    with contextlib.suppress(OSError):
        (data / _FOLDER / str(pid)).unlink()


def end(data: Path) -> list[int]:
    """End the workers of a server that has died; return their process ids.

    The caller knows that the server has died. A signal ends a frozen process too.
    """
    ended = []
    for pid, started in _recorded(data):
        if started is not None and started == _started(pid):
            with contextlib.suppress(OSError):  # it has just ended, or is of another user
                os.kill(pid, signal.SIGKILL)
                ended.append(pid)
    return ended


def clear(data: Path) -> None:
    """Forget all workers of earlier servers. The caller holds the lock, so none lives."""
    for pid, _ in _recorded(data):
        forget(data, pid)


def _recorded(data: Path) -> list[tuple[int, str | None]]:
    try:
        paths = [path for path in (data / _FOLDER).iterdir() if path.name.isdigit()]
    except OSError:  # there is none
        return []
    return [(int(path.name), _text(path)) for path in paths]


def _started(pid: int) -> str | None:
    """Return what tells a process from all others with its id: which boot, and when in it.

    Source: proc(5); the start time is the 22nd field of `stat`, and the second may hold anything.
    """
    stat = _text(Path(f"/proc/{pid}/stat"))
    boot = _text(Path("/proc/sys/kernel/random/boot_id"))
    if stat is None or boot is None:
        return None
    fields = stat.rpartition(")")[2].split()
    return f"{boot.strip()} {fields[19]}" if len(fields) > 19 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None
