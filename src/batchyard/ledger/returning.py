"""How shards are given back: by who leaves, or for who has died.

What was in flight in a process that has ended without a word was called, or was about to be; what
became of that nobody knows. It is counted with the accounts of its batch, before the rows forget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchyard import limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from batchyard.ledger import Held
    from batchyard.ledger.sql import Transaction

APART = {"apart_from": limits.FAILURES_TO_SET_APART}


def release(owner: str, *, has_died: bool, has_left: bool) -> Callable[[Transaction], None]:
    """Return what gives back all that an owner holds; see `Ledger.release`."""
    bound = {"owner": owner}

    def run(t: Transaction) -> None:
        if not has_left:
            t.change("cut_of_owner", bound)
        t.change("release_dead" if has_died else "release", bound | APART)
        t.change("share_hand_on", bound | {"pool": "", "kept_us": limits.LEARNED_KEPT_US})
        t.change("shares_drop", bound)

    return run


def fences(owner: str, held: Iterable[Held]) -> list[dict[str, Any]]:
    """Return what names attempts of an owner."""
    return [
        {"owner": owner, "batch": each.batch, "idx": each.index, "attempt": each.attempt}
        for each in held
    ]


def give_back(owner: str, held: Sequence[Held]) -> Callable[[Transaction], None]:
    """Return what frees some attempts of an owner; see `Ledger.give_back`."""

    def run(t: Transaction) -> None:
        t.each("give_back", [fence | APART for fence in fences(owner, held)])

    return run


def take_back(lease_now: int, but: str) -> Callable[[Transaction], int]:
    """Return what frees the shards whose lease has ended; see `Ledger.take_back`."""
    bound = {"lease_now": lease_now, "owner": but}

    def run(t: Transaction) -> int:
        t.change("shares_expire", bound)
        t.change("cut_late", bound)
        return t.change("take_back", bound | APART)

    return run
