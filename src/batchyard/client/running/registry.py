"""The list of runs of this user: names and paths, nothing of their content."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from batchyard import wire
from batchyard.client.problems import JournalError
from batchyard.client.results import classes
from batchyard.client.running import durable
from batchyard.client.running.folder import Files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchyard.client.running.journal import State


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


def ensure(out: Path, now_us: int) -> None:
    """Remember a run unless it is known: whoever was killed before `add` left it unlisted."""
    path = out.resolve()
    if all(each.path != path for each in known()):
        add(out, now_us)


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


@dataclass(frozen=True, slots=True)
class Listed:
    """How a known run stands.

    `word` is its state in a word or two, `counts` what became of its documents so far, `told` the
    same for people, `paid_micros` what its collected batches cost, None when that is not known.
    """

    known: Known
    word: str
    documents: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    paid_micros: int | None = None
    told: Sequence[str] = ()


def look(known: Known) -> Listed:
    """Return how a run stands, from its journal alone; never fails."""
    files = Files(known.path)
    try:
        state = files.read_state()
        if not state.run:
            return Listed(known, "gone")
        costs = [shard.cost_micros for shard in state.shards if shard.phase == "collected"]
        # What is at a server costs something, but nobody knows how much before it is collected.
        is_early = not costs and state.finished_us is None and not state.nothing_sent
        paid = None if None in costs or is_early else sum(cost or 0 for cost in costs)
        is_running = state.finished_us is None and files.is_running()
        return Listed(
            known, word(state, is_running=is_running), state.documents,
            classes.counted(state.classes), paid, classes.told(state.classes),
        )  # fmt: skip
    except (JournalError, OSError):
        return Listed(known, "not readable")


def word(state: State, *, is_running: bool) -> str:
    """Return the state of a run in a word or two."""
    if state.finished_us is not None:
        return "finished"
    if is_running:
        return "under way"
    if state.nothing_sent:
        return "not sent"
    if any(shard.is_at_server for shard in state.shards):
        return "at the server"
    # Who stopped for a budget and who was killed before the next batch look the same from here.
    return {"pilot": "after the pilot", "billing": "not paid"}.get(
        state.waits_for or "", "not finished"
    )
