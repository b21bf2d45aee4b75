"""Requests that are sent again later: they wait without a slot and without a task.

A request that is set aside leaves what is in flight and stays with its shard, which ends it with
the rest when it is stopped. When its time has come it is unsent again, behind the others. Pure.
"""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from batchyard import limits

if TYPE_CHECKING:
    from batchyard.dispatch.shard import Request, ShardRun
    from batchyard.ledger import Turn
    from batchyard.upstream import Call

K = TypeVar("K")

_REQUEST_BYTES = 2_048  # of memory, beside its params
_SHARDS_MAX = 256  # that stay open for such requests alone: each may keep a file open


class Refused(NamedTuple):
    """When a request was refused, as numbers of calls of its pool."""

    first: int
    since: int
    """The first time that was not counted as a try of the request."""


class PutBack(msgspec.Struct, eq=False):
    """A request that is called, and what is known of earlier calls. Stays as it is while aside."""

    request: Request
    call: Call
    """The next one."""
    tries: int = 0
    counted: int = 0
    """Those of them that use up a try of the request."""
    failed: int | None = None
    """The number of its first call that failed."""
    is_own: bool = False
    """Whether one failed later, too, while others were taken."""
    refused: Refused | None = None
    """Where the upstream would not have taken it (401, 402, 403)."""


class Aside:
    """The requests of one pool that are set aside."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, ShardRun, PutBack]] = []
        self._numbers = count()
        self._shards, self._turns = Counter[int](), Counter["Turn"]()
        self._size = self._refused = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_s(self) -> float | None:
        """Return when the first of them is due; None where there is none."""
        return self._heap[0][0] if self._heap else None

    @property
    def has_refused(self) -> bool:
        """Whether the upstream would not have taken some of them."""
        return self._refused > 0

    @property
    def is_full(self) -> bool:
        """Whether so many wait that no more of their batches is to be opened."""
        return self._size >= limits.PARKED_BYTES_MAX or len(self._shards) >= _SHARDS_MAX

    def holds(self, turn: Turn) -> bool:
        """Whether requests of a batch may be here; some may be gone already."""
        return turn in self._turns

    def add(self, shard: ShardRun, back: PutBack, until_s: float, why: str) -> None:
        """Set a request in flight aside, unless it has a result.

        Args:
            shard: of the request.
            back: it.
            until_s: when it may be sent again, in monotonic seconds.
            why: what its last call came to, in a word.
        """
        if shard.set_aside(back, until_s, why):
            heappush(self._heap, (until_s, next(self._numbers), shard, back))
            self._count(shard, back, 1)

    def let_in(self, now_s: float) -> bool:
        """Let those be sent again whose time has come; return whether there were any."""
        found = False
        while self._heap and self._heap[0][0] <= now_s:
            found = self._let_in_first() is not None or found
        return found

    def let_in_one(self) -> ShardRun | None:
        """Make the one that has waited longest the next of its shard, which is returned."""
        while self._heap:
            shard = self._let_in_first(next_=True)
            if shard is not None:
                return shard
        return None

    def forget(self) -> None:
        """Drop those that have a result."""
        for _, _, shard, back in self._heap:
            if not shard.is_aside(back):
                self._count(shard, back, -1)
        self._heap = [entry for entry in self._heap if entry[2].is_aside(entry[3])]
        heapify(self._heap)

    def _let_in_first(self, *, next_: bool = False) -> ShardRun | None:
        _, _, shard, back = heappop(self._heap)
        self._count(shard, back, -1)
        return shard if shard.let_in(back, next_=next_) else None

    def _count(self, shard: ShardRun, back: PutBack, step: int) -> None:
        self._size += step * (len(back.request.params) + _REQUEST_BYTES)
        self._refused += step * (back.refused is not None)
        _add(self._shards, id(shard), step)
        _add(self._turns, shard.claim.turn, step)


def _add(counter: Counter[K], key: K, step: int) -> None:
    counter[key] += step
    if not counter[key]:
        del counter[key]
