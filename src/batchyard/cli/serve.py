"""`batchyard serve`: run a yard."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 8787. 0 picks a free one.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Directory of all state; ./batchyard-data.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file, batchyard.toml.")] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL",
            help="A model endpoint that speaks the Messages dialect, or NAME=simulated:. "
            "Its key comes from BATCHYARD_UPSTREAM_<NAME>_KEY.",
        ),
    ] = None,
    lifeline: Annotated[
        bool, typer.Option("--lifeline", help="End when standard input closes.")
    ] = False,
) -> None:
    """Serve the Message Batches API in front of any model."""
    import uvloop  # noqa: PLC0415 - `--help` starts without the server

    from batchyard.cli import render  # noqa: PLC0415
    from batchyard.errors import ConfigError, DataDirectoryInUse  # noqa: PLC0415
    from batchyard.server import config as settings  # noqa: PLC0415
    from batchyard.server import place, run  # noqa: PLC0415

    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        loaded = settings.load(
            file=config,
            environment=os.environ,
            host=host,
            port=port,
            data=data,
            upstreams=upstream or (),
        )
        run.check(loaded)
        with place.lock(loaded.data):
            uvloop.run(run.serve(loaded, lifeline=lifeline, announce=render.emit))
    except DataDirectoryInUse as error:
        render.complain(error.message)
        raise typer.Exit(3) from None
    except ConfigError as error:
        render.complain(error.message)
        raise typer.Exit(2) from None
    except Exception as error:
        failure = _store_failure(error)
        if failure is None:
            raise
        # Nothing acknowledged is lost: the next start recovers from what is on disk.
        render.complain(f"stopped, the store failed: {failure}")
        raise typer.Exit(1) from None


def _store_failure(error: Exception) -> Exception | None:
    """Return the failure of the store that ended the yard, alone or among what it tore down."""
    from batchyard.errors import StoreError  # noqa: PLC0415

    if isinstance(error, ExceptionGroup):
        return next(filter(None, map(_store_failure, error.exceptions)), None)
    return error if isinstance(error, StoreError) else None
