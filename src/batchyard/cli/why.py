"""`batchyard status --why`: what a batch waits for, and when it will have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard.cli import render
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from batchyard.client.answers import Progress

_WORDS = {
    "unconfigured": "no upstream",
    "paused": "paused",
    "breaker_open": "upstream down",
    "cooling_down": "cooling down",
    "limited": "limited",
    "recording": "waiting for the disk",
    "retrying": "retrying",
    "tried_alone": "tried alone",
    "priming": "priming caches",
    "behind_share": "behind its share",
}


# Of the last requests of which a call failed: `--json` has more of them than people read.
_FAILING_MAX = 5
_FAILING_JSON_MAX = 20
_MESSAGE_CHARS_MAX = 120


def show(batch_id: str, base_url: str | None, *, as_json: bool) -> None:
    """Ask a yard of a batch, and print what it waits for."""
    from batchyard.cli.caching import key_for  # noqa: PLC0415
    from batchyard.client.api import Api  # noqa: PLC0415 - so that other commands start quickly
    from batchyard.client.problems import InputError  # noqa: PLC0415

    api = Api(base_url, key_for(base_url), pause=lambda _: True)
    try:
        api.retrieve(batch_id)
        progress = api.progress(batch_id)
    finally:
        api.close()
    if progress is None:
        raise InputError(f"{api.base_url} is not a batchyard server: no other tells what it does")
    if as_json:
        render.emit({"batch": batch_id, **shape(progress)})
        return
    head = f"{batch_id}: {progress.results:,} of {progress.requests:,} done"
    render.say(f"{head}, {progress.in_flight:,} in flight")
    for line in lines(progress):
        render.say(f"  {line}")


def shape(progress: Progress) -> dict[str, object]:
    """Return what a progress explains, for JSON."""
    return {
        "results": progress.results,
        "requests": progress.requests,
        "in_flight": progress.in_flight,
        "waiting": progress.waiting,
        "as_of": progress.as_of,
        "calls": progress.calls,
        "repeated_calls": progress.repeated_calls,
        "unknown_calls": progress.unknown_calls,
        "failed_calls": progress.failed_calls,
        "failing": progress.failing[-_FAILING_JSON_MAX:],
        "damaged": progress.damaged,
        "estimate": progress.estimate,
    }


def lines(progress: Progress) -> Sequence[str]:
    """Return what a progress explains, a sentence a line."""
    found = [f"damaged, shard {each.shard}: {each.detail}" for each in progress.damaged]
    for wait in progress.waiting:
        until = f" until {wait.until[11:19]} UTC" if wait.until else ""
        found.append(f"{_WORDS.get(wait.reason, wait.reason)}{until}: {wait.detail} ({wait.pool})")
    if not found and progress.processing_status != "ended":
        found.append("nothing holds it back")
    if progress.calls:
        repeated = f"{progress.calls:,} calls, {progress.repeated_calls or 0:,} of them repeated"
        if progress.unknown_calls:
            repeated += f" ({progress.unknown_calls:,} after the end of a process)"
        reasons = _counted(progress.failed_calls)
        found.append(f"{repeated}; failed: {reasons}" if reasons else repeated)
    found += _failing(progress)
    estimate = progress.estimate
    if estimate is not None:
        if estimate.ends_at is None:
            found.append(f"end not known: {estimate.basis}")
        else:
            found.append(f"ends about {estimate.ends_at[11:19]} UTC ({estimate.basis})")
    return found


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{shown(why)} ({count:,}x)" for why, count in reasons.items())


def _failing(progress: Progress) -> Iterator[str]:
    """Return the last requests of which calls failed and no result is known, a sentence each.

    In the past tense: all may go well by now, and after a restart they may have their results.
    """
    open_ = [each for each in progress.failing if not each.is_over]
    for each in open_[-_FAILING_MAX:]:
        often = "once" if each.tries == 1 else f"{each.tries:,} times"
        if len(each.reasons) > 1:
            often += f", {_counted(each.reasons)}"
        said = shown(each.message, _MESSAGE_CHARS_MAX)
        yield f"failed {often}: {shown(each.custom_id)}: {shown(each.reason)}: {said}"
    if len(open_) > _FAILING_MAX:
        yield f"failed: {len(open_) - _FAILING_MAX:,} more of late"
