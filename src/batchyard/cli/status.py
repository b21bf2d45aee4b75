"""`attach`, `status`, `ls`, `cancel`, `report`: work with a run from another process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchyard.cli import render
from batchyard.cli.exits import Exit, guarded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchyard.client.folder import Files
    from batchyard.client.journal import Shard, State

Folder = Annotated[Path, typer.Argument(help="Output folder of the run.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines.")]
_PATH_CHARS_MAX = 60  # a longer one is shown whole, and moves what follows


def attach(folder: Folder, as_json: Json = False) -> None:
    """Come back to a run: wait for it, and save its reports."""
    with guarded(folder):
        from batchyard.cli import work  # noqa: PLC0415 - so that other commands start quickly

        _opened(folder)
        work.go_on(folder, as_json=as_json)


def status(folder: Folder = Path(), as_json: Json = False) -> None:
    """Show how far a run is, without changing anything."""
    with guarded():
        from batchyard.client import collect  # noqa: PLC0415

        files, state = _opened(folder)
        live = {} if state.finished_us is not None else _live(files, state)
        is_running = files.is_running()
        if as_json:
            for shard in state.shards:
                render.emit(
                    {
                        "shard": shard.index,
                        "phase": shard.phase,
                        "batch": shard.batch,
                        "requests": shard.requests,
                        "done": live[shard.index].done if shard.index in live else None,
                        "paused": live[shard.index].paused if shard.index in live else {},
                        "counts": collect.tally([shard]),
                    }
                )
            return
        render.say(f"{files.out}: {_headline(state, is_running=is_running)}")
        for shard in state.shards:
            render.say(f"  {_shard_line(shard, live.get(shard.index))}")
        reasons = {
            f"{name} paused: {why}" for at in live.values() for name, why in at.paused.items()
        }
        for reason in sorted(reasons):
            render.say(f"  {reason}")
        if state.finished_us is None and not is_running:
            render.say(f"not running; `{render.program()} attach {files.out}` continues")


def ls() -> None:
    """List the runs that were started here, the latest first."""
    with guarded():
        from batchyard.client import registry  # noqa: PLC0415
        from batchyard.client.folder import Files  # noqa: PLC0415
        from batchyard.client.problems import JournalError  # noqa: PLC0415

        runs = registry.known()
        width = min(_PATH_CHARS_MAX, max((len(str(known.path)) for known in runs), default=0))
        for known in runs:
            try:
                state = Files(known.path).read_state()
                headline = _headline(state, is_running=False) if state.run else "gone"
            except (JournalError, OSError):
                headline = "not readable"
            render.say(f"{known.started_at[:16]}  {known.path!s:<{width}}  {headline}")


def cancel(folder: Folder, as_json: Json = False) -> None:
    """Cancel the batches of a run. Answers that were finished are kept and saved."""
    with guarded(folder):
        from batchyard.cli import work  # noqa: PLC0415
        from batchyard.client import durable  # noqa: PLC0415

        files, state = _opened(folder)
        if state.finished_us is not None:
            render.say(f"{folder} is finished; there is nothing to cancel")
            return
        durable.write(files.cancel, [])
        if files.is_running():
            render.say(f"the process that works on {folder} cancels and collects at its next look")
            return
        work.go_on(folder, as_json=as_json)


def report(folder: Folder, as_json: Json = False) -> None:
    """Show again how a finished run ended and what it cost."""
    with guarded():
        from batchyard.cli import work  # noqa: PLC0415
        from batchyard.client import receipt  # noqa: PLC0415
        from batchyard.client.problems import InputError  # noqa: PLC0415

        files, state = _opened(folder)
        done = receipt.read(files)
        if state.finished_us is None or done is None:
            raise InputError(f"{folder} is not finished; `batchyard attach {folder}` continues")
        work.show_end(folder, files, state, done, as_json=as_json)
        if not done.is_complete:
            raise SystemExit(Exit.NEEDS_ATTENTION)


def _opened(folder: Path) -> tuple[Files, State]:
    from batchyard.client.folder import Files  # noqa: PLC0415
    from batchyard.client.problems import InputError  # noqa: PLC0415

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


def _live(files: Files, state: State) -> dict[int, _Live]:
    """Return what the server says of each open shard; nothing of those it does not speak of."""
    from batchyard.client import local  # noqa: PLC0415
    from batchyard.client.journal import Phase  # noqa: PLC0415

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
            _Live(progress.results, progress.paused)
            if progress
            else _Live(batch.request_counts.done, {})
        )
    api.close()
    return found


def _headline(state: State, *, is_running: bool) -> str:
    shards = state.shards
    over = sum(1 for shard in shards if shard.is_settled)
    if state.finished_us is not None:
        word = "finished"
    else:
        word = "under way" if is_running else "not finished"
    requests = sum(shard.requests for shard in shards)
    plural = "" if requests == 1 else "s"
    parts = [word, f"{requests:,} document{plural}", *_kinds(shards)]
    return ", ".join([*parts, f"{over} of {len(shards)} shards collected"])


def _kinds(shards: Sequence[Shard]) -> list[str]:
    from batchyard.client import collect  # noqa: PLC0415

    return [f"{count:,} {kind}" for kind, count in collect.tally(shards).items()]


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
    plural = "" if shard.requests == 1 else "s"
    parts = [f"shard {shard.index}", f"{shard.requests:,} request{plural}", words[shard.phase]]
    if live is not None:
        parts.append(f"{live.done:,} done")
    if shard.classes:
        parts.append(", ".join(_kinds([shard])))
    if shard.batch:
        parts.append(shard.batch)
    return "   ".join(parts)
