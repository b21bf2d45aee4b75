"""The worker: claims shards, calls upstreams, hands results to the recorder, renews its leases.

`routes` says which model runs where, `slots` take requests and `calling` brings each to its result,
`recorder` writes.
A worker knows no other worker: exclusion is the lease in the ledger, correctness is the fence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING

from batchyard import ids, limits
from batchyard.clock import wait_first
from batchyard.dispatch.accounts import merge
from batchyard.dispatch.activity import Activity
from batchyard.dispatch.adopt import UNSENT
from batchyard.dispatch.calling import Caller
from batchyard.dispatch.cap import Cap
from batchyard.dispatch.ceilings import Ceilings
from batchyard.dispatch.claiming import Claiming
from batchyard.dispatch.gate import Gates
from batchyard.dispatch.line import Timer
from batchyard.dispatch.opening import Opening, lease_us
from batchyard.dispatch.pool import Pool
from batchyard.dispatch.recorder import Recorder
from batchyard.dispatch.routes import UNROUTED, Routes
from batchyard.dispatch.sharing import Sharing, Size
from batchyard.dispatch.slots import Slots
from batchyard.dispatch.suspects import Suspects, give_up
from batchyard.dispatch.turns import Turns
from batchyard.dispatch.waiting import Waiting, in_pool
from batchyard.errors import DiskFull, Overloaded, StoreError, shown
from batchyard.fairness import EQUAL
from batchyard.ledger import News

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping, Sequence

    from batchyard.clock import Clock
    from batchyard.dispatch.accounts import Account
    from batchyard.dispatch.shard import ShardRun, StopReason
    from batchyard.fairness import Shares
    from batchyard.ledger import Claim, Ledger, Rest
    from batchyard.segments import Segments
    from batchyard.upstream import Upstream

log = logging.getLogger(__name__)

_SPARE_MAX_S = 5.0


class Worker:
    """One worker: all pools of one process."""

    _is_full = False
    """Whether the last claim found no room on the disk."""

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
        shares: Shares = EQUAL,
        owner: str | None = None,
        ceilings: Ceilings | None = None,
        own_slots: frozenset[str] = frozenset(),
    ) -> None:
        """Make a worker.

        Args:
            ledger: who works on what.
            store: the bytes.
            upstreams: by name, those that this worker calls.
            routes: which model runs where.
            slots: requests in flight per pool, by name of the upstream.
            clock: of leases, deadlines and waits.
            rng: of the jitter.
            calls_max: requests in flight over all pools.
            flush_s: how long answers gather before they are written.
            shares: of the workspaces.
            owner: its name in the ledger among several workers. Slots are divided then, and what
                clients ask of another process is looked for in the ledger. None for the only one.
            ceilings: limits of the upstreams that are configured, beside the slots.
            own_slots: upstreams of which each worker has all slots: the model is in its process.
        """
        self._ledger = ledger
        self._upstreams, self._routes = upstreams, routes
        self._sizes, self._own_slots = slots, own_slots
        self._clock = clock
        self._shares = shares
        self.owner, self._is_one_of_several = owner or ids.nonce(), owner is not None
        self._rng, self._caller = rng, Caller(clock, rng)
        cap = Cap(calls_max)
        self._gates = Gates(clock, ceilings or Ceilings(), cap)
        self._recorder = Recorder(ledger, store, clock, self.owner, self._forget, flush_s=flush_s)
        self._pools: dict[str, Pool] = {}
        self._held: dict[tuple[str, int], ShardRun] = {}
        self._homeless = set[str]()
        accounts, self._leaving = self._caller.accounts, asyncio.Event()
        self._sharing = Sharing(self.owner, ledger, clock, accounts, self._size_of)
        self._suspects = Suspects(self.owner, ledger, self._renew, clock.monotonic_s())
        self._opening = Opening(self.owner, ledger, store, clock, accounts, self._leaving)
        self._claims = Claiming(
            self.owner, ledger, clock, shares, self._held, self._opening, self._suspects
        )
        self._canceled = set[str]()
        self._wake = asyncio.Event()
        self._slots = Slots(cap, self._pools, self._caller, self._recorder, self._wake)
        self._activity = Activity()
        self._news, self._looked_s = News(newest=0, canceling=frozenset()), 0.0

    @property
    def has_unsent(self) -> bool:
        """Whether requests wait for a slot, or for the one that writes their prompt cache."""
        return any(pool.unsent or pool.parked for pool in self._pools.values())

    def is_quiet(self, answering: int) -> bool:
        """Whether nothing happens before time passes or a client calls.

        Args:
            answering: calls that an upstream has and that wait for time only.
        """
        return (
            not self._wake.is_set()
            and self._activity.is_quiet
            and self._recorder.is_quiet
            and self._slots.is_quiet(answering)
        )

    def wake(self) -> None:
        """Look for work now: there may be new shards."""
        self._wake.set()

    cancel_takes_s = 0.0
    """After how long nothing is sent of a batch that was canceled: at once."""

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

    def explain(self, batch_id: str, pools: Mapping[str, Rest]) -> list[Waiting]:
        """Return why requests of a batch wait in these pools."""
        found: list[Waiting] = []
        now_s = self._clock.monotonic_s()
        for name, rest in pools.items():
            pool = self._pools.get(name)
            if pool is not None:
                shards, waits = list(self._held.values()), self._gates.waits(name)
                found += in_pool(pool, waits, shards, batch_id, now_s, queued=rest.queued)
            elif name in self._homeless:
                why = "its upstream is not configured any more"
                found.append(Waiting(name, "unconfigured", why))
        return found

    async def account(self, batch_id: str) -> Account | None:
        """Return what is counted of the calls of a batch, also before this process began."""
        own = self._caller.accounts.find(batch_id)
        told = await self._ledger.accounts(batch_id)
        others = [text for owner, text in told if own is None or owner != self.owner]
        return merge(others, own)

    def told_us(self, pools: Iterable[str]) -> int | None:
        """Return of when it is what it says of these pools: now."""
        return self._clock.now_us()

    def rate_max(self, pool: str) -> float | None:
        """Return how many calls a second a pool can make at most, where that is known."""
        return self._gates.rate_max(pool)

    async def run(self) -> None:
        """Work until `leave` is called.

        Raises:
            StoreError: the store failed; what was not committed is recovered by the next start.
        """
        try:
            await self._work()
        except asyncio.CancelledError:  # the process ends for what is none of our shards
            await self._spare()
            raise
        except (StoreError, ExceptionGroup) as error:
            if isinstance(error, StoreError) or error.subgroup(StoreError) is not None:
                await self._spare(back=True)
            raise

    async def _spare(self, *, back: bool = False) -> None:
        """Count nothing as failed that is held, if the ledger still takes that.

        Args:
            back: whether others may have it at once. What was not synced is none of theirs.
        """
        with contextlib.suppress(StoreError, Overloaded, TimeoutError):
            async with asyncio.timeout(_SPARE_MAX_S):
                await (self._ledger.release if back else self._ledger.spare)(self.owner)

    async def _work(self) -> None:
        try:
            await self._dispatch()
        finally:
            for pool in self._pools.values():
                pool.close()
        with contextlib.suppress(Overloaded, TimeoutError):
            async with asyncio.timeout(_SPARE_MAX_S):
                await self._tell()
        for shard in self._held.values():
            self._recorder.close(shard)
        self._held.clear()
        with contextlib.suppress(DiskFull):  # the next start takes everything back
            await self._ledger.release(self.owner, has_left=True)

    async def _dispatch(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._slots.group = group
            works = self._claiming(), self._renewing(), self._ticking()
            loops = [group.create_task(work) for work in works]
            if self._is_one_of_several:
                self._caller.look_again = self._look_again
                self._caller.has_old_news = self._has_old_news
                loops.append(group.create_task(self._watching()))
            group.create_task(self._recorder.run())
            await self._leaving.wait()
            await self._drain()
            for shard in self._held.values():  # what becomes of these calls nobody will know
                cut = sum(not task.done() for task in shard.inflight.values())
                self._caller.accounts.of(shard.claim.batch).unknown += cut
            for task in (*loops, *self._slots.tasks):
                task.cancel()
            self._recorder.finish()

    # Claiming ---------------------------------------------------------------------------------

    async def _claiming(self) -> None:
        while not self._leaving.is_set():
            self._wake.clear()
            with self._activity.piece():
                found = await self._claim_round()
            if not found:
                await wait_first(self._clock, self._wake, self._pause_s(limits.IDLE_POLL_S))

    async def _claim_round(self) -> bool:
        """Claim and open what there is room for; return whether there was anything."""
        self._canceled.clear()  # the claims of this round know
        now = self._clock.now_us()
        voids: Sequence[Claim] = ()
        ready: Sequence[str] = ()
        try:
            voids = await self._claims.void(now)
            await self._opening.again()
            apart = await self._ledger.pools_apart()
            ready = sorted({*await self._ledger.pools_ready(), *apart})
            pools = [pool for pool in map(self._pool, ready) if pool is not None]
            for pool in self._pools.values():
                pool.is_dry = pool.name not in ready
            if self._is_one_of_several and not all(pool.slots for pool in pools):
                await self._share()
            for pool in pools:
                is_full = not self._slots.has_room and pool.unsent > pool.busy
                await self._claims.fill(pool, now, is_full=is_full)
                if pool.name in apart and pool.slots and not pool.gives_way:
                    await self._claims.apart(pool)
        except DiskFull:
            if not self._is_full:
                log.warning("the disk is full: nothing is taken up until there is room")
            self._is_full = True
            await self._clock.sleep(limits.DISK_FULL_WAIT_S)
        else:
            self._is_full = False
        claims = self._opening.claims
        for claim in claims:
            await self._open(claim, void=claim in voids)
        idle = [pool.name for pool in self._pools.values() if pool.is_idle]
        for name in idle:  # clients choose the names of models: do not grow for ever
            if name not in ready:
                self._pools.pop(name).close()
                self._gates.forget(name)
        return bool(claims)

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
        if upstream is not None and upstream not in self._upstreams:
            return None  # that is for other workers
        pool = Pool(
            name,
            None if upstream is None else self._upstreams[upstream],
            0 if self._is_one_of_several else self._slots_of(name),
            Turns(self._shares, self._clock.now_us),
            self._clock.monotonic_s,
        )
        pool.gate = self._gates.of(name, self._slots_of(name))
        pool.is_broken = pool.gate.limiter.is_broken
        pool.on_release = self._slots.fill
        pool.timer = Timer(self._clock, pool.let_in)
        self._pools[name] = pool
        return pool

    def _size_of(self, name: str) -> Size:
        upstream = self._routes.upstream_of_pool(name)
        return Size(self._slots_of(name), is_divided=upstream not in self._own_slots)

    def _slots_of(self, name: str) -> int:
        """Return the slots of a pool over all workers."""
        upstream = self._routes.upstream_of_pool(name)
        return limits.POOL_SLOTS_DEFAULT if upstream is None else self._sizes[upstream]

    async def _open(self, claim: Claim, *, void: bool) -> None:
        """Take up a claimed shard.

        Args:
            claim: of the shard.
            void: whether it was claimed because its batch was canceled or has expired.
        """
        opened = await self._opening.open(claim)
        if opened is None or self._leaving.is_set():
            return  # given back with the rest
        shard = opened.shard
        earlier = self._held.get(shard.key)
        if earlier is not None:  # lost, and claimed again before a renewal could tell
            self._recorder.lose(earlier)
        self._held[shard.key] = shard
        self._suspects.opened(shard)
        if claim.canceled or claim.batch in self._canceled:
            self._stop(shard, "canceled")
        elif void or claim.expires_us <= self._clock.now_us():
            self._stop(shard, "expired")
        else:
            give_up(shard, opened.lost)
        if shard.is_done:
            self._recorder.note(shard)
            return
        if not opened.is_whole:
            self._opening.tell_damage(claim, UNSENT)
            return
        pool = self._pool(claim.pool)
        assert pool is not None  # it was claimed from this pool
        pool.add(shard)
        shard.on_let_go = partial(self._slots.fill, pool)
        self._slots.fill(pool)

    # Holding ----------------------------------------------------------------------------------

    async def _ticking(self) -> None:
        """Do each second what needs no ledger, however long that takes to answer others."""
        while True:
            await self._clock.sleep(limits.RENEW_INTERVAL_S)
            for pool in list(self._pools.values()):
                pool.tick()
                self._slots.fill(pool)
                pool.gate.pass_on()  # whoever was woken may have to wait for the disk, say
            self._end_late()

    async def _renewing(self) -> None:
        """Renew leases when it is time, and do each second what needs no row of each shard."""
        due_s = self._clock.monotonic_s()
        while True:
            await self._clock.sleep(limits.RENEW_INTERVAL_S)
            now_s = self._clock.monotonic_s()
            is_due = now_s >= due_s
            if is_due:
                for pool in self._pools.values():
                    pool.look_again()
                due_s = now_s + self._ledger.renew_s - limits.RENEW_INTERVAL_S / 2  # rounds go late
            if self._held or self._opening:
                with self._activity.piece():
                    await self._renew(is_due=is_due)
            if self._sharing.has_asked or (self._is_one_of_several and self._pools):
                with self._activity.piece(), contextlib.suppress(DiskFull):
                    await self._share()
            elif not self._is_one_of_several:
                with self._activity.piece():
                    await self._tell()

    async def _tell(self) -> None:
        """Keep what is counted of calls, for others and for after the end of this process."""
        held = {shard.claim.batch for shard in self._held.values()}
        await self._caller.accounts.tell(self._ledger, self.owner, self._clock.now_us(), held)

    async def _share(self) -> None:
        """Tell the other workers which pools are ours too, and take our part of their slots."""
        for pool in await self._sharing.ask(self._pools, list(self._held.values())):
            self._slots.fill(pool)
            pool.gate.pass_on()  # a repeated call may wait there for a slot
        await self._recorder.give_back(self._sharing.to_give_back(self._held.values()))

    async def _watching(self) -> None:
        """Look for what clients have asked of another process."""
        while True:
            await self._look()
            await self._clock.sleep(self._pause_s(self._ledger.poll_s))

    async def _look(self) -> None:
        began_s = self._clock.monotonic_s()
        news = await self._ledger.news()
        known, self._news = self._news, news
        if news.newest != known.newest:
            self.wake()
        for batch_id in news.canceling - known.canceling:
            self.cancel(batch_id)
        self._looked_s = began_s

    async def _look_again(self) -> bool:
        """Look, if that was too long ago: a process that was frozen must not send on old news.

        Returns:
            Whether it looked, which may have taken long.
        """
        is_old = self._has_old_news()
        if is_old:
            await self._look()
        return is_old

    def _has_old_news(self) -> bool:
        age_s = self._clock.monotonic_s() - self._looked_s
        return age_s > limits.NEWS_AGE_MAX * self._ledger.poll_s

    def _pause_s(self, seconds: float) -> float:
        """Return a time to wait, such that several workers do not all look at once."""
        return seconds * self._rng.uniform(0.5, 1.5) if self._is_one_of_several else seconds

    async def _renew(self, *, is_due: bool = True) -> None:
        """Renew all leases; where that is not due, tell of those whose risk has changed."""
        shards = dict(self._held)
        now_s = self._clock.monotonic_s()
        held = [*self._opening.held(), *(shard.held() for shard in shards.values())]
        held = self._suspects.to_tell(held, now_s, is_due=is_due)
        if not held:
            return
        try:
            renewed = await self._ledger.renew(self.owner, lease_us(self._clock), held)
        except DiskFull:  # nobody takes shards from a process that lives
            self._suspects.not_told(held)
            return
        kept = {(row.batch, row.index): row for row in renewed}
        lost = [each for each in held if each.at_risk and (each.batch, each.index) not in kept]
        self._opening.renewed(held, kept)
        for key in [(each.batch, each.index) for each in held]:
            shard = shards.get(key)
            if shard is None or self._held.get(key) is not shard:
                continue  # being opened, committed meanwhile, or claimed anew
            row = kept.get(key)
            if row is None:
                if not shard.is_committing:  # else it may be done, and not lost
                    self._recorder.lose(shard)
            elif row.canceled:
                self._stop(shard, "canceled")
        if lost:
            with contextlib.suppress(DiskFull):
                await self._ledger.absolve([(e.batch, e.index, e.attempt) for e in lost])

    def _end_late(self) -> None:
        """Stop what has expired, and end the calls whose grace is over.

        Until this is noticed no call starts all the same: each looks at the time itself.
        """
        now_us, now_s = self._clock.now_us(), self._clock.monotonic_s()
        for shard in list(self._held.values()):
            if shard.claim.expires_us <= now_us:
                self._stop(shard, "expired")
            if shard.deadline_s <= now_s:
                shard.abandon()
                self._recorder.note(shard)

    def _stop(self, shard: ShardRun, reason: StopReason) -> None:
        shard.stop(reason, self._clock.monotonic_s() + limits.DRAIN_GRACE_S)
        self._recorder.note(shard)

    def _forget(self, shard: ShardRun) -> None:
        if self._held.get(shard.key) is shard:
            del self._held[shard.key]

    # Leaving ----------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Let the calls in flight end, for a while; start no other."""
        for shard in self._held.values():
            shard.halt()
        self._recorder.open_room()  # who waits for the disk has nothing to send
        self._gates.close()
        with contextlib.suppress(DiskFull):  # whatever ends it now, it was told to end
            await self._ledger.spare(self.owner)
        if not self._slots.filled:
            return
        log.info("%d calls in flight may end", self._slots.filled)
        self._slots.idle.clear()
        await wait_first(self._clock, self._slots.idle, limits.DRAIN_GRACE_S)
