"""`batchyard run` and `batchyard plan`: documents in, a report for each out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchyard import limits
from batchyard.cli import render
from batchyard.cli.exits import guarded

if TYPE_CHECKING:
    from batchyard.client.journal import Config
    from batchyard.client.plan import Plan
    from batchyard.client.session import Session

Source = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders and globs of text; a .jsonl or .csv file is a document per row.",
        show_default=False,
    ),
]
Prompt = Annotated[
    Path,
    typer.Option(help="Jinja2 template of the prompt; {{ text }}, {{ name }}, {{ path }}."),
]
System = Annotated[Path | None, typer.Option(help="Template of the system prompt.")]
Model = Annotated[str, typer.Option(help="Model, as the server knows it.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Output tokens of a report, at most.")]
Out = Annotated[Path, typer.Option(help="Folder for the reports; an earlier run is continued.")]
IdField = Annotated[
    str | None, typer.Option("--id", help="Column that names a row. [default: id, or its number]")
]
Suffix = Annotated[str, typer.Option(help="Suffix of the reports.")]
BaseUrl = Annotated[
    str | None,
    typer.Option(help="Server. [default: ANTHROPIC_BASE_URL, or the hosted API]"),
]
Local = Annotated[bool, typer.Option("--local", help="Start a server for this run.")]
Upstreams = Annotated[
    list[str] | None,
    typer.Option(
        "--upstream",
        metavar="NAME=URL",
        help="Model endpoint of the local server. [default: the hosted API with a key, else a "
        "simulated model]",
    ),
]
Betas = Annotated[
    list[str] | None, typer.Option("--beta", help="Value of the anthropic-beta header.")
]
Models = Annotated[
    Path | None,
    typer.Option(
        "--models",
        envvar="BATCHYARD_MODELS",
        metavar="FILE",
        help="Table of models over the built-in one: caps, rules, prices.",
    ),
]
ShardSize = Annotated[int, typer.Option(help="Requests in one batch, at most.")]
Json = Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")]


def run(  # noqa: PLR0913, PLR0917 - the options of the command
    source: Source,
    prompt: Prompt,
    model: Model,
    max_tokens: MaxTokens,
    out: Out,
    system: System = None,
    id_field: IdField = None,
    suffix: Suffix = ".md",
    base_url: BaseUrl = None,
    local: Local = False,
    upstream: Upstreams = None,
    beta: Betas = None,
    shard_size: ShardSize = limits.RUN_BATCH_REQUESTS_DEFAULT,
    models: Models = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before sending.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew; the old state is kept beside the new.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a report for every document. The same command continues an interrupted run."""
    with guarded(out):
        _use_models(models)
        from batchyard.cli import work  # noqa: PLC0415 - so that other commands start quickly
        from batchyard.client.api import checked_key  # noqa: PLC0415
        from batchyard.client.folder import Files  # noqa: PLC0415

        plan, config = _planned(
            source, prompt, model, max_tokens, out, system, id_field, suffix, base_url,
            local, upstream, beta, shard_size,
        )  # fmt: skip

        if not config.local and not Files(out).journal.exists():
            checked_key()  # before anything is shown or written

        def prepare(session: Session) -> None:
            if session.check(plan, config, fresh=fresh):
                _announce(session, as_json=as_json)
                return
            _approve(plan, config, out, chosen=bool(upstream), yes=yes, as_json=as_json)
            session.begin(plan, config, fresh=fresh)

        work.go_on(out, as_json=as_json, prepare=prepare)


def plan(  # noqa: PLR0913, PLR0917 - the options of the command
    source: Source,
    prompt: Prompt,
    model: Model,
    max_tokens: MaxTokens,
    out: Out,
    system: System = None,
    id_field: IdField = None,
    suffix: Suffix = ".md",
    base_url: BaseUrl = None,
    local: Local = False,
    upstream: Upstreams = None,
    beta: Betas = None,
    shard_size: ShardSize = limits.RUN_BATCH_REQUESTS_DEFAULT,
    models: Models = None,
    show: Annotated[bool, typer.Option("--show", help="Print the first prompt.")] = False,
) -> None:
    """Show what a run would send and cost. Sends nothing, writes nothing."""
    with guarded():
        _use_models(models)
        from batchyard.client import local as embedded  # noqa: PLC0415

        planned, config = _planned(
            source, prompt, model, max_tokens, out, system, id_field, suffix, base_url,
            local, upstream, beta, shard_size,
        )  # fmt: skip
        render.plan_rows(
            out.name, planned, config, is_simulated=embedded.is_simulated(config.upstreams)
        )
        if show:
            render.say()
            render.say(planned.first_prompt)


def _use_models(path: Path | None) -> None:
    """Lay the table of models at `path` over the built-in one, here and in a server of this run."""
    if path is None:
        return
    from batchyard import models  # noqa: PLC0415
    from batchyard.client.problems import InputError  # noqa: PLC0415
    from batchyard.errors import ConfigError  # noqa: PLC0415

    try:
        models.use(path)
    except ConfigError as error:
        raise InputError(error.message) from None
    os.environ["BATCHYARD_MODELS"] = str(path.absolute())


def _planned(  # noqa: PLR0913, PLR0917 - the options of the command
    source: list[str],
    prompt: Path,
    model: str,
    max_tokens: int,
    out: Path,
    system: Path | None,
    id_field: str | None,
    suffix: str,
    base_url: str | None,
    local: bool,
    upstream: list[str] | None,
    beta: list[str] | None,
    shard_size: int,
) -> tuple[Plan, Config]:
    from batchyard.client.documents import files  # noqa: PLC0415
    from batchyard.client.run import Run  # noqa: PLC0415 - so that other commands start quickly

    run = Run(
        out,
        docs=files(*source, id=id_field),
        prompt=prompt,
        model=model,
        max_tokens=max_tokens,
        system=system,
        betas=beta or (),
        suffix=suffix,
        shard_size=shard_size,
        base_url=base_url,
        local=local,
        upstreams=upstream or (),
    )
    planned = run.plan()
    return planned, run.config(planned)


def _announce(session: Session, *, as_json: bool) -> None:
    from batchyard.client import collect  # noqa: PLC0415

    state = session.state
    sent = sum(1 for shard in state.shards if shard.batch)
    over = sum(1 for shard in state.shards if shard.is_settled)
    how = "is finished" if state.finished_us is not None else "continues"
    created = f"{sent} of {len(state.shards)} batches created, {over} collected"
    kinds = collect.tally(state.shards)
    if kinds:
        created += " (" + ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) + ")"
    text = f"{session.files.out} {how}: {created}"
    if as_json:
        render.emit({"event": "notice", "text": text})
    else:
        render.say(text)


def _approve(
    plan: Plan, config: Config, out: Path, *, chosen: bool, yes: bool, as_json: bool
) -> None:
    """Show the plan and ask; return only when it may be sent."""
    from batchyard.client import local as embedded  # noqa: PLC0415
    from batchyard.client.plan import closest_model  # noqa: PLC0415
    from batchyard.client.problems import InputError  # noqa: PLC0415

    is_simulated = embedded.is_simulated(config.upstreams)
    if as_json:
        render.emit(
            {
                "event": "plan",
                "documents": plan.documents,
                "shards": len(plan.shards),
                "bytes": plan.size,
                "tokens": plan.tokens,
                "batch_micros": plan.batch,
                "synchronous_micros": plan.synchronous,
                "skipped": plan.skipped,
                "empty": plan.empty,
                "closest_model": closest_model(plan.settings.model),
            }
        )
    else:
        render.plan_rows(out.name, plan, config, is_simulated=is_simulated)
        if is_simulated:
            why = "" if chosen else "no API key: using the simulated model; "
            render.say(f"{why}reports are placeholders")
        elif config.local and plan.batch is not None and embedded.is_hosted(config.upstreams):
            render.say("--local pays the synchronous price; without it the hosted API is half")
    if yes:
        return
    if as_json or not render.can_ask():
        raise InputError("nothing was sent: there is nobody to ask, and --yes is not given")
    if not render.ask("proceed?"):
        raise InputError("nothing was sent")
