"""The worker: claims shards, calls upstreams, hands results to the recorder, renews its leases.

The async shell around `routes`, `validate` and `retry`, which decide, and `recorder`, which writes.
A worker knows no other worker: exclusion is the lease in the ledger, correctness is the fence.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from batchyard import ids, limits, result, segments, validate
from batchyard.dispatch import retry
from batchyard.dispatch.adopt import Adopted, adopt
from batchyard.dispatch.pool import Pool
from batchyard.dispatch.recorder import Recorder
from batchyard.dispatch.routes import UNROUTED, Routes
from batchyard.dispatch.shard import Request, ShardRun, StopReason, Tried
from batchyard.errors import StoreError, shown
from batchyard.segments.requests import read_records
from batchyard.upstream import Call

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine, Mapping
    from typing import Any

    from batchyard.clock import Clock
    from batchyard.ledger import Claim, Ledger
    from batchyard.segments import Segments
    from batchyard.upstream import Upstream

log = logging.getLogger(__name__)

# A slot lets others run after this many requests, for upstreams that answer without waiting.
_YIELD_EVERY = 16
_VOIDS_PER_ROUND = 8


class Worker:
    """One worker: all pools of one process."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        store: Segments,
        upstreams: Mapping[str, Upstream],
        routes: Routes,
        slots: Mapping[str, int],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """Make a worker.

        Args:
            ledger: who works on what.
            store: the bytes.
            upstreams: by name.
            routes: which model runs where.
            slots: requests in flight per pool, by name of the upstream.
            clock: of leases, deadlines and waits.
            rng: of the jitter.
        """
        self._ledger = ledger
        self._store = store
        self._upstreams = upstreams
        self._routes = routes
        self._slots = slots
        self._clock = clock
        self._rng = rng
        self._owner = ids.nonce()
        self._recorder = Recorder(ledger, store, clock, self._owner, self._forget)
        self._pools: dict[str, Pool] = {}
        self._held: dict[tuple[str, int], ShardRun] = {}
        self._canceled: set[str] = set()
        self._wake = asyncio.Event()
        self._nudge = asyncio.Event()
        self._leaving = asyncio.Event()
        self._idle = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Look for work now: there may be new shards."""
        self._wake.set()

    def nudge(self) -> None:
        """Look at the held shards now: a batch may have been canceled elsewhere."""
        self._nudge.set()
        self._wake.set()

    def cancel(self, batch_id: str) -> None:
        """Start no further call of a batch that the ledger knows as canceled."""
        self._canceled.add(batch_id)  # for a shard that is being opened, its claim older than this
        for shard in self._held.values():
            if shard.claim.batch == batch_id:
                self._stop(shard, "canceled")
        self._wake.set()

    def leave(self) -> None:
        """Stop claiming; `run` returns when the calls in flight have ended, or after a grace."""
        self._leaving.set()
        self._wake.set()

    def pause_reasons(self) -> dict[str, str]:
        """Return why pools are paused, by pool."""
        return {p.name: p.pause_reason for p in self._pools.values() if p.pause_reason}

    async def run(self) -> None:
        """Work until `leave` is called.

        Raises:
            StoreError: the store failed; what was not committed is recovered by the next start.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            loops = [group.create_task(loop) for loop in (self._claiming(), self._renewing())]
            group.create_task(self._recorder.run())
            await self._leaving.wait()
            await self._drain()
            for task in (*loops, *self._calls):
                task.cancel()
            self._recorder.finish()
        for shard in self._held.values():
            self._recorder.close(shard)
        self._held.clear()
        await self._ledger.release(self._owner)

    # Claiming ---------------------------------------------------------------------------------

    async def _claiming(self) -> None:
        while not self._leaving.is_set():
            self._wake.clear()
            if not await self._claim_round():
                await self._first(self._wake.wait(), limits.IDLE_POLL_S)

    async def _claim_round(self) -> bool:
        """Claim and open what there is room for; return whether there was anything."""
        self._canceled.clear()  # the claims of this round know
        now = self._clock.now_us()
        lease = now + limits.LEASE_US
        claims = list(await self._ledger.claim_void(self._owner, now, lease, _VOIDS_PER_ROUND))
        for name in await self._ledger.pools_ready():
            pool = self._pool(name)
            if pool is not None and pool.is_hungry:
                claims += await self._ledger.claim(self._owner, name, lease, 1)
        for claim in claims:
            await self._open(claim)
        return bool(claims)

    def _pool(self, name: str) -> Pool | None:
        pool = self._pools.get(name)
        if pool is not None:
            return pool
        upstream = self._routes.upstream_of_pool(name)
        if upstream is None and name != UNROUTED:
            # The upstream was taken out of the configuration: its requests wait for its return.
            return None
        pool = Pool(
            name,
            None if upstream is None else self._upstreams[upstream],
            limits.POOL_SLOTS_DEFAULT if upstream is None else self._slots[upstream],
        )
        self._pools[name] = pool
        return pool

    async def _open(self, claim: Claim) -> None:
        shard = await asyncio.to_thread(self._load, claim)
        if claim.attempt > 1:
            kept = await self._ledger.adopt(self._owner, claim, shard.extents)
            if not kept:
                return
        if self._leaving.is_set():
            return  # given back with the rest
        earlier = self._held.get(shard.key)
        if earlier is not None:  # lost, and claimed again before a renewal could tell
            self._lose(earlier)
        self._held[shard.key] = shard
        if claim.canceled or claim.batch in self._canceled:
            self._stop(shard, "canceled")
        elif claim.expires_us <= self._clock.now_us():
            self._stop(shard, "expired")
        if shard.is_done:
            self._recorder.note(shard)
            return
        pool = self._pool(claim.pool)
        assert pool is not None  # it was claimed from this pool
        pool.add(shard)
        self._fill(pool)

    def _load(self, claim: Claim) -> ShardRun:
        data = self._store.read(segments.requests_name(claim.batch), claim.offset, claim.length)
        requests = [Request(*record) for record in read_records(data)]
        if len(requests) != claim.requests:
            raise StoreError(f"shard {claim.batch}/{claim.index} holds {len(requests)} requests")
        adopted = Adopted()
        if claim.attempt > 1:
            adopted = adopt(self._store, claim, {request.custom_id for request in requests})
        return ShardRun(claim, requests, adopted)

    # Calling ----------------------------------------------------------------------------------

    def _fill(self, pool: Pool) -> None:
        """Start slots for what is unsent, up to the pool's number."""
        for _ in range(min(pool.slots - pool.busy, pool.unsent)):
            pool.busy += 1
            task = self._group.create_task(self._slot(pool))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _slot(self, pool: Pool) -> None:
        try:
            done = 0
            while (taken := pool.take()) is not None:
                if pool.is_hungry:
                    self._wake.set()
                if not self._recorder.has_room:
                    await self._recorder.room()
                await self._run_one(pool, *taken)
                self._recorder.note(taken[0])
                done += 1
                if done % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
        finally:
            pool.busy -= 1
            if not any(p.busy for p in self._pools.values()):
                self._idle.set()

    async def _run_one(self, pool: Pool, shard: ShardRun, request: Request) -> None:
        """Bring one request to its result. Raises nothing but StoreError and cancellation."""
        claim = shard.claim
        problem = validate.check(request.params, version=claim.version, betas=claim.betas)
        if problem is not None:
            shard.fail(request.custom_id, problem.type, problem.message, None)
            return
        if pool.upstream is None:
            shard.fail(request.custom_id, "not_found_error", _unknown_model(request.params), None)
            return
        try:
            await self._call(pool, pool.upstream, shard, request)
        except StoreError:
            raise
        except Exception:
            # A defect of ours that one request brings out must not stop the others.
            log.exception("defect at shard=%s/%d", *shard.key)
            shard.fail(request.custom_id, "api_error", "Internal server error", None)

    async def _call(
        self, pool: Pool, upstream: Upstream, shard: ShardRun, request: Request
    ) -> None:
        claim = shard.claim
        call = Call(request.params, claim.version, claim.betas, claim.workspace)
        counted = tries = 0
        while True:
            if pool.pause_reason is not None:
                await self._while_paused(pool, shard)
            if shard.stopped.is_set():
                shard.give_up(request.custom_id)
                return
            outcome = await upstream.send(call)
            action = retry.decide(outcome, self._clock.now_us())
            tries += 1
            if pool.pause_reason is not None and not isinstance(action, retry.Pause):
                pool.resume()
            match action:
                case retry.Done(message):
                    line = result.succeeded(request.custom_id, message.body)
                    shard.settle(request.custom_id, "succeeded", line, message.usage)
                    return
                case retry.Fail(error_type, text, request_id):
                    shard.fail(request.custom_id, error_type, text, request_id)
                    return
                case retry.Pause(error_type, text):
                    self._note_try(shard, request, error_type, text)
                    self._pause(pool, text)
                case retry.Again():
                    counted += action.counted
                    if counted >= limits.ATTEMPTS_MAX:
                        shard.fail(request.custom_id, action.type, action.message, None)
                        return
                    if action.reached:
                        self._note_try(shard, request, action.type, action.message)
                    delay = retry.backoff_s(tries, action.retry_after_s, self._rng)
                    await self._first(shard.stopped.wait(), delay)

    def _note_try(self, shard: ShardRun, request: Request, error_type: str, text: str) -> None:
        if request.custom_id in shard.inflight:
            shard.inflight[request.custom_id] = Tried(error_type, text)

    def _pause(self, pool: Pool, reason: str) -> None:
        if pool.pause_reason is None:
            log.warning("paused pool=%s: %s", shown(pool.name), shown(reason, 300))
        pool.pause(reason, self._clock.monotonic_s() + limits.UPSTREAM_PAUSE_S)

    async def _while_paused(self, pool: Pool, shard: ShardRun) -> None:
        while not shard.stopped.is_set():
            left = pool.paused_until_s - self._clock.monotonic_s()
            if left <= 0:
                return
            await self._first(shard.stopped.wait(), left)

    # Holding ----------------------------------------------------------------------------------

    async def _renewing(self) -> None:
        while True:
            await self._first(self._nudge.wait(), limits.RENEW_INTERVAL_S)
            self._nudge.clear()
            if self._held:
                await self._renew()

    async def _renew(self) -> None:
        shards = dict(self._held)
        now = self._clock.now_us()
        renewed = await self._ledger.renew(
            self._owner, now + limits.LEASE_US, [shard.held() for shard in shards.values()]
        )
        kept = {(row.batch, row.index): row for row in renewed}
        for key, shard in shards.items():
            if self._held.get(key) is not shard:
                continue  # committed meanwhile, or claimed anew
            row = kept.get(key)
            if row is None:
                self._lose(shard)
            elif row.canceled:
                self._stop(shard, "canceled")
            elif shard.claim.expires_us <= now:
                self._stop(shard, "expired")
            if shard.deadline_s <= self._clock.monotonic_s():
                for custom_id in list(shard.inflight):
                    shard.give_up(custom_id)
                self._recorder.note(shard)

    def _stop(self, shard: ShardRun, reason: StopReason) -> None:
        shard.stop(reason, self._clock.monotonic_s() + limits.DRAIN_GRACE_S)
        self._recorder.note(shard)

    def _lose(self, shard: ShardRun) -> None:
        log.warning("lost shard=%s/%d", *shard.key)
        shard.lose()
        self._recorder.close(shard)
        self._forget(shard)

    def _forget(self, shard: ShardRun) -> None:
        if self._held.get(shard.key) is shard:
            del self._held[shard.key]

    # Leaving ----------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Let the calls in flight end, for a while; start no other."""
        for shard in self._held.values():
            shard.halt()
        if any(pool.busy for pool in self._pools.values()):
            self._idle.clear()
            await self._first(self._idle.wait(), limits.DRAIN_GRACE_S)

    async def _first(self, event: Coroutine[Any, Any, Any], seconds: float) -> None:
        """Wait for `event` or for `seconds`, whichever comes first."""
        tasks = {
            asyncio.ensure_future(event),
            asyncio.ensure_future(self._clock.sleep(seconds)),
        }
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()


def _unknown_model(params: bytes) -> str:
    return f"model: {validate.model_of(params)}"
