"""A yard with worker processes, and what a test does to them."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from helpers_upstream import Exchange, follow_prompt
from helpers_yard import QUICK, Yard, poll

if TYPE_CHECKING:
    from collections.abc import Mapping

BOUNDS = Path(__file__).with_name("bounds")
# Leases that end soon, so that a test need not wait for them.
SHORT = QUICK | {
    "limits:LEASE_US": 2_000_000,
    "limits:RENEW_INTERVAL_S": 0.2,
    "limits:WORKER_RESTART_S": 0.05,
    "limits:SLOTS_DIVIDED_MIN": 2,
    "limits:PROBATION_S": 1.0,
    "limits:SETTLING_S": 0.1,
    "limits:WORKER_SILENT_S": 600.0,  # who is frozen by a test is not ended meanwhile
    "server.workers:_TAKE_BACK_S": 0.2,
}
# The same for tests in which nobody is to be slow enough to lose one.
LASTING = SHORT | {"limits:LEASE_US": 300_000_000}


def workers_yard(
    data: Path,
    upstream: str,
    *,
    slots: int = 16,
    workers: int = 2,
    bounds: Mapping[str, object] = SHORT,
) -> Yard:
    """Describe a yard with worker processes, all with the same bounds."""
    path = os.pathsep.join(filter(None, [str(BOUNDS), os.environ.get("PYTHONPATH", "")]))
    environment = {
        "BATCHYARD_WORKERS": str(workers),
        "BATCHYARD_TEST_BOUNDS": json.dumps(dict(bounds)),
        "PYTHONPATH": path,
    }
    return Yard(data, upstream, slots=slots, environment=environment)


def pids_of(yard: Yard) -> list[int]:
    """Return the process ids of the workers of a yard that live."""
    assert yard.process is not None
    pid = yard.process.pid
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, children.read_text().split())
    return sorted(filter(is_alive, found))


def wait_workers(yard: Yard, number: int = 2, *, but: int | None = None) -> list[int]:
    """Wait until so many workers work, a certain one not among them; return their ids."""

    def ready() -> list[int]:
        log = yard.read_log()
        found = [p for p in pids_of(yard) if p != but and f"worker_process[{p}] working" in log]
        alike = [p for p in pids_of(yard) if p != but and f"__main__[{p}] working" in log]
        found = sorted({*found, *alike})
        return found if len(found) == number else []

    return poll(ready, lambda: f"{number} workers: {yard.read_log()[-2_000:]}")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_free(data: Path) -> None:
    """Wait until no process of a yard that was killed has its data directory any more."""

    def is_free() -> bool:
        with (data / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return False
        return True

    poll(is_free, lambda: "the workers of a killed server have not ended")


def holders_of_batches(data: Path) -> dict[str, int]:
    """Return how many shards of each batch are held."""
    with closing(sqlite3.connect(f"file:{data / 'ledger.db'}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT batch, count(*) FROM shards WHERE state = 1 GROUP BY batch")
        return dict(rows.fetchall())


def holders(data: Path) -> dict[str, int]:
    """Return how many shards each owner holds."""
    with closing(sqlite3.connect(f"file:{data / 'ledger.db'}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT owner, count(*) FROM shards WHERE state = 1 GROUP BY owner")
        return dict(rows.fetchall())


class Slow:
    """Answers after a while, or holds all calls, and keeps count of those at once."""

    def __init__(self) -> None:
        self.delay_s = 0.05
        """Long enough that no worker does all the work before the other has begun."""
        self.now = 0
        self.most = 0
        self.holds = False

    async def __call__(self, exchange: Exchange) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.delay_s)
            if self.holds:
                await exchange.upstream.gate("held").wait()
            await follow_prompt(exchange)
        finally:
            self.now -= 1


def hold_shared(yard: Yard, slow: Slow, slots: int = 16) -> None:
    """Wait until two workers divide the slots, then hold all calls in flight."""
    poll(lambda: len(holders(yard.data)) == 2, lambda: str(holders(yard.data)))
    slow.holds = True
    slow.delay_s = 0.01
    poll(lambda: slow.now == slots, lambda: f"{slow.now} slots of {slots} are filled")
