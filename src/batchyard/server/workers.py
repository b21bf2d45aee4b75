"""The worker processes of a yard, where there are several: started, watched, ended.

They work on the same ledger and directory as the server and never speak to each other. The server
knows of each only whether it lives: a pipe in each direction closes when the other side has died,
and over the one from the worker comes a sign of life each second. A worker that died or gives no
sign is replaced, and what it held is free at once; one that was frozen and wakes is fenced off by
the ledger. All hold the lock on the data directory, so no other server starts while one lives; the
next one ends a frozen one (`orphans.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard import ids, limits
from batchyard.clock import offset_of, steady_us, wait_first
from batchyard.dispatch.ending import end_batches
from batchyard.errors import DiskFull, Overloaded, StoreError
from batchyard.server import orphans
from batchyard.server.elsewhere import Elsewhere

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from batchyard.clock import Clock
    from batchyard.dispatch.routes import Routes
    from batchyard.ledger import Ledger
    from batchyard.segments import Segments
    from batchyard.server.config import Config

log = logging.getLogger(__name__)

STORE_FAILED = 4
"""The exit code of a worker whose store failed."""
_ORDERLY = frozenset({0, STORE_FAILED})
"""Codes of a worker that did not end because of what it worked on."""
_TAKE_BACK_S = 5.0
_GIVE_BACK_MAX_S = 5.0


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker process is told at its start."""

    config: Config
    owner: str
    """Its name in the ledger."""
    core: int | None
    """Where it runs; None leaves that to the system."""
    offset_us: int
    """Of the server's clock, which may know that the wall clock is wrong; see `clock.offset_of`."""


class Workers(Elsewhere):
    """The worker processes of one yard."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        store: Segments,
        routes: Routes,
        clock: Clock,
        lock: int | None,
    ) -> None:
        """Describe them.

        Args:
            config: checked settings.
            ledger: of the server.
            store: its segments.
            routes: which model runs where.
            clock: of waits.
            lock: the descriptor of the lock on the data directory, which they share.
        """
        super().__init__(ledger, routes, clock)
        self._config = config
        self._store = store
        self._lock = lock
        self._processes: set[Process] = set()

    def leave(self) -> None:
        """Let the workers end; `run` returns when they have."""
        self._leaving.set()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()

    async def run(self) -> None:
        """Keep the workers until `leave` is called.

        Raises:
            StoreError: the store failed, here or in a worker.
        """
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            keeping = [group.create_task(self._keep(core)) for core in cores(self._config.workers)]
            await asyncio.wait(keeping)
            watching.cancel()

    async def _keep(self, core: int | None) -> None:
        """Keep one worker: start it again, later each time, when it has died."""
        pause_s = limits.WORKER_RESTART_S
        while not self._leaving.is_set():
            owner = ids.nonce()
            began_s = self._clock.monotonic_s()
            try:
                code = await self._live(Order(self._config, owner, core, offset_of(self._clock)))
            except asyncio.CancelledError:  # we ended it, for what is none of its shards
                await self._give_back(owner)
                raise
            await self._free(owner, has_died=code not in _ORDERLY)
            if code == STORE_FAILED:
                raise StoreError("the store failed in a worker; its log says why")
            if self._leaving.is_set():
                return
            if self._clock.monotonic_s() - began_s > limits.WORKER_RESTART_MAX_S:
                pause_s = limits.WORKER_RESTART_S
            log.warning("worker ended (%d): another one starts in %.1f s", code, pause_s)
            await wait_first(self._clock, self._leaving, pause_s)
            pause_s = min(2 * pause_s, limits.WORKER_RESTART_MAX_S)

    async def _live(self, order: Order) -> int:
        """Run one worker process to its end; return its exit code."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "batchyard.server.worker_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=() if self._lock is None else (self._lock,),
            start_new_session=True,  # a Ctrl-C is for the server, which lets it end
        )
        self._processes.add(process)
        orphans.record(self._config.data, process.pid)
        try:
            assert process.stdin is not None
            process.stdin.write(pickle.dumps(order))
            if self._leaving.is_set():
                process.terminate()
            await self._until_silent(process)
        finally:
            self._processes.discard(process)
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # dead, or silent, or the server ends in a hurry
        code = await process.wait()
        orphans.forget(self._config.data, process.pid)
        return code

    async def _until_silent(self, process: Process) -> None:
        assert process.stdout is not None
        silences = 0
        while True:
            bound = limits.WORKER_SILENT_S
            try:
                async with asyncio.timeout(bound / 2):
                    if not await process.stdout.read(64):
                        return
                silences = 0
            except TimeoutError:
                silences += 1
                if silences < 2:  # the first may be our own, if the server was frozen
                    continue
                log.error("worker pid=%d gave no sign of life for %.0f s", process.pid, bound)  # noqa: TRY400
                return

    async def _give_back(self, owner: str) -> None:
        """Free what a worker held that was ended with the server, if the ledger still does that."""
        with contextlib.suppress(StoreError, Overloaded, TimeoutError):  # else the next start does
            async with asyncio.timeout(_GIVE_BACK_MAX_S):
                await self._ledger.release(owner)

    async def _free(self, owner: str, *, has_died: bool) -> None:
        """Free what a worker held that has ended."""
        with contextlib.suppress(DiskFull):  # its leases end, or the next start frees all
            await self._ledger.release(owner, has_died=has_died)
            finished = await self._ledger.finished()  # that it was about to end
            await end_batches(self._ledger, self._store, self._clock, finished)

    async def _watch(self) -> None:
        taken_s = self._clock.monotonic_s()
        while True:
            await self._clock.sleep(limits.RENEW_INTERVAL_S)
            await self._listen()
            if self._clock.monotonic_s() - taken_s >= _TAKE_BACK_S:
                taken_s = self._clock.monotonic_s()
                with contextlib.suppress(DiskFull):
                    await self._ledger.take_back(steady_us(self._clock), but=self.owner)


def cores(workers: int) -> list[int | None]:
    """Return a core for each worker, where there are enough: threads that stay together are cheap.

    Source: measured; a process that is spread over two cores takes 1.5 times the CPU.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [None] * workers
    usable = sorted(os.sched_getaffinity(0))
    return [*usable[:workers]] if len(usable) >= workers else [None] * workers
