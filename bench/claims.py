"""What each statement of the dispatch costs, on both ledgers, in milliseconds and bytes.

    python bench/claims.py [--stores sqlite,postgres] [--shards 1000000] [--sweeps] [--write]

What the server writes to its log by itself meanwhile is in the bytes, some tens for each statement:
reads write nothing.

Two sizes: an ordinary ledger (40,000 open shards, 20 waiting workspaces), and one in which very
much waits (1,000,000 and 1,000). In a pool beside it tens of thousands of tiny batches run.
Everything goes through the same class as a worker's, one statement after the other. Bytes are those
of the WAL: for SQLite what the process has written, for PostgreSQL the distance of two log
positions. `--write` keeps the result where docs and `bench/scale.py` read it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import servers
import yard

from batchyard.clock import SystemClock, steady_us
from batchyard.ledger import Commit, CreateKey, Held, Want
from batchyard.ledger.postgres import PostgresLedger
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.model import Batch, Counts, Extent, ShardPlan, Tokens

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from batchyard.ledger import Claim
    from batchyard.ledger.sql import SqlLedger

RESULTS = Path(__file__).parent / "results" / "statements.json"
POOL, FLOOD = "up/m", "up/flood"
FLOOD_SHARDS = 36_000
"""That run in a pool of tiny batches at 10^9 requests a day: each the only one of its batch."""
FAR_US = 1 << 60
DAY_US = 86_400_000_000
GROUP = 16
SHARD_REQUESTS = 500
WORKERS = 400
FORGOTTEN, KEY_MOMENTS = 1_000, 5
"""Keys of create calls whose time is over at once, and how often that is measured."""
TOLD_BYTES = 300
"""What a worker tells of a pool."""
ORDINARY = (20, 40_000, 200)
"""Waiting workspaces, open shards, running ones."""


@dataclass(frozen=True)
class Cost:
    """What one statement has cost."""

    store: str
    size: str
    statement: str
    times: int
    median_ms: float
    p95_ms: float
    max_ms: float
    bytes: int
    """Of the WAL, for each."""


class Bench:
    """One ledger that is filled, and what its statements cost."""

    def __init__(
        self, store: str, ledger: SqlLedger, written: Callable[[], int], fill: Callable[..., None]
    ) -> None:
        self.store = store
        self.ledger = ledger
        self.costs: list[Cost] = []
        self._written = written
        self._fill = fill
        self._size = ""
        self._made = 0

    async def timed(self, name: str, times: int, act: Callable[[], Awaitable[Any]]) -> list[Any]:
        """Measure something, and return what it returned each time."""
        found, seconds = [], []
        before = self._written()
        for _ in range(times):
            started = time.perf_counter()
            found.append(await act())
            seconds.append(time.perf_counter() - started)
        written = (self._written() - before) // times
        each = sorted(second * 1e3 for second in seconds)
        cost = Cost(
            self.store, self._size, name, times,
            round(statistics.median(each), 3), round(each[math.ceil(0.95 * times) - 1], 3),
            round(each[-1], 3), written,
        )  # fmt: skip
        self.costs.append(cost)
        print(
            f"claims    {self.store:8} {self._size:22} {name:24} {cost.median_ms:8.2f} ms "
            f"(95 %: {cost.p95_ms:.2f}, max {cost.max_ms:.1f}) {written:8,} bytes",
            flush=True,
        )
        return found

    async def run(self, size: tuple[int, int, int], times: int, *, only_sweeps: bool) -> None:
        """Measure all of it at one size, or the sweeps only."""
        workspaces, shards, running = size
        self._size = f"{shards:,} / {workspaces:,}"
        await asyncio.to_thread(self._fill, workspaces, shards, running)
        if not only_sweeps:
            await self._claims(times)
            await self._creates(times)
            await self._tiny(max(2, times // 4))
        await self._sweeps(min(times, 20))

    async def _claims(self, times: int) -> None:
        ledger = self.ledger
        await self.timed("pools_ready", times, ledger.pools_ready)
        await self.timed("pools_apart", times, ledger.pools_apart)
        await self.timed(
            "claim_void, nothing", times, lambda: ledger.claim_void("me", 0, FAR_US, 8)
        )
        claims: list[Sequence[Claim]] = await self.timed(
            "claim",
            times,
            lambda: ledger.claim("me", POOL, FAR_US, 1, now_us=time.monotonic_ns() // 1_000),
        )
        first = claims[0][0]
        known: list[Sequence[Claim]] = await self.timed(
            "claim, batch known",
            times,
            lambda: ledger.claim("me", POOL, FAR_US, 1, turn=first.turn),
        )
        taken = [claim for found in (*claims, *known) for claim in found]
        held = [held_of(claim) for claim in taken[:20]]
        await self.timed("renew 1", min(times, 40), lambda: ledger.renew("me", FAR_US, held[:1]))
        await self.timed("renew 20", min(times, 40), lambda: ledger.renew("me", FAR_US, held))
        await self._shares(min(times, 40))
        waiting = iter(taken)
        await self.timed(
            "commit 1", len(taken) // 2, lambda: ledger.commit("me", [commit_of(next(waiting))])
        )
        rest = list(waiting)
        groups = [rest[at : at + GROUP] for at in range(0, len(rest) - GROUP + 1, GROUP)]
        left = iter(groups)
        await self.timed(
            f"commit {GROUP}",
            len(groups),
            lambda: ledger.commit("me", [commit_of(claim) for claim in next(left)]),
        )

    async def _shares(self, times: int) -> None:
        """Measure what a worker asks each second: alone, among many, and when it is to have more.

        Only the last takes the lock of the pool.
        """
        ledger, now = self.ledger, time.time_ns() // 1_000
        want = [Want(pool=POOL, slots=1_000_000, busy=500, note=None, told="x" * TOLD_BYTES)]

        async def share(owner: str) -> None:
            await ledger.share(owner, now, FAR_US, want)

        await share("me")
        await self.timed("share", times, lambda: share("me"))
        for number in range(WORKERS - 1):
            await share(f"worker-{number:04}")
        await share("me")  # leaves the others their part
        await self.timed(f"share, {WORKERS} workers", times, lambda: share("me"))
        newcomers = iter(range(times))
        await share("worker-0000")  # there is something for who comes
        await self.timed(
            f"share, more of {WORKERS}", times, lambda: share(f"new-{next(newcomers):04}")
        )
        for owner in ("me", *(f"worker-{number:04}" for number in range(WORKERS - 1))):
            await ledger.share(owner, now, FAR_US, [])
        for number in range(times):
            await ledger.share(f"new-{number:04}", now, FAR_US, [])

    async def _creates(self, times: int) -> None:
        await self.timed("create, 200 shards", max(2, times // 5), lambda: self.create(200))
        found = await self.timed("create, 2 shards", times, lambda: self.create(2))
        batch = found[0]
        await self.timed("get", times, lambda: self.ledger.get(batch.workspace, batch.id))

    async def _tiny(self, times: int) -> None:
        """Measure what a flood of batches of one small shard costs.

        Each group waits in a pool of its own, so that a claim takes all that waits, as it does in a
        yard that keeps up. Where more waits, in the pool of which very much runs, it has to choose.
        """
        made = iter(range((times + 1) * GROUP))
        await self.timed(
            "create, 1 shard",
            (times + 1) * GROUP,
            lambda: self.create(1, pool=f"up/tiny{next(made) // GROUP}"),
        )
        for number in range(3 * GROUP):
            await self.create(1, pool=FLOOD, workspace=f"w{number}")
        await self.timed(
            f"claim_fresh {GROUP} of {3 * GROUP}",
            2,
            lambda: self.ledger.claim_fresh("me", FLOOD, FAR_US, GROUP),
        )
        pools = iter(range(times))
        claims = await self.timed(
            f"claim_fresh {GROUP}",
            times,
            lambda: self.ledger.claim_fresh("me", f"up/tiny{next(pools)}", FAR_US, GROUP),
        )
        assert {len(found) for found in claims} == {GROUP}
        single = await self.timed(
            "claim_fresh 1",
            GROUP,
            lambda: self.ledger.claim_fresh("me", f"up/tiny{times}", FAR_US, 1),
        )
        await self.ledger.commit("me", [commit_of(claim) for found in single for claim in found])
        left = iter(claims)
        await self.timed(
            f"commit {GROUP} tiny",
            times,
            lambda: self.ledger.commit("me", [commit_of(claim) for claim in next(left)]),
        )
        alone = iter([claim.batch for found in single for claim in found])
        ids = [claim.batch for found in claims for claim in found]
        await self.timed("end 1", GROUP, lambda: self.ledger.end(next(alone), DAY_US, Tokens()))
        grouped = iter([ids[at : at + GROUP] for at in range(0, len(ids), GROUP)])
        await self.timed(
            f"end {GROUP}",
            times,
            lambda: self.ledger.end_all([(each, Tokens()) for each in next(grouped)], DAY_US),
        )

    async def _sweeps(self, times: int) -> None:
        """Measure what keeping house costs: tens of thousands of batches are open and run."""
        ledger, clock = self.ledger, SystemClock()

        def take_back() -> Awaitable[int]:
            return ledger.take_back(steady_us(clock), but="me")

        for _ in range(20):  # nothing is taken back before a whole lease with the database
            if await take_back():
                break
            await asyncio.sleep(5)
        else:
            raise AssertionError("the lease that had ended was not taken back")
        await ledger.begin_sweep(steady_us(clock), FAR_US)
        await self.timed(
            "begin_sweep, another's",
            5 * times,
            lambda: ledger.begin_sweep(steady_us(clock), FAR_US),
        )
        await self.timed("take_back, nothing", times, take_back)
        await self.timed("finished, nothing", times, ledger.finished)
        await self.timed("outdated, nothing", times, lambda: ledger.outdated(0, 100))
        moments = iter(range(1, KEY_MOMENTS + 1))
        await self.timed(
            f"forget_creates {FORGOTTEN:,}",
            KEY_MOMENTS,
            lambda: ledger.forget_creates(next(moments)),
        )
        await self.timed("forget_creates, nothing", times, lambda: ledger.forget_creates(0))
        for _ in range(GROUP):
            await self.create(1, pool="up/old")
        old = await ledger.claim_fresh("me", "up/old", FAR_US, GROUP)
        await ledger.commit("me", [commit_of(claim) for claim in old])
        await ledger.end_all([(claim.batch, Tokens()) for claim in old], DAY_US)
        ended = iter(old)
        await self.timed("archive", GROUP, lambda: ledger.archive(next(ended).batch, FAR_US))

    async def create(self, shards: int, pool: str = POOL, workspace: str = "new") -> Batch:
        self._made += 1
        plans = [
            ShardPlan(index=n, pool=pool, offset=n, length=1, requests=SHARD_REQUESTS)
            for n in range(shards)
        ]
        batch = Batch(
            id=f"msgbatch_{self._made:08}",
            workspace=workspace,
            requests=shards * SHARD_REQUESTS,
            created_us=DAY_US,
            expires_us=FAR_US,
            version="2023-06-01",
            billing="standard",
        )
        key = CreateKey(key=batch.id, digest=bytes(32), until_us=FAR_US, replaces=False)
        assert await self.ledger.create(batch, plans, key) is None
        return batch


def held_of(claim: Claim) -> Held:
    return Held(
        batch=claim.batch,
        index=claim.index,
        attempt=claim.attempt,
        inflight=1,
        counts=Counts(succeeded=3),
    )


def commit_of(claim: Claim) -> Commit:
    """Return the result of a shard: one extent of a mebibyte, as a real one has."""
    segment = f"ab/{claim.batch}/r/{claim.index}.{claim.attempt}.0123456789abcdef"
    return Commit(
        batch=claim.batch,
        index=claim.index,
        attempt=claim.attempt,
        extents=(Extent(segment, 1_000_000, (123_456_789,)),),
        counts=Counts(succeeded=claim.requests),
        tokens=Tokens(300_000, 60_000, 0, 0),
    )


# Filling ------------------------------------------------------------------------------------------


def rows(workspaces: int, shards: int, running: int) -> Iterator[tuple[object, ...]]:
    """Yield the shards of a batch of each workspace, equally many; some run."""
    each = shards // workspaces
    for n in range(workspaces):
        for i in range(each):
            runs = i < running // workspaces
            yield (
                f"b{n}", i, n + 1, f"w{n}", POOL, 0, 1, SHARD_REQUESTS, int(runs),
                "o" if runs else None, FAR_US, 1, int(not i),
            )  # fmt: skip
    for n in range(FLOOD_SHARDS):
        lease_us = FAR_US if n else 0  # of one it has ended
        yield (
            f"t{n}", 0, workspaces + n + 1, f"w{n % workspaces}", FLOOD, 0, 1, 10, 1, "o", lease_us,
            1, 1,
        )  # fmt: skip


def batches(workspaces: int) -> list[tuple[object, ...]]:
    large = [f"b{n}" for n in range(workspaces)]
    tiny = [f"t{n}" for n in range(FLOOD_SHARDS)]
    return [
        (n + 1, name, f"w{n % workspaces}", 1, "", "", "standard", 0, FAR_US)
        for n, name in enumerate([*large, *tiny])
    ]


def keys() -> list[tuple[object, ...]]:
    """Return create calls whose time is over at the first moments there are."""
    return [
        ("w", f"k{n}", bytes(32), f"k{n}", n // FORGOTTEN + 1)
        for n in range(KEY_MOMENTS * FORGOTTEN)
    ]


_BATCH = "seq, id, workspace, requests, version, betas, billing, created_us, expires_us"
_KEY = "workspace, key, digest, batch, until_us"
_SHARD = "batch, idx, seq, workspace, pool, off, len, n, state, owner, lease_us, attempt, head"


def fill_sqlite(path: Path, *size: int) -> None:
    import sqlite3  # noqa: PLC0415 - of this store only

    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM shards")
        db.execute("DELETE FROM batches")
        db.executemany(
            f"INSERT INTO batches ({_BATCH}) VALUES ({','.join('?' * 9)})",
            batches(size[0]),
        )
        db.executemany(f"INSERT INTO creates ({_KEY}) VALUES ({','.join('?' * 5)})", keys())
        marks = ",".join("?" * 13)
        db.executemany(f"INSERT INTO shards ({_SHARD}) VALUES ({marks})", rows(*size))
    db.close()


def fill_postgres(url: str, *size: int) -> None:
    import psycopg  # noqa: PLC0415 - an extra

    with psycopg.connect(url, autocommit=True) as db:
        db.execute("TRUNCATE shards, batches RESTART IDENTITY")
        with db.cursor() as cursor:
            with cursor.copy(f"COPY batches ({_BATCH}) FROM STDIN") as copy:
                for row in batches(size[0]):
                    copy.write_row(row)
            with cursor.copy(f"COPY creates ({_KEY}) FROM STDIN") as copy:
                for row in keys():
                    copy.write_row(row)
            with cursor.copy(f"COPY shards ({_SHARD}) FROM STDIN") as copy:
                for row in rows(*size):
                    copy.write_row(row)
        db.execute("SELECT setval(pg_get_serial_sequence('batches', 'seq'), 1000000)")
        # As autovacuum would have done by then, and a checkpoint that has passed.
        db.execute("VACUUM ANALYZE shards, batches, creates")
        db.execute("CHECKPOINT")


# Running ------------------------------------------------------------------------------------------


async def on_sqlite(
    sizes: Sequence[tuple[int, int, int]], times: int, *, only_sweeps: bool
) -> list[Cost]:
    with tempfile.TemporaryDirectory(prefix="batchyard-bench-") as data:
        path = Path(data) / "ledger.db"
        ledger = SqliteLedger(path)
        bench = Bench(
            "sqlite", ledger, servers.written_bytes, lambda *size: fill_sqlite(path, *size)
        )
        for size in sizes:
            await bench.run(size, times, only_sweeps=only_sweeps)
        await ledger.close()
        return bench.costs


async def on_postgres(
    sizes: Sequence[tuple[int, int, int]], times: int, *, only_sweeps: bool
) -> list[Cost]:
    with servers.postgres() as server:
        url = server.create("bench")
        ledger = PostgresLedger(url, SystemClock())
        bench = Bench(
            "postgres",
            ledger,
            lambda: servers.wal_bytes(server),
            lambda *size: fill_postgres(url, *size),
        )
        for size in sizes:
            await bench.run(size, times, only_sweeps=only_sweeps)
        await ledger.close()
        return bench.costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", default="sqlite,postgres")
    parser.add_argument("--workspaces", type=int, default=1_000)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--running", type=int, default=2_000)
    parser.add_argument("--times", type=int, default=100, help="each statement is run")
    parser.add_argument("--sweeps", action="store_true", help="only those; the rest is kept")
    parser.add_argument("--write", action="store_true", help="keep the raw result")
    options = parser.parse_args()
    sizes = [ORDINARY, (options.workspaces, options.shards, options.running)]
    costs: list[Cost] = []
    for store in options.stores.split(","):
        run = {"sqlite": on_sqlite, "postgres": on_postgres}[store]
        costs += asyncio.run(run(sizes, options.times, only_sweeps=options.sweeps))
    if options.write:
        keep(costs, only_sweeps=options.sweeps)


def keep(costs: Sequence[Cost], *, only_sweeps: bool) -> None:
    """Write the raw result; of the sweeps only, into the one that is there."""
    content: dict[str, Any] = {
        "command": "python bench/claims.py --write",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": yard.machine(),
        "load_at_end": [round(value, 1) for value in os.getloadavg()],
        "costs": [asdict(cost) for cost in costs],
    }
    if only_sweeps:
        there = json.loads(RESULTS.read_text(encoding="utf-8"))
        new = {(cost.store, cost.size, cost.statement) for cost in costs}
        rest = [c for c in there["costs"] if (c["store"], c["size"], c["statement"]) not in new]
        sweeps = content | {"command": "python bench/claims.py --sweeps --write"}
        content = there | {"costs": rest + sweeps.pop("costs"), "sweeps": sweeps}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
