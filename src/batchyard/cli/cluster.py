"""`batchyard cluster`: the workers of a yard on a Ray cluster."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchyard.cli import render
from batchyard.cli.serve import end_on_signals, failures_told

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

app = typer.Typer(
    help="Run the workers of a yard on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Address = Annotated[
    str,
    typer.Option(
        help="auto (the Ray cluster of this machine, or $RAY_ADDRESS), host:port, "
        "ray://host:port, or local to start one that ends with this command.",
    ),
]
Name = Annotated[str, typer.Option(help="Of the yard, where several share a Ray cluster.")]
File = Annotated[Path | None, typer.Option(help="Settings file, batchyard.toml.")]
Ledger = Annotated[
    str | None, typer.Option(metavar="URL", help="The PostgreSQL database: postgresql://...")
]
Segments = Annotated[
    str | None, typer.Option(metavar="URL", help="The object store: s3://, gs:// or az://.")
]
Upstreams = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=URL", help="As for `serve`; its key comes from the environment."),
]
Min = Annotated[
    int | None, typer.Option("--min", min=0, help="Workers of a group at the least; 1.")
]
Max = Annotated[int | None, typer.Option("--max", min=1, help="Workers of a group at the most; 4.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("up")
def up(
    address: Address = "auto",
    ledger: Ledger = None,
    segments: Segments = None,
    config: File = None,
    upstream: Upstreams = None,
    workers_min: Min = None,
    workers_max: Max = None,
    name: Name = "yard",
) -> None:
    """Keep workers on a Ray cluster, as many as there is work for, until told to end."""
    end_on_signals()
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with failures_told():
        import uvloop  # noqa: PLC0415 - `--help` starts without the server

        from batchyard.cluster.up import up as keep  # noqa: PLC0415
        from batchyard.server import config as settings  # noqa: PLC0415

        bounds = {"MIN": workers_min, "MAX": workers_max}
        given = {f"BATCHYARD_CLUSTER_{k}": str(v) for k, v in bounds.items() if v is not None}
        loaded = settings.load(
            file=config,
            environment={**os.environ, **given},  # a flag wins
            upstreams=upstream or (),
            ledger=ledger,
            segments=segments,
            role="worker",
        )
        uvloop.run(keep(loaded, address, _checked(name), os.environ, render.emit))


@app.command("status")
def status(
    address: Address = "auto",
    ledger: Ledger = None,
    config: File = None,
    name: Name = "yard",
    as_json: Json = False,
) -> None:
    """Show nodes and workers, what each works on, and what waits."""
    with failures_told():
        import uvloop  # noqa: PLC0415

        from batchyard.cluster.status import status as look  # noqa: PLC0415
        from batchyard.server import config as settings  # noqa: PLC0415

        url = settings.ledger_of(file=config, environment=os.environ, ledger=ledger)
        found = uvloop.run(look(address, _checked(name), url))
        if as_json:
            render.emit(found)
            return
        for line in lines(found):
            render.say(line)


def _checked(name: str) -> str:
    from batchyard.errors import ConfigError, shown  # noqa: PLC0415

    if not name.replace("-", "").isalnum() or not name.isascii() or len(name) > 64:
        raise ConfigError(f"--name {shown(name)}: up to 64 letters, digits and - are allowed")
    return name


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return a status as a person reads it."""
    alive = [node for node in found["nodes"] if node["alive"]]
    told = [f"{_count(len(alive), 'node')}, {_count(len(found['workers']), 'worker')}"]
    for node in found["nodes"]:
        gpus = f", {_count(node['gpus'], 'GPU')}" if node["gpus"] else ""
        state = f"{_count(node['cpus'], 'CPU')}{gpus}" if node["alive"] else "has left"
        told.append(f"node {node['host']} {node['id'][:8]}: {state}")
    for worker in found["workers"]:
        where = f" on {worker['host']} {worker['node'][:8]}" if worker["node"] else ""
        told.append(f"worker {worker['name']}: {worker['state']}{where}")
        told += [f"  {line}" for line in _work(worker["work"])]
    for each in found["elsewhere"]:
        told.append(f"worker {each['owner']}: not of this cluster")
        told += [f"  {line}" for line in _work(each["work"])]
    for each in found["waiting"]:
        amount = _count(each["requests"], "request") + (" and more" if each["more"] else "")
        told.append(f"waiting {each['pool']}: {amount} in {_count(each['shards'], 'shard')}")
    if not found["waiting"]:
        told.append("nothing waits")
    return told


def _work(work: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{each['pool']}: {_count(each['requests'], 'request')} left, "
        f"{each['in_flight']:,} in flight"
        for each in work
    ]


def _count(number: float, noun: str) -> str:
    return f"{number:,.12g} {noun}{'' if number == 1 else 's'}"
