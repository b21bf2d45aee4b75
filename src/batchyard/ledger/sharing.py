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

_OUTAGE_MAX_US = limits.DAY_US  # no call is in flight for longer


def divide(
    owner: str,
    now_us: int,
    lease_us: int,
    wants: Sequence[Want],
    accounts: Mapping[str, str],
    lease_now: int | None = None,
    *,
    is_concurrent: bool,
    knows_leases: Callable[[], bool],
) -> Callable[[Transaction], dict[str, Granted]]:
    """Return what asks for slots, and writes what the worker tells; see `Ledger.share`.

    After an outage the leases of all have ended, and whoever asks first must not have everything:
    until `knows_leases`, what others have is theirs, whatever their leases are.
    """
    lease_now = now_us if lease_now is None else lease_now

    def part(t: Transaction, want: Want) -> Granted:
        since = lease_now if knows_leases() else lease_now - _OUTAGE_MAX_US
        return _part(t, owner, want, since, now_us // limits.SLOTS_TURN_US)

    def run(t: Transaction) -> dict[str, Granted]:
        granted = {}
        for want in sorted(wants, key=lambda want: want.pool):  # locks in one order
            bound: dict[str, Any] = {"pool": want.pool, "owner": owner}
            found = part(t, want)
            if is_concurrent and max(found.slots, want.busy) > _has(t, bound, lease_now):
                t.change("share_lock", {"pool": want.pool})
                found = part(t, want)
            if want.is_new and found.slots and not any(peer.slots for peer in found.peers):
                row = t.one("share_known", bound | {"lease_now": lease_now})
                found = found._replace(known=None if row is None else row["told"])
            granted[want.pool] = found
            # What it still fills is its own until its calls have ended.
            bound |= {"slots": max(found.slots, want.busy), "lease_us": lease_us}
            t.change("share_put", bound | {"note": want.note, "told": want.told})
        for pool in sorted(row["pool"] for row in t.all("shares_of_owner", {"owner": owner})):
            if pool not in granted:
                bound = {"pool": pool, "owner": owner}
                t.change("share_hand_on", bound | {"kept_us": limits.LEARNED_KEPT_US})
                t.change("share_drop", bound)
        if accounts:
            common = {"owner": owner, "now": now_us}
            told = sorted(accounts.items())  # locks in one order
            t.each("account_put", [common | {"batch": b, "told": text} for b, text in told])
        return granted

    return run


def _has(t: Transaction, bound: Mapping[str, Any], lease_now: int) -> int:
    """Return how many slots a worker has: who asks for no more takes none that another may take.

    So the many who keep what they have do not wait for each other each second. Of a row that soon
    runs out none are counted: they may be others' before this transaction ends.
    """
    row = t.one("share_of_owner", {**bound, "lease_now": lease_now + limits.LEASE_US // 2})
    return 0 if row is None else int(row["slots"])


def _part(t: Transaction, owner: str, want: Want, lease_now: int, turn: int) -> Granted:
    """Return a worker's part of a pool, by what the others have now."""
    rows = t.all("shares_of_others", {"pool": want.pool, "owner": owner, "lease_now": lease_now})
    peers = tuple(Peer(row["owner"], row["slots"], row["told"], row["note"]) for row in rows)
    if want.slots < limits.SLOTS_DIVIDED_MIN and not want.go_round:
        return Granted(_undivided(want, peers), peers)
    others = {peer.owner: peer.slots for peer in peers}
    return Granted(fairness.slots_of(owner, want.slots, others, turn), peers)


def _undivided(want: Want, others: Sequence[Peer]) -> int:
    """Return how many of few slots a worker may fill: one has them as long as it has work there.

    One with a trouble there, such as a network that only it has lost, leaves them to one without.
    What its calls still fill is missing to the other until they have ended.

    Args:
        want: of the worker.
        others: the other workers with work there.
    """
    if want.note is not None and any(peer.note is None for peer in others):
        return 0
    rivals = sum(peer.slots for peer in others if peer.note is None or want.note is not None)
    if 2 * rivals >= want.slots:
        return 0
    return max(0, want.slots - sum(peer.slots for peer in others))


def read_tellings(t: Transaction, lease_now: int) -> list[Telling]:
    """Return what the workers that live have told, by pool and owner."""
    names = ("pool", "owner", "slots", "note", "told", "left_us")
    rows = t.all("tellings", {"lease_now": lease_now})
    return [Telling(*(row[name] for name in names)) for row in rows]
