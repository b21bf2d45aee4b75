"""`batchyard retry`: a further round for what failed, by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from batchyard.cli import render
from batchyard.cli.ending import WORDS
from batchyard.cli.exits import guarded
from batchyard.cli.status import Folder, Json, opened
from batchyard.cli.terms import Budget, Going, Notify, OnOrphan, Retries, Webhook
from batchyard.price import dollars

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.client.running.offers import Offer
    from batchyard.client.running.pipeline import Pipeline
    from batchyard.client.running.session import Session

Canceled = Annotated[bool, typer.Option("--canceled", help="Send again what was canceled, too.")]
WithChange = Annotated[
    bool,
    typer.Option(
        "--with-change", help="Render again, from the edited templates, what needs a fix."
    ),
]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="With --with-change: another output limit for them.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before sending.")]


def retry(  # noqa: PLR0913, PLR0917 - the options of the command
    folder: Folder,
    canceled: Canceled = False,
    with_change: WithChange = False,
    max_tokens: MaxTokens = None,
    yes: Yes = False,
    budget: Budget = None,
    retries: Retries = None,
    on_orphan: OnOrphan = None,
    notify: Notify = None,
    webhook: Webhook = None,
    as_json: Json = False,
) -> None:
    """Send once more everything that failed and can succeed: shows what it may cost, and asks."""
    going = Going(
        budget=budget, retries=retries, on_orphan=on_orphan, notify=notify, webhook=webhook
    )
    with guarded(folder):
        from batchyard.cli import work  # noqa: PLC0415 - so that other commands start quickly
        from batchyard.client.problems import InputError  # noqa: PLC0415
        from batchyard.client.running import changed, offers  # noqa: PLC0415
        from batchyard.client.running.rounds import CANCELED  # noqa: PLC0415

        going.check()
        opened(folder)
        if max_tokens is not None and not with_change:
            raise InputError("--max-tokens belongs to --with-change")
        also = frozenset({CANCELED} if canceled else ())
        room: list[int | None] = [0]  # a run that is under way is finished as it was approved

        def prepare(session: Session) -> None:
            session.check_requests()
            if canceled:
                session.files.cancel.unlink(missing_ok=True)
            if not with_change and all(shard.is_settled for shard in session.state.shards):
                offer = offers.make(session.files, session.state, also)
                room[0] = offer.micros
                approve(folder, offer, yes=yes, as_json=as_json)
            if with_change:
                text = changed.begin(session, max_tokens=max_tokens)
                if as_json:
                    render.emit({"event": "notice", "text": text})
                else:
                    render.say(text)

        def first(pipeline: Pipeline) -> None:
            pipeline.repeat(also, room=room[0])

        work.go_on(folder, as_json=as_json, going=going, prepare=prepare, first=first)


def approve(folder: Path, offer: Offer, *, yes: bool, as_json: bool) -> None:
    """Show what a round would send and cost; return when it may be sent.

    Raises:
        InputError: it may not, or there is nobody to ask.
    """
    from batchyard.client.problems import InputError  # noqa: PLC0415

    if not offer.again:
        return
    cost = "cost unknown" if offer.micros is None else f"at most {dollars(offer.micros)}"
    kinds = ", ".join(f"{count:,} {WORDS.get(kind, kind)}" for kind, count in offer.again.items())
    if as_json:
        render.emit({"event": "offer", "again": dict(offer.again), "micros": offer.micros})
    else:
        render.say(f"again {folder.name}: {kinds}; {cost}")
    if yes:
        return
    if as_json or not render.can_ask():
        raise InputError("nothing was sent: there is nobody to ask, and --yes is not given")
    if not render.ask("proceed?"):
        raise InputError("nothing was sent")
