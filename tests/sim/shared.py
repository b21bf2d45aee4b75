"""A world of many machines: the ledger on PostgreSQL, the segments as objects in memory.

Real ledger and real object segments; of the store only the objects themselves are a stand-in, which
keeps them in memory. Queries run at once, so the order of everything follows from the seed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
from obstore.store import MemoryStore
from psycopg.rows import dict_row

from batchyard.errors import StoreError
from batchyard.ledger.postgres import PostgresLedger
from batchyard.segments.objects import ObjectSegments
from helpers_inline import InlineExecutor
from sim.watching import Row, Watch
from sim.world import Process, World
from store.making import postgres_url

if TYPE_CHECKING:
    import random
    from collections.abc import Callable


class MemoryObjects(ObjectSegments):
    """Objects that other processes of the world see too, in a store that may fail."""

    def __init__(self, objects: MemoryStore, fails: Callable[[], str]) -> None:
        super().__init__("s3://world/yard")
        self._store = self._soon = self._look = objects
        self._fails = fails

    def create(self, name: str, data: bytes) -> None:
        """Write a part, unless the store fails: before it is there, or after."""
        how = self._fails()
        if how != "before":
            super().create(name, data)
        if how:
            raise StoreError(f"cannot write segment {name}: the store does not answer")


class PostgresWatch(Watch):
    """Looks at the tables of a PostgreSQL ledger."""

    url = ""

    def _rows(self) -> tuple[dict[str, Row], dict[tuple[str, int], Row]]:
        with psycopg.connect(self.url, row_factory=dict_row) as db:
            db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")  # as of one moment
            batches = {row["id"]: row for row in db.execute("SELECT * FROM batches")}
            found = db.execute("SELECT * FROM shards ORDER BY batch, idx").fetchall()
        return batches, {(row["batch"], row["idx"]): row for row in found}


@dataclass
class SharedWorld(World):
    """Everything, for one seed. A process whose store fails ends, and another begins."""

    objects: MemoryStore = field(default_factory=MemoryStore)
    failing: list[str] = field(default_factory=list)
    """How the next writes fail: not at all, before they have happened, or after."""
    ended: Counter[str] = field(default_factory=Counter)
    _started: int = 0

    def _make_store(self) -> Any:
        return MemoryObjects(self.objects, lambda: "")

    def _open(self) -> Any:
        ledger = PostgresLedger(postgres_url(self.root), self.clock, database_time=False)
        for connection in (ledger._writer, ledger._reader):
            connection._threads.shutdown()
            connection._threads = InlineExecutor()
        return ledger

    def _make_watch(self) -> Watch:
        watch = PostgresWatch(
            self.root, lambda name, length: self.store.read(name, 0, length), self.store.size
        )
        watch.url = postgres_url(self.root)
        return watch

    def _of_process(self) -> dict[str, Any]:
        self._started += 1
        store = MemoryObjects(self.objects, lambda: self.failing.pop() if self.failing else "")
        return {"store": store, "owner": f"w{self._started:06}"}

    def check_alive(self) -> None:
        """Check as in any world; a worker may have ended because its store failed."""
        for process in list(self.processes):
            error = _failure(process)
            if error is not None:
                self.ended["store"] += 1
                self.processes.remove(process)
                for task in process.tasks:
                    task.cancel()
                self.start()
        super().check_alive()

    def fail_writes(self, rng: random.Random) -> None:
        """Let some of the next writes of objects fail."""
        self.failing = rng.choices(["", "before", "after"], [2, 1, 1], k=rng.randint(1, 4))

    async def restart(self, *, power_cut: bool) -> None:
        """Kill everything and begin again; what was not written as an object is lost."""
        assert not power_cut, "an object that was written is durable"
        for process in list(self.processes):
            await self.kill(process)
        await self.ledger.close()
        self.answered = self._on_disk()
        self.ledger = self._open()

    async def close(self, *, but: frozenset[str] = frozenset()) -> None:
        """Let everybody leave, and look for the last time."""
        assert not but
        self.failing = []
        self.check_alive()
        for process in list(self.processes):
            await self.leave(process)
        self.look()
        await self.ledger.close()


def _failure(process: Process) -> BaseException | None:
    """Return the failure of the store that ended a process."""
    for task in process.tasks:
        if task.done() and not task.cancelled():
            error = task.exception()
            if isinstance(error, ExceptionGroup):
                error = error.split(StoreError)[0]
            if isinstance(error, StoreError | ExceptionGroup):
                return error
    return None


async def settle() -> None:
    """Let tasks that were canceled come to their end."""
    for _ in range(5):
        await asyncio.sleep(0)
