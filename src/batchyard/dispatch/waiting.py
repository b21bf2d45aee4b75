"""Why requests of a batch wait, in words for people. Pure.

A worker looks at its pools and tells what it sees (`of_pool`); whoever is asked of a batch puts
together what all workers tell (`explain`). In one process, the one worker is asked at once; several
tell each second through the ledger.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from batchyard.dispatch.limiter import Wait
    from batchyard.dispatch.pool import Pool
    from batchyard.dispatch.shard import ShardRun

Reason = Literal[
    "unconfigured",
    "paused",
    "breaker_open",
    "cooling_down",
    "limited",
    "recording",
    "retrying",
    "tried_alone",
    "priming",
    "behind_share",
]

REASONS: tuple[Reason, ...] = get_args(Reason)
"""The hardest first."""

# What a worker tells of a pool stays small: it is written each second.
_WAITS_MAX = 6
_BATCHES_MAX = 32
_DETAIL_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Waiting:
    """One reason why requests of a pool wait."""

    pool: str
    reason: Reason
    detail: str
    until_s: float | None = None
    """Monotonic seconds; None where no time is known."""
    last_s: float | None = None
    """When the last of them goes on, where that is later."""
    is_everywhere: bool = True
    """Whether each worker of the pool is held back as much, for whatever reason."""


class Held(msgspec.Struct, frozen=True, array_like=True):
    """Why the calls of a pool are held back in one worker."""

    reason: Reason
    detail: str
    left_s: float | None
    """Until it ends, from the moment that it was told; None where that is not known."""


class Retrying(msgspec.Struct, frozen=True, array_like=True):
    """Requests of a batch that wait for their own time to be sent again."""

    requests: int
    left_s: float
    """Until the first of them is, from the moment that it was told."""
    last_s: float
    """Until the last of them is."""
    why: str
    """What the calls of the most of them came to, in a word."""


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one worker sees of a pool at a moment."""

    slots: int = 0
    """Those that it may fill."""
    busy: int = 0
    """Those that it fills."""
    held: tuple[Held, ...] = ()
    flying: dict[str, int] = {}
    """Requests in flight, by batch; the most first, no more than 32."""
    parked: dict[str, int] = {}
    """Requests that wait for their prompt prefix, by batch, as `flying`."""
    apart: dict[str, int] = {}
    """Requests that wait until one of their shard, sent alone, has a result; as `flying`."""
    retrying: dict[str, Retrying] = {}
    """By batch, as `parked`."""
    capped: dict[str, int] = {}
    """Batches whose workspace fills all slots that it may have, with how many; no more than 32."""
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
    over: dict[str, int] = {}
    """Requests in flight of workspaces with more than their share of the slots that it fills."""


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
        left_s = max(0.0, pool.pausing.until_s - now_s)
        held.append(Held("paused", pool.pause_reason[:_DETAIL_CHARS_MAX], left_s))
    if pool.unwritten:
        detail = "answers wait to be written; the disk is full, or behind"
        held.append(Held("recording", detail, None))
    if pool.is_capped:
        detail = "all calls that the process may make at once, over all models, are under way"
        held.append(Held("limited", detail, None))
    for wait in waits:
        left = None if wait.until_s is None else max(0.0, wait.until_s - now_s)
        held.append(Held(wait.kind, wait.detail[:_DETAIL_CHARS_MAX], left))
    flying, parked, apart = Counter[str](), Counter[str](), Counter[str]()
    delays: dict[str, list[tuple[float, str]]] = {}
    for shard in shards:
        if shard.claim.pool != pool.name:
            continue
        batch = shard.claim.batch
        flying[batch] += len(shard.inflight)
        parked[batch] += len(shard.parked)
        apart[batch] += len(shard.kept_back)
        if shard.retrying:
            delays.setdefault(batch, []).extend(shard.retrying.values())
    slowest = sorted(delays.items(), key=lambda each: -len(each[1]))[:_BATCHES_MAX]
    return Told(
        slots=pool.slots,
        busy=pool.busy,
        held=tuple(held[:_WAITS_MAX]),
        flying=_most(flying),
        parked=_most(parked),
        apart=_most(apart),
        retrying={batch: _retrying(each, now_s) for batch, each in slowest},
        capped=dict(islice(pool.turns.capped(pool.slots).items(), _BATCHES_MAX)),
    )


def _most(counts: Counter[str]) -> dict[str, int]:
    return dict((+counts).most_common(_BATCHES_MAX))


def _retrying(delays: Sequence[tuple[float, str]], now_s: float) -> Retrying:
    untils = [until_s for until_s, _ in delays]
    (why, _), *_ = Counter(why for _, why in delays).most_common(1)
    left_s, last_s = (max(0.0, end_s - now_s) for end_s in (min(untils), max(untils)))
    return Retrying(len(delays), left_s, last_s, why)


def in_pool(
    pool: Pool,
    waits: Iterable[Wait],
    shards: Sequence[ShardRun],
    batch: str,
    now_s: float,
    *,
    queued: int = 0,
) -> list[Waiting]:
    """Return why requests of a batch wait in a pool that only this process works on.

    Args:
        pool: of the requests.
        waits: at its gate.
        shards: that this process holds, of all pools.
        batch: its id.
        now_s: the time.
        queued: requests of the batch in the pool whose shards nobody has taken up.
    """
    own = [s for s in shards if s.claim.batch == batch and s.claim.pool == pool.name]
    flying = sum(len(shard.inflight) for shard in own)
    unsent = queued + sum(len(shard.unsent) + len(shard.kept_back) for shard in own)
    told = of_pool(pool, waits, shards, now_s)
    return explain(pool.name, [Heard(told)], batch, flying, now_s, unsent=unsent)


def explain(
    pool: str, heard: Sequence[Heard], batch: str, flying: int, now_s: float, *, unsent: int
) -> list[Waiting]:
    """Return why requests of a batch wait in a pool.

    Args:
        pool: its name.
        heard: what each worker of the pool has told.
        batch: its id.
        flying: requests of the batch that are taken up in the pool.
        now_s: the time.
        unsent: requests of the batch in the pool that are not.
    """
    found = _held(pool, heard, now_s)
    parked = sum(each.told.parked.get(batch, 0) for each in heard)
    if parked:
        detail = f"{_requests(parked)} until their prompt prefix is in the cache"
        found.append(Waiting(pool, "priming", detail))
    apart = sum(each.told.apart.get(batch, 0) for each in heard)
    if apart:
        detail = f"{_requests(apart)} until one that may end its worker has been tried alone"
        found.append(Waiting(pool, "tried_alone", detail))
    if not found and unsent:
        found += _slots(pool, heard, batch, flying, unsent)
    found += _delayed(pool, heard, batch, now_s)
    return sorted(found, key=lambda each: _rank(each.reason))


def _slots(
    pool: str, heard: Sequence[Heard], batch: str, flying: int, unsent: int
) -> Iterator[Waiting]:
    """Return that there is no slot, and who has them."""
    capped = sum(each.told.capped.get(batch, 0) for each in heard)
    # Where a worker has to give up slots, it has those that it still fills.
    slots = sum(max(each.told.slots, each.told.busy) for each in heard)
    busy = sum(each.told.busy for each in heard)
    if any(batch in each.told.flying for each in heard):  # newer than what the ledger knows
        flying = sum(each.told.flying.get(batch, 0) for each in heard)
    has_others = any(each.told.flying.keys() - {batch} for each in heard)
    if capped:
        detail = f"its workspace fills the {capped:,} slots that it may have (share_max)"
        yield Waiting(pool, "limited", detail)
    elif busy >= slots > flying and has_others:
        detail = f"{flying} of {slots} slots; the others work for other batches"
        yield Waiting(pool, "behind_share", detail)
    elif busy >= slots > 0:
        yield Waiting(pool, "limited", f"all {slots:,} slots are filled; {_requests(unsent)}")


def _delayed(pool: str, heard: Sequence[Heard], batch: str, now_s: float) -> Iterator[Waiting]:
    """Return that requests wait for their own time."""
    told = [
        (each.told.retrying[batch], each.age_s) for each in heard if batch in each.told.retrying
    ]
    if told:
        count = sum(each.requests for each, _ in told)
        most = max((each for each, _ in told), key=lambda each: each.requests)
        first_s = now_s + min(max(0.0, each.left_s - age_s) for each, age_s in told)
        last_s = now_s + max(max(0.0, each.last_s - age_s) for each, age_s in told)
        detail = f"{_requests(count)} to be sent again ({most.why})"
        yield Waiting(pool, "retrying", detail, first_s, last_s)


def _held(pool: str, heard: Sequence[Heard], now_s: float) -> list[Waiting]:
    """Return each reason once; where not all workers have it, with how many do."""
    of: dict[tuple[Reason, str], list[float | None]] = {}
    for each in heard:
        for held in each.told.held:
            until_s = None if held.left_s is None else now_s + max(0.0, held.left_s - each.age_s)
            of.setdefault((held.reason, held.detail), []).append(until_s)
    at_work = [each for each in heard if each.told.slots or each.told.busy] or heard
    hardest = [
        min((_rank(h.reason) for h in each.told.held), default=len(REASONS)) for each in at_work
    ]
    found = []
    for (reason, detail), untils in of.items():
        if len(untils) < len(heard):
            detail = f"{detail} (in {len(untils)} of {len(heard)} workers)"  # noqa: PLW2901
        until_s = max((each for each in untils if each is not None), default=None)
        everywhere = all(rank <= _rank(reason) for rank in hardest)
        found.append(Waiting(pool, reason, detail, until_s, is_everywhere=everywhere))
    return found


def _rank(reason: Reason) -> int:
    return REASONS.index(reason)


def rate_max(heard: Iterable[Heard]) -> float | None:
    """Return the calls a second that the limits of all workers allow, where that is known."""
    rates = [each.told.rate_max for each in heard if each.told.slots]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known and len(known) == len(rates) else None


def _requests(count: int) -> str:
    return f"{count:,} request{'' if count == 1 else 's'} wait{'s' if count == 1 else ''}"
