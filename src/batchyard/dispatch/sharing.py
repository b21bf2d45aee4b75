"""One worker's part of its pools, where there are several workers.

Each second it renews the row by which it has slots, tells what it sees and has counted, and reads
what the others tell. Configured limits are divided as the slots are. What was learned is divided by
the workers that are there: when one comes or leaves, each scales what it knows, and the newcomer
begins with the part that the others leave it instead of finding the limits out anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batchyard import limits
from batchyard.dispatch import waiting
from batchyard.errors import DiskFull
from batchyard.ledger import Want

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from batchyard.clock import Clock
    from batchyard.dispatch.accounts import Accounts
    from batchyard.dispatch.limiter import Limiter
    from batchyard.dispatch.pool import Pool
    from batchyard.dispatch.shard import ShardRun
    from batchyard.ledger import Granted, Ledger

_PART_MIN = 0.001  # of limits, for a pool without slots: calls in flight may still end there


class Size(NamedTuple):
    """How many slots a pool has."""

    slots: int
    """Of all workers together, or of this one where they are not divided."""
    is_divided: bool = True
    """Not so where the model is in the process of the worker."""


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
        now = self._clock.now_us()
        wants = [self._want(pool, shards) for pool in pools.values()]
        accounts = self._accounts.news({shard.claim.batch for shard in shards})
        try:
            granted = await self._ledger.share(
                self._owner, now, now + limits.LEASE_US, wants, accounts
            )
        except DiskFull:
            self._accounts.tell_again()
            raise
        self.has_asked = bool(granted)
        for name in self._among.keys() - granted.keys():
            del self._among[name]
        changed = [(pools[name], each) for name, each in granted.items() if name in pools]
        for pool, each in changed:
            self._take(pool, each)
        return [pool for pool, _ in changed]

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
        )
        return Want(
            pool=pool.name,
            slots=self._size_of(pool.name).slots,
            busy=pool.busy,
            note=pool.trouble,
            told=waiting.dump(told),
        )

    def _take(self, pool: Pool, granted: Granted) -> None:
        size = self._size_of(pool.name)
        pool.slots = granted.slots if size.is_divided else size.slots
        limiter = pool.gate.limiter
        limiter.part = max(pool.slots / size.slots, _PART_MIN)
        limiter.slots = max(pool.slots, 1)  # a call that was begun is repeated without a slot, too
        if not pool.slots:
            return
        is_shared = size.is_divided and size.slots >= limits.SLOTS_DIVIDED_MIN
        among = 1 + len(granted.peers) if is_shared else 1
        before = self._among.get(pool.name)
        self._among[pool.name] = among
        now_s = self._clock.monotonic_s()
        if before is None:
            if size.is_divided and not limiter.is_limited:
                told = [waiting.load(peer.told) for peer in granted.peers if peer.slots]
                begin(limiter, told, among, now_s)
        elif before != among:
            scale(limiter, before / among, now_s)


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
