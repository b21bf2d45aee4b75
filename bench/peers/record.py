"""Raw results of several systems: a row for each, with all its runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import raw

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from peers.system import Measured, System


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
    return raw.keep(name, work, rows=[asdict(row) for row in rows])
