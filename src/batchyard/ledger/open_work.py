"""The values of `backlog.py`: what waits in each pool, and what each worker has taken up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A part of the open work, of one pool."""

    pool: str
    shards: int
    requests: int
    """Without an answer; of what is taken up as of the last renewal, those in flight among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Work):
    """What waits in a pool."""

    is_more: bool = False
    """Whether there are more than were counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken(Work):
    """What a worker has taken up of a pool."""

    owner: str
    inflight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """All open work; a pool may be there twice."""

    waiting: tuple[Waiting, ...] = ()
    taken: tuple[Taken, ...] = ()
