"""The command line: which commands there are. What they need is imported when they run."""

from __future__ import annotations

from typing import Annotated

import typer

from batchyard import __version__
from batchyard.cli import check as check_command
from batchyard.cli import diff as diff_command
from batchyard.cli import doctor as doctor_command
from batchyard.cli import emulate as emulate_command
from batchyard.cli import export as export_command
from batchyard.cli import importing as import_command
from batchyard.cli import probe as probe_command
from batchyard.cli import render
from batchyard.cli import retry as retry_command
from batchyard.cli import run as run_command
from batchyard.cli import serve as serve_command
from batchyard.cli import show as show_command
from batchyard.cli import status as status_command


def _print_version(is_asked: bool) -> None:
    if is_asked:
        render.say(f"batchyard {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="batchyard",
    help="Message Batches for any model: a report for every document, and the server for it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def common(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Message Batches for any model: a report for every document, and the server for it."""


app.command("run")(run_command.run)
app.command("plan")(run_command.plan)
app.command("attach")(status_command.attach)
app.command("retry")(retry_command.retry)
app.command("status")(status_command.status)
app.command("ls")(status_command.ls)
app.command("cancel")(status_command.cancel)
app.command("report")(status_command.report)
app.command("show")(show_command.show)
app.command("diff")(diff_command.diff)
app.command("export")(export_command.export)
app.command("import")(import_command.import_batches)
app.command("doctor")(doctor_command.doctor)
app.command("serve")(serve_command.serve)
app.command("emulate")(emulate_command.emulate)
app.command("probe")(probe_command.probe)
app.command("check")(check_command.check)


def main() -> None:
    """Run the command line."""
    app()
