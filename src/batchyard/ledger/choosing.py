"""Whose shards a claim takes.

Choosing reads on one connection, taking writes on the other: what was chosen may be gone by then,
and the claim takes nothing. So the lock of the writers is never held while lanes are compared.
"""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchyard import limits
from batchyard.fairness import PRIORITIES, weight_of
from batchyard.ledger import Claim, Here, Turn, columns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from batchyard.fairness import Shares
    from batchyard.ledger.sql import Row, Transaction

_LANES_KEPT = 64


@dataclass(slots=True)
class Lanes:
    """The workspaces that wait in a pool, as they were read at a moment."""

    read_us: int
    waiting: list[str]
    taken: dict[str, int]
    """By workspace: requests that are taken up and unanswered."""

    def is_good(self, now_us: int) -> bool:
        """Whether they may be used instead of reading again.

        Few are read each time. Many cost some milliseconds, and a second changes little of them;
        a workspace that begins to wait is found by its batch that has not begun.
        """
        return len(self.waiting) >= _LANES_KEPT and 0 <= now_us - self.read_us < limits.SECOND_US

    def take(self, claims: Sequence[Claim]) -> None:
        """Count what was claimed since."""
        for claim in claims:
            self.taken[claim.workspace] = self.taken.get(claim.workspace, 0) + claim.requests


def read_lanes(t: Transaction, pool: str, now_us: int) -> Lanes:
    """Return the workspaces that wait in a pool."""
    waiting = [row["workspace"] for row in t.all("lanes", {"pool": pool})]
    return Lanes(now_us, waiting, _taken_up(t, pool) if len(waiting) > 1 else {})


def choose(t: Transaction, pool: str, lanes: Lanes, shares: Shares, now_us: int) -> Turn | None:
    """Return the batch whose turn it is in a pool.

    Of the workspaces that wait, the one with the fewest requests taken up; of its batches, the one
    with the fewest running shards; each divided by weight. Looked at are the 64 batches of each
    priority that wait longest: the next ones to expire are among them.
    """
    if not lanes.waiting:
        return None
    taken = lanes.taken
    workspace = min(lanes.waiting, key=lambda w: (taken.get(w, 0) / shares.of(w).weight, w))
    bound = {"pool": pool, "workspace": workspace}
    found = [
        (priority, row)
        for index, priority in enumerate(PRIORITIES)
        for row in t.all("turns", bound | {"priority": index})
    ]
    running = _running(t, bound, [row["seq"] for _, row in found if not row["is_fresh"]])
    waiting = []
    for priority, row in found:
        seq = row["seq"]
        weight = weight_of(priority, row["expires_us"] - now_us)
        key = (running.get(seq, 0) / weight, -weight, seq)
        waiting.append((key, Turn(workspace, priority, seq)))
    return min(waiting)[1] if waiting else None


def _running(t: Transaction, bound: Mapping[str, Any], begun: Sequence[int]) -> dict[int, int]:
    """Return how many shards of batches run that have begun. Most others may be tiny, and many."""
    if not begun:
        return {}
    rows = t.all("running", {**bound, "first": min(begun), "last": max(begun)})
    return {row["seq"]: row["shards"] for row in rows}


def check(t: Transaction, pool: str, turn: Turn) -> Turn | None:
    """Return `turn` if its batch has a ready shard in the pool."""
    return turn if t.one("is_waiting", _bound(pool, turn)) else None


def fresh(
    t: Transaction, pool: str, shares: Shares, limit: int, here: Here | None = None
) -> list[Turn]:
    """Return batches that should begin in a pool, in the order in which they should.

    Args:
        t: where to look.
        pool: of the batches.
        shares: of the workspaces.
        limit: of them.
        here: what the worker has open there, see `Ledger.claim_fresh`.
    """
    here = here or Here()
    if here.batches is None:
        return _fresh(t, pool, shares, limit, here.served)
    return _begun(t, pool, shares, limit, here.served, here.batches)


def _fresh(
    t: Transaction, pool: str, shares: Shares, limit: int, served: AbstractSet[str]
) -> list[Turn]:
    """Return batches that have not begun."""
    lanes = [row["workspace"] for row in t.all("lanes_fresh", {"pool": pool})]
    lanes = [workspace for workspace in lanes if workspace not in served]
    if not lanes:
        return []
    bound = {"pool": pool, "limit": limit}
    are_few = len(lanes) <= limit
    found = {w: t.all("fresh", bound | {"workspace": w}) for w in lanes} if are_few else {}
    # Where all can be taken, or all are of one, nobody need be compared by what is taken up: that
    # is a look at each shard that runs.
    is_clear = are_few and (len(lanes) == 1 or sum(map(len, found.values())) <= limit)
    taken = {} if is_clear else _taken_up(t, pool)
    rows = {workspace: iter(each) for workspace, each in found.items()}
    queue = [(taken.get(w, 0) / shares.of(w).weight, w) for w in lanes]
    heapq.heapify(queue)
    turns: list[Turn] = []
    while queue and len(turns) < limit:
        measure, workspace = heapq.heappop(queue)
        if workspace not in rows:
            rows[workspace] = iter(t.all("fresh", bound | {"workspace": workspace}))
        row = next(rows[workspace], None)
        if row is not None:
            turns.append(Turn(workspace, PRIORITIES[row["priority"]], row["seq"]))
            more = row["n"] / shares.of(workspace).weight
            heapq.heappush(queue, (measure + more, workspace))
    return turns


def _begun(
    t: Transaction,
    pool: str,
    shares: Shares,
    limit: int,
    served: AbstractSet[str],
    open_: AbstractSet[Turn],
) -> list[Turn]:
    """Return of some workspaces a batch that is not open, whoever works on it.

    They need not all be looked at: who has nothing taken up comes first.
    """
    lanes = [row["workspace"] for row in t.all("lanes", {"pool": pool})]
    lanes = [workspace for workspace in lanes if workspace not in served]
    if len(lanes) > limit:
        taken = _taken_up(t, pool)
        lanes.sort(key=lambda w: (taken.get(w, 0) / shares.of(w).weight, w))
        del lanes[_LANES_KEPT:]
    seqs: dict[str, list[str]] = {workspace: [] for workspace in lanes}
    for turn in open_:
        seqs.get(turn.workspace, []).append(str(turn.seq))
    bounds = [
        {"pool": pool, "workspace": w, "open": json.dumps(each), "places": len(each) + 1}
        for w, each in seqs.items()
    ]
    rows = t.one_of_each("begun", bounds)
    turns = [
        Turn(workspace, PRIORITIES[row["priority"]], row["seq"])
        for workspace, row in zip(lanes, rows, strict=True)
        if row is not None
    ]
    return turns[:limit]


class Taking:
    """A transaction that takes shards, and knows them again when it is run again."""

    def __init__(self, owner: str, take: Callable[[Transaction], list[Claim]]) -> None:
        self._owner = owner
        self._take = take
        self._taken: list[Claim] = []

    def __call__(self, t: Transaction) -> list[Claim]:
        """Do it."""
        if t.again:
            # All were committed, or none: what this owner was told it had, and no more.
            kept = [claim for claim in self._taken if t.one("held", self._fence(claim))]
            if kept:
                return kept
        self._taken = self._take(t)
        return self._taken

    def _fence(self, claim: Claim) -> dict[str, str | int]:
        return {
            "owner": self._owner,
            "batch": claim.batch,
            "idx": claim.index,
            "attempt": claim.attempt,
        }


def take_by(
    owner: str, statement: str, bound: Mapping[str, Any], until: Callable[[], int]
) -> Taking:
    """Return what takes shards by a statement, with leases that end then."""
    return Taking(owner, lambda t: claims(t, t.all(statement, {**bound, "lease_us": until()})))


def take(
    owner: str, pool: str, until: Callable[[], int], limit: int, turns: Sequence[Turn]
) -> Taking:
    """Return what takes up to `limit` shards of each of these batches from a pool."""

    def run(t: Transaction) -> list[Claim]:
        taken: list[Claim] = []
        lease = {"owner": owner, "lease_us": until()}
        for turn in turns:
            bound = _bound(pool, turn) | lease | {"limit": limit}
            taken += claims(t, t.all("claim", bound))
        return taken

    return Taking(owner, run)


def claims(t: Transaction, rows: Sequence[Row]) -> list[Claim]:
    """Return the claims that rows tell of, by batch and index."""
    found = []
    for row in rows:
        batch = t.one("batch_of_shard", {"batch": row["batch"]})
        assert batch is not None  # it has shards
        found.append(
            Claim(
                batch=row["batch"],
                index=row["idx"],
                attempt=row["attempt"],
                workspace=row["workspace"],
                pool=row["pool"],
                offset=row["off"],
                length=row["len"],
                crc=row["crc"],
                requests=row["n"],
                version=batch["version"],
                betas=columns.read_betas(batch["betas"]),
                user_profile=batch["user_profile"],
                expires_us=batch["expires_us"],
                canceled=batch["cancel_us"] is not None,
                frozen=columns.load_extents(row["manifest"]),
                priority=PRIORITIES[batch["priority"]],
                seq=row["seq"],
                failures=row["failures"],
                is_only=row["n"] == batch["requests"],
            )
        )
    return sorted(found, key=lambda claim: (claim.batch, claim.index))


def _bound(pool: str, turn: Turn) -> dict[str, str | int]:
    return {
        "pool": pool,
        "workspace": turn.workspace,
        "priority": PRIORITIES.index(turn.priority),
        "seq": turn.seq,
    }


def _taken_up(t: Transaction, pool: str) -> dict[str, int]:
    rows = t.all("taken_up", {"pool": pool})
    return {row["workspace"]: row["requests"] for row in rows}
