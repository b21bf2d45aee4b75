"""The slots of one pool: one model of one upstream."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.dispatch.aside import Aside
from batchyard.dispatch.parking import Parking
from batchyard.dispatch.pausing import Pausing
from batchyard.dispatch.priming import Priming
from batchyard.dispatch.turns import Turns
from batchyard.errors import shown
from batchyard.ledger import Here

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence

    from batchyard.dispatch.aside import PutBack
    from batchyard.dispatch.gate import Gate
    from batchyard.dispatch.line import Timer
    from batchyard.dispatch.shard import Request, ShardRun
    from batchyard.ledger import Claim, Turn
    from batchyard.upstream import Upstream

log = logging.getLogger(__name__)

# Where in a queue those that try are taken from, as requests that fail may stand together: the
# golden ratio, so that no place is met twice soon.
_ELSEWHERE = 0.618
# Calls in a row that came to nothing before people are told.
_REFUSALS_SHOWN = 3
_TOGETHER_S = 0.01  # what is due one after the other in this time is let in at once
_AGAIN_MAX = 8_192  # requests that wait to be sent again, from where on no shard is opened for more
_TROUBLE_KEPT_S = 300.0  # of a worker that has nothing to try with


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
        self.busy = 0
        """Slots that are filled."""
        self.is_capped = False
        """Whether calls could start here, had the process not as many as it may make."""
        self.unwritten = 0
        """Slots that wait until answers have been written."""
        self.pausing = Pausing()
        self.is_dry = False
        """Whether the ledger had no shard of it when it was last looked at; what is new wakes."""
        self.drained: set[Turn] = set()
        """Batches of which the ledger had no more shards, until leases are renewed: another worker
        may have given one back."""
        self.has_all_begun = False
        """Whether no batch that has begun waited but those that are open here; for as long."""
        self._fresh_wait = self._fresh_next = False
        self._since_begun = limits.SHARD_REQUESTS
        self.gives_way = False
        """Whether this worker can do nothing, and others are to have the shards; see `Sharing`."""
        self.full_again_s = 0.0
        """When to look again for another batch, though the process makes all calls it may."""
        self.again_s = 0.0
        """When it may take one all the same, to see whether that is over."""
        self._has_again = False
        """Whether some of the unsent may have been sent before."""
        self._tries_again = True
        """Whether a request that was sent before tried last, while only single calls go out."""
        self._refusals = 0
        self._refusal = ""
        self._refused_s = now_s()
        self._now_s = now_s
        self._taken, self._counted_s, self._ahead = 0, now_s(), 0
        self._priming = Priming()
        self._parking = Parking()
        self._aside = Aside()
        self.gate: Gate
        """Where calls wait for a permit; given by the worker."""
        self.is_broken: Callable[[], bool] = lambda: False
        """Whether only single calls go out, which try; given by the worker."""
        self.on_release: Callable[[Pool], object] = lambda _: None
        """Called when requests that waited may be sent."""
        self.timer: Timer | None = None
        """Which calls `let_in`; given by the worker. Without one, the next tick does."""

    @property
    def unsent(self) -> int:
        """Return how many requests wait for a slot."""
        return self.turns.unsent

    @property
    def is_hungry(self) -> bool:
        """Whether another shard should be claimed.

        A paused pool must claim too when something of each shard was refused, or it would stay
        paused for the sake of these.
        """
        if self._parking.size >= limits.PARKED_BYTES_MAX:
            return False
        if self._aside.is_full:  # one more after the other: they hold up nobody else
            return not self.unsent
        if self.pause_reason is None:  # not those that are sent again: they may fail for ever
            fresh = self.turns.fresh
            return fresh < 2 * self.slots and self.unsent - fresh < _AGAIN_MAX
        shards = [shard for shard in self.turns.order(self.slots) if shard.unsent]
        size = sum(shard.claim.length for shard in shards)
        return all(shard.aside for shard in shards) and size < limits.OPEN_BYTES_MAX

    @property
    def begins(self) -> int:
        """Return how many batches may be begun: one for each slot, and one to try with.

        Where each slot has one, one after the other, each when the last one has made a call: see
        `asks` for whose.
        """
        free = self.slots - self.turns.batches
        if free > 0:
            return free
        if self.pause_reason is not None:
            return int(self.is_hungry)
        return int(not self.turns.has_uncalled(self.slots))

    def asks(self, *, has_room: bool) -> list[Here]:
        """Return what to ask the ledger for, as a claim of further batches is told.

        Whose workspace has nothing to send is begun in any case. Others while there are fewer than
        two for each slot; from there on one more each time that as much as a shard was sent. Those
        that have begun, and are not open here, take turns with new ones.

        Args:
            has_room: whether there is memory for more than the slots need.
        """
        turns = self.turns
        are_few = turns.batches < 2 * self.slots or self._since_begun >= limits.SHARD_REQUESTS
        served = frozenset[str]() if has_room and are_few else turns.served
        asks = [Here(served=served)]
        self.has_all_begun &= not turns.has_left
        turns.has_left = False
        if not self.has_all_begun and self.pause_reason is None:
            asks.insert(int(self._fresh_next), Here(served=served, batches=turns.turns))
        return asks

    def began(self, claims: Sequence[Claim], asked: int, here: Here) -> None:
        """Note what was begun, of as many as were asked for."""
        if claims:
            self._fresh_next = here.batches is not None
            if not here.served:
                self._since_begun = 0
        if here.batches is None:
            self._fresh_wait = len(claims) == asked
        elif all(claim.is_only for claim in claims):  # or none; one for each workspace, at most
            self.has_all_begun = True

    def look_again(self) -> None:
        """Forget what the ledger had no more of: others may have given something back."""
        self.drained.clear()
        self.has_all_begun = False

    def lacking(self) -> list[Turn]:
        """Return the batches that would soon have nothing to send: they need another shard."""
        return [turn for turn in self.turns.lacking(2 * self.slots) if self._may_open(turn)]

    def _may_open(self, turn: Turn) -> bool:
        """Whether another shard of a batch may be opened, for all that waits aside."""
        return not (self._aside.is_full and self._aside.holds(turn))

    def is_lacking(self, shard: ShardRun) -> bool:
        """Whether its batch may soon have nothing to send, while others have."""
        if self.pause_reason is not None or shard.fresh > 2 * len(shard.inflight):
            return False
        claim = shard.claim
        if claim.is_only or claim.turn in self.drained or not self._may_open(claim.turn):
            return False
        return self.turns.is_lacking(shard)

    def is_short(self, shard: ShardRun) -> bool:
        """Whether to look for more shards, when a request of this one has been taken."""
        if self.is_dry or self.gives_way:
            return False
        if self._since_begun == limits.SHARD_REQUESTS or (
            self._fresh_wait and not shard.sent and len(shard.inflight) == 1
        ):
            return True  # another batch may begin
        if shard.fresh > 2 * self.slots:  # then neither can be, and this is nearly always so
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
        if self.pausing.reason is not None:
            return self._take_one(task)
        order = self.turns.order(self.slots)
        if self.is_broken():
            order = self._to_try(order)
        for shard in order:
            if not shard.unsent:
                continue
            request = self._next(shard, task) if shard.unsent[0].marks else shard.take(task)
            if request is not None:
                self._taken += 1
                self._since_begun += 1
                self.turns.took(shard)
                if self._aside.has_refused or shard.put_back:  # mix them with others
                    self.turns.go_round(shard)
                if self._has_again:
                    self.turns.take_turns(shard)
                return shard, request
        return None

    def _to_try(self, order: Iterable[ShardRun]) -> list[ShardRun]:
        """Return shards, the next request of the first of which tries whether calls work again.

        Every other time it is one that was never sent: those that have failed may fail for their
        own sake, and few would use up all their tries. In between it is one that was, since each
        may be taken only when it comes again: one that has used up none, as far as there is one,
        and then the one that came most often.
        """
        shards = [shard for shard in order if shard.unsent]
        self._tries_again = not self._tries_again
        fresh = next((shard for shard in shards if shard.fresh), None)
        if fresh is None or self._tries_again:
            backs = [(b.counted, -b.tries, b, s) for s in shards for b in s.put_back.values()]
            for _, _, back, shard in sorted(backs, key=lambda each: each[:2]):
                if shard.bring_again(back.request.custom_id):
                    return [shard]
        if fresh is None:
            return shards
        fresh.bring_fresh(_ELSEWHERE)
        return [fresh]

    def _take_one(self, task: asyncio.Task[None]) -> tuple[ShardRun, Request] | None:
        """Return the request that tries whether a pause can end, if it is time.

        One that was not refused, where there is one: of a batch and of a shard of which few were.
        Not in order, as those that are refused may stand together.
        """
        now_s = self._now_s()
        if not self.pausing.may_try(now_s):
            return None
        shards = [shard for shard in self.turns.order(self.slots) if shard.unsent]
        shards.sort(key=lambda each: (self._aside.holds(each.claim.turn), len(each.aside)))
        for shard in shards:
            if shard.aside:
                shard.unsent.rotate(-int(len(shard.unsent) * _ELSEWHERE))
            request = self._next(shard, task)
            if request is not None:
                break
        else:
            oldest, self._has_again = self._aside.let_in_one(), True
            request = None if oldest is None else oldest.take(task)
            if oldest is None or request is None:
                return None
            shard = oldest
        self.turns.took(shard)
        self.pausing.tries(request, now_s)
        return shard, request

    @property
    def ready(self) -> int:
        """Return how many requests could be sent now, if slots were free."""
        if self.pausing.reason is None:
            return self.turns.ready(self.slots)
        may_try = self.pausing.may_try(self._now_s())
        return int(may_try and bool(self.turns.ready(self.slots) or self._aside))

    def set_aside(self, shard: ShardRun, back: PutBack, until_s: float, why: str) -> None:
        """Let a request in flight wait without a slot; see `Aside.add`."""
        self._aside.add(shard, back, until_s, why)
        self._set_timer()

    def close(self) -> None:
        """Let nothing go on any more: the worker leaves."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = None

    def _set_timer(self) -> None:
        due_s = self._aside.next_s
        if due_s is not None and self.timer is not None and self.pausing.reason is None:
            now_s = self._now_s()
            self.timer.set(now_s, max(due_s - now_s, _TOGETHER_S))

    def let_in(self) -> None:
        """Let go on what was set aside and is due."""
        if self.pausing.reason is not None:
            if self.ready:
                self.on_release(self)
        elif self._aside.let_in(self._now_s()):
            self._has_again = True
            self.on_release(self)
        self._set_timer()

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

    def delayed(self, request: Request) -> None:
        """Note that a request failed, and is sent again in a moment."""
        if request.marks:
            self._priming.delayed(request)

    def declined(self, request: Request) -> None:
        """Note that the upstream would not do what a request asks for."""
        if request.marks:
            self._release(self._priming.declined(request))

    def left(self, request: Request) -> None:
        """Note that a request is not in flight any more, whatever has become of it."""
        if request.marks:
            self._hand_on(self._priming.left(request))

    def tries_again(self) -> bool:
        """Whether to take one shard now of a pool that gives way."""
        now_s = self._now_s()
        if not self.slots or now_s < self.again_s:
            return False
        self.again_s = now_s + limits.UPSTREAM_PAUSE_S
        return True

    def tick(self) -> None:
        """Let go on what has waited long enough, or for nobody any more. Once a second is right."""
        self.turns.tick()
        self._has_again = self._has_again and self.turns.has_again
        is_old = self.trouble is not None and self._now_s() - self._refused_s > _TROUBLE_KEPT_S
        if is_old and not self.busy and not self.turns.batches:
            self.answered()  # it may be over: nobody has tried
        if self._aside.is_full:
            self._aside.forget()
        self.let_in()
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
    def own_trouble(self) -> str | None:
        """Return a trouble that another worker need not have, such as that of a network or a key.

        What is refused for what was asked for is refused to all; handed on, its tries would be
        forgotten, and what is known of who is refused.
        """
        pausing = self.pausing
        if pausing.reason is not None and pausing.speaks_of_request:
            return None
        return self.trouble

    @property
    def pause_reason(self) -> str | None:
        """Return why the upstream is not called now; None when it is."""
        return self.pausing.reason

    def pause(
        self,
        reason: str,
        until_s: float,
        refused: Request | None = None,
        *,
        speaks_of_request: bool = False,
    ) -> None:
        """Stop calling the upstream until `until_s`: it refuses us; see `Pausing.begin`."""
        if self.pause_reason is None:
            log.warning("paused pool=%s: %s", shown(self.name), shown(reason, 300))
        self._refused_s = self._now_s()
        self.pausing.begin(reason, until_s, refused, speaks_of_request=speaks_of_request)

    def refused(self, reason: str) -> None:
        """Note a call that came to nothing, and that is not counted: no connection, no capacity."""
        self._refusals += 1
        self._refusal = reason
        self._refused_s = self._now_s()

    def answered(self, number: int = -1) -> None:
        """Note that the upstream took a call: it accepts us, and can be reached.

        Args:
            number: of the call, where it tells that calls are not refused as such.
        """
        self._refusals = 0
        pausing = self.pausing
        pausing.newest_taken = max(pausing.newest_taken, number)
        if pausing.refusals:
            was_paused = pausing.reason is not None
            pausing.taken(number)
            if was_paused:
                self.on_release(self)
