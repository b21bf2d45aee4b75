"""10^9 requests a day: what saturates first, by the scheduling code and what its statements cost.

    python bench/scale.py [--workers 400] [--seconds 120] [--write]    simulates: make scale-sim
    python bench/scale.py --table [--write]                            the document's tables only

One worker of a fleet runs in virtual time, with its share of the requests: the real worker (turns,
pools, recorder, renewals, shares) on the real ledger (claims, fairness, commits), in front of an
upstream that takes 15 to 45 s. Each call of the ledger holds one of the worker's two connections
for as long as `bench/claims.py` has measured it on PostgreSQL, and what finds nothing is a read:
it takes the reading one, and writes nothing. What would be an object is counted. Requests and
results are not stored: bytes are counted. What the other workers do is not simulated, but
multiplied; they are seen only as peers that share slots, and in the news of their batches. Each
looks whether a sweep is due; the one that sweeps for all is added to the sum, as are the creates
and, as it is after 29 days, the archiving. What
statements cost each other in one database is in the measured figures only as far as it was there.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import operator
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import yard
from priced import RESULTS, STATEMENTS, SWEEP, Costly, statement_costs

from batchyard import limits, wire
from batchyard.checksum import Checksums
from batchyard.dispatch.keeper import Keeper
from batchyard.dispatch.routes import Route, Routes
from batchyard.dispatch.worker import Worker
from batchyard.ledger import CreateKey
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.model import Batch, Extent, ShardPlan
from batchyard.segments.requests import Records, plan_shards, sizes_of
from batchyard.testing.clock import ManualClock
from batchyard.upstream import Reply
from helpers_inline import InlineExecutor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchyard.upstream import Call, Outcome

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "explanation" / "scale.md"
PER_DAY = 1_000_000_000
PER_SECOND = PER_DAY / 86_400
LATENCY_S = 30.0
WORKERS, SECONDS = 400, 120.0
"""Of the fleet, and of the measured part in virtual time: some shards of 500 for each worker."""
REQUEST_BYTES = RESULT_BYTES = 2_000
SCENARIOS = [(size, spaces) for size in (10, 1_000, 100_000) for spaces in (1, 1_000)]
CREATE_OF = {10: "create, 1 shard", 1_000: "create, 2 shards", 100_000: "create, 200 shards"}
SWEEPS_PER_S = 2 / limits.SHARED_KEEPER_INTERVAL_S
"""Of the whole fleet, at the most: see `Keeper`."""
POOL = "up/m"
DAY_US = 86_400_000_000

# The world ---------------------------------------------------------------------------------------


class Nowhere:
    """Segments that are counted and not kept. All shards hold the same requests."""

    sync_interval_s = limits.OBJECTS_SYNC_INTERVAL_S
    syncs_at_once = limits.OBJECTS_SYNCS_AT_ONCE
    repairs_itself = True

    def __init__(self) -> None:
        self.puts = 0
        self.gets = 0
        self._blocks: dict[int, bytes] = {}

    def block(self, requests: int) -> bytes:
        """Return the requests of a shard."""
        if requests not in self._blocks:
            entries = wire.split(_body(requests))
            sizes, order = sizes_of(entries), list(range(requests))
            plans = plan_shards(entries, sizes, [POOL] * requests, order)
            assert len(plans) == 1
            self._blocks[requests] = b"".join(Records(entries, sizes, order, plans).chunks())
        return self._blocks[requests]

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        self.puts += 1

    def read(self, name: str, offset: int, length: int) -> bytes:
        self.gets += 1
        return next(block for block in self._blocks.values() if len(block) == length)

    def names(self, prefix: str) -> list[str]:
        return []

    def check_writable(self, batch_id: str, *, is_again: bool = False) -> None:
        pass

    def appender(self, name: str) -> _Appender:
        return _Appender(self, name)


class _Appender:
    def __init__(self, store: Nowhere, name: str) -> None:
        self.name = name
        self._store = store
        self._waiting: list[bytes] = []
        self._extents: list[Extent] = []

    def append(self, chunks: Sequence[bytes]) -> None:
        self._waiting += chunks

    def extents(self) -> tuple[Extent, ...]:
        return tuple(self._extents)

    def sync(self) -> None:
        if self._waiting:
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._store.puts += 1
            checksums = Checksums()
            checksums.add(data)
            name = f"{self.name}.{len(self._extents)}"
            self._extents.append(Extent(name, len(data), checksums.blocks))

    def close(self) -> None:
        self._waiting.clear()

    def remove(self) -> None:
        pass


class Slow:
    """An upstream that takes its time and never fails."""

    billing = "standard"
    fetches_urls = False
    name = "up"

    def __init__(self, clock: ManualClock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self.in_flight = self.most = self.answered = 0
        text = "x" * (RESULT_BYTES - 250)
        self._body = wire.encode(
            {
                "id": "msg_1", "type": "message", "role": "assistant",
                "content": [{"type": "text", "text": text}], "stop_reason": "end_turn",
                "usage": {"input_tokens": 500, "output_tokens": 400},
            }
        )  # fmt: skip

    async def send(self, call: Call) -> Outcome:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await self._clock.sleep(LATENCY_S * self._rng.uniform(0.5, 1.5))
        self.in_flight -= 1
        self.answered += 1
        return Reply(200, self._body)


def _body(requests: int) -> bytes:
    text = "y" * (REQUEST_BYTES - 150)
    params = {"model": "m", "max_tokens": 500, "messages": [{"role": "user", "content": text}]}
    return wire.encode(
        {"requests": [{"custom_id": f"r{n:06}", "params": params} for n in range(requests)]}
    )


class Load:
    """Batches that come in at a steady rate, or as many as wait from the beginning."""

    def __init__(
        self, ledger: SqliteLedger, store: Nowhere, clock: ManualClock, size: int, spaces: int
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._size = size
        self._spaces = spaces
        self._store = store
        self.created = 0

    async def create(self) -> None:
        """Accept one batch of the next workspace."""
        each = min(self._size, limits.SHARD_REQUESTS)
        length = len(self._store.block(each))
        shards = [
            ShardPlan(index=n, pool=POOL, offset=n * length, length=length, requests=each)
            for n in range(self._size // each)
        ]
        now = self._clock.now_us()
        batch = Batch(
            id=f"msgbatch_{self.created:012}",
            workspace=f"w{self.created % self._spaces:04}",
            requests=self._size,
            created_us=now,
            expires_us=now + DAY_US,
            version="2023-06-01",
            billing="standard",
        )
        digest = hashlib.sha256(batch.id.encode()).digest()
        key = CreateKey(key=batch.id, digest=digest, until_us=now + DAY_US, replaces=False)
        await self._ledger.create(batch, shards, key)
        self.created += 1

    async def run(self, rate: float) -> None:
        """Accept `rate` requests a second for ever."""
        pause_s = self._size / rate
        while True:
            await self.create()
            await self._clock.sleep(pause_s)


@dataclass(frozen=True)
class Simulated:
    """What one worker of the fleet did in the measured part of a scenario."""

    batch_requests: int
    workspaces: int
    seconds: float
    answered: int
    in_flight_most: int
    created: int
    statements: dict[str, int]
    items: dict[str, int]
    connection_busy: float
    """Part of the time in which the worker's writing connection was in use."""
    spent_s: float
    """That its statements took, on both connections."""
    wal_bytes: float
    looked: int
    """Of all calls of the ledger, those that only read."""
    puts: int
    gets: int
    real_s: float


async def simulate(
    size: int, spaces: int, workers: int, seconds: float, costs: dict[str, Any] | None = None
) -> Simulated:
    """Run one worker of a fleet for so many virtual seconds, after it has come to its pace.

    Args:
        size: requests of a batch.
        spaces: workspaces that send them.
        workers: of the fleet.
        seconds: that are counted.
        costs: of the statements; as they were measured, otherwise.
    """
    asyncio.get_running_loop().set_default_executor(InlineExecutor())
    began = time.perf_counter()
    clock, rng = ManualClock(), random.Random(f"{size} {spaces}")
    rate = PER_SECOND / workers
    with tempfile.TemporaryDirectory(prefix="batchyard-scale-", dir=_memory()) as root:
        real = SqliteLedger(Path(root) / "ledger.db", threads=InlineExecutor)
        ledger = Costly(
            real, clock, costs or statement_costs(), workers=workers, creates_s=PER_SECOND / size
        )
        store = Nowhere()
        upstream = Slow(clock, rng)
        worker = Worker(
            ledger=ledger,  # type: ignore[arg-type]
            store=store,  # type: ignore[arg-type]
            upstreams={"up": upstream},  # type: ignore[dict-item]
            routes=Routes([Route("up", ("*",))]),
            # A tenth more than it takes on average: what a fleet would be given.
            slots={"up": round(1.1 * rate * LATENCY_S)},
            clock=clock,
            rng=rng,
            owner="worker",
        )
        keeper = Keeper(
            ledger,  # type: ignore[arg-type]
            store,  # type: ignore[arg-type]
            clock,
            owner="worker",
            interval_s=limits.SHARED_KEEPER_INTERVAL_S,
            rng=rng,
        )
        load = Load(real, store, clock, size, spaces)
        for _ in range(max(1, min(spaces, round(rate * LATENCY_S / size)))):
            await load.create()
        running = worker.run(), keeper.run(), load.run(rate)
        tasks = [asyncio.create_task(each) for each in running]
        await clock.advance(3 * LATENCY_S)
        before = _state(ledger, store, upstream, load)
        spent = ledger.busy_s, ledger.spent_s, ledger.wal_bytes, ledger.looked
        await clock.advance(seconds)
        assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
        after = _state(ledger, store, upstream, load)
        now = ledger.busy_s, ledger.spent_s, ledger.wal_bytes, ledger.looked
        busy_s, spent_s, wal_bytes, looked = map(operator.sub, now, spent)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await real.close()
    after.subtract(before)
    return Simulated(
        size, spaces, seconds, after["answered"], upstream.most, after["created"],
        {name: after[f"n {name}"] for name in STATEMENTS},
        {name: after[f"i {name}"] for name in STATEMENTS},
        round(busy_s / seconds, 4), round(spent_s, 3), round(wal_bytes), round(looked),
        after["puts"], after["gets"],
        round(time.perf_counter() - began, 1),
    )  # fmt: skip


def _state(ledger: Costly, store: Nowhere, upstream: Slow, load: Load) -> Counter[str]:
    return Counter(
        {f"n {name}": count for name, count in ledger.counts.items()}
        | {f"i {name}": count for name, count in ledger.items.items()}
        | {"answered": upstream.answered, "created": load.created}
        | {"puts": store.puts, "gets": store.gets}
    )


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


# The arithmetic ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fleet:
    """One scenario of the whole fleet, by the second."""

    batch_requests: int
    workspaces: int
    achieved: float
    """Of the requests that come in, the part that is answered as fast as they come."""
    creates: float
    calls: float
    """Of the ledger: each is one to three round trips to the database."""
    looks: float
    """Of the calls, those that only read."""
    rows: float
    renewals: float
    """Of the rows, those whose lease is renewed: each shard that is held, every 5 s."""
    wal_mb: float
    database_busy: float
    """Calls under way at the same time, on average: connections that are busy."""
    connection_busy: float
    """Of each worker's writing connection."""
    puts: float
    in_flight: float


def project(found: Simulated, workers: int) -> Fleet:
    """Return what a fleet does of which one worker was simulated."""
    costs = statement_costs()
    per_s = workers / found.seconds
    creates = PER_SECOND / found.batch_requests
    # Of each batch: that it comes, that its results go after 29 days, that its key is forgotten.
    key = per_key(costs)
    of_batch = [costs[CREATE_OF[found.batch_requests]], costs["archive"], key]
    sweeps = SWEEPS_PER_S * len(SWEEP)
    ms = creates * sum(cost["median_ms"] for cost in of_batch) + SWEEPS_PER_S * sweep_ms(costs)
    busy = ms / 1e3 + found.spent_s * per_s
    wal = creates * sum(cost["bytes"] for cost in of_batch) + found.wal_bytes * per_s
    shards = max(1, found.batch_requests // limits.SHARD_REQUESTS)
    # A create adds the batch, its key and its shards; the end takes the shards away again.
    written = found.items | {"end_all": found.items["end_all"] * (1 + shards)}
    # The archiving changes the row of the batch, and the key is taken away.
    rows = creates * (4 + shards) + sum(written.values()) * per_s
    return Fleet(
        found.batch_requests, found.workspaces,
        min(1.0, found.answered * per_s / PER_SECOND),
        creates, 2 * creates + sweeps + sum(found.statements.values()) * per_s,
        found.looked * per_s,
        rows, found.items["renew"] * per_s, wal / 1e6, busy,
        found.connection_busy,
        found.puts * per_s + creates, found.in_flight_most * workers,
    )  # fmt: skip


def sweep_ms(costs: dict[str, Any]) -> float:
    """Return what one sweep costs that finds nothing."""
    return sum(float(costs[name]["median_ms"]) for name in SWEEP.values())


def per_key(costs: dict[str, Any]) -> dict[str, float]:
    """Return what it costs to forget one of many keys of create calls."""
    many, none = costs["forget_creates 1,000"], costs["forget_creates, nothing"]
    return {name: max(0.0, many[name] - none[name]) / 1_000 for name in ("median_ms", "bytes")}


def cores_per_request() -> tuple[float, str]:
    """Return processor seconds of a request, and where that was measured."""
    raw = json.loads((RESULTS / "run-10000-0ms.json").read_text(encoding="utf-8"))
    (row,) = [row for row in raw["rows"] if row["system"] == "batchyard"]
    runs = [run["cpu_s"] / raw["work"]["requests"] for run in row["runs"]]
    return sorted(runs)[len(runs) // 2], raw["date"]


def tables() -> str:
    """Return the tables of the document, from the raw results."""
    raw = json.loads((RESULTS / "scale.json").read_text(encoding="utf-8"))
    measured = json.loads((RESULTS / "statements.json").read_text(encoding="utf-8"))
    workers = raw["workers"]
    fleets = [project(Simulated(**found), workers) for found in raw["scenarios"]]
    sweeps = []
    if "sweeps" in measured:  # apart from the others
        sweeps = ["", _source("the sweeps measured", measured["sweeps"])]
    return "\n".join(
        [*_scenario_table(fleets), "", _source("simulated", raw), "",
         *_sum_table(fleets, workers), "", *_statement_table(measured), "",
         _source("measured", measured), *sweeps]
    ) + "\n"  # fmt: skip


def _source(how: str, raw: dict[str, Any]) -> str:
    load = f", load {raw['load_at_end'][0]}" if "load_at_end" in raw else ""
    return f"`{raw['command']}`, {how} {raw['date']}, {raw['machine']}{load}."


def _scenario_table(fleets: Sequence[Fleet]) -> list[str]:
    names = (
        "requests of a batch", "workspaces", "keeps up", "batches/s", "ledger calls/s",
        "of these reads", "rows written/s", "of these renewals", "WAL MB/s", "calls at once",
        "worker's writing connection busy", "object PUTs/s", "in flight",
    )  # fmt: skip
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    lines += [
        f"| {f.batch_requests:,} | {f.workspaces:,} | {f.achieved:.0%} | {f.creates:,.1f} "
        f"| {f.calls:,.0f} | {f.looks:,.0f} | {f.rows:,.0f} | {f.renewals:,.0f} "
        f"| {f.wal_mb:,.2f} | {f.database_busy:,.1f} "
        f"| {f.connection_busy:.0%} | {f.puts:,.0f} | {f.in_flight:,.0f} |"
        for f in fleets
    ]
    return lines


def _sum_table(fleets: Sequence[Fleet], workers: int) -> list[str]:
    """Redo the sum for a whole day, from what was measured."""
    usual = next(f for f in fleets if (f.batch_requests, f.workspaces) == (1_000, 1_000))
    tiny = next(f for f in fleets if (f.batch_requests, f.workspaces) == (10, 1_000))
    cpu_s, _ = cores_per_request()
    sweep_s = sweep_ms(statement_costs()) / 1e3
    one, each = (rate * sweep_s for rate in (SWEEPS_PER_S, workers * SWEEPS_PER_S / 2))
    day = 86_400
    bytes_s = PER_SECOND * (REQUEST_BYTES + RESULT_BYTES)
    rows = [
        ("requests/s", PER_SECOND, 3 * PER_SECOND, "{:,.0f}"),
        (f"worker cores, at {1 / cpu_s:,.0f} requests/s each", PER_SECOND * cpu_s,
         3 * PER_SECOND * cpu_s, "{:,.1f}"),
        (f"in flight, at {LATENCY_S:.0f} s", PER_SECOND * LATENCY_S,
         3 * PER_SECOND * LATENCY_S, "{:,.0f}"),
        ("ledger calls/s, batches of 1,000", usual.calls, 3 * usual.calls, "{:,.0f}"),
        ("calls at once, batches of 1,000", usual.database_busy, 3 * usual.database_busy,
         "{:,.1f}"),
        ("WAL GB a day, batches of 1,000", usual.wal_mb * day / 1e3, 3 * usual.wal_mb * day / 1e3,
         "{:,.1f}"),
        ("ledger calls/s, batches of 10", tiny.calls, 3 * tiny.calls, "{:,.0f}"),
        ("calls at once, batches of 10", tiny.database_busy, 3 * tiny.database_busy,
         "{:,.1f}"),
        ("WAL GB a day, batches of 10", tiny.wal_mb * day / 1e3, 3 * tiny.wal_mb * day / 1e3,
         "{:,.1f}"),
        ("of calls at once: sweeps, one process for all", one, one, "{:,.2f}"),
        (f"if each of {workers:,} workers swept instead", each, each, "{:,.1f}"),
        ("object PUTs/s, batches of 1,000", usual.puts, 3 * usual.puts, "{:,.0f}"),
        ("object PUTs/s, batches of 10", tiny.puts, 3 * tiny.puts, "{:,.0f}"),
        ("bytes in and out, MB/s", bytes_s / 1e6, 3 * bytes_s / 1e6, "{:,.0f}"),
        ("stored for 29 days, TB", bytes_s * day * 29 / 1e12, 3 * bytes_s * day * 29 / 1e12,
         "{:,.0f}"),
    ]  # fmt: skip
    lines = ["| quantity | average | at three times the average |", "|---|---|---|"]
    return lines + [
        f"| {name} | {form.format(usual_)} | {form.format(peak)} |"
        for name, usual_, peak, form in rows
    ]


def _statement_table(measured: dict[str, Any]) -> list[str]:
    costs = {(c["store"], c["size"], c["statement"]): c for c in measured["costs"]}
    sizes = list(dict.fromkeys(c["size"] for c in measured["costs"]))
    names = list(dict.fromkeys(c["statement"] for c in measured["costs"]))
    stores = list(dict.fromkeys(c["store"] for c in measured["costs"]))
    columns = [(store, size) for store in stores for size in sizes]
    head = " | ".join(f"{store}, {size}" for store, size in columns)
    lines = [f"| statement | {head} |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = []
        for store, size in columns:
            cost = costs[store, size, name]
            cells.append(f"{cost['median_ms']:.2f} ms, {cost['bytes']:,} B")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=WORKERS, help="one is simulated")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="virtual, of each scenario")
    parser.add_argument("--table", action="store_true", help="print the tables of the document")
    parser.add_argument("--write", action="store_true", help="keep the result, renew the document")
    options = parser.parse_args()
    if options.table:
        renew() if options.write else sys.stdout.write(tables())
        return
    scenarios = []
    for size, spaces in SCENARIOS:
        found = asyncio.run(simulate(size, spaces, options.workers, options.seconds))
        scenarios.append(found)
        fleet = {k: round(v, 3) for k, v in asdict(project(found, options.workers)).items()}
        print(f"scale     {json.dumps(fleet)}, simulated in {found.real_s} s", flush=True)
    if options.write:
        content = {
            "command": "make scale-sim",
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "machine": yard.machine(),
            "workers": options.workers,
            "scenarios": [asdict(found) for found in scenarios],
        }
        path = RESULTS / "scale.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        renew()


def renew() -> None:
    """Put the tables into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    start, end = "<!-- begin: python bench/scale.py --table -->\n", "<!-- end -->\n"
    head, rest = text.split(start)
    DOCUMENT.write_text(head + start + tables() + end + rest.split(end)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
