"""The command line: which commands there are. A command is imported when it is run or asked about.

So the list of commands stands here, not in them: its lines are what `batchyard --help` prints.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer
import typer.core

from batchyard import __version__

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter

ABOUT = "Message Batches for any model: a report for every document, and the server for it."
# Name: module below batchyard.cli, function, and what it is for in one line of 80 columns.
COMMANDS = {
    "run": ("run", "run", "Write a report for every document."),
    "plan": ("run", "plan", "Show what a run would send and cost; nothing is sent."),
    "attach": ("attach", "attach", "Come back to a run: wait for it, save its reports."),
    "collect": ("attach", "attach", "The same as attach."),
    "retry": ("retry", "retry", "Send once more what failed and can succeed."),
    "status": ("status", "status", "Show how far a run is, or a batch of a yard."),
    "ls": ("status", "ls", "List the runs of this machine, the latest first."),
    "cancel": ("status", "cancel", "Cancel the batches of a run."),
    "report": ("attach", "report", "Show again how a run ended and what it cost."),
    "show": ("show", "show", "Show one document: prompt, answer, every try, cost."),
    "diff": ("diff", "diff", "Compare two runs over the same inputs."),
    "export": ("export", "export", "Write results as JSON lines, CSV or Parquet."),
    "import": ("importing", "import_batches", "Save the answers of batches made elsewhere."),
    "doctor": ("doctor", "doctor", "Check key, server, clock, disk and installation."),
    "serve": ("serve", "serve", "Serve the Message Batches API for any model."),
    "cluster": ("cluster", "app", "Keep the workers of a yard on a Ray cluster."),
    "emulate": ("emulate", "emulate", "Emulate the API for tests: nothing is called or paid."),
    "probe": ("probe", "probe", "Ask any server the contract, point by point."),
    "check": ("check", "check", "Check a yard's data directory, without changing it."),
}
_SECTIONED = frozenset({"run", "plan"})
_BEGIN = (
    "Begin with `batchyard plan FOLDER --prompt FILE --model M --max-tokens N --out\n"
    "DIR`, which sends nothing; `--local` needs no key, and its model is simulated.\n"
    "`batchyard COMMAND --help` has the options of a command."
)


class _Commands(typer.core.TyperGroup):
    """The commands by name, each made when it is asked for."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the names in the order of the list."""
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Import a command; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            # What is suggested instead of a misspelt name is looked up here.
            self.commands = dict.fromkeys(COMMANDS, typer.core.TyperCommand("", callback=None))
            return None
        module, function, _ = COMMANDS[cmd_name]
        asked = getattr(import_module(f"batchyard.cli.{module}"), function)
        if isinstance(asked, typer.Typer):  # it has commands of its own
            return typer.main.get_command(asked)
        found = typer.Typer(add_completion=False, rich_markup_mode=None)
        found.command(cmd_name, cls=_class_of(cmd_name))(asked)
        return typer.main.get_command(found)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the list, and how to begin."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, _, about) in COMMANDS.items()])
        formatter.write(f"\n{_BEGIN}\n")


def _class_of(name: str) -> type[typer.core.TyperCommand]:
    if name not in _SECTIONED:
        return typer.core.TyperCommand
    from batchyard.cli.sections import Sectioned  # noqa: PLC0415 - only these need it

    return Sectioned


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from batchyard.cli import render  # noqa: PLC0415 - what it needs takes time to import

        render.say(f"batchyard {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="batchyard",
    help=ABOUT,
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(help=ABOUT)
def common(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run the command line."""
    app()
