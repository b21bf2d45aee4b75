"""How several workers divide the slots of their pools, and what they tell of each other.

The row by which a worker asks for slots is renewed each second. It also carries what the worker
knows of the pool: the other workers learn from it, and any server process explains by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchyard import fairness, limits
from batchyard.ledger import Granted, Peer, Telling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from batchyard.ledger import Want
    from batchyard.ledger.sql import Transaction


def divide(
    owner: str,
    now_us: int,
    lease_us: int,
    wants: Sequence[Want],
    accounts: Mapping[str, str],
    *,
    is_concurrent: bool,
) -> Callable[[Transaction], dict[str, Granted]]:
    """Return what asks for slots, and writes what the worker tells; see `Ledger.share`."""

    def run(t: Transaction) -> dict[str, Granted]:
        granted = {}
        for want in sorted(wants, key=lambda want: want.pool):  # locks in one order
            bound: dict[str, Any] = {"pool": want.pool, "owner": owner}
            if is_concurrent:
                t.change("share_lock", {"pool": want.pool})
            rows = t.all("shares_of_others", bound | {"lease_now": now_us})
            peers = tuple(Peer(row["owner"], row["slots"], row["told"]) for row in rows)
            others = {peer.owner: peer.slots for peer in peers}
            turn = now_us // limits.SLOTS_TURN_US
            if want.slots >= limits.SLOTS_DIVIDED_MIN:
                slots = fairness.slots_of(owner, want.slots, others, turn)
            else:
                slots = _undivided(want, [(row["slots"], row["note"]) for row in rows])
            granted[want.pool] = Granted(slots, peers)
            # What it still fills is its own until its calls have ended.
            bound |= {"slots": max(slots, want.busy), "lease_us": lease_us}
            t.change("share_put", bound | {"note": want.note, "told": want.told})
        for row in t.all("shares_of_owner", {"owner": owner}):
            if row["pool"] not in granted:
                t.change("share_drop", {"pool": row["pool"], "owner": owner})
        if accounts:
            common = {"owner": owner, "now": now_us}
            told = sorted(accounts.items())  # locks in one order
            t.each("account_put", [common | {"batch": b, "told": text} for b, text in told])
        return granted

    return run


def _undivided(want: Want, others: Sequence[tuple[int, str | None]]) -> int:
    """Return how many of few slots a worker may fill: one has them as long as it has work there.

    One with a trouble there, such as a network that only it has lost, leaves them to one without.
    What its calls still fill is missing to the other until they have ended.

    Args:
        want: of the worker.
        others: slots and trouble of each other worker with work there.
    """
    if want.note is not None and any(note is None for _, note in others):
        return 0
    rivals = sum(slots for slots, note in others if note is None or want.note is not None)
    if 2 * rivals >= want.slots:
        return 0
    return max(0, want.slots - sum(slots for slots, _ in others))


def read_tellings(t: Transaction, now_us: int) -> list[Telling]:
    """Return what the workers that live have told, by pool and owner."""
    names = ("pool", "owner", "slots", "note", "told", "left_us")
    rows = t.all("tellings", {"lease_now": now_us})
    return [Telling(*(row[name] for name in names)) for row in rows]
