"""The slots of one pool: one model of one upstream."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchyard.dispatch.shard import Request, ShardRun
    from batchyard.upstream import Upstream


class Pool:
    """Work that shares a number of slots. The currency is requests in flight, not shards.

    A further shard is wanted as soon as fewer unsent requests are left than fill the slots twice,
    however many stragglers of earlier shards are still out: opening one takes as long as a few
    quick calls.
    """

    def __init__(self, name: str, upstream: Upstream | None, slots: int) -> None:
        self.name = name
        self.upstream = upstream
        self.slots = slots
        self.busy = 0
        self.paused_until_s = 0.0
        self.pause_reason: str | None = None
        self._shards: deque[ShardRun] = deque()

    @property
    def unsent(self) -> int:
        """Return how many requests wait for a slot."""
        return sum(len(shard.unsent) for shard in self._shards)

    @property
    def is_hungry(self) -> bool:
        """Whether another shard should be claimed.

        A paused pool with nothing left to try with must claim too, or it would stay paused.
        """
        return (self.pause_reason is None or not self.busy) and self.unsent < 2 * self.slots

    def add(self, shard: ShardRun) -> None:
        """Queue a shard."""
        self._shards.append(shard)

    def take(self) -> tuple[ShardRun, Request] | None:
        """Return the next request to send."""
        while self._shards:
            shard = self._shards[0]
            request = shard.take()
            if request is not None:
                return shard, request
            self._shards.popleft()
        return None

    def pause(self, reason: str, until_s: float) -> None:
        """Stop calling the upstream for a while."""
        self.pause_reason = reason
        self.paused_until_s = until_s

    def resume(self) -> None:
        """Note that the upstream accepts us again."""
        self.pause_reason = None
        self.paused_until_s = 0.0
