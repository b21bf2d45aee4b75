"""What takes batches over HTTP, and a way to measure each of them by itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from peers import record
from peers.aibrix import AIBrix
from peers.ogx import Ogx
from peers.ours import Yard
from peers.system import PeerError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from peers.system import HttpService, Service

SERVICES: dict[str, type[HttpService]] = {"batchyard": Yard, "ogx": Ogx, "aibrix": AIBrix}


def add_systems(
    parser: argparse.ArgumentParser,
    systems: Mapping[str, type[Service]] = SERVICES,
    default: Sequence[str] | None = None,
) -> None:
    """Add an option that names some of the systems: all of them, unless `default` is given."""
    parser.add_argument("--systems", nargs="+", choices=systems, default=list(default or systems))


def each(
    name: str,
    about: dict[str, Any],
    systems: Sequence[Service],
    run: Callable[[Service], dict[str, Any]],
) -> None:
    """Measure one system after the other, each with an upstream of its own; write it down."""
    rows = []
    for system in systems:
        row = record.Row.of(system)
        rows.append(row)
        row.failure = system.missing()
        if row.failure is None:
            try:
                row.runs.append(run(system) | {"load": round(os.getloadavg()[0], 2)})
            except PeerError as error:
                row.failure = str(error)[-500:]
        print(f"{system.name}, {system.setting}: {row.failure or row.runs[-1]}", flush=True)
        record.write(name, about, rows)
    print(f"raw: {name}.json")
