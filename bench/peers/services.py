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
    """Add options that name some of the systems (all, unless `default` is given), and rounds."""
    parser.add_argument("--systems", nargs="+", choices=systems, default=list(default or systems))
    parser.add_argument("--rounds", type=int, default=1)


def each(
    name: str,
    about: dict[str, Any],
    systems: Sequence[Service],
    run: Callable[[Service], dict[str, Any]],
    rounds: int,
) -> None:
    """Measure one system after the other, each with an upstream of its own; write it down.

    Args:
        name: of the raw result.
        about: what is done.
        systems: take turns.
        run: measures one of them once.
        rounds: how often each of them is measured; one that fails is not measured again.
    """
    rows = [record.Row.of(system) for system in systems]
    for _ in range(rounds):
        for system, row in zip(systems, rows, strict=True):
            row.failure = row.failure or system.missing()
            if row.failure is None:
                try:
                    row.runs.append(run(system) | {"load": round(os.getloadavg()[0], 2)})
                except PeerError as error:
                    row.failure = str(error)[-500:]
            print(f"{system.name}, {system.setting}: {row.failure or row.runs[-1]}", flush=True)
            record.write(name, about, [row for row in rows if row.runs or row.failure])
    print(f"raw: {name}.json")
