"""What the store tests are made of: small batches, shards, lines."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg

from batchyard.clock import SystemClock
from batchyard.ledger import Claim, Commit, CreateKey, Held, Ledger
from batchyard.ledger.postgres import PostgresLedger
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.model import Batch, Counts, Extent, ShardPlan, Tokens
from batchyard.segments.directory import DirectorySegments
from batchyard.segments.objects import ObjectSegments
from helpers_postgres import Postgres
from helpers_s3 import S3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from batchyard.model import Priority
    from batchyard.segments import Segments

LEDGERS: dict[str, Callable[[Path], Ledger]] = {
    "sqlite": lambda root: SqliteLedger(root / "ledger.db"),
    "postgres": lambda root: PostgresLedger(postgres_url(root), SystemClock(), database_time=False),
}
SEGMENTS: dict[str, Callable[[Path], Segments]] = {
    "directory": DirectorySegments,
    "objects": lambda root: ObjectSegments(s3().url(f"{next(_paths)}/{root.name}")),
}
_paths = itertools.count()


_STOPS: list[Any] = []


def stop_servers() -> None:
    """Stop what the tests of this process have started."""
    while _STOPS:
        _STOPS.pop()()
    postgres.cache_clear()  # whoever asks next gets new ones
    s3.cache_clear()


@functools.cache
def postgres() -> Postgres:
    """Return the PostgreSQL server of this test process."""
    server = Postgres(fsync="off", full_page_writes="off")
    _STOPS.append(server.stop)
    server.start()
    return server


@contextlib.contextmanager
def no_standby() -> Iterator[None]:
    """Let commits wait: they need a standby that is not there."""

    def need(names: str) -> None:
        with psycopg.connect(postgres().url(), autocommit=True) as db:
            db.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
            db.execute("SELECT pg_reload_conf()")

    over = threading.Event()
    elsewhere = postgres().url("template1")

    def commit() -> None:
        with psycopg.connect(elsewhere, autocommit=True) as db:
            while not over.is_set():
                db.execute("SELECT pg_logical_emit_message(true, '', '')")

    with ThreadPoolExecutor(1) as threads:
        need("nobody")
        try:
            threads.submit(commit)
            wait_for("SyncRep", elsewhere)  # it is not needed at once
            yield
        finally:
            over.set()
            need("")


def wait_for(event: str, url: str) -> None:
    """Return when a connection of a database waits for a kind of event."""
    waits = (
        "SELECT FROM pg_stat_activity "
        "WHERE %s IN (wait_event, wait_event_type) AND datname = current_database()"
    )
    with psycopg.connect(url, autocommit=True) as db:
        for _ in range(12_000):
            if db.execute(waits, [event]).rowcount:
                return
            db.execute("SELECT pg_sleep(0.01)")
    raise AssertionError(f"nobody waits for {event}")


def postgres_url(root: Path) -> str:
    """Return a place in a database that is as new as a directory: a schema of its own."""
    schema = f"at_{hashlib.sha256(str(root).encode()).hexdigest()[:16]}"
    with psycopg.connect(postgres().url(), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    return f"{postgres().url()}?options=-csearch_path%3D{schema}"


@functools.cache
def s3() -> S3:
    """Return the S3 server of this test process."""
    server = S3()
    server.__enter__()
    _STOPS.append(server.__exit__)
    return server


TOKENS = Tokens(1, 2, 3, 4)
NOW = 1_790_000_000_000_000
DAY = 86_400_000_000
LEASE = NOW + 30_000_000


def make_batch(
    name: str,
    *,
    workspace: str = "w",
    requests: int = 2,
    at: int = NOW,
    priority: Priority = "normal",
) -> Batch:
    return Batch(
        id=f"msgbatch_{name}",
        workspace=workspace,
        requests=requests,
        created_us=at,
        expires_us=at + DAY,
        version="2023-06-01",
        betas=("beta-1", "beta-2"),
        user_profile="profile-1",
        billing="standard",
        priority=priority,
    )


def make_key(
    key: str, *, digest: bytes = b"d", until: int = NOW + DAY, replaces: bool = False
) -> CreateKey:
    return CreateKey(key=key, digest=digest, until_us=until, replaces=replaces)


def make_shards(*pools: str, requests: int = 2) -> list[ShardPlan]:
    return [
        ShardPlan(index=index, pool=pool, offset=index * 100, length=100, requests=requests)
        for index, pool in enumerate(pools)
    ]


async def add(
    ledger: Ledger,
    name: str,
    *pools: str,
    workspace: str = "w",
    requests: int = 2,
    at: int = NOW,
    priority: Priority = "normal",
) -> Batch:
    """Create a batch with one shard of `requests` requests for each pool."""
    shards = make_shards(*(pools or ("up/m",)), requests=requests)
    batch = make_batch(
        name, workspace=workspace, requests=requests * len(shards), at=at, priority=priority
    )
    assert await ledger.create(batch, shards, make_key(f"key-{name}", until=at + DAY)) is None
    return batch


async def take(ledger: Ledger, owner: str = "me", pool: str = "up/m", limit: int = 1) -> Claim:
    """Claim one shard."""
    claims = await ledger.claim(owner, pool, LEASE, limit)
    assert len(claims) == 1
    return claims[0]


def make_commit(
    claim: Claim,
    *,
    counts: Counts | None = None,
    extents: Sequence[Extent] | None = None,
    tokens: Tokens = TOKENS,
) -> Commit:
    return Commit(
        batch=claim.batch,
        index=claim.index,
        attempt=claim.attempt,
        extents=tuple(extents or (Extent(f"seg.{claim.index}.{claim.attempt}", 10),)),
        counts=counts or Counts(succeeded=claim.requests),
        tokens=tokens,
    )


def make_held(claim: Claim, *, inflight: int = 1, counts: Counts | None = None) -> Held:
    return Held(
        batch=claim.batch,
        index=claim.index,
        attempt=claim.attempt,
        inflight=inflight,
        counts=counts or Counts(),
    )


async def finish(ledger: Ledger, batch: Batch, *, at: int = NOW + 1) -> None:
    """Bring a batch to its end."""
    for pool in await ledger.pools_ready():
        for claim in await ledger.claim("finisher", pool, LEASE, 1_000):
            await ledger.commit("finisher", [make_commit(claim)])
    assert await ledger.end(batch.id, at, Tokens(9, 8, 7, 6))
