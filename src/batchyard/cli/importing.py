"""`batchyard import`: batches that were made elsewhere become a run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from batchyard.cli import render
from batchyard.cli.exits import Exit, guarded
from batchyard.cli.status import Json  # noqa: TC001 - the option is read from it

Names = Annotated[
    list[str],
    typer.Argument(
        metavar="BATCH_ID|FILE...",
        help="Ids of batches at the server, and files of results (JSON lines).",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the answers; it becomes a run.")]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        help="Server. [default: ANTHROPIC_BASE_URL, or the hosted API]", show_default=False
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="Whose price counts where an answer names no known model."),
]
Requests = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="What was sent: a create body, or a line for each request; then it can be retried.",
    ),
]


def import_batches(
    names: Names,
    out: Out,
    base_url: BaseUrl = None,
    model: Model = None,
    requests: Requests = None,
    as_json: Json = False,
) -> None:
    """Save the answers of batches that were made elsewhere.

    Writes a file for each, errors and a receipt; waits for a batch that has not ended. The folder
    is a run for status, report, show, export, diff and run --from.
    """
    with guarded(out if out.is_dir() else None):
        from batchyard.cli import work  # noqa: PLC0415 - so that other commands start quickly
        from batchyard.client.imported import Importer, Wanted  # noqa: PLC0415
        from batchyard.client.problems import Detached  # noqa: PLC0415
        from batchyard.client.running.folder import Files  # noqa: PLC0415
        from batchyard.clock import SystemClock  # noqa: PLC0415

        def tell(text: str) -> None:
            render.notice(text, as_json=as_json)

        wanted = Wanted(
            out=out, names=tuple(names), requests=requests, model=model, base_url=base_url
        )
        importer = Importer(wanted, clock=SystemClock(), pause=threading.Event().wait, tell=tell)
        try:
            done = importer.run()
        except KeyboardInterrupt:
            raise Detached("left, nothing is lost; the same command goes on") from None
        files = Files(out)
        work.show_end(out, files, files.read_state(), done, as_json=as_json)
    if not done.is_complete:
        raise SystemExit(Exit.NEEDS_ATTENTION)
