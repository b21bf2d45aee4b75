"""`status`, `ls`, `cancel`: work with a run from another process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchyard.cli import render
from batchyard.cli.exits import guarded
from batchyard.cli.terms import Going

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchyard.client.running.folder import Files
    from batchyard.client.running.journal import Shard, State

Folder = Annotated[Path, typer.Argument(help="Output folder of the run.")]
RunOrBatch = Annotated[
    Path,
    typer.Argument(help="Output folder of the run, or the id of a batch of a batchyard server."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines.")]
Cache = Annotated[
    str | None,
    typer.Option(
        metavar="BATCH_ID",
        help="Show what prompt caching did for this ended batch of a batchyard server instead.",
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        help="The server of --cache or of a batch, without /v1. [default: $ANTHROPIC_BASE_URL]",
        show_default=False,
    ),
]
Why = Annotated[
    bool,
    typer.Option(
        "--why",
        help="Say what is waited for, and when it ends; for the id of a batch always.",
    ),
]
_PATH_CHARS_MAX = 60  # a longer one is shown whole, and moves what follows


def status(
    folder: RunOrBatch = Path(),
    as_json: Json = False,
    cache: Cache = None,
    base_url: BaseUrl = None,
    why: Why = False,
) -> None:
    """Show how far a run is, or what a batch waits for, without changing anything."""
    with guarded():
        if cache is None and folder.name.startswith("msgbatch_") and not folder.exists():
            from batchyard.cli import why as explaining  # noqa: PLC0415

            explaining.show(folder.name, base_url, as_json=as_json)
            return
        if cache is not None:
            from batchyard.cli import caching  # noqa: PLC0415

            caching.show(cache, base_url, as_json=as_json)
            return
        from batchyard.client.problems import InputError  # noqa: PLC0415
        from batchyard.client.results import classes  # noqa: PLC0415

        if base_url is not None:
            raise InputError("--base-url goes with a batch; a run knows its server")
        files, state = opened(folder)
        live = {} if state.finished_us is not None else _live(files, state)
        is_running = files.is_running()
        shards = [shard for shard in state.shards if shard.phase != "replaced"]
        if as_json:
            for shard in shards:
                at = live.get(shard.index)
                told = {
                    "shard": shard.index,
                    "phase": shard.phase,
                    "round": shard.round,
                    "batch": shard.batch,
                    "requests": shard.requests,
                    "done": None if at is None else at.done,
                    "paused": {} if at is None else at.paused,
                    "counts": classes.counted(shard.classes),
                }
                render.emit(told | {"why": at and at.shape} if why else told)
            return
        render.fitted(f"{files.out}: {_headline(state, is_running=is_running)}")
        for shard in shards:
            at = live.get(shard.index)
            render.fitted(f"  {_shard_line(shard, at)}")
            if why and at is not None:
                for line in at.why:
                    render.fitted(f"    {line}")
        reasons = {
            f"{name} paused: {why}" for at in live.values() for name, why in at.paused.items()
        }
        for reason in sorted(reasons):
            render.fitted(f"  {reason}")
        if state.finished_us is None and not is_running:
            render.fitted(f"not running; `{render.program()} attach {files.out}` continues")


def ls(as_json: Json = False) -> None:
    """List the runs that were started here, the latest first: state, counts, cost."""
    with guarded():
        from batchyard.client.running import registry  # noqa: PLC0415
        from batchyard.price import dollars  # noqa: PLC0415

        listed = [registry.look(known) for known in registry.known()]
        if as_json:
            for each in listed:
                render.emit(
                    {
                        "path": str(each.known.path),
                        "started_at": each.known.started_at,
                        "state": each.word,
                        "documents": each.documents,
                        "counts": each.counts,
                        "paid_micros": each.paid_micros,
                    }
                )
            return
        width = min(_PATH_CHARS_MAX, max((len(str(e.known.path)) for e in listed), default=0))
        for each in listed:
            parts = [each.word]
            if each.documents:
                parts.append(render.count(each.documents, "document"))
                parts += each.told
                cost = each.paid_micros
                unknown = "cost unknown" if each.told else "cost not known yet"
                parts.append(unknown if cost is None else f"paid {dollars(cost)}")
            line = ", ".join(parts)
            render.fitted(f"{each.known.started_at[:16]}Z  {each.known.path!s:<{width}}  {line}")


def cancel(folder: Folder, as_json: Json = False) -> None:
    """Cancel the batches of a run. Answers that were finished are kept and saved."""
    with guarded(folder):
        from batchyard.cli import work  # noqa: PLC0415
        from batchyard.client.running import durable  # noqa: PLC0415

        files, state = opened(folder)
        if state.finished_us is not None:
            render.notice(f"{folder} is finished; there is nothing to cancel", as_json=as_json)
            return
        durable.write(files.cancel, [])
        if files.is_running():
            text = f"the process that works on {folder} cancels and collects at its next look"
            render.notice(text, as_json=as_json)
            return
        work.go_on(folder, as_json=as_json, going=Going())


def opened(folder: Path) -> tuple[Files, State]:
    """Return the run in a folder.

    Raises:
        InputError: there is none.
    """
    from batchyard.client.problems import InputError  # noqa: PLC0415
    from batchyard.client.running.folder import Files  # noqa: PLC0415

    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}; `batchyard ls` lists the known runs")
    files = Files(folder)
    state = files.read_state()
    if not state.run:
        raise InputError(f"{folder} holds no run; `batchyard ls` lists the known ones")
    return files, state


@dataclass(frozen=True, slots=True)
class _Live:
    """What the server says of a shard: requests done, and why upstreams are not called."""

    done: int
    paused: Mapping[str, str]
    why: Sequence[str] = ()
    shape: Mapping[str, object] | None = None
    """The same for programs; None where the server does not tell it."""


def _live(files: Files, state: State) -> dict[int, _Live]:
    """Return what the server says of each open shard; nothing of those it does not speak of."""
    from batchyard.cli import why as explaining  # noqa: PLC0415
    from batchyard.client.running import local  # noqa: PLC0415
    from batchyard.client.running.journal import Phase  # noqa: PLC0415

    waiting = [shard for shard in state.shards if shard.phase is Phase.CREATED]
    config = state.config
    if not waiting or config is None:
        return {}
    url, key = config.base_url, None
    if config.local:
        running = local.find_running(files.yard)
        if running is None:
            return {}
        url, key = running.url, local.KEY
    from batchyard.client.answers import ApiError, Unreachable  # noqa: PLC0415
    from batchyard.client.api import Api  # noqa: PLC0415
    from batchyard.client.problems import InputError  # noqa: PLC0415

    try:
        api = Api(url, key, pause=lambda _: True)
    except InputError as error:
        render.complain(f"the server was not asked: {error.message}")
        return {}
    found = {}
    for shard in waiting:
        assert shard.batch is not None
        try:
            batch, _ = api.retrieve(shard.batch)
            progress = api.progress(shard.batch)
        except (ApiError, Unreachable) as error:
            render.complain(error.message)
            break
        found[shard.index] = (
            _Live(
                progress.results,
                progress.paused,
                explaining.lines(progress),
                explaining.shape(progress),
            )
            if progress
            else _Live(batch.request_counts.done, {})
        )
    api.close()
    return found


def _headline(state: State, *, is_running: bool) -> str:
    from batchyard.client.results import classes  # noqa: PLC0415
    from batchyard.client.running import registry  # noqa: PLC0415

    shards = [shard for shard in state.shards if shard.phase != "replaced"]
    over = sum(1 for shard in shards if shard.is_settled)
    parts = [registry.word(state, is_running=is_running), render.count(state.documents, "document")]
    parts += classes.told(state.classes)
    return ", ".join([*parts, f"{over} of {len(shards)} shards collected"])


def _shard_line(shard: Shard, live: _Live | None) -> str:
    words = {
        "planned": "not sent",
        "intended": "sent, answer not known",
        "created": "at the server",
        "ended": "ended",
        "downloaded": "results downloaded",
        "collected": "collected",
        "withdrawn": "canceled",
    }
    parts = [f"shard {shard.index}", render.count(shard.requests, "request"), words[shard.phase]]
    if shard.why == "pilot":
        parts[0] += " (pilot)"
    elif shard.round:
        parts[0] += f" (round {shard.round})"
    if live is not None:
        parts.append(f"{live.done:,} done")
    if shard.classes:
        from batchyard.client.results import classes  # noqa: PLC0415

        parts.append(", ".join(classes.told(shard.classes)))
    if shard.batch:
        parts.append(shard.batch)
    return "   ".join(parts)
