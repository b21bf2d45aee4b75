"""One worker's part of its pools, where there are several workers.

Each second it renews the row by which it has slots, tells what it sees and has counted, and reads
what the others tell. A configured limit is divided like slots, under a name of its own, by the
workers with slots in any of the pools that share it. What was learned is divided by the workers
that are there: when one comes or leaves, each scales what it knows, and the newcomer begins with
the part that the others leave it instead of finding the limits out anew. A share of a workspace
that is less than one slot in each worker goes round, also under a name of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batchyard import limits
from batchyard.clock import steady_us
from batchyard.dispatch import waiting
from batchyard.errors import DiskFull
from batchyard.ledger import Want

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from batchyard.clock import Clock
    from batchyard.dispatch.accounts import Accounts
    from batchyard.dispatch.ceilings import Ceiling
    from batchyard.dispatch.limiter import Limiter
    from batchyard.dispatch.pool import Pool
    from batchyard.dispatch.shard import ShardRun
    from batchyard.ledger import Granted, Ledger, Peer

_PARTS = 1_000_000  # that a configured limit is divided into
_OVER_MAX = 64  # workspaces that are told of, since it is written each second


class Size(NamedTuple):
    """How many slots a pool has."""

    slots: int
    """Of all workers together, or of this one where they are not divided."""
    is_divided: bool = True
    """Not so where the model is in the process of the worker."""


@dataclass(slots=True)
class _Behind:
    """A pool in which a worker can do nothing, and what it knows of others; monotonic seconds."""

    pool: Pool
    since_s: float
    well_s: float = float("-inf")
    """When another one, with which all was well, was last seen."""
    offered_s: float = float("-inf")
    """When a shard was last given back without one."""


class Sharing:
    """What one of several workers has of its pools."""

    def __init__(
        self,
        owner: str,
        ledger: Ledger,
        clock: Clock,
        accounts: Accounts,
        size_of: Callable[[str], Size],
    ) -> None:
        """Make one that has nothing yet.

        Args:
            owner: the worker.
            ledger: through which workers share.
            clock: of leases.
            accounts: of the worker.
            size_of: returns how many slots a pool has.
        """
        self._owner = owner
        self._ledger = ledger
        self._clock = clock
        self._accounts = accounts
        self._size_of = size_of
        self._among: dict[str, int] = {}
        """Workers of each pool, this one included, where it has slots."""
        self._ceilings: dict[str, Ceiling] = {}
        """Configured limits of which it has a part, or waits for one, by name."""
        self._behind: dict[str, _Behind] = {}
        """The pools in which this worker can do nothing, by name."""
        self.has_asked = False
        """Whether the others know of pools that are ours too."""

    async def ask(self, pools: Mapping[str, Pool], shards: Sequence[ShardRun]) -> list[Pool]:
        """Tell the others which pools are ours too, and take our part; return those pools.

        Args:
            pools: in which this worker has work.
            shards: that it holds.

        Raises:
            DiskFull: nothing has changed.
            StoreError: the ledger failed.
        """
        changed = await self._ask(pools, shards)
        if ceilings_of(pools.values()).keys() - self._ceilings.keys():
            changed = await self._ask(pools, shards)  # the first slots come with a part of these
        return changed

    async def _ask(self, pools: Mapping[str, Pool], shards: Sequence[ShardRun]) -> list[Pool]:
        now, lease_now = self._clock.now_us(), steady_us(self._clock)
        wants = [self._want(pool, shards) for pool in pools.values()]
        ceilings = ceilings_of(pools.values())
        wants += [Want(pool=name, slots=_PARTS, busy=0, note=None) for name in ceilings]
        small = {name: self._small_shares(pool) for name, pool in pools.items()}
        wants += [want for each in small.values() for want in each.values()]
        accounts = self._accounts.news({shard.claim.batch for shard in shards})
        try:
            granted = await self._ledger.share(
                self._owner, now, lease_now + limits.LEASE_US, wants, accounts, lease_now=lease_now
            )
        except DiskFull:
            self._accounts.tell_again()
            raise
        self._divide(ceilings, granted)
        self.has_asked = bool(granted)
        for name in self._among.keys() - granted.keys():
            del self._among[name]
        self._behind = {name: it for name, it in self._behind.items() if name in granted}
        changed = [(pools[name], each) for name, each in granted.items() if name in pools]
        for pool, each in changed:
            self._take(pool, each)
            self._compare(pool, each)
            if self._size_of(pool.name).is_divided:
                rows = {name: granted[want.pool].slots for name, want in small[pool.name].items()}
                pool.turns.divide(self._allowed(pool, rows, each.peers))
        return [pool for pool, _ in changed]

    def _compare(self, pool: Pool, granted: Granted) -> None:
        """Note whether another worker may be able to do what this one cannot.

        It has trouble, or another one has the slots. Only after a while that is a reason to let a
        pool go: a limit may be met, and slots may go round.
        """
        now_s = self._clock.monotonic_s()
        has_trouble = pool.own_trouble is not None
        is_well = any(p.note is None and (has_trouble or p.slots) for p in granted.peers)
        if not has_trouble and (pool.slots or not is_well):
            self._behind.pop(pool.name, None)
            pool.gives_way = False
            return
        behind = self._behind.setdefault(pool.name, _Behind(pool, now_s))
        if is_well:
            behind.well_s = now_s
        pool.gives_way = now_s - behind.since_s >= limits.UPSTREAM_PAUSE_S

    def to_give_back(self, held: Iterable[ShardRun]) -> list[ShardRun]:
        """Return the shards that other workers are to have.

        All that are at rest, where all is well with another one. Else one now and then: who has no
        work is known to nobody until it finds some.
        """
        found = []
        now_s, pause_s = self._clock.monotonic_s(), limits.UPSTREAM_PAUSE_S
        for shard in held:
            behind = self._behind.get(shard.claim.pool)
            if behind is None or not behind.pool.gives_way or not shard.is_at_rest:
                continue
            if now_s - behind.well_s > pause_s:
                if now_s - behind.offered_s < 2 * pause_s:
                    continue
                behind.offered_s = now_s
            behind.pool.again_s = now_s + pause_s
            found.append(shard)
        return found

    def _want(self, pool: Pool, shards: Iterable[ShardRun]) -> Want:
        now_s = self._clock.monotonic_s()
        limiter = pool.gate.limiter
        told = msgspec.structs.replace(
            waiting.of_pool(pool, limiter.waits(now_s), shards, now_s),
            rate_max=limiter.rate_max(now_s),
            rate=limiter.pace.rate,
            window=limiter.window.size,
            wall=limiter.window.wall,
            among=self._among.get(pool.name, 1),
            over=over_of(pool),
        )
        return Want(
            pool=pool.name,
            slots=self._size_of(pool.name).slots,
            busy=min(pool.busy, max(limiter.slots, limiter.in_flight)),
            note=pool.own_trouble,
            told=waiting.dump(told),
            is_new=pool.name not in self._among,
        )

    def _small_shares(self, pool: Pool) -> dict[str, Want]:
        """Return what to ask for workspaces whose share of each worker's slots is less than one."""
        size, among = self._size_of(pool.name), self._among.get(pool.name)
        if among is None or not size.is_divided:
            return {}
        return {
            name: Want(
                pool=f"#share/{name}/{pool.name}",
                slots=share.slots(size.slots),
                busy=inflight,
                note=None,
                go_round=True,
            )
            for name, share, inflight in pool.turns.limited()
            if not share.slots(size.slots // among, least=0)
        }

    def _allowed(
        self, pool: Pool, rows: Mapping[str, int], peers: Sequence[Peer]
    ) -> dict[str, int]:
        """Return what may be in flight here, for each workspace where its share does not say it.

        What others have in flight above their share, as from before this worker came, is missing
        here until those calls have ended.

        Args:
            pool: it.
            rows: what was granted of small shares, by workspace.
            peers: the other workers.
        """
        told = [(peer.slots, waiting.load(peer.told).over) for peer in peers]
        allowed = {}
        for name in rows.keys() | {name for _, over in told for name in over}:
            share = pool.turns.share_of(name)
            others = sum(max(share.slots(slots, 0), over.get(name, 0)) for slots, over in told)
            left = share.slots(self._size_of(pool.name).slots) - others
            allowed[name] = max(0, min(left, rows.get(name, share.slots(pool.slots, 0))))
        return allowed

    def _divide(self, ceilings: Mapping[str, Ceiling], granted: Mapping[str, Granted]) -> None:
        now_s = self._clock.monotonic_s()
        for name in self._ceilings.keys() - ceilings.keys():
            self._ceilings[name].divide(0.0, now_s)
        self._ceilings = dict(ceilings)
        for name, ceiling in ceilings.items():
            ceiling.divide(granted[name].slots / _PARTS, now_s)

    def _take(self, pool: Pool, granted: Granted) -> None:
        size = self._size_of(pool.name)
        pool.slots = granted.slots if size.is_divided else size.slots
        limiter = pool.gate.limiter
        now_s = self._clock.monotonic_s()
        for ceiling in limiter.ceilings:
            if ceiling.name not in self._ceilings:
                ceiling.divide(0.0, now_s)  # until it is asked for: the others may have all of it
        limiter.slots = max(pool.slots, 1)  # a call that was begun is repeated without a slot, too
        if not pool.slots:
            return
        is_shared = size.is_divided and size.slots >= limits.SLOTS_DIVIDED_MIN
        among = 1 + len(granted.peers) if is_shared else 1
        limiter.part = 1.0 / among
        before = self._among.get(pool.name)
        self._among[pool.name] = among
        if before is None:
            if size.is_divided and not limiter.is_limited:
                texts = [peer.told for peer in granted.peers if peer.slots]
                if granted.known is not None:
                    texts.append(granted.known)
                begin(limiter, [waiting.load(text) for text in texts], among, now_s)
        elif before != among:
            scale(limiter, before / among, now_s)


def ceilings_of(pools: Iterable[Pool]) -> dict[str, Ceiling]:
    """Return the configured limits, by name, of those pools in which calls may be made."""
    return {
        ceiling.name: ceiling
        for pool in pools
        if pool.slots or pool.busy
        for ceiling in pool.gate.limiter.ceilings
    }


def over_of(pool: Pool) -> dict[str, int]:
    """Return the requests in flight of workspaces with more than their share of what is filled."""
    over = [
        (name, inflight)
        for name, share, inflight in pool.turns.limited()
        if inflight > share.slots(pool.busy, 0)
    ]
    return dict(sorted(over, key=lambda each: -each[1])[:_OVER_MAX])


def begin(limiter: Limiter, others: Sequence[waiting.Told], among: int, now_s: float) -> None:
    """Give a newcomer its part of what the others have learned.

    Each of them knows a part of what the upstream allows, by the workers that it shared with: that
    many times it is an estimate of the whole. A limit that most of them do not know is none.

    Args:
        limiter: of the newcomer, which has learned nothing.
        others: what each of them tells.
        among: workers, the newcomer included.
        now_s: the time.
    """
    if not others:
        return
    rates = [told.rate * told.among for told in others if told.rate is not None]
    if 2 * len(rates) > len(others):
        limiter.pace.take_over(sum(rates) / len(rates) / among, now_s)
    walls = [told.wall * told.among for told in others if told.wall is not None]
    wall = None
    if 2 * len(walls) > len(others):
        wall = round(sum(walls) / len(walls) / among)
    windows = [told.window * told.among for told in others]
    size = sum(windows) / len(windows) / among
    limiter.window.take_over(max(size, limiter.window.size), wall, now_s)


def scale(limiter: Limiter, factor: float, now_s: float) -> None:
    """Change what was learned by a factor: this worker has another part of it now."""
    if limiter.pace.rate is not None:
        limiter.pace.take_over(limiter.pace.rate * factor, now_s)
    wall = limiter.window.wall
    if wall is not None:
        limiter.window.take_over(wall * factor, round(wall * factor), now_s)
