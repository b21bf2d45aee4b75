"""Make results durable: append, sync in groups, commit finished shards, end finished batches.

Invariants, in this order: a line is written before it is synced, synced before the shard is
committed, and the commit names exact lengths. An error of the store ends the process; it is never
retried here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.dispatch.activity import Activity
from batchyard.dispatch.ending import end_batch
from batchyard.ledger import Commit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchyard.clock import Clock
    from batchyard.dispatch.shard import ShardRun
    from batchyard.ledger import Ledger
    from batchyard.segments import Segments

log = logging.getLogger(__name__)


class Recorder:
    """The one that writes, for one worker."""

    def __init__(
        self,
        ledger: Ledger,
        segments: Segments,
        clock: Clock,
        owner: str,
        forget: Callable[[ShardRun], None],
        *,
        flush_s: float = limits.FLUSH_INTERVAL_S,
    ) -> None:
        self._ledger = ledger
        self._segments = segments
        self._clock = clock
        self._owner = owner
        self._forget = forget
        self._flush_s = flush_s
        self._dirty: set[ShardRun] = set()
        self._unsynced: set[ShardRun] = set()
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._synced_s = clock.monotonic_s()
        self._unwritten = 0
        self._finishing = False
        self._writing = False
        self._leaving: list[ShardRun] = []
        self._activity = Activity()

    @property
    def is_quiet(self) -> bool:
        """Whether all there is has been written, and all that is done committed."""
        return not self._dirty and self._activity.is_quiet

    def note(self, shard: ShardRun) -> None:
        """Take notice that a shard has new lines, or is done."""
        if shard.closed:
            return  # an answer that came when the shard had been committed or lost
        self._unwritten += shard.take_fresh_bytes()
        if self._unwritten > limits.UNWRITTEN_BYTES_MAX:
            self._room.clear()
        self._dirty.add(shard)
        self._work.set()

    @property
    def has_room(self) -> bool:
        """Whether the disk keeps up with the answers."""
        return self._room.is_set()

    async def room(self) -> None:
        """Wait while the disk is far behind the answers."""
        await self._room.wait()

    def finish(self) -> None:
        """Record what there is; `run` returns then. Rounds are never cut short."""
        self._finishing = True
        self._work.set()

    async def run(self) -> None:
        """Record in rounds, taking what has gathered since the last, until `finish`."""
        finishing = False
        while not finishing:
            if not self._dirty and not self._unsynced:
                await self._work.wait()
            self._work.clear()
            if not self._finishing:
                await self._clock.sleep(self._flush_s)
            finishing = self._finishing
            with self._activity.piece():
                await self._round(sync=finishing)

    async def _round(self, *, sync: bool) -> None:
        """Write all new lines, sync what is due (or everything), commit what is done."""
        dirty = [shard for shard in self._dirty if not shard.lost]
        self._dirty.clear()
        done = [shard for shard in dirty if shard.is_done]
        due = sync or self._clock.monotonic_s() - self._synced_s >= limits.SYNC_INTERVAL_S
        self._unsynced.update(dirty)
        syncing = self._unsynced if due else set(done)
        work = [(shard, shard.take_lines()) for shard in dirty]
        self._unwritten = 0
        self._writing = True
        await asyncio.to_thread(self._write, work, list(syncing))
        self._writing = False
        while self._leaving:
            _release(self._leaving.pop())
        if self._unwritten <= limits.UNWRITTEN_BYTES_MAX:
            self._room.set()
        if due:
            self._synced_s = self._clock.monotonic_s()
        self._unsynced = self._unsynced - syncing
        done = [shard for shard in done if not shard.lost]
        if done:
            await self._commit(done)

    def _write(
        self, work: Sequence[tuple[ShardRun, list[bytes]]], syncing: Sequence[ShardRun]
    ) -> None:
        for shard, lines in work:
            if lines:
                if shard.appender is None:
                    shard.appender = self._segments.appender(shard.segment_name())
                shard.length = shard.appender.append(lines)
        for shard in syncing:
            if shard.appender is not None:
                shard.appender.sync()

    async def _commit(self, done: Sequence[ShardRun]) -> None:
        commits = [
            Commit(
                batch=shard.claim.batch,
                index=shard.claim.index,
                attempt=shard.claim.attempt,
                extents=shard.extents,
                counts=shard.counts,
                tokens=shard.tokens,
            )
            for shard in done
        ]
        committed = await self._ledger.commit(self._owner, commits)
        for shard in done:
            if shard.key not in committed.accepted:
                log.warning("lost shard=%s/%d at its commit", *shard.key)
                shard.lose()
            self.close(shard)
            self._forget(shard)
        for batch_id in committed.finished:
            await end_batch(self._ledger, self._segments, self._clock, batch_id)

    def close(self, shard: ShardRun) -> None:
        """Let go of a shard's segment: now, or after the writing that may be at it in a thread."""
        if shard.closed:
            return
        shard.closed = True
        self._unsynced.discard(shard)
        self._dirty.discard(shard)
        if self._writing:
            self._leaving.append(shard)
        else:
            _release(shard)


def _release(shard: ShardRun) -> None:
    if shard.appender is not None:
        shard.appender.close()
