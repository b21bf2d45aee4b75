"""Shards from their claim until they are open: read, and what earlier attempts left taken over.

That takes long where a store is slow or much is to be taken over, so their leases are renewed with
those of the shards that are open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from batchyard import crash, limits, segments
from batchyard.clock import steady_us
from batchyard.dispatch.adopt import Adopted, adopt
from batchyard.dispatch.loading import requests_of
from batchyard.dispatch.shard import ShardRun
from batchyard.dispatch.suspects import given_up, is_suspected, unseen
from batchyard.errors import DamagedError, DiskFull, SegmentRefused, SegmentsGone
from batchyard.ledger import Held
from batchyard.segments.requests import read_ids, read_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batchyard.clock import Clock
    from batchyard.dispatch.accounts import Accounts
    from batchyard.ledger import Claim, Ledger, Renewed, Turn
    from batchyard.segments import Segments
    from batchyard.segments.requests import Record

log = logging.getLogger(__name__)

_SAID_MAX = 1_000
_HANGS_S = 5.0
_LOST = ", so nobody can tell whose results are missing: put it back and "
# What people are told of shards that are left alone, beside the log.
UNTOLD = (
    f"{_LOST}start again, or cancel the batch, stop the yard and use `batchyard check --give-up`"
)
UNTOLD_SHARED = (
    f"{_LOST}it goes on, or cancel the batch and use `batchyard check --give-up` with --ledger and "
    "--segments"
)
REFUSED = "the store refuses what it needs, which is asked for again each minute: "


class Opened(NamedTuple):
    """What a claim was opened to."""

    shard: ShardRun
    is_whole: bool
    """Whether its requests are as they were accepted."""
    has_gained: bool
    """Whether the last attempt left results."""
    lost: int
    """How many of its requests that have no result are given up."""


class Opening:
    """The claims of one worker that are not open yet."""

    def __init__(
        self,
        owner: str,
        ledger: Ledger,
        store: Segments,
        clock: Clock,
        accounts: Accounts,
        leaving: asyncio.Event,
    ) -> None:
        """Make one without any.

        Args:
            owner: the worker.
            ledger: where it claims.
            store: the bytes.
            clock: of leases and waits.
            accounts: where damage is told.
            leaving: set when the worker leaves.
        """
        self._owner = owner
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._accounts = accounts
        self._leaving = leaving
        self._claims: dict[tuple[str, int], Claim] = {}
        self._refused: dict[tuple[str, int], tuple[Claim, float]] = {}
        """Left alone, and when they are looked at again."""
        self._hanging: dict[str, tuple[float, str]] = {}
        """By batch: until when its requests, slow to be refused, are not asked for, and why."""
        self._left_alone: dict[Turn, float] = {}
        """Batches of which a shard could not be opened, and until when they are passed over."""
        self._said: OrderedDict[tuple[str, int], str] = OrderedDict()
        """What was logged, so that it is not each time: the last ones."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._claims)

    def __contains__(self, key: object) -> bool:
        """Whether a shard, by batch and index, is one of them."""
        return key in self._claims

    @property
    def claims(self) -> list[Claim]:
        """Return all of them, the oldest first."""
        return list(self._claims.values())

    @property
    def left_alone(self) -> frozenset[Turn]:
        """Return the batches of which nothing more is to be begun for now."""
        now_s = self._clock.monotonic_s()
        self._left_alone = {turn: at for turn, at in self._left_alone.items() if at > now_s}
        return frozenset(self._left_alone)

    def add(self, claims: Iterable[Claim]) -> bool:
        """Renew these from now on, until `open` returns; return whether there are any."""
        added = {(claim.batch, claim.index): claim for claim in claims}
        self._claims |= added
        return bool(added)

    def held(self) -> list[Held]:
        """Return how far they are: nobody knows what opening them may do."""
        return [_held(claim, at_risk=True) for claim in self._claims.values()]

    def renewed(self, told: Iterable[Held], kept: Mapping[tuple[str, int], Renewed]) -> None:
        """Drop those that were lost.

        Args:
            told: what was told to the ledger, these among others.
            kept: what is still ours of that.
        """
        for each in told:
            key = each.batch, each.index
            claim = self._claims.get(key)
            if claim is not None and claim.attempt == each.attempt and key not in kept:
                log.warning("lost shard=%s/%d while it was opened", *key)
                del self._claims[key]

    async def open(self, claim: Claim) -> Opened | None:
        """Load a shard, and adopt what earlier attempts left; None where that cannot be."""
        key = claim.batch, claim.index
        try:
            opened = await self._open(claim)
            return opened if self._claims.get(key) is claim else None
        finally:
            if self._claims.get(key) is claim:
                del self._claims[key]

    async def again(self) -> None:
        """Take up those that were refused a while ago, if they are still ours; renew them.

        Where others share the work they mostly are not: the lease has ended, and another tries.

        Raises:
            DiskFull: a lease could not be renewed; it may be tried again.
        """
        now_s = self._clock.monotonic_s()
        due = {key: claim for key, (claim, due_s) in self._refused.items() if due_s <= now_s}
        if not due:
            return
        lease = lease_us(self._clock)
        held = [_held(claim, at_risk=True) for claim in due.values()]
        rows = await self._ledger.renew(self._owner, lease, held)
        for key in due:
            del self._refused[key]
        found = {(row.batch, row.index): row.canceled for row in rows}
        self.add(replace(due[key], canceled=found[key]) for key in due if key in found)

    async def _open(self, claim: Claim) -> Opened | None:
        if (claim.batch, claim.index) not in self._claims:
            return None  # lost while others were opened
        try:
            opened = await self._loaded(claim)
        except DiskFull:
            return None  # given back: the process leaves
        except SegmentsGone:
            return None  # lost, and the batch was deleted meanwhile
        except DamagedError as error:
            # The others go on. This one is left to the next start: as it is not known whose results
            # are missing, nothing that we could record would be true.
            untold = UNTOLD_SHARED if self._ledger.is_concurrent else UNTOLD
            self.tell_damage(claim, f"{error}{untold}")
            await self._leave_alone(claim)
            return None
        except SegmentRefused as error:
            # The others go on, and this one when it is given again: nothing is known to be lost.
            self.tell_damage(claim, f"{REFUSED}{error}", "refused")
            due_s = self._clock.monotonic_s() + limits.REFUSED_WAIT_S
            self._refused[claim.batch, claim.index] = claim, due_s
            await self._leave_alone(claim)
            return None
        if self._said.pop((claim.batch, claim.index), None) == "refused":
            self._accounts.of(claim.batch).damaged.pop(claim.index, None)
        if opened.shard.damage is not None:
            self.tell_damage(claim, opened.shard.damage)
        crash.point("claimed")
        if claim.attempt > 1:
            if not await self._adopt(claim, opened):
                return None
            crash.point("adopted")
        return opened

    def tell_damage(self, claim: Claim, why: str, word: str = "damaged") -> None:
        """Say what is damaged of a shard, or else wrong with it; once in the log."""
        key = claim.batch, claim.index
        if self._said.get(key) != word:
            log.error("%s shard=%s/%d: %s", word, *key, why)
            self._said[key] = word
            if len(self._said) > _SAID_MAX:
                self._said.popitem(last=False)
        self._accounts.of(claim.batch).damage(claim.index, why)

    async def _leave_alone(self, claim: Claim) -> None:
        """See to it that the end of a lease that is not renewed is no failure: no call was made."""
        self._claims.pop((claim.batch, claim.index), None)
        self._left_alone[claim.turn] = self._clock.monotonic_s() + limits.REFUSED_WAIT_S
        lease = lease_us(self._clock)
        with contextlib.suppress(DiskFull):  # it counts once
            await self._ledger.renew(self._owner, lease, [_held(claim, at_risk=False)])

    async def _loaded(self, claim: Claim) -> Opened:
        """Return what `_load` does, when there is room for what it rescues of damaged results."""
        while True:
            try:
                return await asyncio.to_thread(self._load, claim)
            except DiskFull:
                if self._leaving.is_set():
                    raise
                await self._clock.sleep(limits.DISK_FULL_WAIT_S)

    async def _adopt(self, claim: Claim, opened: Opened) -> bool:
        while not self._leaving.is_set():
            try:
                return await self._ledger.adopt(
                    self._owner, claim, opened.shard.extents, has_gained=opened.has_gained
                )
            except DiskFull:
                await self._clock.sleep(limits.DISK_FULL_WAIT_S)
        return False

    def _requests(self, claim: Claim) -> bytes:
        """Read the requests of a shard. One object holds those of a batch: where it hangs, once."""
        began_s = self._clock.monotonic_s()
        until_s, why = self._hanging.get(claim.batch, (0.0, ""))
        if began_s < until_s:
            raise SegmentRefused(why)
        name = segments.requests_name(claim.batch)
        try:
            return self._store.read(name, claim.offset, claim.length)
        except SegmentRefused as error:
            now_s = self._clock.monotonic_s()
            if now_s - began_s >= _HANGS_S:
                self._hanging = {key: it for key, it in self._hanging.items() if it[0] > now_s}
                self._hanging[claim.batch] = now_s + limits.REFUSED_WAIT_S, str(error)
            raise

    def _load(self, claim: Claim) -> Opened:
        """Read a shard. Blocks."""
        data = self._requests(claim)
        self._store.check_writable(claim.batch, is_again=claim.attempt > 1)
        is_whole = claim.crc is None or zlib.crc32(data) == claim.crc
        adopted = Adopted()
        if claim.attempt > 1:
            adopted = adopt(self._store, claim, frozenset(read_ids(data, is_whole=is_whole)))
        has_gained = len(adopted.extents) > len(claim.frozen)
        records: Iterable[Record]
        lost = given_up(claim, has_gained=has_gained, damages=adopted.damages)  # not looked at
        if is_whole and lost < claim.requests:
            records = read_records(data, is_proven=claim.crc is not None)
            if lost:
                records = unseen(records, lost, adopted.covered)
        else:  # the ids suffice, and each has a check of its own
            records = [(name, b"{}") for name in read_ids(data, is_whole=is_whole)]
        requests = requests_of(records, claim.version, claim.workspace)
        if len(requests) != claim.requests:
            raise DamagedError(f"shard {claim.batch}/{claim.index} holds {len(requests)} requests")
        alone = is_suspected(claim, has_gained=has_gained) and not lost
        shard = ShardRun(claim, requests, adopted, is_suspected=alone)
        return Opened(shard, is_whole, has_gained, lost)


def lease_us(clock: Clock) -> int:
    """Return until when a lease is that begins now."""
    return steady_us(clock) + limits.LEASE_US


def _held(claim: Claim, *, at_risk: bool) -> Held:
    return Held(
        batch=claim.batch,
        index=claim.index,
        attempt=claim.attempt,
        inflight=0,
        counts=None,
        at_risk=at_risk,
    )
