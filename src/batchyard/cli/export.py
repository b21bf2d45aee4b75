"""`batchyard export`: the results of a run, or its requests, in another form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchyard.cli import render
from batchyard.cli.exits import guarded
from batchyard.cli.status import Folder, opened

if TYPE_CHECKING:
    from batchyard.client.results.formats import Target

Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="jsonl|csv|parquet",
        help="What is written. [default: as the ending of --to says, else jsonl]",
    ),
]
To = Annotated[
    Path,
    typer.Option(metavar="FILE", help="Where it goes; - is standard output.", show_default="-"),
]
Requests = Annotated[
    bool,
    typer.Option(
        "--batch-requests",
        help="Write what was sent instead: a line for each request, as in a create call.",
    ),
]


def export(
    folder: Folder, kind: Format = None, to: To = Path("-"), batch_requests: Requests = False
) -> None:
    """Write a run's results as JSON lines, CSV or Parquet.

    Of a run under way, what it has so far. --batch-requests writes what was sent.
    """
    with guarded():
        from batchyard.client import export as exporting  # noqa: PLC0415 - quick start-up
        from batchyard.client.problems import InputError  # noqa: PLC0415

        files, state = opened(folder)
        is_stream = str(to) == "-"
        target: Target = render.stream() if is_stream else to
        if not is_stream and not to.absolute().parent.is_dir():
            raise InputError(f"{to} cannot be written: there is no such folder")
        if batch_requests:
            if kind is not None:
                raise InputError("--batch-requests has a form of its own; --format is for results")
            count, what = exporting.write_requests(files, state, target), "request"
        else:
            each = exporting.format_of(kind, None if is_stream else to)
            if each == "parquet" and is_stream and render.is_terminal():
                raise InputError("Parquet is not for a terminal; give --to FILE")
            count, what = exporting.write(files, state, each, target), "document"
        told = f"{count:,} {what}{'' if count == 1 else 's'} of {folder}"
        if not batch_requests and count < state.documents:
            told += f"; {state.documents - count:,} have no outcome yet"
        if not is_stream or count < state.documents:
            render.aside(told if is_stream else f"{to}: {told}")
