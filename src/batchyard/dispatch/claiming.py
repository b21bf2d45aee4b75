"""What a worker takes up next: the shards that it claims, of which batches, and how many.

A claim is in `Opening` before the ledger is asked for the next one: should that find the disk full,
nothing else would know of it, and nobody takes shards from a process that lives.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.dispatch.opening import lease_us

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchyard.clock import Clock
    from batchyard.dispatch.opening import Opening
    from batchyard.dispatch.pool import Pool
    from batchyard.dispatch.shard import ShardRun
    from batchyard.dispatch.suspects import Suspects
    from batchyard.fairness import Shares
    from batchyard.ledger import Claim, Ledger, Turn

_VOIDS_PER_ROUND = 8
_LACKING_PER_ROUND = limits.OPEN_BYTES_MAX // limits.SHARD_BYTES_MAX  # shards of one batch


class Claiming:
    """Claims for one worker. Each method may raise DiskFull; what was claimed is kept then."""

    def __init__(
        self,
        owner: str,
        ledger: Ledger,
        clock: Clock,
        shares: Shares,
        held: Mapping[tuple[str, int], ShardRun],
        opening: Opening,
        suspects: Suspects,
    ) -> None:
        """Make one.

        Args:
            owner: the worker.
            ledger: where it claims.
            clock: of leases.
            shares: of the workspaces.
            held: the shards that it holds, by batch and index.
            opening: where claims go.
            suspects: which claims those that failed often.
        """
        self._owner, self._ledger, self._clock, self._shares = owner, ledger, clock, shares
        self._held, self._opening, self._suspects = held, opening, suspects

    async def void(self, now_us: int) -> Sequence[Claim]:
        """Claim what is over, canceled or expired; return that."""
        lease = lease_us(self._clock)
        claims = await self._ledger.claim_void(self._owner, now_us, lease, _VOIDS_PER_ROUND)
        self._opening.add(claims)
        return claims

    async def apart(self, pool: Pool) -> None:
        """Claim one of those that failed often, if that may be."""
        now_s, lease = self._clock.monotonic_s(), lease_us(self._clock)
        opening = self._opening
        opening.add(await self._suspects.claim(pool.name, lease, self._held, opening, now_s))

    async def fill(self, pool: Pool, now_us: int, *, is_full: bool = False) -> None:
        """Claim for one pool: what is not open here, what runs out, and what fills free slots.

        Each batch has a shard open as long as there are slots for as many, so that turns can be
        taken request by request.

        Args:
            pool: for which.
            now_us: the time.
            is_full: whether it has enough for now, unless another batch waits for its first call.
        """
        ledger, owner, name, shares = self._ledger, self._owner, pool.name, self._shares
        clock, add = self._clock, self._opening.add
        if pool.gives_way:
            if pool.tries_again():
                add(
                    await ledger.claim(
                        owner, name, lease_us(clock), 1, shares=shares, now_us=now_us
                    )
                )
            return
        if is_full:
            now_s = clock.monotonic_s()
            if now_s < pool.full_again_s or pool.turns.has_uncalled(pool.slots):
                return
            pool.full_again_s = now_s + limits.IDLE_POLL_S
        has_any = await self._begin(pool, 1 if is_full else limits.FRESH_PER_ROUND)
        if is_full:
            return
        if pool.pause_reason is None and pool.slots and self._has_room(pool):
            lacking = pool.lacking()
            # One at a time would not keep up with thousands of slots, or with quick answers.
            ahead = max(pool.slots // limits.SHARD_REQUESTS, pool.shards_ahead() if lacking else 0)
            each = 1 + ahead // max(1, pool.turns.batches)
            each = min(each, _LACKING_PER_ROUND)
            for turn in lacking:
                if turn not in pool.drained:
                    more = await ledger.claim(owner, name, lease_us(clock), each, turn=turn)
                    has_any |= add(more)
                    if len(more) < each:
                        pool.drained.add(turn)
        if not has_any and pool.is_hungry:
            add(await ledger.claim(owner, name, lease_us(clock), 1, shares=shares, now_us=now_us))

    async def _begin(self, pool: Pool, most: int) -> bool:
        """Claim a shard each of batches that are not open here; return whether there were any."""
        has_room = self._has_room(pool)
        begun = min(pool.begins, most if has_room else 1) if pool.slots else 0
        if begun <= 0 or not (has_room or self._has_room(pool, times=2)):
            return False
        left = begun
        found: frozenset[Turn] = frozenset()
        alone = self._opening.left_alone
        asks = pool.asks(has_room=has_room)
        for number, ask in enumerate(asks, 1):
            asked = (left + 1) // 2 if number < len(asks) else left
            if not asked:
                break
            here = ask if ask.batches is None else replace(ask, batches=ask.batches | found | alone)
            claims = await self._ledger.claim_fresh(
                self._owner, pool.name, lease_us(self._clock), asked, shares=self._shares, here=here
            )
            self._opening.add(claims)
            pool.began(claims, asked, here)
            left -= len(claims)
            found |= {claim.turn for claim in claims}
        return bool(found)

    def _has_room(self, pool: Pool, times: int = 1) -> bool:
        """Whether more shards may be open than the slots of a pool need.

        There is as long as all pools have less than `OPEN_BYTES_MAX` open, or this one less than
        its part of that: no pool waits for what another one has open. So all together have less
        than twice as much, and what one claim brings each.

        Args:
            pool: of the slots.
            times: `OPEN_BYTES_MAX` counts as so much.
        """
        open_ = {pool.name: 0}
        for shard in self._held.values():
            if shard.unsent or shard.parked:
                claim = shard.claim
                open_[claim.pool] = open_.get(claim.pool, 0) + claim.length
        most = times * limits.OPEN_BYTES_MAX
        return sum(open_.values()) < most or open_[pool.name] < most / len(open_)
