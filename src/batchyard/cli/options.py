"""The options of the commands that send, in groups; a command is a function of some groups.

Each group is a dataclass whose fields are options. `grouped` gives a function of groups the
signature of all their options, which is what the command line is made from.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from batchyard import limits

SAMPLE_DEFAULT = 60
SAMPLE_HELP = "Requests whose tokens the server counts, for nothing; 0 sends none of them."


@dataclass(kw_only=True)
class What:
    """Documents, prompt, model, and what is asked of it."""

    source: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders and globs: text, PDF, images. A .jsonl, .csv, .tsv or .parquet "
            "file is a document per row; so is 'sql:URL QUERY'. - is standard input.",
            show_default=False,
        ),
    ] = None
    stages: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="OUT",
            help="Output folder of a finished run: its reports are documents; several times.",
        ),
    ] = None
    prompt: Annotated[
        Path,
        typer.Option(help="Jinja2 template of the prompt; {{text}}, {{name}}, {{path}}."),
    ]
    model: Annotated[str, typer.Option(help="Model, as the server knows it.")]
    max_tokens: Annotated[int, typer.Option(min=1, help="Output tokens of a report, at most.")]
    out: Annotated[Path, typer.Option(help="Folder for the reports; an earlier run is continued.")]
    system: Annotated[Path | None, typer.Option(help="Template of the system prompt.")] = None
    id_field: Annotated[
        str | None,
        typer.Option("--id", help="Column that names a row. [default: id, or its number]"),
    ] = None
    encoding: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of text files. [default: UTF-8, or what they declare]"),
    ] = None
    stdin: Annotated[
        str,
        typer.Option(metavar="jsonl|csv|tsv|text", help="What comes through standard input."),
    ] = "jsonl"
    suffix: Annotated[
        str | None,
        typer.Option(help="Suffix of the reports. [default: .md, or .json with --schema]"),
    ] = None
    name: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="Name of a report, such as '{{ id }}.md'. [default: as the document]",
        ),
    ] = None
    schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON Schema that every answer has to match."),
    ] = None
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="md|json|jsonl|csv|parquet",
            help="How answers are written; several times. [default: a file for each]",
        ),
    ] = None

    @property
    def patterns(self) -> list[str]:
        """Return all sources, as `files` takes them."""
        return [*(self.source or ()), *(f"run:{out}" for out in self.stages or ())]


@dataclass(kw_only=True)
class Parameters:
    """Further parameters of the requests."""

    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=JSON",
            help="A parameter of every request, such as temperature=0.5; several times.",
        ),
    ] = None
    tools: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON list of the tools of every request.")
    ] = None
    thinking: Annotated[
        str | None, typer.Option(metavar="N", help="Tokens to think with; or adaptive, disabled.")
    ] = None
    override: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD", help="Column with a JSON object of parameters for its row alone."
        ),
    ] = None
    cache: Annotated[
        str,
        typer.Option(
            metavar="auto|off|5m|1h",
            help="Cache what all requests begin with: if it is long enough (auto), for 5m or 1h.",
        ),
    ] = "off"
    beta: Annotated[
        list[str] | None, typer.Option("--beta", help="Value of the anthropic-beta header.")
    ] = None


@dataclass(kw_only=True)
class Where:
    """The server."""

    base_url: Annotated[
        str | None, typer.Option(help="Server. [default: ANTHROPIC_BASE_URL, or the hosted API]")
    ] = None
    local: Annotated[bool, typer.Option("--local", help="Start a server for this run.")] = False
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            "--upstream",
            metavar="NAME=URL",
            help="Model endpoint of the local server. [default: the hosted API with a key, else a "
            "simulated model]",
        ),
    ] = None
    shard_size: Annotated[int, typer.Option(help="Requests in one batch, at most.")] = (
        limits.RUN_BATCH_REQUESTS_DEFAULT
    )
    models: Annotated[
        Path | None,
        typer.Option(
            "--models",
            envvar="BATCHYARD_MODELS",
            metavar="FILE",
            help="Table of models over the built-in one: caps, rules, prices. For `plan` also "
            "names of models, A,B: as --compare.",
        ),
    ] = None


@dataclass(kw_only=True)
class Back:
    """A run that is there, and how it is told of."""

    folder: Annotated[Path, typer.Argument(help="Output folder of the run.")]
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False


@dataclass(kw_only=True)
class Moving:
    """Where its server is now."""

    base_url: Annotated[
        str | None,
        typer.Option(help="The address of the server, if it is another than when the run began."),
    ] = None
    allow_server_change: Annotated[
        bool,
        typer.Option(
            "--allow-server-change", help="Also when batches of the run are at the old address."
        ),
    ] = False


@dataclass(kw_only=True)
class Approving:
    """What follows a pilot."""

    approve: Annotated[
        bool, typer.Option("--approve", help="Send the rest after a pilot, whatever it showed.")
    ] = False


@dataclass(kw_only=True)
class Again:
    """What one more round by hand takes in."""

    canceled: Annotated[
        bool, typer.Option("--canceled", help="Send again what was canceled, too.")
    ] = False
    with_change: Annotated[
        bool,
        typer.Option(
            "--with-change", help="Render again, from the edited templates, what needs a fix."
        ),
    ] = False
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="With --with-change: another output limit for them.")
    ] = None
    now: Annotated[
        bool,
        typer.Option(
            "--now", help="Ask for them one by one, at once, at the list price, not as a batch."
        ),
    ] = False
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before sending.")] = False


@dataclass(kw_only=True)
class Planning:
    """How the plan is made."""

    sample: Annotated[int, typer.Option(min=0, metavar="N", help=SAMPLE_HELP)] = SAMPLE_DEFAULT


@dataclass(kw_only=True)
class Showing:
    """What `plan` shows besides."""

    show: Annotated[bool, typer.Option("--show", help="Print the prompts in full.")] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Print prompts, plan and comparison as JSON lines.")
    ] = False
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C", help="Models that the same requests are priced and checked for."
        ),
    ] = None


@dataclass(kw_only=True)
class Starting:
    """How `run` begins, and what it may find changed."""

    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before sending.")] = False
    audit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the audit record goes. [default: OUT/.batchyard/audit.jsonl]",
        ),
    ] = None
    delete_after_download: Annotated[
        bool,
        typer.Option(
            "--delete-after-download", help="Delete the server's copy when all is on disk."
        ),
    ] = False
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew; the old state is kept beside the new.")
    ] = False
    allow_prompt_change: Annotated[
        bool, typer.Option("--allow-prompt-change", help="The templates may have changed.")
    ] = False
    allow_model_change: Annotated[
        bool, typer.Option("--allow-model-change", help="The model may be another one.")
    ] = False
    allow_options_change: Annotated[
        bool, typer.Option("--allow-options-change", help="Parameters may be others.")
    ] = False
    allow_input_change: Annotated[
        bool, typer.Option("--allow-input-change", help="Documents may have changed.")
    ] = False
    allow_server_change: Annotated[
        bool, typer.Option("--allow-server-change", help="The server may be another one.")
    ] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False

    @property
    def allowed(self) -> frozenset[str]:
        """Return the kinds of change that need no further leave."""
        prefix, suffix = "allow_", "_change"
        return frozenset(
            each.name.removeprefix(prefix).removesuffix(suffix)
            for each in fields(self)
            if each.name.startswith(prefix) and getattr(self, each.name)
        )


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command of all options of the groups that `function` takes."""
    groups = {name: kind for name, kind in get_type_hints(function).items() if name != "return"}
    options: list[inspect.Parameter] = []
    for kind in groups.values():
        hints = get_type_hints(kind, include_extras=True)
        options += [
            inspect.Parameter(
                each.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if each.default is MISSING else each.default,
                annotation=hints[each.name],
            )
            for each in fields(kind)
        ]

    @functools.wraps(function)
    def command(**given: Any) -> None:
        function(
            **{
                name: kind(**{each.name: given[each.name] for each in fields(kind)})
                for name, kind in groups.items()
            }
        )

    del command.__wrapped__  # the signature is another one
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {option.name: option.annotation for option in options}
    return command
