"""What 1, 2 and 4 worker processes do on both stores: requests, claims and commits a second, WAL.

    python bench/workers.py [--seconds 20] [--requests 20000] [--batches 600] [--workers 1,2,4]
                            [--stores sqlite,postgres] [--rounds 1] [--write]
                            [--upstream simulated]

Two loads, both lying ready before they are let go, so that neither creates nor process starts are
measured: one batch of many requests in shards of 500, and many batches of one request, of which
each is a claim, a commit and an end. A load that takes longer than `--seconds` is measured by what
is done by then, so that all of it ends within ten minutes. The upstream answers at once. Everything
is durable: SQLite and a directory, or PostgreSQL with an S3 server whose objects are in memory and
which is slower than a real one. With `--rounds` the rows of a store take turns.

Ledger bytes are those of the WAL, from the moment the load is let go. The upstream, the S3 server
and the database share the cores with the workers: on two cores, ratios between rows tell more than
the rows. With `--upstream simulated` there is none: the simulated model is inside of each worker
and costs what its answers take to write, so that two workers have two cores to themselves. Without
the other load (`--batches 0`) and on SQLite that shows what a second process is worth.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import raw
import servers
import yard

from batchyard import ids, segments, wire
from batchyard.clock import SystemClock
from batchyard.ledger import CreateKey
from batchyard.ledger.postgres import PostgresLedger
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.model import Batch
from batchyard.segments.directory import DirectorySegments
from batchyard.segments.objects import ObjectSegments
from batchyard.segments.requests import Records, plan_shards, sizes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from batchyard.ledger import Ledger
    from batchyard.segments import Segments

POOL = "stub/bench"
PARKED = "parked/nobody"  # no upstream takes that model
DEADLINE_S = 90.0
LOOK_S = 0.05
LEFT = "FROM shards WHERE state BETWEEN -1 AND 1"
DAY_US = 86_400_000_000
SIMULATED = "simulated:?latency=0"


@dataclass(frozen=True)
class Found:
    """What one run has shown."""

    requests: int
    shards: int
    seconds: float
    bytes: int
    is_whole: bool
    """Whether all was done in time."""


@dataclass
class Row:
    """All runs of a load with so many workers on one kind of store."""

    store: str
    work: str
    workers: int
    runs: list[dict[str, Any]] = field(default_factory=list)


class Place(Protocol):
    """One kind of store, empty."""

    name: str
    ledger: Ledger
    store: Segments

    def sql(self, statement: str) -> int:
        """Run a statement; return the first number of its answer."""

    def wal(self) -> int:
        """Return the bytes of WAL that were written so far."""

    def workers(self, number: int, upstream: str) -> contextlib.AbstractContextManager[None]:
        """Run so many worker processes; all of them work when it is entered."""


class Local:
    """SQLite and a directory."""

    name = "sqlite + directory"

    def __init__(self, root: Path) -> None:
        self._root = root
        self.ledger = SqliteLedger(root / "ledger.db")
        self.store = DirectorySegments(root / "segments")
        self._pin: sqlite3.Connection | None = None

    def sql(self, statement: str) -> int:
        with contextlib.closing(sqlite3.connect(self._root / "ledger.db", timeout=60)) as db, db:
            row = db.execute(statement).fetchone()
            return row[0] if row is not None else 0

    def wal(self) -> int:
        """A reader that stays keeps the WAL from being written over, so that its size counts."""
        if self._pin is None:
            self._pin = sqlite3.connect(
                f"file:{self._root / 'ledger.db'}?mode=ro", uri=True, isolation_level=None
            )
            self._pin.execute("BEGIN")
            self._pin.execute("SELECT count(*) FROM batches").fetchone()
        return (self._root / "ledger.db-wal").stat().st_size

    @contextlib.contextmanager
    def workers(self, number: int, upstream: str) -> Iterator[None]:
        asyncio.run(self.ledger.close())
        command = ["--workers", str(number), "--port", "0"]
        with started(self._root, "yard", upstream, command) as log:
            wanted = number if number > 1 else 0  # one works in the process of the server
            until(lambda: log.read_text().count("] working owner=") >= wanted)
            yield
            if self._pin is not None:
                self._pin.close()


class Shared:
    """PostgreSQL and an S3 server."""

    name = "postgres + s3"

    def __init__(self, root: Path, server: servers.Postgres, s3: servers.S3, name: str) -> None:
        self._root = root
        self._server = server
        self._url = server.create(name)
        self._bucket = s3.url(name)
        self.ledger = PostgresLedger(self._url, SystemClock())
        self.store = ObjectSegments(self._bucket)
        self._db = psycopg.connect(self._url, autocommit=True)

    def sql(self, statement: str) -> int:
        cursor = self._db.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row is not None else 0

    def wal(self) -> int:
        return servers.wal_bytes(self._server)

    @contextlib.contextmanager
    def workers(self, number: int, upstream: str) -> Iterator[None]:
        asyncio.run(self.ledger.close())
        command = ["--role", "worker", "--ledger", self._url, "--segments", self._bucket]
        with contextlib.ExitStack() as stack:
            for each in range(number):
                stack.enter_context(started(self._root, f"worker{each}", upstream, command))
            yield
            self._db.close()


@contextlib.contextmanager
def started(root: Path, name: str, upstream: str, options: Sequence[str]) -> Iterator[Path]:
    """Run `batchyard serve` until the block ends; yield its log once it is ready."""
    log = root / f"{name}.log"
    command = [sys.executable, "-m", "batchyard", "serve", *options]
    command += ["--config", str(upstream), "--data", str(root)]
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            assert process.stdout.readline(), log.read_text()
            yield log
        finally:
            process.terminate()


def until(is_true: Callable[[], object]) -> float:
    """Wait until something holds; return when that was."""
    deadline = time.perf_counter() + DEADLINE_S
    while not is_true():
        assert time.perf_counter() < deadline, "this takes too long"
        time.sleep(LOOK_S)
    return time.perf_counter()


async def fill(place: Place, batches: int, requests: int, size: int) -> int:
    """Accept batches as the server does, for a pool that nobody takes; return their shards."""
    entries = wire.split(yard.body(requests, size))
    sizes, order = sizes_of(entries), list(range(requests))
    found = 0
    for number in range(batches):
        plans = plan_shards(entries, sizes, [PARKED] * requests, order)
        records = Records(entries, sizes, order, plans)
        batch_id = ids.mint("msgbatch")
        place.store.put(segments.requests_name(batch_id), records.chunks())
        now = time.time_ns() // 1_000
        batch = Batch(
            id=batch_id,
            workspace=f"w{number % 7}",
            requests=requests,
            created_us=now,
            expires_us=now + DAY_US,
            version="2023-06-01",
            billing="standard",
        )
        digest = hashlib.sha256(batch_id.encode()).digest()
        key = CreateKey(key=batch_id, digest=digest, until_us=now + DAY_US, replaces=False)
        await place.ledger.create(batch, records.shards(), key)
        found += len(plans)
    return found


def measure(
    place: Place, upstream: str, workers: int, load: tuple[int, int], size: int, seconds: float
) -> Found:
    """Let a load go, and return how much of it was done, and in which time.

    Args:
        place: the stores, empty.
        upstream: settings of the upstream, a file.
        workers: how many processes.
        load: batches, and the requests of each.
        size: bytes of a request.
        seconds: after which it is left.
    """
    batches, requests = load
    shards = asyncio.run(fill(place, batches, requests, size))
    with place.workers(workers, upstream):
        before = place.wal()
        place.sql(f"UPDATE shards SET pool = '{POOL}'")
        begun = until(lambda: place.sql("SELECT count(*) FROM shards WHERE state > 0"))

        def is_over() -> bool:
            is_late = time.perf_counter() > begun + seconds
            return is_late or not place.sql("SELECT count(*) FROM batches WHERE ended_us IS NULL")

        taken = until(is_over) - begun
        written = place.wal() - before
        left = place.sql(f"SELECT coalesce(sum(n), 0) {LEFT}")
        shards_left = place.sql(f"SELECT count(*) {LEFT}")
        errored = place.sql("SELECT sum(requests - succeeded) FROM batches WHERE ended_us > 0")
        assert not errored, f"{errored} requests did not succeed"
    return Found(batches * requests - left, shards - shards_left, taken, written, not shards_left)


@contextlib.contextmanager
def places(store: str) -> Iterator[Callable[[str], Place]]:
    """Yield what makes empty stores of one kind, under a name each."""
    with tempfile.TemporaryDirectory(prefix="batchyard-bench-") as data:
        root = Path(data)

        def folder(name: str) -> Path:
            (root / name).mkdir(mode=0o700)
            return root / name

        if store == "sqlite":
            yield lambda name: Local(folder(name))
            return
        with servers.postgres() as server, servers.S3() as s3:
            yield lambda name: Shared(folder(name), server, s3, name)


@contextlib.contextmanager
def upstream(kind: str, slots: int) -> Iterator[str]:
    """Run an upstream that answers at once, where it is a process; yield a file of settings."""
    with contextlib.ExitStack() as stack:
        url = SIMULATED
        if kind == "stub":
            url = f"http://127.0.0.1:{stack.enter_context(yard.stub())}"
        config = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "batchyard.toml"
        config.write_text(
            f'[[upstream]]\nname = "stub"\nurl = "{url}"\nmodels = ["bench"]\nslots = {slots}\n'
        )
        yield str(config)


def turns(store: str, settings: str, options: argparse.Namespace) -> list[Row]:
    """Measure all rows of a store, in turns."""
    loads = {}
    if options.requests:
        loads[f"1 batch of {options.requests:,}"] = 1, options.requests
    if options.batches:
        loads[f"{options.batches:,} batches of 1"] = options.batches, 1
    rows: dict[tuple[str, int], Row] = {}
    with places(store) as make:
        for number in range(options.rounds):
            for load, (batches, requests) in loads.items():
                for workers in map(int, options.workers.split(",")):
                    place = make(f"{store}-{batches}-{workers}-{number}")
                    found = measure(
                        place, settings, workers, (batches, requests), options.size,
                        options.seconds,
                    )  # fmt: skip
                    row = rows.setdefault((load, workers), Row(place.name, load, workers))
                    row.runs.append(run_of(found))
                    about = {"store": row.store, "work": row.work, "workers": row.workers}
                    print(f"workers   {json.dumps(about | row.runs[-1])}", flush=True)
    return list(rows.values())


def run_of(found: Found) -> dict[str, Any]:
    each = found.bytes * 100_000 / max(1, found.requests) / 1e6
    return {
        "requests_s": round(found.requests / found.seconds),
        "claims_and_commits_s": round(found.shards / found.seconds, 1),
        "wal_mb_per_100000_requests": round(each, 2),
        "seconds": round(found.seconds, 2),
        "whole": found.is_whole,
        "load": raw.load(),
    }


def show(row: Row) -> None:
    """Print the median of the runs of a row, with their range."""
    rates = [run["requests_s"] for run in row.runs]
    print(
        f"workers   {row.store}, {row.work}, {row.workers} worker{'s' if row.workers > 1 else ''}: "
        f"median {statistics.median(rates):,.0f} requests/s ({min(rates):,} to {max(rates):,})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="of the one large batch, or 0")
    parser.add_argument("--batches", type=int, default=600, help="of one request each, or 0")
    parser.add_argument("--size", type=int, default=1_000, help="bytes of a request")
    parser.add_argument("--seconds", type=float, default=20.0, help="at most, of each load")
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--stores", default="sqlite,postgres")
    parser.add_argument("--upstream", choices=("stub", "simulated"), default="stub")
    parser.add_argument("--rounds", type=int, default=1)
    raw.add_write(parser)
    options = parser.parse_args()
    begun = time.perf_counter()
    rows: list[Row] = []
    with upstream(options.upstream, options.slots) as settings:
        for store in options.stores.split(","):
            rows += turns(store, settings, options)
    if options.rounds > 1:
        for row in rows:
            show(row)
    print(f"workers   {yard.machine()}, load {raw.load():.1f}, {time.perf_counter() - begun:.0f} s")
    if options.write:
        about = {"upstream": options.upstream, "requests": options.requests}
        about |= {"batches": options.batches, "request_bytes": options.size}
        about |= {"slots": options.slots, "seconds_most": options.seconds}
        raw.keep(f"workers-{options.upstream}", about, rows=[asdict(row) for row in rows])


if __name__ == "__main__":
    main()
