"""Whose request is sent next: max-min fair slots over the shards that a pool has open. Pure.

First between workspaces, then between the batches of one: the next slot goes to the one whose
requests in flight, that one included, are the fewest divided by weight. Who has none in flight may
have so little weight that it would never be its turn; so turns are also counted, in proportion to
the weights, and it has one when it is behind all others. Nobody waits for ever, and even a single
slot goes round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

from batchyard.fairness import EQUAL, weight_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from batchyard.dispatch.shard import ShardRun
    from batchyard.fairness import Share, Shares
    from batchyard.ledger import Claim, Turn


L = TypeVar("L", bound="_Lane")


class _Lane(ABC):
    """One of those that take turns; `passed` is how far it has come, as turns over weight."""

    __slots__ = ("passed", "weight")

    def __init__(self, weight: float, peers: Iterable[_Lane]) -> None:
        self.weight = weight
        self.passed = 0.0
        self.catch_up(peers)

    def catch_up(self, peers: Iterable[_Lane]) -> None:
        """Go where the one is whose turn it is: who had nothing to send makes up for nothing."""
        behind = min((peer.passed for peer in peers if peer.unsent), default=0.0)
        self.passed = max(self.passed, behind)

    def took(self) -> None:
        self.passed += 1 / self.weight

    @property
    @abstractmethod
    def unsent(self) -> int:
        """Return how many requests wait."""

    @property
    @abstractmethod
    def inflight(self) -> int:
        """Return how many are in flight."""


class _Batch(_Lane):
    __slots__ = ("is_only", "shards", "turn")

    def __init__(self, claim: Claim, weight: float, peers: Iterable[_Lane]) -> None:
        super().__init__(weight, peers)
        self.turn, self.is_only = claim.turn, claim.is_only
        self.shards: list[ShardRun] = []
        """Those with requests that have no result, as they were opened."""

    def forget(self) -> None:
        if not all(shard.has_open for shard in self.shards):
            self.shards = [shard for shard in self.shards if shard.has_open]

    @property
    def unsent(self) -> int:
        count = 0
        for shard in self.shards:
            count += len(shard.unsent)
        return count

    @property
    def inflight(self) -> int:
        count = 0
        for shard in self.shards:
            count += len(shard.inflight)
        return count

    @property
    def fresh(self) -> int:
        return sum(shard.fresh for shard in self.shards)

    @property
    def is_lacking(self) -> bool:
        return self.fresh < 2 * max(1, self.inflight)

    @property
    def is_uncalled(self) -> bool:
        return self.unsent > 0 and not any(shard.sent or shard.inflight for shard in self.shards)


class _Workspace(_Lane):
    __slots__ = ("batches", "granted", "least", "share")

    def __init__(self, share: Share, peers: Iterable[_Lane]) -> None:
        super().__init__(share.weight, peers)
        self.share = share
        self.least = 1
        self.granted: int | None = None
        """Slots that it may fill in this worker; None where they follow from those of the pool."""
        self.batches: dict[str, _Batch] = {}

    def forget(self) -> bool:
        """Drop what has nothing open; return whether that may have more."""
        has_left = False
        for name, batch in list(self.batches.items()):
            batch.forget()
            if not batch.shards:
                del self.batches[name]
                has_left |= not batch.is_only
        return has_left

    @property
    def unsent(self) -> int:
        return sum(batch.unsent for batch in self.batches.values())

    @property
    def inflight(self) -> int:
        return sum(batch.inflight for batch in self.batches.values())

    def ready(self, slots: int) -> int:
        if self.share.most >= 1.0:
            return self.unsent
        most = self.share.slots(slots, self.least) if self.granted is None else self.granted
        return min(self.unsent, max(0, most - self.inflight))


class Turns:
    """The open shards of one pool, and whose turn it is."""

    def __init__(self, shares: Shares = EQUAL, now_us: Callable[[], int] = lambda: 0) -> None:
        """Begin with none.

        Args:
            shares: of the workspaces.
            now_us: the time from which the urgency of batches is counted.
        """
        self._shares = shares
        self._now_us = now_us
        self._workspaces: dict[str, _Workspace] = {}
        self._granted: Mapping[str, int] | None = None
        self.has_left = False
        """Whether a batch of several shards has gone: it has ended, or not been refilled."""
        self._alone: _Batch | None = None
        """The only batch there is, of a workspace that may have all slots: it is always its turn.

        Nearly all requests of a large batch are sent like that, and need no comparing.
        """

    def add(self, shard: ShardRun) -> None:
        """Take up a shard."""
        claim = shard.claim
        self._forget()
        workspace = self._workspaces.get(claim.workspace)
        if workspace is None:
            share = self._shares.of(claim.workspace)
            workspace = _Workspace(share, self._workspaces.values())
            self._divide(claim.workspace, workspace)
            self._workspaces[claim.workspace] = workspace
        elif not workspace.unsent:
            workspace.catch_up(self._workspaces.values())
        weight = weight_of(claim.priority, claim.expires_us - self._now_us())
        batch = workspace.batches.get(claim.batch)
        if batch is None:
            batch = _Batch(claim, weight, workspace.batches.values())
            workspace.batches[claim.batch] = batch
        elif not batch.unsent:
            batch.catch_up(workspace.batches.values())
        batch.weight = weight
        batch.shards.append(shard)
        self._alone = self._find_alone()

    def _find_alone(self) -> _Batch | None:
        if len(self._workspaces) != 1:
            return None
        (workspace,) = self._workspaces.values()
        if len(workspace.batches) != 1 or workspace.share.most < 1.0:
            return None
        (batch,) = workspace.batches.values()
        return batch

    def order(self, slots: int) -> Iterable[ShardRun]:
        """Return the shards that may have unsent requests, the one whose turn it is first.

        Args:
            slots: of the pool, of which a workspace may have its share only.
        """
        return self._ordered(slots) if self._alone is None else self._alone.shards

    def _ordered(self, slots: int) -> Iterator[ShardRun]:
        for workspace in _sorted([w for w in self._workspaces.values() if w.ready(slots)]):
            for batch in _sorted([b for b in workspace.batches.values() if b.unsent]):
                batch.forget()
                yield from [shard for shard in batch.shards if shard.unsent]

    def took(self, shard: ShardRun) -> None:
        """Note that a request of this shard was sent."""
        if self._alone is not None:
            return  # a batch that comes begins where this one is
        workspace = self._workspaces[shard.claim.workspace]
        workspace.took()
        workspace.batches[shard.claim.batch].took()

    def go_round(self, shard: ShardRun) -> None:
        """Let the other shards of a batch send before this one does again."""
        claim = shard.claim
        shards = self._workspaces[claim.workspace].batches[claim.batch].shards
        if len(shards) > 1:
            shards.remove(shard)
            shards.append(shard)

    def take_turns(self, shard: ShardRun) -> None:
        """Let a shard be next with requests that are sent again after one without, or vice versa.

        So neither holds up the other, however many shards there are of either kind.
        """
        claim = shard.claim
        shards = self._workspaces[claim.workspace].batches[claim.batch].shards
        if len(shards) > 1:
            repeats = bool(shard.put_back)
            for number, other in enumerate(shards):
                if other.unsent and bool(other.put_back) is not repeats:
                    if number:
                        shards.insert(0, shards.pop(number))
                    return

    @property
    def unsent(self) -> int:
        """Return how many requests wait."""
        alone = self._alone
        if alone is not None:
            return alone.unsent
        return sum(workspace.unsent for workspace in self._workspaces.values())

    @property
    def fresh(self) -> int:
        """Return how many requests wait that were never sent."""
        return sum(batch.fresh for batch in self._each())

    @property
    def has_again(self) -> bool:
        """Whether some of those that wait were sent before."""
        return any(shard.put_back for batch in self._each() for shard in batch.shards)

    def ready(self, slots: int) -> int:
        """Return how many requests could be sent now, if slots were free; see `order`."""
        return sum(workspace.ready(slots) for workspace in self._workspaces.values())

    def capped(self, slots: int) -> dict[str, int]:
        """Return the batches whose workspace fills all slots that it may have, with how many.

        Args:
            slots: of the pool.
        """
        return {
            name: workspace.inflight
            for workspace in self._workspaces.values()
            if workspace.share.most < 1.0 and workspace.unsent and not workspace.ready(slots)
            for name, batch in workspace.batches.items()
            if batch.unsent
        }

    def divide(self, granted: Mapping[str, int]) -> None:
        """Note that the slots are a part of those that there are.

        Args:
            granted: what this worker may fill for workspaces where that is not their share of them.
        """
        self._granted = granted
        for name, workspace in self._workspaces.items():
            self._divide(name, workspace)

    def _divide(self, name: str, workspace: _Workspace) -> None:
        if self._granted is not None:
            workspace.least, workspace.granted = 0, self._granted.get(name)

    def share_of(self, workspace: str) -> Share:
        """Return the share of a workspace, which may have no work here."""
        return self._shares.of(workspace)

    def limited(self) -> Iterator[tuple[str, Share, int]]:
        """Return the workspaces that have work and may not fill all slots, with those they fill."""
        for name, workspace in self._workspaces.items():
            if workspace.share.most < 1.0:
                inflight = workspace.inflight
                if inflight or workspace.unsent:
                    yield name, workspace.share, inflight

    def tick(self) -> None:
        """Weigh the batches anew: the nearer their expiry is, the more urgent they are."""
        now_us = self._now_us()
        for batch in self._each():
            if batch.shards:
                claim = batch.shards[0].claim
                batch.weight = weight_of(claim.priority, claim.expires_us - now_us)

    @property
    def batches(self) -> int:
        """Return how many batches have requests that wait or are in flight."""
        self._forget()
        return sum(len(workspace.batches) for workspace in self._workspaces.values())

    def lacking(self, most: int | None = None) -> list[Turn]:
        """Return the batches that would soon have nothing to send: they need another shard.

        Less is unsent than fills the slots twice that the batch has now. A batch of one shard is
        never among them.

        Args:
            most: of larger batches; where there are more, a workspace has but one refilled.
        """
        self._forget()
        large = [
            (workspace, batch)
            for workspace in self._workspaces.values()
            for batch in workspace.batches.values()
            if not batch.shards[-1].claim.is_only
        ]
        are_many = most is not None and len(large) > most
        return [
            batch.turn
            for workspace, batch in large
            if batch.is_lacking and not (are_many and len(workspace.batches) > 1)
        ]

    @property
    def turns(self) -> frozenset[Turn]:
        """Return the batches that may have more, as a claim asks for others."""
        self._forget()
        return frozenset(batch.turn for batch in self._each() if not batch.is_only)

    @property
    def served(self) -> frozenset[str]:
        """Return the workspaces that have something to send."""
        return frozenset(name for name, each in self._workspaces.items() if each.unsent)

    def has_uncalled(self, slots: int) -> bool:
        """Whether a batch waits for its first call, and for nothing but its turn.

        Args:
            slots: of the pool, of which a workspace may have its share only.
        """
        return any(
            batch.is_uncalled
            for workspace in self._workspaces.values()
            if workspace.ready(slots)
            for batch in workspace.batches.values()
        )

    def is_lacking(self, shard: ShardRun) -> bool:
        """Whether the batch of a shard, which has a request in flight, has as little left."""
        claim = shard.claim
        return self._workspaces[claim.workspace].batches[claim.batch].is_lacking

    def _each(self) -> Iterator[_Batch]:
        for workspace in self._workspaces.values():
            yield from workspace.batches.values()

    def _forget(self) -> None:
        for name, workspace in list(self._workspaces.items()):
            self.has_left |= workspace.forget()
            if not workspace.batches:
                del self._workspaces[name]
        self._alone = self._find_alone()


def _sorted(lanes: list[L]) -> list[L]:
    """Return lanes with something to send, the one whose turn it is first."""
    if len(lanes) < 2:
        return lanes
    behind = min(lane.passed for lane in lanes)

    def key(lane: L) -> tuple[float, float]:
        inflight = lane.inflight
        level = (inflight + 1) / lane.weight if inflight or lane.passed > behind else 0.0
        return level, lane.passed

    return sorted(lanes, key=key)
