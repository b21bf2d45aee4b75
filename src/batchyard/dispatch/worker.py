"""The worker: claims shards, calls upstreams, hands results to the recorder, renews its leases.

`routes` says which model runs where, `calling` brings a request to its result, `recorder` writes.
A worker knows no other worker: exclusion is the lease in the ledger, correctness is the fence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from typing import TYPE_CHECKING

from batchyard import crash, ids, limits, segments
from batchyard.clock import wait_first
from batchyard.dispatch.activity import Activity
from batchyard.dispatch.adopt import Adopted, adopt
from batchyard.dispatch.calling import Caller
from batchyard.dispatch.pool import Pool
from batchyard.dispatch.recorder import Recorder
from batchyard.dispatch.routes import UNROUTED, Routes
from batchyard.dispatch.shard import Request, ShardRun, StopReason
from batchyard.errors import DamagedError, DiskFull, shown
from batchyard.segments.requests import read_records

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping, Sequence

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

    def __init__(  # noqa: PLR0913 - its parts, by keyword
        self,
        *,
        ledger: Ledger,
        store: Segments,
        upstreams: Mapping[str, Upstream],
        routes: Routes,
        slots: Mapping[str, int],
        clock: Clock,
        rng: random.Random,
        calls_max: int = limits.CALLS_MAX,
        flush_s: float = limits.FLUSH_INTERVAL_S,
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
            calls_max: requests in flight over all pools.
            flush_s: how long answers gather before they are written.
        """
        self._ledger = ledger
        self._store = store
        self._upstreams = upstreams
        self._routes = routes
        self._slots = slots
        self._clock = clock
        self._calls_max = calls_max
        self.owner = ids.nonce()
        self._caller = Caller(clock, rng)
        self._recorder = Recorder(ledger, store, clock, self.owner, self._forget, flush_s=flush_s)
        self._pools: dict[str, Pool] = {}
        self._held: dict[tuple[str, int], ShardRun] = {}
        self._homeless: set[str] = set()
        self._canceled: set[str] = set()
        self._wake = asyncio.Event()
        self._leaving = asyncio.Event()
        self._idle = asyncio.Event()
        self._busy = 0
        self._calls: set[asyncio.Task[None]] = set()
        self._activity = Activity()

    @property
    def has_unsent(self) -> bool:
        """Whether requests wait for a slot."""
        return any(pool.unsent for pool in self._pools.values())

    def is_quiet(self, answering: int) -> bool:
        """Whether nothing happens before time passes or a client calls.

        Args:
            answering: calls that an upstream has and that wait for time only.
        """
        return (
            not self._wake.is_set()
            and self._activity.is_quiet
            and self._recorder.is_quiet
            and self._busy == answering + self._caller.waiting
        )

    def wake(self) -> None:
        """Look for work now: there may be new shards."""
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

    def troubles(self, pools: Iterable[str]) -> dict[str, str]:
        """Return why the requests of these pools wait, by pool, where they do not just queue."""
        found = {}
        for name in pools:
            pool = self._pools.get(name)
            if pool is not None and pool.trouble is not None:
                found[name] = pool.trouble
            elif name in self._homeless:
                found[name] = "its upstream is not configured any more"
        return found

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
        with contextlib.suppress(DiskFull):  # the next start takes everything back
            await self._ledger.release(self.owner)

    # Claiming ---------------------------------------------------------------------------------

    async def _claiming(self) -> None:
        while not self._leaving.is_set():
            self._wake.clear()
            with self._activity.piece():
                found = await self._claim_round()
            if not found:
                await wait_first(self._clock, self._wake, limits.IDLE_POLL_S)

    async def _claim_round(self) -> bool:
        """Claim and open what there is room for; return whether there was anything."""
        self._canceled.clear()  # the claims of this round know
        now = self._clock.now_us()
        lease = now + limits.LEASE_US
        voids: Sequence[Claim] = ()
        claims: list[Claim] = []
        try:
            voids = await self._ledger.claim_void(self.owner, now, lease, _VOIDS_PER_ROUND)
            for name in await self._ledger.pools_ready():
                pool = self._pool(name)
                if pool is not None and pool.is_hungry and self._busy < self._calls_max:
                    claims += await self._ledger.claim(self.owner, name, lease, 1)
        except DiskFull:
            await self._clock.sleep(limits.DISK_FULL_WAIT_S)
        for claim in voids:
            await self._open(claim, void=True)
        for claim in claims:
            await self._open(claim, void=False)
        for idle in [name for name, pool in self._pools.items() if pool.is_idle]:
            del self._pools[idle]  # clients choose the names of models: do not grow for ever
        return bool(voids or claims)

    def _pool(self, name: str) -> Pool | None:
        pool = self._pools.get(name)
        if pool is not None:
            return pool
        upstream = self._routes.upstream_of_pool(name)
        if upstream is None and name != UNROUTED:
            # The upstream was taken out of the configuration: its requests wait for its return.
            if name not in self._homeless:
                self._homeless.add(name)
                log.warning("waiting pool=%s: its upstream is not configured", shown(name))
            return None
        pool = Pool(
            name,
            None if upstream is None else self._upstreams[upstream],
            limits.POOL_SLOTS_DEFAULT if upstream is None else self._slots[upstream],
        )
        self._pools[name] = pool
        return pool

    async def _open(self, claim: Claim, *, void: bool) -> None:
        """Take up a claimed shard.

        Args:
            claim: of the shard.
            void: whether it was claimed because its batch was canceled or has expired.
        """
        try:
            shard = await asyncio.to_thread(self._load, claim)
        except DamagedError as error:
            # The others go on. This one is left to the next start: without its bytes, nothing that
            # we could record would be true.
            log.error("damaged shard=%s/%d: %s", claim.batch, claim.index, error)  # noqa: TRY400
            return
        crash.point("claimed")
        if claim.attempt > 1:
            if not await self._adopt(claim, shard):
                return
            crash.point("adopted")
        if self._leaving.is_set():
            return  # given back with the rest
        earlier = self._held.get(shard.key)
        if earlier is not None:  # lost, and claimed again before a renewal could tell
            self._lose(earlier)
        self._held[shard.key] = shard
        if claim.canceled or claim.batch in self._canceled:
            self._stop(shard, "canceled")
        elif void or claim.expires_us <= self._clock.now_us():
            self._stop(shard, "expired")
        if shard.is_done:
            self._recorder.note(shard)
            return
        pool = self._pool(claim.pool)
        assert pool is not None  # it was claimed from this pool
        pool.add(shard)
        self._fill(pool)

    async def _adopt(self, claim: Claim, shard: ShardRun) -> bool:
        while not self._leaving.is_set():
            try:
                return await self._ledger.adopt(self.owner, claim, shard.extents)
            except DiskFull:
                await self._clock.sleep(limits.DISK_FULL_WAIT_S)
        return False

    def _load(self, claim: Claim) -> ShardRun:
        data = self._store.read(segments.requests_name(claim.batch), claim.offset, claim.length)
        if claim.crc is not None and zlib.crc32(data) != claim.crc:
            raise DamagedError(f"the requests of shard {claim.batch}/{claim.index} are damaged")
        requests = [Request(*record) for record in read_records(data)]
        if len(requests) != claim.requests:
            raise DamagedError(f"shard {claim.batch}/{claim.index} holds {len(requests)} requests")
        adopted = Adopted()
        if claim.attempt > 1:
            adopted = adopt(self._store, claim, {request.custom_id for request in requests})
        return ShardRun(claim, requests, adopted)

    # Calling ----------------------------------------------------------------------------------

    def _fill(self, pool: Pool) -> None:
        """Start slots for what is unsent, up to the pool's number and the process's."""
        for _ in range(min(pool.slots - pool.busy, pool.unsent, self._calls_max - self._busy)):
            pool.busy += 1
            self._busy += 1
            task = self._group.create_task(self._slot(pool))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _slot(self, pool: Pool) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            done = 0
            while True:
                if not self._recorder.has_room:
                    await self._recorder.room()
                taken = pool.take(task)
                if taken is None:
                    break
                if pool.is_hungry:
                    self._wake.set()
                await self._caller.run(pool, *taken)
                self._recorder.note(taken[0])
                done += 1
                if done % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
        finally:
            pool.busy -= 1
            self._busy -= 1
            if not self._busy:
                self._idle.set()
        if self._busy + 1 >= self._calls_max:  # others may have waited for this slot
            self._wake.set()
            for other in list(self._pools.values()):
                self._fill(other)

    # Holding ----------------------------------------------------------------------------------

    async def _renewing(self) -> None:
        while True:
            await self._clock.sleep(limits.RENEW_INTERVAL_S)
            if self._held:
                with self._activity.piece():
                    await self._renew()

    async def _renew(self) -> None:
        shards = dict(self._held)
        now = self._clock.now_us()
        held = [shard.held() for shard in shards.values()]
        try:
            renewed = await self._ledger.renew(self.owner, now + limits.LEASE_US, held)
        except DiskFull:
            return  # nobody takes shards from a process that lives
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
                shard.abandon()
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
        self._recorder.open_room()  # who waits for the disk has nothing to send
        if self._busy:
            self._idle.clear()
            await wait_first(self._clock, self._idle, limits.DRAIN_GRACE_S)
