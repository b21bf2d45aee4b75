"""The periodic duties: take back leases, end batches, archive, forget, clear away leftovers.

Every duty is idempotent and may be cut short anywhere; the next sweep goes on. Rows go before
bytes, so a row never points to nothing, and bytes without a row are leftovers.

Where several processes share the stores each of them may sweep, and one of them does at a time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

from batchyard import crash, limits
from batchyard.clock import steady_us
from batchyard.dispatch.activity import Activity
from batchyard.dispatch.ending import end_batches
from batchyard.errors import DiskFull, SegmentRefused, StoreError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from batchyard.clock import Clock
    from batchyard.ledger import Ledger
    from batchyard.segments import Segments

log = logging.getLogger(__name__)

T = TypeVar("T")

_ARCHIVE_AT_ONCE = 100
_LEFTOVERS_AT_ONCE = 1_000
_REFUSED_MAX = 1_000


class _AwayError(StoreError):
    """The store has failed, and may be tried again."""


class Keeper:
    """Keeps house for one ledger and its segments."""

    def __init__(
        self,
        ledger: Ledger,
        store: Segments,
        clock: Clock,
        *,
        owner: str,
        tidy: Callable[[], None] | None = None,
        interval_s: float = limits.KEEPER_INTERVAL_S,
        rng: random.Random | None = None,
    ) -> None:
        """Make a keeper.

        Args:
            ledger: whose.
            store: its segments.
            clock: of all lifetimes.
            owner: the worker of this process, whose shards nobody takes.
            tidy: a duty of this process alone, whoever sweeps; blocks for a moment only.
            interval_s: between two looks whether a sweep is due.
            rng: of their jitter, by half at the most, where other processes keep the same house.
        """
        self._interval_s = interval_s
        self._rng = rng
        self._tidy = tidy
        self._owner = owner
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._activity = Activity()
        self._refused: dict[str, float] = {}
        """Batches without a row whose bytes may not be removed yet, and when that is tried."""

    @property
    def is_quiet(self) -> bool:
        """Whether no sweep is under way."""
        return self._activity.is_quiet

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            is_behind = False
            with self._activity.piece():
                try:
                    is_behind = await self._sweep_if_due()
                except DiskFull as error:
                    log.warning("sweep cut short: %s", error)
            if is_behind:
                continue
            jitter = 1.0 if self._rng is None else self._rng.uniform(0.5, 1.5)
            await self._clock.sleep(self._interval_s * jitter)

    async def _sweep_if_due(self) -> bool:
        """Sweep, unless another process has just begun to: what it does is done for all."""
        is_behind = False
        now = steady_us(self._clock)
        # The least that is between two looks of one process: alone, it always sweeps.
        pause_us = round(self._interval_s / 2 * limits.SECOND_US)
        if await self._ledger.begin_sweep(now, now + pause_us):
            is_behind = await self.sweep()
        if self._tidy is not None:
            await asyncio.to_thread(self._tidy)
        return is_behind

    async def sweep(self) -> bool:
        """Do every duty once; return whether an interval was too short for the archiving."""
        now = self._clock.now_us()
        freed = await self._ledger.take_back(steady_us(self._clock), but=self._owner)
        if freed:
            log.warning("took back %d shards whose lease had ended", freed)
        full: DiskFull | None = None
        finished = await self._ledger.finished()
        try:
            await end_batches(self._ledger, self._store, self._clock, finished, is_sweep=True)
        except DiskFull as error:  # archiving makes room
            full = error
        try:
            await self._delete_refused()
            is_behind = await self._archive(now)
        except _AwayError as error:
            log.error("archiving cut short: %s", error)  # noqa: TRY400 - it says all
            is_behind = False
        await self._ledger.forget_creates(now)
        if full is not None:
            raise full
        return is_behind

    async def _archive(self, now_us: int) -> bool:
        """Archive what is due; return whether the other duties came due before the end of it."""
        before = now_us - limits.RETENTION_US
        until_s = self._clock.monotonic_s() + self._interval_s
        seen: set[str] = set()
        while self._clock.monotonic_s() <= until_s:
            found = await self._ledger.outdated(before, _ARCHIVE_AT_ONCE)
            if seen.issuperset(found):  # also none; what stays although it was archived is not new
                return False
            for batch_id in found:
                # Not `now_us`: this sweep may have ended the batch after that.
                await self._ledger.archive(batch_id, self._clock.now_us())
                crash.point("archived")
                await self.delete(batch_id)
                log.info("archived batch=%s", batch_id)
            seen.update(found)
        return True

    async def clear_leftovers(self, older_than_us: int = 0) -> None:
        """Remove segments that no batch owns: what a crash left of creates and deletes.

        Args:
            older_than_us: only what has lain for so long. 0 is only for a process that holds the
                data directory alone, before it accepts requests: a create writes its segments
                before the ledger knows of them.
        """
        before_us = self._clock.now_us() - older_than_us
        groups = self._groups()
        none: list[str] = []
        while group := await self._in_store(next, groups, none):
            live = await self._ledger.live(group)
            for batch_id in group:
                if batch_id in live:
                    continue
                if older_than_us and await self._in_store(self._is_newer, batch_id, before_us):
                    continue
                if await self.delete(batch_id):
                    log.info("removed leftover segments batch=%s", batch_id)

    def _groups(self) -> Iterator[list[str]]:
        """Yield the batches that have segments, as many at a time as are asked for. Blocks."""
        for spread in self._store.spreads():
            found = self._store.batches(spread)
            for at in range(0, len(found), _LEFTOVERS_AT_ONCE):
                yield found[at : at + _LEFTOVERS_AT_ONCE]

    async def delete(self, batch_id: str) -> bool:
        """Delete the segments of a batch that has no row, or whose row is archived.

        Returns:
            Whether they are gone; if the store refuses that, it is tried again each minute.

        Raises:
            StoreError: the store failed.
        """
        try:
            await self._in_store(self._store.delete_batch, batch_id)
        except SegmentRefused as error:
            log.error("refused %s", error)  # noqa: TRY400 - it says all
            if len(self._refused) < _REFUSED_MAX:  # those beyond are leftovers, for a start
                self._refused[batch_id] = self._clock.monotonic_s() + limits.REFUSED_WAIT_S
            return False
        self._refused.pop(batch_id, None)
        return True

    async def _delete_refused(self) -> None:
        now_s = self._clock.monotonic_s()
        for batch_id in [each for each, due_s in self._refused.items() if due_s <= now_s]:
            if await self.delete(batch_id):
                log.info("removed segments that were refused batch=%s", batch_id)

    async def _in_store(self, call: Callable[..., T], *args: object) -> T:
        """Call what uses the store.

        Raises:
            _AwayError: it has failed, and need not end the process.
        """
        try:
            return await asyncio.to_thread(call, *args)
        except SegmentRefused:
            raise
        except StoreError as error:
            if self._store.comes_back:
                raise _AwayError(str(error)) from error
            raise

    def _is_newer(self, batch_id: str, before_us: int) -> bool:
        try:
            written_us = self._store.written_us(batch_id)
        except SegmentRefused as error:
            log.error("refused %s", error)  # noqa: TRY400 - it says all
            return True
        return written_us is None or written_us > before_us

    async def clear_old_leftovers(self) -> None:
        """Remove what nobody can be about to own any more, at once and then every day."""
        while True:
            pause_us = limits.DAY_US
            try:
                await self.clear_leftovers(limits.LEFTOVERS_AGE_US)
            except _AwayError as error:
                log.error("leftovers are not looked for: %s", error)  # noqa: TRY400 - it says all
                pause_us = limits.HOUR_US
            await self._clock.sleep(pause_us / limits.SECOND_US)
