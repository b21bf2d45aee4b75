"""Raw results: one small JSON file for each command, kept in the repository."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yard

from peers.ours import commit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peers.system import Measured, System

RESULTS = Path(__file__).parents[1] / "results"


@dataclass
class Row:
    """All runs of one system in one setting."""

    system: str
    version: str
    setting: str
    durability: str
    runs: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None

    @classmethod
    def of(cls, system: System, runs: Sequence[Measured] = ()) -> Row:
        made = cls(system.name, system.version, system.setting, system.durability)
        made.runs = [asdict(run) for run in runs]
        return made


def write(name: str, work: dict[str, Any], rows: Sequence[Row]) -> Path:
    """Write the raw results of a command."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "name": name,
        "work": work,
        "command": shlex.join(["python", *(str(part) for part in _command())]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": yard.machine(),
        "commit": commit(),
        "load_at_end": [round(value, 2) for value in os.getloadavg()],
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def _command() -> list[str]:
    program = Path(sys.argv[0]).resolve()
    return [str(program.relative_to(Path(__file__).parents[2])), *sys.argv[1:]]
