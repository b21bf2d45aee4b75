"""Make results durable: append, sync in groups, commit finished shards, end finished batches.

Invariants, in this order: a line is written before it is synced, synced before the shard is
committed, and the commit names exact lengths. Writing goes on while syncing and committing take
their time, so that a kill loses the answers of the last moments only. An error of the store ends
the process; it is never retried here. A full disk is no such error: nothing was written then, and
the lines are kept until there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.clock import wait_first
from batchyard.dispatch.activity import Activity
from batchyard.dispatch.ending import end_batches
from batchyard.errors import DiskFull, SegmentRefused, SegmentsGone
from batchyard.ledger import Commit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Sequence

    from batchyard.clock import Clock
    from batchyard.dispatch.shard import ShardRun
    from batchyard.ledger import Committed, Held, Ledger
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
        """With lines to write, or done."""
        self._unsynced: set[ShardRun] = set()
        """Written, and not synced since."""
        self._done: list[ShardRun] = []
        """All written; to be synced and committed."""
        self._finished: set[str] = set()
        """Batches without an open shard, to be ended."""
        self._lines = asyncio.Event()
        self._work = asyncio.Event()
        self._ends = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.has_room = True
        """Whether the disk keeps up with the answers, or nobody is to wait for it any more."""
        self._waiting: set[str] = set()
        """What waits for room on a full disk."""
        self._synced_s = clock.monotonic_s()
        self._unwritten = 0
        self._open = False
        self._finishing = False
        self._all_written = False
        self._all_committed = False
        self._in_use: list[Collection[ShardRun]] = []
        """Shards whose segments a thread has at this moment."""
        self._leaving: list[ShardRun] = []
        self._given: list[Held] = []
        """Attempts that are over here, and that the ledger does not know of as free yet."""
        self._activity = Activity()

    def note(self, shard: ShardRun) -> None:
        """Take notice that a shard has new lines, or is done."""
        if shard.closed:
            return  # an answer that came when the shard had been committed or lost
        self._unwritten += shard.take_fresh_bytes()
        if self._unwritten > limits.UNWRITTEN_BYTES_MAX:
            self._clear_room()
        if shard not in self._dirty:
            self._dirty.add(shard)
            self._lines.set()

    def _clear_room(self) -> None:
        self._room.clear()
        self.has_room = self._open

    def open_room(self) -> None:
        """Let nobody wait any more: the worker leaves and sends nothing."""
        self._open = self.has_room = True
        self._room.set()

    async def room(self) -> None:
        """Wait while the disk is far behind the answers, or full."""
        await self._room.wait()

    @property
    def is_quiet(self) -> bool:
        """Whether all there is has been written, and all that is done committed."""
        has_work = self._dirty or self._done or self._work.is_set() or self._ends.is_set()
        return not has_work and self._activity.is_quiet

    def finish(self) -> None:
        """Record what there is; `run` returns then. Rounds are never cut short."""
        self._finishing = True
        self._lines.set()

    async def run(self) -> None:
        """Record, taking what has gathered since the last round, until `finish`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._writing())
            group.create_task(self._committing())
            group.create_task(self._ending())

    # Writing ----------------------------------------------------------------------------------

    async def _writing(self) -> None:
        finishing = False
        while not finishing:
            await self._lines.wait()
            self._lines.clear()
            if not self._finishing:
                await self._clock.sleep(self._flush_s)
            finishing = self._finishing
            with self._activity.piece():
                await self._write_all()
        self._all_written = True
        self._work.set()

    async def _write_all(self) -> None:
        """Write all new lines; hand on what is done."""
        dirty = [shard for shard in self._dirty if not shard.lost]
        self._dirty.clear()
        done = [shard for shard in dirty if shard.is_done]
        work = [(shard, shard.take_lines()) for shard in dirty]
        self._unwritten = 0
        while work:  # a full disk takes some tries
            with self._using([shard for shard, _ in work]):
                work, gone = await asyncio.to_thread(self._write, work)
            await self._drop_gone(gone)
            if work and not await self._try_again("results"):
                return
            work = [(shard, lines) for shard, lines in work if not shard.closed]
        self._has_room_for("results")
        for shard in dirty:
            shard.wrote()
        self._done += [shard for shard in done if not shard.lost]
        is_first = not self._unsynced
        self._unsynced.update(shard for shard in dirty if not shard.closed)
        if self._done or is_first or any(shard.kept_back for shard in dirty):
            self._work.set()  # else there is time until the next sync is due

    def _write(
        self, work: Sequence[tuple[ShardRun, list[bytes]]]
    ) -> tuple[list[tuple[ShardRun, list[bytes]]], list[ShardRun]]:
        """Write the lines of these shards.

        Returns:
            What a full disk has no room for, and the shards of batches that were deleted.
        """
        gone: list[ShardRun] = []
        for position, (shard, lines) in enumerate(work):
            try:
                if lines:
                    if shard.appender is None:
                        shard.appender = self._segments.appender(shard.segment_name())
                    shard.appender.append(lines)
            except DiskFull:
                return list(work[position:]), gone
            except SegmentsGone:
                gone.append(shard)
        return [], gone

    async def _try_again(self, what: str) -> bool:
        """Wait a while for room on a full disk; False when the process is about to end."""
        if self._finishing:
            log.warning("the disk is full: %s stay unwritten, and are made again", what)
            return False
        if what not in self._waiting:
            log.warning("the disk is full: %s wait until there is room", what)
        self._waiting.add(what)
        if not self._open:
            self._clear_room()
        await self._clock.sleep(limits.DISK_FULL_WAIT_S)
        return True

    def _has_room_for(self, what: str) -> None:
        self._waiting.discard(what)
        if not self._waiting and self._unwritten <= limits.UNWRITTEN_BYTES_MAX:
            self._room.set()
            self.has_room = True

    # Syncing and committing ---------------------------------------------------------------------

    async def _committing(self) -> None:
        finishing = False
        while not finishing:
            if not self._work.is_set() and self._unsynced:
                await self._wait_until_due()
            else:
                await self._work.wait()
            self._work.clear()
            finishing = self._all_written
            with self._activity.piece():
                await self._commit_all(sync=finishing)
        self._all_committed = True
        self._ends.set()

    async def _wait_until_due(self) -> None:
        interval_s = self._segments.sync_interval_s
        left = interval_s - (self._clock.monotonic_s() - self._synced_s)
        await wait_first(self._clock, self._work, max(left, 0.0))

    async def _commit_all(self, *, sync: bool) -> None:
        """Sync what is due (or everything), and commit what is done."""
        done, self._done = self._done, []
        since_s = self._clock.monotonic_s() - self._synced_s
        due = sync or since_s >= self._segments.sync_interval_s
        waited_for = (shard for shard in self._unsynced if due or shard.kept_back)
        syncing = {*done, *waited_for}
        self._unsynced -= syncing
        syncing = {shard for shard in syncing if not shard.closed}
        if syncing:
            written = {shard: shard.written for shard in syncing}
            with self._using(syncing):
                await self._sync_all(list(syncing))
            for shard, number in written.items():
                shard.synced(number)
        if due:
            self._synced_s = self._clock.monotonic_s()
        done = [shard for shard in done if not shard.lost]
        if done:
            await self._commit(done)

    async def _sync_all(self, shards: Sequence[ShardRun]) -> None:
        ways = min(self._segments.syncs_at_once, len(shards))
        parts = (shards[way::ways] for way in range(ways))
        found = await asyncio.gather(*(asyncio.to_thread(_sync, part) for part in parts))
        await self._drop_gone([shard for gone, _ in found for shard in gone])
        refused = [shard for _, refused in found for shard in refused]
        if refused:  # whoever opens them looks first whether that is over
            await self.give_back(refused)

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
        for shard in done:
            shard.is_committing = True
        committed: Committed | None = None
        while committed is None:
            try:
                committed = await self._ledger.commit(self._owner, commits)
            except DiskFull:
                if not await self._try_again("commits"):
                    return
        self._has_room_for("commits")
        for shard in done:
            if shard.key not in committed.accepted:
                self.lose(shard, " at its commit")
            else:
                self.close(shard)
                self._forget(shard)
        self._finished.update(committed.finished)
        if self._finished:
            self._ends.set()

    # Ending -----------------------------------------------------------------------------------

    async def _ending(self) -> None:
        """End what is finished. Apart: results are read once more, and commits do not wait."""
        finishing = False
        while not finishing:
            await self._ends.wait()
            self._ends.clear()
            finishing = self._all_committed
            with self._activity.piece():
                if self._finished:
                    await self._end(sorted(self._finished))

    async def _end(self, batch_ids: Sequence[str]) -> None:
        try:
            await end_batches(self._ledger, self._segments, self._clock, batch_ids)
        except DiskFull:
            if await self._try_again("ends"):
                self._ends.set()
        else:
            self._has_room_for("ends")
            self._finished.difference_update(batch_ids)

    # Letting go -------------------------------------------------------------------------------

    async def _drop_gone(self, gone: Sequence[ShardRun]) -> None:
        """Drop shards whose batch was deleted: they were lost before, and this worker slept.

        Where only the folder of the batch is gone, who opens them next finds out and says so.
        """
        if not gone:
            return
        live = await self._ledger.live([*{shard.claim.batch for shard in gone}])
        for shard in gone:
            if shard.claim.batch not in live:
                self.lose(shard, " of a batch that was deleted")
        left = [shard for shard in gone if shard.claim.batch in live and not shard.lost]
        if left:
            await self.give_back(left)

    def lose(self, shard: ShardRun, how: str = "") -> None:
        """Drop a shard that another worker has; `how` follows in the log."""
        log.warning("lost shard=%s/%d%s", *shard.key, how)
        self._drop(shard)

    async def give_back(self, shards: Sequence[ShardRun]) -> None:
        """Let other workers have shards that are at rest."""
        for shard in shards:
            log.info("gave back shard=%s/%d: another worker may do it", *shard.key)
            self._drop(shard)
            self._given.append(shard.held())
        given, self._given = self._given, []
        if given:
            try:
                await self._ledger.give_back(self._owner, given)
            except DiskFull:
                self._given += given  # next time

    def _drop(self, shard: ShardRun) -> None:
        shard.lose()
        self.close(shard)
        self._forget(shard)

    @contextlib.contextmanager
    def _using(self, shards: Collection[ShardRun]) -> Generator[None]:
        """Keep the segments of shards open while a thread has them."""
        self._in_use.append(shards)
        try:
            yield
        finally:
            self._in_use.remove(shards)
            self._release()

    def close(self, shard: ShardRun) -> None:
        """Let go of a shard's segment: now, or when the threads that are at it have ended."""
        if shard.closed:
            return
        shard.closed = True
        self._unsynced.discard(shard)
        self._dirty.discard(shard)
        self._leaving.append(shard)
        self._release()

    def _release(self) -> None:
        for shard in list(self._leaving):
            if not any(shard in used for used in self._in_use):
                self._leaving.remove(shard)
                if shard.appender is not None:
                    shard.appender.close()


def _sync(shards: Sequence[ShardRun]) -> tuple[list[ShardRun], list[ShardRun]]:
    """Sync the segments of these shards.

    Returns:
        Those of batches that were deleted, and those that the store refuses while it takes others.
    """
    gone, refused = [], []
    for shard in shards:
        try:
            if shard.appender is not None:
                shard.appender.sync()
        except SegmentsGone:
            gone.append(shard)
        except SegmentRefused as error:
            log.error("refused shard=%s/%d: %s", *shard.key, error)  # noqa: TRY400 - it says all
            refused.append(shard)
    return gone, refused
