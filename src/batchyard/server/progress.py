"""Live progress of a batch: an extension, for the run and for people.

`GET /v1/messages/batches/{id}/progress` answers JSON, or, when `text/event-stream` is accepted, an
event a second until the batch has ended. The compatible object keeps the API's frozen counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response, StreamingResponse

from batchyard import limits, wire
from batchyard.clock import wait_first
from batchyard.server.batches import find
from batchyard.server.estimate import NO_WAIT, Estimates, Part, Wait

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request

    from batchyard import ledger
    from batchyard.dispatch.accounts import Account
    from batchyard.dispatch.waiting import Waiting
    from batchyard.model import Batch
    from batchyard.server.yard import Yard

_EVENT_INTERVAL_S = 1.0
_STOPS = frozenset({"unconfigured", "paused", "breaker_open"})
_HOLDS = _STOPS | {"cooling_down"}


class Progress:
    """The progress endpoint."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self._estimates = Estimates()

    async def respond(self, request: Request) -> Response:
        """Return how far a batch is."""
        batch = await find(self._yard, request)
        if "text/event-stream" in request.headers.get("accept", ""):
            return StreamingResponse(self._events(batch), media_type="text/event-stream")
        return Response(wire.encode(await self._object(batch)), media_type="application/json")

    async def _events(self, batch: Batch) -> AsyncIterator[bytes]:
        while True:
            progress = await self._object(batch)
            yield b"event: progress\ndata: %b\n\n" % wire.encode(progress)
            if progress["processing_status"] == "ended":
                return
            await wait_first(self._yard.clock, self._yard.leaving, _EVENT_INTERVAL_S)
            if self._yard.leaving.is_set():
                return
            again = await self._yard.ledger.get(batch.workspace, batch.id)
            if again is None:
                return
            batch = again

    async def _object(self, batch: Batch) -> dict[str, object]:
        """Return the progress of the wire.

        `requests` is the size of the batch, `results` how many have a result, `counts` of which
        kind; `in_flight` are taken up without a result. `billing` is what the calls cost:
        `standard` (the list price), `batch` (half of it) or `simulated` (nothing). `tokens` are the
        sums of an ended batch. `paused` says, by pool, why requests of this batch wait for their
        upstream. `waiting` says more, and until when. `as_of` is when the oldest of this was told,
        null where no worker has any of it. `estimate` is the end or why it is not known.
        """
        shards = shards_done = in_flight = 0
        waiting: dict[str, str] = {}
        reasons: Sequence[Waiting] = ()
        estimate: dict[str, object] | None = None
        told_us: int | None = None
        counts, tokens = batch.counts, batch.tokens
        if batch.ended_us is None:
            progress = await self._yard.ledger.progress(batch.id)
            counts = progress.counts
            shards, shards_done = progress.shards, progress.shards_done
            in_flight = progress.inflight
            waiting = self._yard.worker.troubles(progress.pools)
            reasons = self._yard.worker.explain(batch.id, progress.pools)
            estimate = self._estimate(batch, progress, reasons)
            told_us = self._yard.worker.told_us(progress.pools)
        if not shards:  # an open batch has some: it ended, maybe since it was read
            batch = await self._yard.ledger.get(batch.workspace, batch.id) or batch
            counts = batch.counts
        return {
            "id": batch.id,
            "type": "message_batch_progress",
            "processing_status": batch.status,
            "requests": batch.requests,
            "results": counts.total,
            "counts": {
                "succeeded": counts.succeeded,
                "errored": counts.errored,
                "canceled": counts.canceled,
                "expired": counts.expired,
            },
            "in_flight": in_flight,
            "shards": shards,
            "shards_done": shards_done,
            "priority": batch.priority,
            "billing": batch.billing,
            "tokens": {
                "input": tokens.input,
                "output": tokens.output,
                "cache_write": tokens.cache_write,
                "cache_read": tokens.cache_read,
            },
            "paused": waiting,
            "waiting": [self._waiting(reason) for reason in reasons],
            **_calls(await self._yard.worker.account(batch.id), batch),
            "as_of": None if told_us is None else wire.rfc3339(told_us),
            "estimate": None if batch.ended_us is not None else estimate,
        }

    def _waiting(self, reason: Waiting) -> dict[str, object]:
        until = None
        if reason.until_s is not None:
            clock = self._yard.clock
            left_us = round((reason.until_s - clock.monotonic_s()) * limits.SECOND_US)
            until = wire.rfc3339(clock.now_us() + left_us)
        return {
            "pool": reason.pool,
            "reason": reason.reason,
            "detail": reason.detail,
            "until": until,
        }

    def _estimate(
        self, batch: Batch, progress: ledger.Progress, reasons: Sequence[Waiting]
    ) -> dict[str, object]:
        stops = [f"{r.pool}: {r.detail}" for r in reasons if r.reason in _STOPS and r.is_everywhere]
        rate_max = self._yard.worker.rate_max
        found = self._estimates.of(
            batch,
            progress.counts.total,
            self._yard.clock.now_us(),
            stopped=next(iter(stops), None),
            parts={name: Part(sum(rest), rate_max(name)) for name, rest in progress.pools.items()},
            wait=self._wait(progress, reasons),
        )
        ends = found.ends_us
        return {"ends_at": None if ends is None else wire.rfc3339(ends), "basis": found.basis}

    def _wait(self, progress: ledger.Progress, reasons: Sequence[Waiting]) -> Wait:
        """Return the last of all known ends of what is waited for, as a time from now."""
        known = [r.until_s if r.last_s is None else r.last_s for r in reasons]
        last_s = max((until_s for until_s in known if until_s is not None), default=None)
        if last_s is None:
            return NO_WAIT
        held = {r.pool for r in reasons if r.reason in _HOLDS and r.is_everywhere}
        left_s = max(0.0, last_s - self._yard.clock.monotonic_s())
        return Wait(left_s, is_of_all=held.issuperset(progress.pools))


def _calls(account: Account | None, batch: Batch) -> dict[str, object]:
    """Return what is counted of calls by all processes, null where none has told.

    `repeated_calls` are those beyond one for each request, `unknown_calls` those in flight when
    their process ended; `failing` are the last requests of which a call failed, `damaged` the
    shards of which the disk has damaged something.
    """
    if account is None:
        return {
            "calls": None,
            "repeated_calls": None,
            "unknown_calls": None,
            "failed_calls": {},
            "failing": [],
            "damaged": [],
        }
    return {
        "calls": account.calls,
        # A process that ends takes with it for which requests it had called without a result.
        "repeated_calls": max(account.repeated + account.unknown, account.calls - batch.requests),
        "unknown_calls": account.unknown,
        "failed_calls": dict(account.reasons),
        "failing": [
            {
                "custom_id": custom_id,
                "tries": failing.tries,
                "reason": failing.reason,
                "reasons": dict(failing.reasons),
                "message": failing.message,
                "is_over": failing.is_over or batch.ended_us is not None,
            }
            for custom_id, failing in account.failing.items()
        ],
        "damaged": [
            {"shard": shard, "detail": why} for shard, why in sorted(account.damaged.items())
        ],
    }
