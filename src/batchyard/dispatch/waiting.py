"""Why requests of a batch wait, in words for people. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchyard.dispatch.limiter import Wait
    from batchyard.dispatch.pool import Pool
    from batchyard.dispatch.shard import ShardRun

Reason = Literal[
    "unconfigured", "paused", "breaker_open", "cooling_down", "limited", "priming", "behind_share"
]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One reason why requests of a pool wait."""

    pool: str
    reason: Reason
    detail: str
    until_s: float | None = None
    """Monotonic seconds; None where no time is known."""


def in_pool(
    pool: Pool, waits: Iterable[Wait], shards: Iterable[ShardRun], batch: str, now_s: float
) -> list[Waiting]:
    """Return why requests of a batch wait in a pool that this process works on.

    Args:
        pool: of the requests.
        waits: at its gate.
        shards: that this process holds, of all pools.
        batch: its id.
        now_s: the time.
    """
    found = []
    if pool.pause_reason is not None:
        until_s = max(now_s, pool.paused_until_s)
        found.append(Waiting(pool.name, "paused", pool.pause_reason, until_s))
    found += [Waiting(pool.name, wait.kind, wait.detail, wait.until_s) for wait in waits]
    own = [s for s in shards if s.claim.batch == batch and s.claim.pool == pool.name]
    parked = sum(len(shard.parked) for shard in own)
    if parked:
        detail = f"{_requests(parked)} until their prompt prefix is in the cache"
        found.append(Waiting(pool.name, "priming", detail))
    flying = sum(len(shard.inflight) for shard in own)
    if not found and pool.busy >= pool.slots > flying:
        detail = f"{flying} of {pool.slots} slots; the others work for other batches"
        found.append(Waiting(pool.name, "behind_share", detail))
    return found


def _requests(count: int) -> str:
    return f"{count:,} request{'' if count == 1 else 's'} wait{'s' if count == 1 else ''}"
