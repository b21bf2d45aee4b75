"""Who is next: the shares of workspaces and the weights of batches. Pure arithmetic.

The measure everywhere is requests in flight divided by weight, least first: max-min fairness of
slots, not of dispatch counts, so that hour-long requests cannot occupy everything. It keeps no
counters that could drift.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from batchyard import limits
from batchyard.errors import InvalidRequest, shown
from batchyard.model import Priority

if TYPE_CHECKING:
    from collections.abc import Mapping

PRIORITIES: tuple[Priority, ...] = get_args(Priority)
_WEIGHTS: Mapping[Priority, float] = {"low": 1 / 8, "normal": 1.0, "high": 8.0}
# A batch weighs double with each halving of the time that it has left, below this much of it.
_URGENT_US = 6 * limits.HOUR_US
_URGENCY_MAX = 64.0


@dataclass(frozen=True, slots=True)
class Share:
    """What a workspace may have of a pool."""

    weight: float = 1.0
    """Slots beside a workspace of weight 1, while both have work."""
    most: float = 1.0
    """The part of the slots that it never exceeds, even when nobody else waits."""

    def slots(self, of: int, least: int = 1) -> int:
        """Return how many of so many slots it may fill: one at least.

        Workers that divide slots each round down, to `least` 0: all together never exceed it then.
        """
        return of if self.most >= 1.0 else max(least, int(of * self.most))


@dataclass(frozen=True, slots=True)
class Shares:
    """The share of each workspace."""

    named: Mapping[str, Share] = field(default_factory=dict)
    others: Share = Share()

    def of(self, workspace: str) -> Share:
        """Return the share of a workspace."""
        return self.named.get(workspace, self.others)


EQUAL = Shares()


def read_priority(text: str | None) -> Priority:
    """Return the priority that a create call asks for.

    Raises:
        InvalidRequest: it is none.
    """
    if text is None:
        return "normal"
    if text not in PRIORITIES:
        raise InvalidRequest(
            f"batchyard-priority: {shown(text)} is none; {', '.join(PRIORITIES)} are allowed",
            should_retry=False,
        )
    return text


def weight_of(priority: Priority, left_us: int) -> float:
    """Return the weight of a batch beside the others of its workspace.

    A weight and no strict order: a batch of low priority gets less, and never nothing.

    Args:
        priority: of the batch.
        left_us: until it expires.
    """
    urgency = _URGENT_US / left_us if left_us > 0 else _URGENCY_MAX
    return _WEIGHTS[priority] * min(max(urgency, 1.0), _URGENCY_MAX)


def slots_of(owner: str, slots: int, others: Mapping[str, int], turn: int = 0) -> int:
    """Return how many of the slots of a pool one of its workers may fill.

    Each worker records what it is granted, in one transaction with reading what the others have.
    So all together never have more than there are.

    Args:
        owner: the worker.
        slots: of the pool, over all workers.
        others: what each of the others has.
        turn: goes up with time: with fewer slots than workers each has one now and then.
    """
    owners = sorted({owner, *others})
    fair, odd = divmod(slots, len(owners))
    if (owners.index(owner) + turn) % len(owners) < odd:
        fair += 1
    return max(0, min(fair, slots - sum(others.values())))
