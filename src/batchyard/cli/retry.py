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
        from batchyard.client.running import billing, changed, offers  # noqa: PLC0415
        from batchyard.client.running.rounds import CANCELED  # noqa: PLC0415

        going.check()
        opened(folder)
        if again.max_tokens is not None and not again.with_change:
            raise InputError("--max-tokens belongs to --with-change")
        if again.now and again.with_change:
            raise InputError("--now excludes --with-change")
        also = frozenset({CANCELED} if again.canceled else ())
        room: list[int | None] = [0]  # a run that is under way is finished as it was approved

        def prepare(session: Session) -> None:
            session.check_requests()
            is_settled = all(shard.is_settled for shard in session.state.shards)
            if again.now:
                if not is_settled:
                    raise InputError(
                        "batches of the run are under way; --now is for what they leave"
                    )
                session.check_at_once()
            if again.with_change:
                change = changed.prepare(session, max_tokens=again.max_tokens)
                offer = offers.Offer({"needs_fix": change.documents}, change.micros, {})
                approve(folder, offer, yes=again.yes, as_json=as_json)
                changed.begin(session, change)
                if as_json:
                    render.emit({"event": "notice", "text": change.text})
                else:
                    render.say(change.text)
            elif is_settled:
                charges = "standard" if again.now else billing.presumed(session.state)
                offer = offers.make(session.files, session.state, charges, also)
                room[0] = offer.micros
                approve(folder, offer, yes=again.yes, as_json=as_json)
                if again.now:
                    session.go_at_once()
            if again.canceled:
                session.files.cancel.unlink(missing_ok=True)

        def first(pipeline: Pipeline) -> None:
            pipeline.repeat(also, room=room[0])

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
