"""The slots of one pool: one model of one upstream."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.dispatch.parking import Parking
from batchyard.dispatch.pausing import Pausing
from batchyard.dispatch.priming import Priming
from batchyard.dispatch.turns import Turns
from batchyard.errors import shown

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from batchyard.dispatch.gate import Gate
    from batchyard.dispatch.shard import Request, ShardRun
    from batchyard.ledger import Turn
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

    def __init__(
        self,
        name: str,
        upstream: Upstream | None,
        slots: int,
        turns: Turns | None = None,
        now_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.name = name
        self.upstream = upstream
        self.slots = slots
        """Those that this process may fill; where there are several, they divide those of all."""
        self.turns = Turns() if turns is None else turns
        self.busy = self.aside = 0
        """Requests in flight, and those of them that wait and have left their slot to others."""
        self.pausing = Pausing()
        self.newest_taken = -1
        """The number of the newest call that the upstream took."""
        self.is_dry = False
        """Whether the ledger had no shard of it when it was last looked at; what is new wakes."""
        self.drained: set[Turn] = set()
        """Batches of which the ledger had no more shards, until leases are renewed: another worker
        may have given one back."""
        self._refusals = 0
        self._refusal = ""
        self._now_s = now_s
        self._taken, self._counted_s, self._ahead = 0, now_s(), 0
        self._priming = Priming()
        self._parking = Parking()
        self.gate: Gate
        """Where calls wait for a permit; given by the worker."""
        self.on_release: Callable[[Pool], object] = lambda _: None
        """Called when requests that waited for a prompt cache may be sent."""

    @property
    def unsent(self) -> int:
        """Return how many requests wait for a slot."""
        return self.turns.unsent

    @property
    def may_step_aside(self) -> bool:
        """Whether a request that waits can leave its slot to others.

        When it goes on, the gate sees to it that no more calls are made than there are slots.
        """
        return self.aside < self.slots and self.gate.may_repeat

    @property
    def is_hungry(self) -> bool:
        """Whether another shard should be claimed.

        A paused pool with nothing left to try with must claim too, or it would stay paused.
        """
        if self._parking.size >= limits.PARKED_BYTES_MAX:
            return False
        return self.unsent < 2 * self.slots if self.pause_reason is None else not self.unsent

    def is_lacking(self, shard: ShardRun) -> bool:
        """Whether its batch may soon have nothing to send, while others have."""
        if self.pause_reason is not None or len(shard.unsent) > 2 * len(shard.inflight):
            return False
        claim = shard.claim
        return not claim.is_only and claim.turn not in self.drained and self.turns.is_lacking(shard)

    def is_short(self, shard: ShardRun) -> bool:
        """Whether to look for more shards, when a request of this one has been taken."""
        if self.is_dry:
            return False
        if len(shard.unsent) > 2 * self.slots:  # then neither can be, and this is nearly always so
            return False
        return self.is_hungry or self.is_lacking(shard)

    def add(self, shard: ShardRun) -> None:
        """Queue a shard."""
        self.turns.add(shard)

    def shards_ahead(self) -> int:
        """Return how many shards are sent in `CLAIM_AHEAD_S`, as fast as of late."""
        now_s = self._now_s()
        seconds = now_s - self._counted_s
        if seconds >= limits.CLAIM_AHEAD_S:  # free slots that are filled at once are no measure
            sent = self._taken / seconds * limits.CLAIM_AHEAD_S
            self._ahead = int(sent / limits.SHARD_REQUESTS)
            self._taken, self._counted_s = 0, now_s
        return self._ahead

    def take(self, task: asyncio.Task[None]) -> tuple[ShardRun, Request] | None:
        """Return the next request to send, which `task` will do."""
        for shard in self.turns.order(self.slots, one_each=self.pause_reason is not None):
            if not shard.unsent:
                continue
            request = self._next(shard, task) if shard.unsent[0].marks else shard.take(task)
            if request is not None:
                self._taken += 1
                self.turns.took(shard)
                return shard, request
        return None

    def _next(self, shard: ShardRun, task: asyncio.Task[None]) -> Request | None:
        """Take the next request of a shard that need not wait for a prompt cache to be written."""
        unsent = shard.unsent
        while unsent and unsent[0].marks:
            key = self._priming.admit(unsent[0], self._now_s())
            if key is None:
                break
            self._parking.park(shard, key)
        return shard.take(task)

    @property
    def is_held_up(self) -> bool:
        """Whether requests wait for another one, and there is room for shards beside theirs."""
        return bool(self.parked) and self.is_hungry

    @property
    def parked(self) -> int:
        """Return how many requests wait for another one to write their prefix to the cache."""
        return len(self._parking)

    def sent(self, request: Request) -> None:
        """Note that a request is sent to the upstream now."""
        if request.marks:
            self._priming.sent(request, self._now_s())

    def begun(self, request: Request) -> None:
        """Note that the answer to a request begins: what it writes to the cache can be read."""
        if request.marks:
            self._release(self._priming.begun(request))

    def delayed(self, request: Request, seconds: float) -> None:
        """Note that a request failed, and is sent again after `seconds`."""
        if request.marks:
            self._hand_on(self._priming.delayed(request, seconds))

    def left(self, request: Request) -> None:
        """Note that a request is not in flight any more, whatever has become of it."""
        if request.marks:
            self._hand_on(self._priming.left(request))

    def tick(self) -> None:
        """Let go on what has waited long enough, or for nobody any more. Once a second is right."""
        self.turns.tick()
        self._release(self._priming.overdue(self._now_s()))
        self._hand_on(key for key in self._parking.keys if not self._priming.is_primed(key))

    def _release(self, keys: Iterable[bytes]) -> None:
        self._tell(sum(self._parking.release(key) for key in keys))

    def _hand_on(self, keys: Iterable[bytes]) -> None:
        self._tell(sum(self._parking.release_one(key) for key in list(keys)))

    def _tell(self, released: int) -> None:
        if released:
            self.on_release(self)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to remember: no work, no call, no trouble."""
        return not self.busy and not self.turns.batches and self.trouble is None

    @property
    def trouble(self) -> str | None:
        """Return why requests wait that would otherwise run."""
        if self.pause_reason is not None:
            return self.pause_reason
        return self._refusal if self._refusals >= _REFUSALS_SHOWN else None

    @property
    def pause_reason(self) -> str | None:
        """Return why the upstream is not called now; None when it is."""
        return self.pausing.reason

    def pause(self, reason: str, until_s: float, refused: Request | None = None) -> None:
        """Stop calling the upstream until `until_s`: it refuses us.

        Args:
            reason: for people.
            until_s: monotonic seconds.
            refused: the request that it would not take.
        """
        if self.pause_reason is None:
            log.warning("paused pool=%s: %s", shown(self.name), shown(reason, 300))
        self.pausing.begin(reason, until_s, refused)

    def refused(self, reason: str) -> None:
        """Note a call that came to nothing, and that is not counted: no connection, no capacity."""
        self._refusals += 1
        self._refusal = reason

    def answered(self, number: int = -1) -> None:
        """Note that the upstream took a call: it accepts us, and can be reached.

        Args:
            number: of the call, where it tells that calls are not refused as such.
        """
        self._refusals = 0
        self.newest_taken = max(self.newest_taken, number)
        if self.pause_reason is not None:
            self.pausing.end()
            self.on_release(self)
