"""`batchyard serve`: run a yard."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

if TYPE_CHECKING:
    from batchyard.errors import BatchyardError
    from batchyard.server.config import Config


def serve(  # noqa: PLR0913, PLR0917 - its options
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
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that call upstreams, for more than one core; 1."),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A PostgreSQL database that many processes share; SQLite in the data directory.",
        ),
    ] = None,
    segments: Annotated[
        str | None,
        typer.Option(metavar="URL", help="s3://, gs:// or az://; the data directory."),
    ] = None,
    role: Annotated[
        str | None, typer.Option(help="all, api or worker; all. See docs/howto/many-machines.md.")
    ] = None,
    lifeline: Annotated[
        bool, typer.Option("--lifeline", help="End when standard input closes.")
    ] = False,
) -> None:
    """Serve the Message Batches API in front of any model."""
    flags = {
        "host": host,
        "port": port,
        "data": data,
        "upstreams": upstream or (),
        "workers": workers,
        "ledger": ledger,
        "segments": segments,
        "role": role,
    }
    end_on_signals()
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with failures_told():
        _serve(config, flags, lifeline)


def end_on_signals() -> None:
    """End at once on SIGTERM or SIGINT, until `leave_on_signals` replaces this: nothing is begun.

    The first process of a container would not even notice SIGTERM otherwise: the kernel drops
    signals to it that have no handler. And Ctrl-C would wait for a database that does not answer.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: os._exit(0))


def _serve(file: Path | None, flags: dict[str, Any], lifeline: bool) -> None:
    """Do what the role says until told to end."""
    import uvloop  # noqa: PLC0415 - `--help` starts without the server

    from batchyard.cli import render  # noqa: PLC0415
    from batchyard.server import config as settings  # noqa: PLC0415
    from batchyard.server import place, run  # noqa: PLC0415

    loaded = settings.load(file=file, environment=os.environ, **flags)
    for level, text in keyless(loaded):
        logging.getLogger(__name__).log(level, text)
    if loaded.role == "worker":
        uvloop.run(run.work(loaded, lifeline=lifeline, announce=render.emit))
        return
    run.check(loaded)
    run.check_address(loaded.host, loaded.port, loaded.data)
    with place.lock(loaded.data) as lock:
        uvloop.run(run.serve(loaded, lock, lifeline=lifeline, announce=render.ready))


def keyless(config: Config) -> list[tuple[int, str]]:
    """Return which upstreams are called without a key, what follows, and how much that matters.

    A model of one's own rarely wants one. Anybody else's refuses; the yard keeps the requests then.
    """
    found = []
    for each in config.upstreams:
        variable = each.unset_key
        if variable is None:
            continue
        host = urlsplit(each.url).hostname or ""
        if _is_near(host):
            text = f"upstream {each.name} has no key, and is called without ({variable} sets one)"
            found.append((logging.INFO, text))
            continue
        text = (
            f"upstream {each.name} has no key: set {variable} and start again, or {host} will "
            "refuse the calls; requests wait meanwhile, and expire after 24 hours"
        )
        found.append((logging.WARNING, text))
    return found


def _is_near(host: str) -> bool:
    """Whether a host is this machine or one of the same network, by its name or address."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".svc", ".localhost"))


@contextlib.contextmanager
def failures_told() -> Generator[None]:
    """End with a sentence and an exit code.

    Raises:
        Exit: it could not be run, or the store failed.
    """
    from batchyard.cli import render  # noqa: PLC0415
    from batchyard.errors import ConfigError, DataDirectoryInUse  # noqa: PLC0415

    try:
        yield
    except DataDirectoryInUse as error:
        render.complain(error.message)
        raise typer.Exit(3) from None
    except ConfigError as error:
        render.complain(error.message)
        raise typer.Exit(2) from None
    except Exception as error:
        failure = _failure(error)
        if failure is None:
            raise
        if isinstance(failure, ConfigError):
            render.complain(failure.message)
            raise typer.Exit(2) from None
        # Nothing acknowledged is lost: the next start recovers from what is on disk.
        render.complain(f"stopped, the store failed: {failure}")
        raise typer.Exit(1) from None


def _failure(error: Exception) -> BatchyardError | None:
    """Return what ended the yard: the store, or a setting; alone or among what it tore down."""
    from batchyard.errors import ConfigError, StoreError  # noqa: PLC0415

    if isinstance(error, ExceptionGroup):
        return next(filter(None, map(_failure, error.exceptions)), None)
    return error if isinstance(error, ConfigError | StoreError) else None
