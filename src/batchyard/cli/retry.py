"""`batchyard retry`: a further round for what failed, by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard.cli import render
from batchyard.cli.exits import guarded
from batchyard.cli.options import Again, Back, grouped
from batchyard.cli.outliving import outliving
from batchyard.cli.status import opened
from batchyard.cli.terms import Going  # noqa: TC001 - the options are read from it
from batchyard.price import dollars

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.client.running.offers import Offer
    from batchyard.client.running.pipeline import Pipeline
    from batchyard.client.running.session import Session


@grouped
def retry(back: Back, again: Again, going: Going) -> None:
    """Send once more everything that failed and can succeed: shows what it may cost, and asks."""
    folder, as_json = back.folder, back.as_json
    with guarded(folder), outliving():
        from batchyard.cli import work  # noqa: PLC0415 - so that other commands start quickly
        from batchyard.client.problems import InputError  # noqa: PLC0415
        from batchyard.client.running import changed, offers  # noqa: PLC0415

        going.check()
        opened(folder)
        if again.max_tokens is not None and not again.with_change:
            raise InputError("--max-tokens belongs to --with-change")
        if again.with_change and (again.now or again.canceled):
            raise InputError(f"{'--now' if again.now else '--canceled'} excludes --with-change")
        asked: list[offers.Offer] = []

        def prepare(session: Session) -> None:
            session.check_requests()
            if again.with_change:
                change = changed.prepare(session, max_tokens=again.max_tokens)
                offer = offers.Offer({"needs_fix": change.documents}, change.micros, {})
                approve(folder, offer, yes=again.yes, as_json=as_json)
                going.agree(session)  # first, so that a kill leaves no round without them
                changed.begin(session, change)
                render.notice(change.text, as_json=as_json)
                return
            found = offers.prepare(session, canceled=again.canceled, now=again.now)
            if found is None:
                render.notice(
                    f"{folder} is under way; it goes on as it was approved", as_json=as_json
                )
                return
            approve(folder, found, yes=again.yes, as_json=as_json)
            offers.begin(session, found, now=again.now)
            asked.append(found)

        def first(pipeline: Pipeline) -> None:
            for offer in asked:
                pipeline.repeat(offer.also, room=offer.micros)

        work.go_on(folder, as_json=as_json, going=going, prepare=prepare, first=first)


def approve(folder: Path, offer: Offer, *, yes: bool, as_json: bool) -> None:
    """Show what a round would send and cost; return when it may be sent.

    Raises:
        InputError: it may not, or there is nobody to ask.
    """
    from batchyard.client.problems import InputError  # noqa: PLC0415
    from batchyard.client.results import classes  # noqa: PLC0415

    if not offer.again:
        return
    cost = "cost unknown" if offer.micros is None else f"at most {dollars(offer.micros)}"
    if as_json:
        render.emit({"event": "offer", "again": dict(offer.again), "micros": offer.micros})
    else:
        render.say(f"again {folder.name}: {classes.named(offer.again)}; {cost}")
    if yes:
        return
    if as_json or not render.can_ask():
        raise InputError("nothing was sent: there is nobody to ask, and --yes is not given")
    if not render.ask("proceed?"):
        raise InputError("nothing was sent")
