"""The slots of one worker: each brings one request after the other to its result.

A pool has so many, and a process may make so many calls at once over all pools (`cap.py`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchyard.dispatch.calling import Caller
    from batchyard.dispatch.cap import Cap
    from batchyard.dispatch.pool import Pool
    from batchyard.dispatch.recorder import Recorder

# A slot lets others run after this many requests, for upstreams that answer without waiting.
_YIELD_EVERY = 16


class Slots:
    """Those of all pools."""

    def __init__(
        self,
        cap: Cap,
        pools: Mapping[str, Pool],
        caller: Caller,
        recorder: Recorder,
        wake: asyncio.Event,
    ) -> None:
        """Fill none yet.

        Args:
            cap: of the process.
            pools: of the worker, by name.
            caller: makes the calls.
            recorder: takes the results.
            wake: set when the worker should look for more shards.
        """
        self._cap, self._pools = cap, pools
        self._caller, self._recorder = caller, recorder
        self._wake = wake
        self.group: asyncio.TaskGroup
        """In which they run; given by the worker."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.idle = asyncio.Event()
        """Set when none is filled any more."""
        cap.on_room = self._pass_on

    def is_quiet(self, answering: int) -> bool:
        """Whether all of them wait: so many for an answer, the others at a gate or for time."""
        return self._cap.calls == answering

    @property
    def filled(self) -> int:
        """Return how many there are."""
        return self._cap.slots

    @property
    def has_room(self) -> bool:
        """Whether the process may make more calls."""
        return self._cap.left > 0

    def fill(self, pool: Pool) -> None:
        """Start slots for what is unsent, up to the pool's number and the process's."""
        cap, left = self._cap, self._cap.left
        wanted = min(pool.slots - pool.busy, pool.ready)
        pool.is_capped = wanted > left or (left <= 0 and pool.gate.lacks_call)
        if wanted > cap.most - cap.slots and not pool.gate.is_open:
            # They would only wait. As many slots as calls may do so, and one in each pool.
            left = min(left, max(cap.most - cap.slots, 0 if pool.busy else 1))
        for _ in range(min(wanted, left)):
            slot = self._slot(pool)
            try:
                task = self.group.create_task(slot)
            except RuntimeError:  # the worker ends, and the group takes nobody any more
                slot.close()
                return
            pool.busy += 1
            cap.fill()
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _slot(self, pool: Pool) -> None:
        cap = self._cap
        try:
            await self._work(pool)
        finally:
            pool.busy -= 1
            cap.empty()
            if cap.left != 1:
                pool.gate.pass_on()
            if not cap.slots:
                self.idle.set()
        if cap.left == 1:
            self._wake.set()
            self._pass_on()

    async def _work(self, pool: Pool) -> None:
        task = asyncio.current_task()
        assert task is not None
        cap = self._cap
        done = 0
        while True:
            if not self._recorder.has_room:
                await self._until_written(pool)
            if not pool.gate.is_open:
                await pool.gate.wait()
            if pool.busy > pool.slots:
                return  # another worker has this slot now
            if cap.calls >= cap.most and self._has_emptier(pool):
                return
            taken = pool.take(task)
            if taken is None:
                if pool.is_held_up:
                    self._wake.set()  # while these wait, others may go
                return
            if not self._wake.is_set() and pool.is_short(taken[0]):
                self._wake.set()
            await self._caller.run(pool, *taken)
            pool.left(taken[1])
            self._recorder.note(taken[0])
            done += 1
            if done % _YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def _until_written(self, pool: Pool) -> None:
        pool.unwritten += 1
        try:
            await self._recorder.room()
        finally:
            pool.unwritten -= 1

    def _has_emptier(self, pool: Pool) -> bool:
        """Whether a pool with fewer calls waits for one of those that the process may make."""
        most = _calls(pool) - 1
        return any(
            _calls(other) < most
            and ((other.is_capped and other.gate.is_open) or other.gate.lacks_call)
            for other in self._pools.values()
        )

    def _pass_on(self) -> None:
        """Let the pool with the fewest calls have one more that waits for that."""
        for pool in sorted(self._pools.values(), key=_calls):
            pool.gate.pass_on()
            self.fill(pool)


def _calls(pool: Pool) -> int:
    """Return how many slots of a pool make a call, or are about to."""
    return pool.busy - pool.gate.waiting
