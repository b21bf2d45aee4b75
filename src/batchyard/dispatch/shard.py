"""One attempt at one shard, in memory: what is unsent, what is in flight, what is to be recorded.

The first result of a request wins: a late answer to a request that was canceled, expired or given
up meanwhile changes nothing. Does no I/O.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Literal, NamedTuple

from batchyard import result, segments
from batchyard.ledger import Claim, Held
from batchyard.model import Counts, Extent, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchyard.dispatch.adopt import Adopted
    from batchyard.dispatch.aside import PutBack
    from batchyard.dispatch.prefix import Mark
    from batchyard.price import Usage
    from batchyard.segments import Appender

StopReason = Literal["canceled", "expired"]


class Request(NamedTuple):
    """One request of a shard."""

    custom_id: str
    params: bytes
    marks: tuple[Mark, ...] = ()
    """The prefixes that a prompt cache may keep, the shortest first."""
    max_tokens: int | None = None
    """Of an ordinary request, with which nothing is wrong; None when it has to be examined."""


class ShardRun:
    """One attempt at one shard."""

    def __init__(
        self,
        claim: Claim,
        requests: list[Request],
        adopted: Adopted,
        *,
        is_suspected: bool = False,
    ) -> None:
        """Begin one.

        Args:
            claim: of the shard.
            requests: all of it.
            adopted: what earlier attempts have left.
            is_suspected: whether to send one request alone, until it has a result.
        """
        self.claim = claim
        self.unsent = deque(r for r in requests if r.custom_id not in adopted.covered)
        self.kept_back: list[Request] = []
        """Unsent requests that wait until the one that is sent alone has a durable result."""
        self.on_let_go: Callable[[], object] = lambda: None
        """Called when these may be sent."""
        if is_suspected and self.unsent:
            first, *self.kept_back = self.unsent
            self.unsent = deque([first])
        self.inflight: dict[str, asyncio.Task[None]] = {}
        """The tasks that do the requests in flight, by `custom_id`."""
        self.retrying: dict[str, tuple[float, str]] = {}
        """Those of them that wait for their own time to be sent again: until when (monotonic
        seconds), and what their last call came to, in a word."""
        self.aside: dict[str, PutBack] = {}
        """Requests that were refused, and wait without a slot until they may be sent again."""
        self.put_back: dict[str, PutBack] = {}
        """Those of the unsent that were sent before."""
        self._tried: dict[str, tuple[str, str]] = {}
        """How the last try of a request failed, for when its time runs out: type and message."""
        self.parked: dict[str, Request] = {}
        """Unsent requests that wait for another one to write their prefix to the cache."""
        self.lines: list[bytes] = []
        self._fresh_bytes = 0
        self.appender: Appender | None = None
        self.stop_reason: StopReason | None = None
        self.stopped = asyncio.Event()
        self.deadline_s = float("inf")
        self.lost = False
        self.sent = self.answered = 0
        """Calls that were begun, and those of them that have ended. If the worker dies after the
        first, this shard may be why."""
        self.is_committing = False
        """Whether its commit is under way, which says itself whether the shard was lost."""
        self.closed = False
        """Whether its segment was let go: it is committed or lost, and nothing more is written."""
        self._adopted = adopted
        self._tally = adopted.tally
        self.durable = self.counts.total
        """Results that survive the end of this process, of those that it is known of."""
        self._before = self._taken = self._written = self.durable

    @property
    def key(self) -> tuple[str, int]:
        """Return the batch and the index."""
        return self.claim.batch, self.claim.index

    @property
    def is_done(self) -> bool:
        """Whether every request has a result."""
        return not self.lost and self.counts.total == self.claim.requests

    @property
    def is_at_rest(self) -> bool:
        """Whether it can be given back at no cost: nothing is called, every result is durable."""
        is_durable = self.durable == self.counts.total
        return self.sent == self.answered and is_durable and self.stop_reason is None

    @property
    def has_open(self) -> bool:
        """Whether a request has no result."""
        return bool(self.unsent or self.inflight or self.parked or self.kept_back or self.aside)

    def segment_name(self) -> str:
        """Return a new name for the segment of this attempt."""
        return segments.result_name(self.claim.batch, self.claim.index, self.claim.attempt)

    def take(self, task: asyncio.Task[None]) -> Request | None:
        """Move the next request into flight; `task` does it."""
        if not self.unsent:
            return None
        request = self.unsent.popleft()
        self.inflight[request.custom_id] = task
        return request

    @property
    def fresh(self) -> int:
        """Return how many of the unsent were never sent."""
        return max(0, len(self.unsent) - len(self.put_back))  # of which some may be parked

    def bring_fresh(self, start: float) -> None:
        """Make a request the next that was never sent, if there is one.

        Args:
            start: from which part of the queue on.
        """
        unsent = self.unsent
        unsent.rotate(-int(len(unsent) * start))
        if self.fresh > 0:
            while unsent[0].custom_id in self.put_back:
                unsent.rotate(-1)

    def bring_again(self, custom_id: str) -> bool:
        """Make this one of the unsent the next; false where it is not among them."""
        unsent = self.unsent
        for _ in range(len(unsent)):
            if unsent[0].custom_id == custom_id:
                return True
            unsent.rotate(-1)
        return False

    def park(self) -> Request:
        """Set the next request aside, and return it."""
        request = self.unsent.popleft()
        self.parked[request.custom_id] = request
        return request

    def is_parked(self, request: Request) -> bool:
        """Whether a request is set aside here."""
        return self.parked.get(request.custom_id) is request

    def unpark(self, request: Request) -> bool:
        """Make a request that was set aside the next one; False when it is not here any more."""
        if not self.is_parked(request):
            return False
        del self.parked[request.custom_id]
        self.unsent.appendleft(request)
        return True

    def set_aside(self, back: PutBack, until_s: float, why: str) -> bool:
        """Let a request in flight wait without a slot; False when it has a result."""
        custom_id = back.request.custom_id
        if self.stopped.is_set():
            self.give_up(custom_id)
        if self.inflight.pop(custom_id, None) is None:
            return False
        self.aside[custom_id] = back
        self.retrying[custom_id] = until_s, why
        if self.kept_back and not self.unsent:  # its call has ended well enough: the next one
            self.unsent.append(self.kept_back.pop(0))
        return True

    def is_aside(self, back: PutBack) -> bool:
        """Whether a request waits here."""
        return self.aside.get(back.request.custom_id) is back

    def let_in(self, back: PutBack, *, next_: bool) -> bool:
        """Make a request that waited unsent again, the next or the last; False if it is gone."""
        if not self.is_aside(back):
            return False
        custom_id = back.request.custom_id
        self.put_back[custom_id] = self.aside.pop(custom_id)
        self.retrying.pop(custom_id, None)
        if next_:
            self.unsent.appendleft(back.request)
        else:
            self.unsent.append(back.request)
        return True

    def note_try(self, custom_id: str, error_type: str, message: str) -> None:
        """Remember how a try of a request in flight failed."""
        if custom_id in self.inflight:
            self._tried[custom_id] = (error_type, message)

    def settle(
        self, custom_id: str, kind: result.ResultType, line: bytes, usage: Usage | None = None
    ) -> None:
        """Record the result of a request in flight, unless it has one."""
        if self.inflight.pop(custom_id, None) is not None:
            self._add(kind, line, usage)

    def fail(self, custom_id: str, error_type: str, message: str, request_id: str | None) -> None:
        """Record an `errored` result of a request in flight."""
        line = result.errored(custom_id, error_type, message, request_id=request_id)
        self.settle(custom_id, "errored", line)

    def stop(self, reason: StopReason, deadline_s: float) -> None:
        """End all that is unsent with `reason`; what is in flight has until `deadline_s`."""
        if self.stop_reason is not None:
            return
        self.stop_reason = reason
        self.deadline_s = deadline_s
        unsent = (request.custom_id for request in (*self.unsent, *self.kept_back))
        for custom_id in (*self.parked, *self.aside, *unsent):
            self._end(custom_id, reason)
        self._drop_unsent()
        self.stopped.set()

    def give_up(self, custom_id: str) -> None:
        """End a request in flight whose time has run out: with what its last try met, if any.

        Does nothing for a shard that was lost or halted: the next attempt sends the request.
        """
        reason = self.stop_reason
        if reason is not None and self.inflight.pop(custom_id, None) is not None:
            self._end(custom_id, reason)

    def _end(self, custom_id: str, reason: StopReason) -> None:
        """Record the result of a request whose time has run out."""
        tried = self._tried.get(custom_id)
        if tried is not None and reason == "expired":
            self._add("errored", result.errored(custom_id, *tried, request_id=None), None)
        else:
            self._add(reason, result.unsent(custom_id, reason), None)

    def abandon(self) -> None:
        """End everything in flight now, and the calls with it."""
        for custom_id, task in list(self.inflight.items()):
            self.give_up(custom_id)
            if custom_id not in self.inflight:
                task.cancel()

    def halt(self) -> None:
        """Send nothing more: the worker leaves, and the rest is for the next attempt."""
        self._drop_unsent()
        self.stopped.set()

    def lose(self) -> None:
        """Drop everything, and end the calls: another worker has the shard."""
        self.lost = True
        self._drop_unsent()
        tasks = list(self.inflight.values())
        self.inflight.clear()
        self.stopped.set()
        for task in tasks:
            task.cancel()

    def take_lines(self) -> list[bytes]:
        """Return the lines that have not been written yet, once."""
        lines, self.lines = self.lines, []
        self._taken = self.counts.total
        return lines

    def wrote(self) -> None:
        """Note that the lines which were taken last are written."""
        self._written = self._taken

    @property
    def written(self) -> int:
        """Return how many results are written."""
        return self._written

    def synced(self, number: int) -> None:
        """Note that so many results survive the end of this process."""
        self.durable = number
        if self.kept_back and number > self._before:
            self.unsent.extend(self.kept_back)
            self.kept_back.clear()
            self.on_let_go()

    def take_fresh_bytes(self) -> int:
        """Return the bytes of the lines since the last call."""
        fresh, self._fresh_bytes = self._fresh_bytes, 0
        return fresh

    def held(self) -> Held:
        """Return how far the attempt is."""
        return Held(
            batch=self.claim.batch,
            index=self.claim.index,
            attempt=self.claim.attempt,
            inflight=len(self.inflight),
            counts=self.counts,
            at_risk=self.sent > 0 and not self.stopped.is_set(),
        )

    @property
    def counts(self) -> Counts:
        """Return the results so far."""
        t = self._tally
        return Counts(t.succeeded, t.errored, t.canceled, t.expired)

    @property
    def tokens(self) -> Tokens:
        """Return the tokens so far."""
        t = self._tally
        return Tokens(t.input, t.output, t.cache_write, t.cache_read)

    @property
    def damage(self) -> str | None:
        """Return what the disk had damaged of earlier results; None if nothing."""
        return self._adopted.damage

    @property
    def damages(self) -> int:
        """Return how many attempts have left results that the disk has damaged since."""
        return self._adopted.damages

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Return the bytes that are the result of the shard, when all is written."""
        own = () if self.appender is None else self.appender.extents()
        return (*self._adopted.extents, *own)

    def _drop_unsent(self) -> None:
        for custom_id in self.aside:
            self.retrying.pop(custom_id, None)
        for waiting in (self.unsent, self.kept_back, self.parked, self.aside, self.put_back):
            waiting.clear()

    def _add(self, kind: result.ResultType, line: bytes, usage: Usage | None) -> None:
        self._tally.add(kind, usage)
        self.lines.append(line)
        self._fresh_bytes += len(line)
