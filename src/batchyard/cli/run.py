"""`batchyard run` and `batchyard plan`: documents in, a report for each out."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from batchyard.cli import render
from batchyard.cli.exits import guarded
from batchyard.cli.options import (
    Parameters,
    Planning,
    Showing,
    Starting,
    What,
    Where,
    grouped,
)
from batchyard.cli.outliving import outliving
from batchyard.cli.terms import Going, Piloting  # noqa: TC001 - the options are read from it

if TYPE_CHECKING:
    from batchyard.client.planning.compare import Row
    from batchyard.client.planning.plan import Plan
    from batchyard.client.run import Run
    from batchyard.client.running.journal import Config
    from batchyard.client.running.session import Session, Standing


@grouped
def run(
    what: What,
    parameters: Parameters,
    where: Where,
    planning: Planning,
    piloting: Piloting,
    going: Going,
    starting: Starting,
) -> None:
    """Write a report for every document.

    Shows the plan and asks first. The same command continues an interrupted run, and sends what
    is new to a finished one.
    """
    with guarded(what.out), outliving():
        _use_models(where.models)
        going.check()
        from batchyard.cli import work  # noqa: PLC0415 - so that other commands start quickly
        from batchyard.client.api import checked_key  # noqa: PLC0415
        from batchyard.client.running.folder import Files  # noqa: PLC0415
        from batchyard.client.running.session import Session, Standing  # noqa: PLC0415

        job = _job(what, parameters, where, starting)
        plan = job.rendered()
        config = job.config(plan)
        if not config.local and not Files(what.out).journal.exists():
            checked_key()  # before anything is shown or written
        terms = going.changes()
        if not Files(what.out).journal.exists():
            # Not entered, so that a refusal leaves no folder behind.
            first = Standing("new", plan)
            Session(what.out).check_budget(first, config, terms, pilot=piloting.pilot)

        def prepare(session: Session) -> None:
            allow = starting.allowed
            standing = session.compare(
                plan, config, fresh=starting.fresh, allow=allow, pilot=piloting.pilot
            )
            if standing.kind == "same":
                _announce(session, standing, as_json=starting.as_json)
                session.take(standing, config, terms=terms, saving=job.saving)
                return
            session.check_budget(standing, config, terms, pilot=piloting.pilot)
            settled = _approve(job, session, standing, config, where, planning, starting)
            standing = replace(standing, plan=settled)
            session.check_budget(standing, config, terms, pilot=piloting.pilot)
            session.take(standing, config, pilot=piloting.pilot, terms=terms, saving=job.saving)
            _write_preview(session, settled)

        work.go_on(
            what.out,
            as_json=starting.as_json,
            going=going,
            prepare=prepare,
            approval="if_good" if starting.yes else "ask",
        )


@grouped
def plan(
    what: What, parameters: Parameters, where: Where, planning: Planning, showing: Showing
) -> None:
    """Show what a run would send and cost. Creates no batch, costs nothing, writes nothing."""
    with guarded():
        names = showing.compare or _named(where.models)
        if names is None or showing.compare:
            _use_models(where.models)
        from batchyard.cli import planned  # noqa: PLC0415 - so that other commands start quickly

        job = _job(what, parameters, where)
        made = job.rendered()
        config = job.config(made)
        standing = _standing(what.out, made, config)
        settled = job.settled(standing.plan, sample=planning.sample)
        compared = _compared(settled, names)
        if showing.as_json:
            from batchyard.client.planning import preview  # noqa: PLC0415

            for prompt in preview.prompts(settled):
                render.emit({"event": "prompt", **asdict(prompt)})
            _show(what.out.name, settled, standing, config, where, as_json=True)
            for row in compared:
                render.emit({"event": "compare", **asdict(row)})
            return
        render.prompts(settled, whole=showing.show)
        render.say()
        planned.show(what.out.name, settled, config, standing)
        if compared:
            render.say()
            has_ceiling = not settled.unbounded
            planned.comparison(compared, has_ceiling=has_ceiling, billing=settled.billing)


def _compared(plan: Plan, names: str | None) -> list[Row]:
    """Return a row for each model of a list separated by commas; none without a list."""
    from batchyard.client.planning.compare import compare  # noqa: PLC0415

    if names is None:
        return []
    return compare(plan, [name.strip() for name in names.split(",") if name.strip()])


def _standing(out: Path, plan: Plan, config: Config) -> Standing:
    """Return what of a plan a run would send, with all that would have to be allowed for it."""
    from batchyard.client.planning.rerun import ALLOWS  # noqa: PLC0415
    from batchyard.client.problems import InputsChanged  # noqa: PLC0415
    from batchyard.client.running.session import Session, Standing  # noqa: PLC0415

    session = Session(out)  # not entered: only looks
    try:
        standing = session.compare(plan, config, allow=ALLOWS)
    except InputsChanged as error:
        return Standing("new", replace(plan, notices=[*plan.notices, *error.message.split("\n")]))
    try:
        session.compare(plan, config)
    except InputsChanged as error:
        needed = [line.strip() for line in error.message.split("\n") if "(--allow-" in line]
        return replace(standing, notes=[*needed, *standing.changes.lines()])
    return standing


def _named(path: Path | None) -> str | None:
    """Return what `--models` says where it names models to compare, and no file."""
    from batchyard import models  # noqa: PLC0415

    if path is None or path.exists():
        return None
    return str(path) if all(map(models.find, str(path).split(","))) else None


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
        hint = "; `batchyard plan --models` compares models" if _named(path) else ""
        raise InputError(error.message + hint) from None
    os.environ["BATCHYARD_MODELS"] = str(path.absolute())


def _job(what: What, parameters: Parameters, where: Where, starting: Starting | None = None) -> Run:
    """Return the run that the options name; nothing is read yet but what they point to."""
    from batchyard.client.inputs.documents import files  # noqa: PLC0415
    from batchyard.client.inputs.params import parse  # noqa: PLC0415
    from batchyard.client.run import Run  # noqa: PLC0415 - so that other commands start quickly

    return Run(
        what.out,
        docs=files(*what.patterns, id=what.id_field, encoding=what.encoding, stdin=what.stdin),
        prompt=what.prompt,
        model=what.model,
        max_tokens=what.max_tokens,
        system=what.system,
        betas=parameters.beta or (),
        suffix=what.suffix,
        returns=what.schema,
        name=what.name,
        formats=what.formats or (),
        audit=starting.audit if starting else None,
        delete_after_download=bool(starting and starting.delete_after_download),
        params=parse(parameters.param or (), parameters.tools, parameters.thinking),
        override=parameters.override,
        cache=parameters.cache,
        shard_size=where.shard_size,
        base_url=where.base_url,
        local=where.local,
        upstreams=where.upstream or (),
    )


def _announce(session: Session, standing: Standing, *, as_json: bool) -> None:
    from batchyard.client.results import classes  # noqa: PLC0415

    state = session.state
    shards = [shard for shard in state.shards if shard.phase != "replaced"]
    sent = sum(1 for shard in shards if shard.batch)
    over = sum(1 for shard in shards if shard.is_settled)
    how = "is finished" if state.finished_us is not None else "continues"
    created = f"{sent} of {len(shards)} batches created, {over} collected"
    if state.classes:
        created += f": {', '.join(classes.told(state.classes))}"
    lines = [f"{session.files.out} {how}: {created}", *standing.notes]
    for line in lines:
        render.notice(line, as_json=as_json)


def _approve(
    job: Run,
    session: Session,
    standing: Standing,
    config: Config,
    where: Where,
    planning: Planning,
    starting: Starting,
) -> Plan:
    """Show the plan and ask; return it only when it may be sent."""
    from batchyard.client.problems import InputError  # noqa: PLC0415

    is_open = starting.yes or (not starting.as_json and render.can_ask())
    plan = job.settled(standing.plan, sample=planning.sample if is_open else 0)
    if is_open and not starting.yes:
        render.prompts(plan)
        render.say(f"all of them in full: {_write_preview(session, plan)}/")
        render.say()
    _show(job.out.name, plan, standing, config, where, as_json=starting.as_json)
    if starting.yes:
        return plan
    if not is_open:
        raise InputError("nothing was sent: there is nobody to ask, and --yes is not given")
    if not render.ask("proceed?"):
        raise InputError("nothing was sent")
    return plan


def _show(
    name: str, plan: Plan, standing: Standing, config: Config, where: Where, *, as_json: bool
) -> None:
    from batchyard.cli import planned  # noqa: PLC0415
    from batchyard.client.planning.advice import explain  # noqa: PLC0415
    from batchyard.client.planning.plan import closest_model  # noqa: PLC0415
    from batchyard.client.running import local as embedded  # noqa: PLC0415

    if as_json:
        render.emit(
            {
                "event": "plan",
                "documents": plan.documents,
                "requests": len(plan.requests),
                "shards": len(plan.shards),
                "bytes": plan.size,
                "tokens": plan.tokens,
                "batch_micros": plan.batch,
                "synchronous_micros": plan.synchronous,
                "billing": plan.billing,
                "unbounded": plan.unbounded,
                "cache": explain(plan.advice),
                "changes": standing.notes,
                "notices": plan.notices,
                "skipped": plan.skipped,
                "empty": plan.empty,
                "closest_model": closest_model(plan.settings.model),
            }
        )
        return
    planned.show(name, plan, config, standing)
    if config.local and plan.billing == "simulated":
        why = "" if where.upstream else "no API key: using the simulated model; "
        render.say(f"{why}reports are placeholders")
    elif config.local and plan.batch is not None and embedded.is_hosted(config.upstreams):
        render.say("--local pays the synchronous price; without it the hosted API is half")


def _write_preview(session: Session, plan: Plan) -> Path:
    from batchyard.client.planning import preview  # noqa: PLC0415

    folder = session.files.state / "preview"
    preview.write(folder, plan)
    return folder
