"""What one more round by hand would send, and what it may cost: before anybody is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard import wire
from batchyard.client.problems import InputError
from batchyard.client.results import again
from batchyard.client.running import billing, budget, rounds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchyard.client.running.folder import Files
    from batchyard.client.running.journal import State
    from batchyard.client.running.session import Session
    from batchyard.model import Billing


@dataclass(frozen=True, slots=True)
class Offer:
    """The next round: how many documents of each class, and its ceiling in micro-dollars.

    `prices` are the shares of the classes that were charged before. Amounts are None when a price
    is not known. `also` are the classes of it that are otherwise not sent again.
    """

    again: Mapping[str, int]
    micros: int | None
    prices: Mapping[str, int | None]
    also: frozenset[str] = frozenset()


def prepare(session: Session, *, canceled: bool = False, now: bool = False) -> Offer | None:
    """Return what a round by hand would send; None while a run is under way, which only goes on.

    Nothing is recorded: it is for `begin` to do when somebody has agreed.

    Args:
        session: of the run.
        canceled: whether what was canceled is asked for.
        now: one by one, instead of as a batch.

    Raises:
        InputError: the run is under way, and what is asked for is for what it leaves; or `now` has
            no use at its server.
    """
    if now:
        session.check_at_once()
    if not session.state.is_settled:
        if canceled:
            raise InputError(
                f"the run is not at its end; `batchyard attach {session.files.out}` goes on with "
                "it, and then what was canceled can be sent again"
            )
        return None
    state = session.state if now else session.state_behind
    charges: Billing = "standard" if now else billing.presumed(state)
    return make(session.files, state, charges, canceled=canceled)


def begin(session: Session, offer: Offer, *, now: bool = False) -> None:
    """Make ready for a round that was approved; whoever goes on with the run sends it."""
    session.files.cancel.unlink(missing_ok=True)  # the word of an earlier round
    if not now:
        session.go_back()
    elif offer.again:
        session.go_at_once()


def make(files: Files, state: State, charges: Billing, *, canceled: bool = False) -> Offer:
    """Return what a round would send; changes nothing.

    Args:
        files: of the run.
        state: of a run whose shards are all collected.
        charges: how its server charges.
        canceled: whether what was canceled is asked for.

    Raises:
        ValueError: a file of the run is not what it was.
    """
    config, also = state.config, rounds.on_request(state, canceled=canceled)
    assert config is not None

    def ceiling(params: bytes) -> int | None:
        return budget.ceiling(wire.decode(params), charges)

    found = rounds.gather(
        files,
        state,
        again.Settings(betas=config.betas),
        requests_max=config.shard_requests,
        also=also,
        bound=rounds.Bound(ceiling),
    )
    total = found.micros
    if total is not None and found.left_micros is not None:
        total += found.left_micros
    elif found.left:
        total = None
    kinds = {kind: found.again.get(kind, 0) + found.left.get(kind, 0)
             for kind in sorted({*found.again, *found.left})}  # fmt: skip
    return Offer(kinds, total, found.left_prices, also)
