"""The cache report of a yard, as its endpoint tells it."""

from __future__ import annotations

import msgspec


class CacheTokens(msgspec.Struct, frozen=True):
    """Sums over succeeded requests."""

    cacheable: int = 0
    read: int = 0
    written_5m: int = 0
    written_1h: int = 0


class _Counts(msgspec.Struct, frozen=True):
    """What groups and batches have in common; `hit_rate` is None without anything to hit."""

    requests: int
    succeeded: int
    hits: int
    writes: int
    tokens: CacheTokens
    hit_rate: float | None
    saved_micros: int | None


class CacheGroup(_Counts, frozen=True):
    """Requests that share a prefix, or for one reason share none."""

    prefix: str
    model: str
    ttl: str
    prefix_bytes: int
    example: str
    reason: str | None
    explanation: str | None


class CacheReport(_Counts, frozen=True):
    """What prompt caching has done for a batch."""

    id: str
    billing: str
    marked: int
    groups: list[CacheGroup]
    has_more: bool
