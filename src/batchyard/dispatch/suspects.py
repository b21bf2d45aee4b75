"""Shards that may be what ends workers, and what is done about them.

An attempt has failed when its worker ended without a word (it was killed, it crashed, it froze)
after it had sent calls of the shard, or before it could tell, and no result of it was left. The
ledger counts failures in a row. Whatever a worker held when it ended is suspected, most of it
wrongly. So after `limits.FAILURES_TO_SET_APART` failures a shard is claimed apart: one at a time,
the least suspected first, and the next when the last one has a result, has gone, or has done no
harm for `limits.PROBATION_S`. If the worker ends, only the last one is blamed, and not even that
when it has done no harm for ten times as long. So the innocent ones get through, and the one that
ends workers is found. A worker takes none up before it has lived for `limits.SETTLING_S`: where
workers end for another reason, one after the other, that says nothing of the shards that they had,
and where one ends at the hand of its shard, it has at least worked for the others until then. Of a
shard that was claimed apart one request
is sent alone until it has a result: whatever else ends the process, there is soon one, and the row
is over. After `limits.FAILURES_TO_GIVE_UP` failures that one request is given up, unseen. Should
even that not help, as when the requests cannot be read without harm, all that is left of the shard
is, after `limits.FAILURES_MAX`.

What does not count: an end that a worker was told of (a restart in order), an end because the store
failed, a full disk, a database that is away, and any attempt that made no call or left a result.
Who ends for such a reason says so (`spare`), and where it is the ledger itself that has failed, a
note beside its file says it to the next start.

The ledger counts: `take_back` and `release` of a dead owner add a failure where the last renewal
said `at_risk`, `adopt` ends the row, `absolve` takes one back. What follows from the count is here.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batchyard import limits

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Container,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from collections.abc import Set as AbstractSet

    from batchyard.dispatch.shard import ShardRun
    from batchyard.ledger import Claim, Held, Ledger
    from batchyard.segments.requests import Record

log = logging.getLogger(__name__)

_PROBATIONS_OF_LAST = 10  # no other comes in its place, and its call may take for hours


@dataclass(slots=True)
class _Suspect:
    key: tuple[str, int]
    since_s: float
    results: int | None = None
    """How many it had when it was opened; None before that."""


class Suspects:
    """The shards of one worker that were claimed apart and are not cleared, the last one last."""

    def __init__(
        self, owner: str, ledger: Ledger, renew: Callable[[], Awaitable[None]], began_s: float
    ) -> None:
        """Make one without any.

        Args:
            owner: the worker.
            ledger: where it claims.
            renew: tells the ledger of all that the worker holds.
            began_s: since when the worker lives.
        """
        self._settled_s = began_s + limits.SETTLING_S
        self._owner = owner
        self._ledger = ledger
        self._renew = renew
        self._of: list[_Suspect] = []
        self._is_claiming = False
        self._told: dict[tuple[str, int, int], bool | None] = {}
        """What the ledger knows of the risk of each attempt, by batch, index and number."""

    async def claim(
        self,
        pool: str,
        lease_us: int,
        held: Mapping[tuple[str, int], ShardRun],
        opening: Container[tuple[str, int]],
        now_s: float,
    ) -> Sequence[Claim]:
        """Claim one from a pool that has some, if no other can be blamed for what it does.

        Args:
            pool: its name.
            lease_us: until when.
            held: what the worker holds.
            opening: what it has claimed beside that.
            now_s: the time.
        """
        self._of = [
            each
            for each in self._of
            if (each.key in held and not _is_cleared(each, held[each.key]))
            or (each.key in opening and each.results is None)
        ]
        if now_s < self._settled_s:
            return ()
        if self._of and now_s - self._of[-1].since_s < limits.PROBATION_S:
            return ()
        self._is_claiming = True
        try:
            if self._of:
                await self._renew()  # excuses them before the next one can do harm
            claims = await self._ledger.claim_apart(self._owner, pool, lease_us)
        finally:
            self._is_claiming = False
        self._of += [_Suspect((claim.batch, claim.index), now_s) for claim in claims]
        return claims

    def opened(self, shard: ShardRun) -> None:
        """Note that a shard is open, perhaps one of these."""
        for each in self._of:
            if each.key == shard.key and each.results is None:
                each.results = shard.counts.total

    def to_tell(self, held: Sequence[Held], now_s: float, *, is_due: bool) -> list[Held]:
        """Return what the ledger is to be told of what the worker holds.

        Args:
            held: all of it.
            now_s: the time.
            is_due: whether leases are renewed; else only a risk that has changed is told.
        """
        held = [
            replace(each, at_risk=False) if self._excuses((each.batch, each.index), now_s) else each
            for each in held
        ]
        known = self._told
        self._told = {(each.batch, each.index, each.attempt): each.at_risk for each in held}
        if is_due:
            return held
        # A claim is at risk before anything is told.
        return [h for h in held if h.at_risk != known.get((h.batch, h.index, h.attempt), True)]

    def not_told(self, held: Sequence[Held]) -> None:
        """Note that the ledger had no room for these: they are told again, due or not."""
        # None is neither: whatever the risk is, it differs.
        self._told |= {(each.batch, each.index, each.attempt): None for each in held}

    def _excuses(self, key: tuple[str, int], now_s: float) -> bool:
        """Whether a shard is one of these and not to blame: a later one is, or none any more."""
        of = self._of
        if of and not self._is_claiming:
            is_over = now_s - of[-1].since_s >= _PROBATIONS_OF_LAST * limits.PROBATION_S
            of = of if is_over else of[:-1]
        return any(each.key == key for each in of)


def _is_cleared(suspect: _Suspect, shard: ShardRun) -> bool:
    return suspect.results is not None and shard.durable > suspect.results


def is_suspected(claim: Claim, *, has_gained: bool) -> bool:
    """Whether one request of a shard is sent alone."""
    return claim.failures >= limits.FAILURES_TO_SET_APART and not has_gained


def given_up(claim: Claim, *, has_gained: bool, damages: int = 0) -> int:
    """Return how many requests of a shard that have no result are not tried again.

    Args:
        claim: of the shard.
        has_gained: whether the last attempt left results.
        damages: attempts of which the disk has damaged results: to try again would cost as much
            each time, and come to nothing.
    """
    if damages >= limits.DAMAGES_MAX:
        return claim.requests
    if has_gained or claim.failures < limits.FAILURES_TO_GIVE_UP:
        return 0
    return 1 if claim.failures < limits.FAILURES_MAX else claim.requests


def unseen(records: Iterable[Record], number: int, covered: AbstractSet[str]) -> Iterator[Record]:
    """Pass records on, without the params of the first ones that have no result."""
    for custom_id, params in records:
        is_lost = number > 0 and custom_id not in covered
        number -= is_lost
        yield custom_id, b"{}" if is_lost else params


def give_up(shard: ShardRun, number: int) -> None:
    """End the next requests of a shard as `errored`."""
    if not number:
        return
    text = _why(shard)
    task = asyncio.current_task()
    assert task is not None
    requests = 0
    while requests < number and (request := shard.take(task)) is not None:
        shard.fail(request.custom_id, "api_error", text, None)
        requests += 1
    if requests:
        log.error("gave up shard=%s/%d: %d requests. %s", *shard.key, requests, text)


def _why(shard: ShardRun) -> str:
    if shard.damages >= limits.DAMAGES_MAX:
        return (
            f"Given up: {shard.damages} times the disk of the server damaged results of this part "
            "of the batch, so what was lost is not sent again"
        )
    return (
        f"Given up: the process that worked on this part of the batch ended {shard.claim.failures} "
        "times in a row, each time before it had another result of it"
    )
