"""The slots of one pool: one model of one upstream."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from batchyard.errors import shown

if TYPE_CHECKING:
    import asyncio

    from batchyard.dispatch.shard import Request, ShardRun
    from batchyard.upstream import Upstream

log = logging.getLogger(__name__)

# Calls in a row that came to nothing before people are told.
_REFUSALS_SHOWN = 3


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
        self._refusals = 0
        self._refusal = ""
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

    def take(self, task: asyncio.Task[None]) -> tuple[ShardRun, Request] | None:
        """Return the next request to send, which `task` will do."""
        while self._shards:
            shard = self._shards[0]
            request = shard.take(task)
            if request is not None:
                return shard, request
            self._shards.popleft()
        return None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to remember: no work, no call, no trouble."""
        return not self.busy and not self.unsent and self.trouble is None

    @property
    def trouble(self) -> str | None:
        """Return why requests wait that would otherwise run."""
        if self.pause_reason is not None:
            return self.pause_reason
        return self._refusal if self._refusals >= _REFUSALS_SHOWN else None

    def pause(self, reason: str, until_s: float) -> None:
        """Stop calling the upstream until `until_s`: it refuses us."""
        if self.pause_reason is None:
            log.warning("paused pool=%s: %s", shown(self.name), shown(reason, 300))
        self.pause_reason = reason
        self.paused_until_s = until_s

    def refused(self, reason: str) -> None:
        """Note a call that came to nothing, and that is not counted: no connection, no capacity."""
        self._refusals += 1
        self._refusal = reason
        if self._refusals == _REFUSALS_SHOWN:
            log.warning("waiting pool=%s: %s", shown(self.name), shown(reason, 300))

    def answered(self) -> None:
        """Note that the upstream took a call: it accepts us, and can be reached."""
        self._refusals = 0
        if self.pause_reason is not None:
            self.pause_reason = None
            self.paused_until_s = 0.0
