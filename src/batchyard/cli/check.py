"""`batchyard check`: prove what a data directory promises, or say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchyard.cli import render
from batchyard.cli.exits import guarded
from batchyard.errors import ConfigError, DataDirectoryInUse

if TYPE_CHECKING:
    from batchyard.verify import Finding, Summary

_ERRORS, _USAGE, _IN_USE = 1, 2, 3


def check(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Data directory of a yard that is not running; with --ledger, where to keep the "
            "files of the batch.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    given_up: Annotated[
        str | None,
        typer.Option(
            "--give-up",
            metavar="BATCH",
            help="Take a batch out whose requests are lost; its files are kept aside.",
        ),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="With --give-up: the ledger that many machines share, postgresql://"
        ),
    ] = None,
    segments: Annotated[
        str | None,
        typer.Option(metavar="URL", help="With --ledger: their segments, s3://, gs:// or az://"),
    ] = None,
) -> None:
    """Check a data directory without changing it: is everything there, once, and sound?"""
    with guarded():
        try:
            if ledger is not None or segments is not None:
                _give_up_shared(ledger, segments, directory, given_up)
            else:
                _check(directory, given_up, as_json=as_json)
        except DataDirectoryInUse as error:
            render.complain(error.message)
            raise SystemExit(_IN_USE) from None
        except ConfigError as error:
            render.complain(error.message)
            raise SystemExit(_USAGE) from None


def _check(directory: Path, given_up: str | None, *, as_json: bool) -> None:
    """Check a data directory, after a batch was taken out of it if one is named.

    Raises:
        SystemExit: something does not hold.
        ConfigError, DataDirectoryInUse: it cannot be checked, or the batch not be taken out.
    """
    from batchyard import verify  # noqa: PLC0415 - `--help` starts without it

    def tell(finding: Finding) -> None:
        if as_json:
            render.emit(_object(finding))
        else:
            render.say(_line(finding))

    if given_up is not None:
        from batchyard.clock import SystemClock  # noqa: PLC0415 - brings the event loop

        kept = verify.give_up(directory, given_up, SystemClock().now_us())
        render.say(f"gave up {given_up}: its files are in {kept}")
    summary = verify.check(directory, tell)
    if as_json:
        render.emit({"event": "summary", **_fields(summary)})
    else:
        for batch in summary.lost:
            render.say(
                f"the requests of {batch} are lost: put their file back, or, once the batch is "
                f"canceled or has expired: batchyard check {directory} --give-up {batch}"
            )
        for batch in summary.redone:
            render.say(
                f"results of {batch} are damaged, and it has not ended: a yard that starts on "
                f"{directory} keeps those that are proven whole, and makes the others again"
            )
        render.say(_sentence(summary))
    if summary.errors:
        raise SystemExit(_ERRORS)


def _give_up_shared(
    ledger: str | None, segments: str | None, directory: Path, batch_id: str | None
) -> None:
    """Take a batch out of shared stores.

    Raises:
        ConfigError: it may not be, or the options do not fit together.
    """
    import asyncio  # noqa: PLC0415 - `--help` starts without these

    from batchyard import verify  # noqa: PLC0415
    from batchyard.clock import SystemClock  # noqa: PLC0415
    from batchyard.server import stores  # noqa: PLC0415

    if ledger is None or segments is None or batch_id is None:
        raise ConfigError("--give-up, --ledger and --segments go together; others are not checked")
    stores.check(ledger, segments, "all", 1)

    async def run(ledger: str, segments: str, batch_id: str) -> Path:
        clock = SystemClock()
        batches, store = stores.open_left(ledger, segments, clock)
        try:
            return await verify.give_up_shared(batches, store, directory, batch_id, clock.now_us())
        finally:
            await batches.close()

    kept = asyncio.run(run(ledger, segments, batch_id))
    render.say(f"gave up {batch_id}: its segments are in {kept}")


def _line(finding: Finding) -> str:
    where = f" {finding.where}" if finding.where else ""
    # One line, whatever the names of files hold.
    return f"{finding.level} {finding.rule}{where}: {finding.text}".replace("\n", " ")


def _object(finding: Finding) -> dict[str, object]:
    return {
        "event": "finding",
        "level": finding.level,
        "rule": str(finding.rule),
        "batch": finding.batch,
        "shard": finding.shard,
        "segment": finding.segment,
        "offset": finding.offset,
        "text": finding.text,
    }


def _fields(summary: Summary) -> dict[str, int]:
    return {
        "batches": summary.batches,
        "shards": summary.shards,
        "requests": summary.requests,
        "results": summary.results,
        "errors": summary.errors,
        "notes": summary.notes,
    }


def _sentence(summary: Summary) -> str:
    fields = _fields(summary)
    seen = ", ".join(
        f"{fields[name]:,} {name}" for name in ("batches", "shards", "requests", "results")
    )
    notes = f" ({render.count(summary.notes, 'note')})" if summary.notes else ""
    verdict = render.count(summary.errors, "error") if summary.errors else "all holds"
    return f"checked {seen}: {verdict}{notes}"
