"""The help of commands with many options: in sections, so that the few that matter are found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer.core

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter

SECTIONS = {
    "What is sent": (
        "--from", "--prompt", "--model", "--max-tokens", "--system", "--schema", "--param",
        "--tools", "--thinking", "--override", "--cache", "--beta",
    ),
    "How documents are read": ("--id", "--encoding", "--stdin"),
    "What is written": ("--out", "--format", "--suffix", "--name", "--audit"),
    "Where it runs": (
        "--base-url", "--local", "--upstream", "--models", "--shard-size",
        "--delete-after-download",
    ),
    "Before anything is sent": ("--sample", "--pilot", "--yes", "--show", "--compare"),
    "Money, failures, and the end": (
        "--budget", "--no-budget", "--retries", "--on-orphan", "--notify", "--webhook",
    ),
    "When the folder holds a run already": (
        "--fresh", "--allow-prompt-change", "--allow-model-change", "--allow-options-change",
        "--allow-input-change", "--allow-server-change",
    ),
    "Other": ("--json", "--help"),
}  # fmt: skip


_EXAMPLE = """
For example:
  batchyard {name} notes/ --prompt report.md.j2 --model claude-opus-4-6 \\
    --max-tokens 2000 --out reports
"""


class Sectioned(typer.core.TyperCommand):
    """A command whose options are shown in sections; each option is in one of them."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the arguments, then the sections that have an option of this command."""
        arguments: list[tuple[str, str]] = []
        options: dict[str, tuple[str, str]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param.param_type_name == "argument":
                arguments.append(record)
            else:
                options[max(param.opts, key=len)] = record
        with formatter.section("Arguments"):
            formatter.write_dl(arguments)
        for title, names in SECTIONS.items():
            shown = [options.pop(name) for name in names if name in options]
            if shown:
                with formatter.section(title):
                    formatter.write_dl(shown)
        assert not options, f"in no section: {', '.join(options)}"
        formatter.write(_EXAMPLE.format(name=self.name))
