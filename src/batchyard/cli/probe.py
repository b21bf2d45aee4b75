"""`batchyard probe`: what of the Message Batches contract holds at a server."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated

import typer

from batchyard.cli import render
from batchyard.cli.exits import guarded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchyard.probe.http import Target
    from batchyard.probe.session import Session

_ANY_KEY = "any"


class ProbeExit(IntEnum):
    """The exit codes of a probe. A crash is 1 too: nothing was shown to hold."""

    HOLDS = 0
    DIFFERS = 1
    USAGE = 2
    UNREACHABLE = 4


def probe(
    url: Annotated[str, typer.Argument(help="Base URL of the server, without /v1.")],
    create: Annotated[
        bool | None,
        typer.Option(
            "--create/--no-create",
            help="Make a few tiny batches. [default: only on this machine]",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model that their requests ask for.")
    ] = "claude-haiku-4-5",
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before making them.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Do not delete them at the end.")] = False,
    wait: Annotated[
        float, typer.Option(min=0, max=86_400, help="Seconds to wait for their end, at most.")
    ] = 600,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=3_600, help="Seconds that one call may take.")
    ] = 30,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each point.")
    ] = False,
) -> None:
    """Ask a server that claims Message Batches one point of the contract after the other.

    Reads only, and sends what must be refused, unless the server is on this machine or --create is
    given. The key comes from ANTHROPIC_API_KEY; on this machine any will do.
    """
    with guarded(), _exits():
        from batchyard.cli import probe_table  # noqa: PLC0415 - so that other commands start quickly
        from batchyard.probe import http, run  # noqa: PLC0415
        from batchyard.probe.session import Session  # noqa: PLC0415

        at = http.target(url)
        may_create = at.is_loopback if create is None else create
        session = Session(
            at, _key(at), model=model, timeout_s=timeout,
            pause=threading.Event().wait, say=render.aside,
        )  # fmt: skip
        run.greet(session)
        if may_create:
            _approve(at, model, asks=not (yes or at.is_loopback))
        try:
            findings = run.ask(session, may_create=may_create, wait_s=wait)
        finally:
            _clean(session, keep=keep)
        if as_json:
            for finding in findings:
                render.emit(probe_table.event(finding))
        else:
            probe_table.show(findings)
            if session.made and not keep and any(f.outcome == "differs" for f in findings):
                render.aside("--keep leaves the batches that the requests above name")
        if any(finding.fails for finding in findings):
            raise SystemExit(ProbeExit.DIFFERS)


def _key(at: Target) -> str:
    from batchyard.errors import ConfigError  # noqa: PLC0415

    key = os.environ.get("ANTHROPIC_API_KEY", "")
    if not key and at.is_loopback:
        return _ANY_KEY
    if not key:
        raise ConfigError("there is no API key: set ANTHROPIC_API_KEY")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("ANTHROPIC_API_KEY is no key: it holds more than letters and signs")
    return key


def _approve(at: Target, model: str, *, asks: bool) -> None:
    """Say what will be made and what it costs; return only when it may be."""
    from batchyard import price  # noqa: PLC0415
    from batchyard.errors import ConfigError  # noqa: PLC0415
    from batchyard.probe import batches  # noqa: PLC0415

    plan = batches.plan(model)
    cost = "unknown" if plan.micros is None else f"{price.dollars(plan.micros)} at most"
    render.aside(
        f"makes up to {plan.batches_max} batches with up to {plan.requests_max} requests at "
        f"{at.base}\n"
        f"{plan.runnable} requests can run, with {model}; the others are faulty on purpose\n"
        f"list price as batches: {cost}"
    )
    if not asks:
        return
    if not render.can_ask():
        raise ConfigError("nothing was made: there is nobody to ask, and --yes is not given")
    if not render.ask("proceed?"):
        raise ConfigError("nothing was made")


def _clean(session: Session, *, keep: bool) -> None:
    from batchyard.probe import run  # noqa: PLC0415

    if not session.made:
        return
    if keep:
        render.aside(f"kept: {', '.join(session.made)}")
        return
    number = len(session.made)
    left = run.remove(session)
    render.aside(f"deleted {number - len(left)} of the {number} batches that were made")
    if left:
        render.aside(f"left: {', '.join(left)}")


@contextmanager
def _exits() -> Iterator[None]:
    """Turn the failures of a probe into a line and its exit code."""
    from batchyard.errors import ConfigError, Unauthenticated  # noqa: PLC0415
    from batchyard.probe.run import Unreachable  # noqa: PLC0415

    try:
        yield
    except Unreachable as error:
        render.complain(error.message)
        raise SystemExit(ProbeExit.UNREACHABLE) from None
    except (ConfigError, Unauthenticated) as error:
        render.complain(error.message)
        raise SystemExit(ProbeExit.USAGE) from None
