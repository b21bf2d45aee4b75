"""Why requests of a batch wait, in words for people. Pure.

A worker looks at its pools and tells what it sees (`of_pool`); whoever is asked of a batch puts
together what all workers tell (`explain`). In one process, the one worker is asked at once; several
tell each second through the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchyard.dispatch.limiter import Wait
    from batchyard.dispatch.pool import Pool
    from batchyard.dispatch.shard import ShardRun

Reason = Literal[
    "unconfigured", "paused", "breaker_open", "cooling_down", "limited", "priming", "behind_share"
]

REASONS: tuple[Reason, ...] = get_args(Reason)
"""The hardest first."""

# What a worker tells of a pool stays small: it is written each second.
_WAITS_MAX = 6
_PARKED_MAX = 32
_DETAIL_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Waiting:
    """One reason why requests of a pool wait."""

    pool: str
    reason: Reason
    detail: str
    until_s: float | None = None
    """Monotonic seconds; None where no time is known."""


class Held(msgspec.Struct, frozen=True, array_like=True):
    """Why the calls of a pool are held back in one worker."""

    reason: Reason
    detail: str
    left_s: float | None
    """Until it ends, from the moment that it was told; None where that is not known."""


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one worker sees of a pool at a moment."""

    slots: int = 0
    """Those that it may fill."""
    busy: int = 0
    """Those that it fills."""
    held: tuple[Held, ...] = ()
    parked: dict[str, int] = {}
    """Requests that wait for their prompt prefix, by batch; the most first, no more than 32."""
    rate_max: float | None = None
    """Calls a second that its limits allow it, where that is known."""
    rate: float | None = None
    """Of these, what it has learned from refused calls."""
    window: float = 0.0
    """Calls in flight that it has learned to be possible."""
    wall: int | None = None
    """Calls in flight of which it knows that more are refused."""
    among: int = 1
    """Workers that share the pool: it has such a part of what the upstream allows."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a worker has told, a while ago."""

    told: Told
    age_s: float = 0.0


_decoder = msgspec.json.Decoder(Told)


def dump(told: Told) -> str:
    """Return it as text."""
    return msgspec.json.encode(told).decode()


def load(text: str | None) -> Told:
    """Return what was told; nothing where it cannot be read, as from another version."""
    if text is None:
        return Told()
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError:
        return Told()


def of_pool(pool: Pool, waits: Iterable[Wait], shards: Iterable[ShardRun], now_s: float) -> Told:
    """Return what this worker sees of one of its pools, but for what it has learned.

    Args:
        pool: it.
        waits: at its gate.
        shards: that the worker holds, of all pools.
        now_s: the time.
    """
    held = []
    if pool.pause_reason is not None:
        left_s = max(0.0, pool.paused_until_s - now_s)
        held.append(Held("paused", pool.pause_reason[:_DETAIL_CHARS_MAX], left_s))
    for wait in waits:
        left = None if wait.until_s is None else max(0.0, wait.until_s - now_s)
        held.append(Held(wait.kind, wait.detail[:_DETAIL_CHARS_MAX], left))
    parked: dict[str, int] = {}
    for shard in shards:
        if shard.parked and shard.claim.pool == pool.name:
            batch = shard.claim.batch
            parked[batch] = parked.get(batch, 0) + len(shard.parked)
    most = sorted(parked.items(), key=lambda each: -each[1])[:_PARKED_MAX]
    return Told(slots=pool.slots, busy=pool.busy, held=tuple(held[:_WAITS_MAX]), parked=dict(most))


def in_pool(
    pool: Pool, waits: Iterable[Wait], shards: Sequence[ShardRun], batch: str, now_s: float
) -> list[Waiting]:
    """Return why requests of a batch wait in a pool that only this process works on.

    Args:
        pool: of the requests.
        waits: at its gate.
        shards: that this process holds, of all pools.
        batch: its id.
        now_s: the time.
    """
    own = [s for s in shards if s.claim.batch == batch and s.claim.pool == pool.name]
    flying = sum(len(shard.inflight) for shard in own)
    told = of_pool(pool, waits, own, now_s)
    return explain(pool.name, [Heard(told)], batch, flying, now_s)


def explain(
    pool: str, heard: Sequence[Heard], batch: str, flying: int, now_s: float
) -> list[Waiting]:
    """Return why requests of a batch wait in a pool.

    Args:
        pool: its name.
        heard: what each worker of the pool has told.
        batch: its id.
        flying: requests of the batch that are taken up in the pool.
        now_s: the time.
    """
    found = _held(pool, heard, now_s)
    parked = sum(each.told.parked.get(batch, 0) for each in heard)
    if parked:
        detail = f"{_requests(parked)} until their prompt prefix is in the cache"
        found.append(Waiting(pool, "priming", detail))
    # Where a worker has to give up slots, it has those that it still fills.
    slots = sum(max(each.told.slots, each.told.busy) for each in heard)
    busy = sum(each.told.busy for each in heard)
    if not found and busy >= slots > flying:
        detail = f"{flying} of {slots} slots; the others work for other batches"
        found.append(Waiting(pool, "behind_share", detail))
    return found


def _held(pool: str, heard: Sequence[Heard], now_s: float) -> list[Waiting]:
    """Return each reason once; where not all workers have it, with how many do."""
    of: dict[tuple[Reason, str], list[float | None]] = {}
    for each in heard:
        for held in each.told.held:
            until_s = None if held.left_s is None else now_s + max(0.0, held.left_s - each.age_s)
            of.setdefault((held.reason, held.detail), []).append(until_s)
    found = []
    for (reason, detail), untils in of.items():
        if len(untils) < len(heard):
            detail = f"{detail} (in {len(untils)} of {len(heard)} workers)"  # noqa: PLW2901
        known = [until_s for until_s in untils if until_s is not None]
        found.append(Waiting(pool, reason, detail, max(known, default=None)))
    return sorted(found, key=lambda each: REASONS.index(each.reason))


def rate_max(heard: Iterable[Heard]) -> float | None:
    """Return the calls a second that the limits of all workers allow, where that is known."""
    rates = [each.told.rate_max for each in heard if each.told.slots]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known and len(known) == len(rates) else None


def _requests(count: int) -> str:
    return f"{count:,} request{'' if count == 1 else 's'} wait{'s' if count == 1 else ''}"
