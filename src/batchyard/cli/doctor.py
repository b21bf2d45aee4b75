"""`batchyard doctor`: is everything here that a run needs?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchyard.cli import render
from batchyard.cli.exits import Exit, guarded
from batchyard.cli.status import Json  # noqa: TC001 - the option is read from it

Folder = Annotated[
    Path | None,
    typer.Argument(metavar="[OUT]", help="Output folder of a run, there already or not."),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        help="Server. [default: that of the run, ANTHROPIC_BASE_URL, or the hosted API]",
        show_default=False,
    ),
]

_LEVEL_CHARS, _NAME_CHARS = 6, 14


def doctor(folder: Folder = None, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Check key, server, clock, disk and installation.

    Costs nothing and changes nothing; exit code 3 when something fails.
    """
    has_failed = False
    with guarded():
        from batchyard.client import doctor as examining  # noqa: PLC0415 - quick start-up

        for finding in examining.examine(folder, base_url=base_url):
            has_failed = has_failed or finding.level == "FAIL"
            if as_json:
                render.emit(
                    {
                        "check": finding.name,
                        "level": finding.level,
                        "text": finding.text,
                        "remedy": finding.remedy or None,
                    }
                )
                continue
            head = f"{finding.level:<{_LEVEL_CHARS}}{finding.name:<{_NAME_CHARS}}"
            remedy = f": {finding.remedy}" if finding.remedy else ""
            render.fitted(f"{head}{finding.text}{remedy}")
    if has_failed:
        raise SystemExit(Exit.NEEDS_ATTENTION)
