"""The list of runs of this user: names and paths, nothing of their content."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from batchyard import wire
from batchyard.client import durable


class _Line(msgspec.Struct):
    name: str
    path: str
    at: str


@dataclass(frozen=True, slots=True)
class Known:
    """A run that was started once."""

    name: str
    path: Path
    started_at: str


def location() -> Path:
    """Return the file: `$XDG_STATE_HOME/batchyard/runs.jsonl`."""
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "batchyard" / "runs.jsonl"


def add(out: Path, now_us: int) -> None:
    """Remember a run. A list that cannot be written is no reason to stop one."""
    path = out.resolve()
    try:
        file = location()
        file.parent.mkdir(parents=True, exist_ok=True)
        log = durable.Log(file)
        try:
            log.append(wire.encode(_Line(path.name, str(path), wire.rfc3339(now_us))))
        finally:
            log.close()
    except OSError:
        return


def known() -> list[Known]:
    """Return the runs, the latest first, each folder once."""
    runs: dict[str, Known] = {}
    for line in durable.whole_lines(location()):
        try:
            entry = msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError:
            continue
        runs.pop(entry.path, None)
        runs[entry.path] = Known(entry.name, Path(entry.path), entry.at)
    return list(reversed(runs.values()))
