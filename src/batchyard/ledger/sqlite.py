"""The ledger on SQLite: one file, one connection that writes, one that reads.

Durability is `synchronous=FULL` in WAL mode: a transaction that has returned survives a power cut.
The writer is the only connection that ever checkpoints, which also keeps clear of the WAL-reset bug
of SQLite before 3.51.3. Each connection lives in a thread of its own.

Invariant: an error of the store is never retried. It surfaces as StoreError, the process ends, and
the next start recovers from what is on disk.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from batchyard import crash, limits
from batchyard.errors import DamagedError, DiskFull, RateLimited, StoreError
from batchyard.ledger import (
    Claim,
    Commit,
    Committed,
    CreateKey,
    Held,
    Known,
    Page,
    Progress,
    Renewed,
    ShardResult,
    columns,
)
from batchyard.ledger.sqlite_file import SQL, connect

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.model import Batch, Extent, ShardPlan, Tokens

T = TypeVar("T")
Row = sqlite3.Row
Query = Callable[[sqlite3.Connection], T]


def _one_thread() -> Executor:
    return ThreadPoolExecutor(1, thread_name_prefix="ledger")


def _no_room() -> bool:
    return False


class SqliteLedger:
    """The ledger of one machine. The caller holds the lock on its directory."""

    def __init__(
        self,
        path: Path,
        threads: Callable[[], Executor] = _one_thread,
        make_room: Callable[[], bool] = _no_room,
    ) -> None:
        """Open or create the file and take back all work: no other process can hold any.

        Args:
            path: of the file.
            threads: makes what each of the two connections runs in, for a simulation that must not
                depend on how threads are scheduled.
            make_room: asked once when the disk is full; whether it is worth another try.

        Raises:
            ConfigError: the file is not a ledger, or of a version that this program does not know.
            StoreError: it cannot be read or written.
        """
        self._writer = _Connection(threads(), make_room)
        self._reader = _Connection(threads(), make_room)
        try:
            self._writer.open(path, read_only=False)
            self._reader.open(path, read_only=True)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot open the ledger {path}: {error}") from error

    async def create(
        self,
        batch: Batch,
        shards: Sequence[ShardPlan],
        key: CreateKey,
        *,
        queued_max: int | None = None,
    ) -> Known | None:
        """Add a batch with its shards; see the protocol."""

        def run(db: sqlite3.Connection) -> Known | None:
            known = None if key.replaces else _known(db, batch.workspace, key.key, batch.created_us)
            if known is not None:
                return known
            if queued_max is not None:
                _check_queue(db, batch, queued_max)
            (seq,) = db.execute(
                SQL["batch_insert"],
                {
                    "id": batch.id,
                    "workspace": batch.workspace,
                    "requests": batch.requests,
                    "version": batch.version,
                    "betas": ",".join(batch.betas),
                    "user_profile": batch.user_profile,
                    "billing": batch.billing,
                    "created_us": batch.created_us,
                    "expires_us": batch.expires_us,
                },
            ).fetchone()
            db.executemany(
                SQL["shard_insert"],
                (
                    {
                        "batch": batch.id,
                        "idx": shard.index,
                        "seq": seq,
                        "workspace": batch.workspace,
                        "pool": shard.pool,
                        "off": shard.offset,
                        "len": shard.length,
                        "crc": shard.crc,
                        "n": shard.requests,
                    }
                    for shard in shards
                ),
            )
            db.execute(
                SQL["create_put"],
                {
                    "workspace": batch.workspace,
                    "key": key.key,
                    "digest": key.digest,
                    "batch": batch.id,
                    "until_us": key.until_us,
                },
            )
            return None

        return await self._writer.run(run)

    async def known(self, workspace: str, key: str, now_us: int) -> Known | None:
        """Return the live create call under `key`."""
        return await self._reader.run(lambda db: _known(db, workspace, key, now_us))

    async def get(self, workspace: str, batch_id: str) -> Batch | None:
        """Return a batch of this workspace."""
        return await self._reader.run(lambda db: _get(db, workspace, batch_id))

    async def page(
        self, workspace: str, *, limit: int, after: str | None, before: str | None
    ) -> Page | None:
        """Return one page of the list; see the protocol."""

        def run(db: sqlite3.Connection) -> Page | None:
            cursor = after or before
            bound: dict[str, Any] = {"workspace": workspace, "limit": limit + 1}
            statement = "batches_newest"
            if cursor is not None:
                row = db.execute(SQL["batch_seq"], bound | {"id": cursor}).fetchone()
                if row is None:
                    return None
                bound["seq"] = row["seq"]
                statement = "batches_after" if after else "batches_before"
            found = [columns.read_batch(row) for row in db.execute(SQL[statement], bound)]
            page = found[:limit]
            if statement == "batches_before":
                page.reverse()
            return Page(batches=page, has_more=len(found) > limit)

        return await self._reader.run(run)

    async def cancel(self, workspace: str, batch_id: str, now_us: int) -> Batch | None:
        """Mark an open batch as canceled, once; return it as it is then."""

        def run(db: sqlite3.Connection) -> Batch | None:
            bound = {"id": batch_id, "workspace": workspace, "now": now_us}
            db.execute(SQL["batch_cancel"], bound)
            return _get(db, workspace, batch_id)

        return await self._writer.run(run)

    async def delete(self, workspace: str, batch_id: str, now_us: int) -> bool:
        """Forget an ended batch but for its place in the list; see the protocol."""

        def run(db: sqlite3.Connection) -> bool:
            bound = {"id": batch_id, "workspace": workspace, "now": now_us}
            gone = db.execute(SQL["batch_delete"], bound).fetchone()
            if gone is None:
                return False
            db.execute(SQL["deleted_put"], bound | {"seq": gone["seq"]})
            db.execute(SQL["creates_of_batch_delete"], {"batch": batch_id})
            return True

        return await self._writer.run(run)

    async def progress(self, batch_id: str) -> Progress:
        """Return how far the shards of an open batch are."""

        def run(db: sqlite3.Connection) -> Progress:
            bound = {"batch": batch_id}
            row = db.execute(SQL["progress"], bound).fetchone()
            pools = [pool for (pool,) in db.execute(SQL["progress_pools"], bound)]
            return Progress(
                shards=row["shards"],
                shards_done=row["shards_done"],
                inflight=row["inflight"],
                counts=columns.read_counts(row),
                pools=pools,
            )

        return await self._reader.run(run)

    async def pools_ready(self) -> Sequence[str]:
        """Return the pools that have a shard to claim."""
        return await self._reader.run(
            lambda db: [pool for (pool,) in db.execute(SQL["pools_ready"])]
        )

    async def claim(self, owner: str, pool: str, lease_us: int, limit: int) -> Sequence[Claim]:
        """Take shards of one batch from a pool; see the protocol."""

        def run(db: sqlite3.Connection) -> list[Claim]:
            lane = db.execute(SQL["lane"], {"pool": pool}).fetchone()
            if lane is None:
                return []
            bound = {
                "owner": owner,
                "pool": pool,
                "workspace": lane["workspace"],
                "lease_us": lease_us,
                "limit": limit,
            }
            bound["seq"] = db.execute(SQL["turn"], bound).fetchone()["seq"]
            return _claims(db, db.execute(SQL["claim"], bound).fetchall())

        return await self._writer.run(run)

    async def claim_void(
        self, owner: str, now_us: int, lease_us: int, limit: int
    ) -> Sequence[Claim]:
        """Take ready shards of canceled and expired batches, whatever their pool."""
        bound = {"owner": owner, "now": now_us, "lease_us": lease_us, "limit": limit}
        return await self._writer.run(
            lambda db: _claims(db, db.execute(SQL["claim_void"], bound).fetchall())
        )

    async def renew(self, owner: str, lease_us: int, held: Sequence[Held]) -> Sequence[Renewed]:
        """Extend the leases; shards that are missing in the answer are lost."""

        def run(db: sqlite3.Connection) -> list[Renewed]:
            answer = []
            for shard in held:
                bound = {
                    "owner": owner,
                    "batch": shard.batch,
                    "idx": shard.index,
                    "attempt": shard.attempt,
                    "lease_us": lease_us,
                    "inflight": shard.inflight,
                    **columns.bind_counts(shard.counts),
                }
                db.execute(SQL["renew"], bound)
                row = db.execute(SQL["held"], bound).fetchone()
                if row is not None:
                    canceled = row["cancel_us"] is not None
                    answer.append(Renewed(batch=shard.batch, index=shard.index, canceled=canceled))
            return answer

        return await self._writer.run(run)

    async def adopt(self, owner: str, claim: Claim, extents: Sequence[Extent]) -> bool:
        """Freeze what this attempt takes over; False when the shard is lost."""
        bound = {
            "owner": owner,
            "batch": claim.batch,
            "idx": claim.index,
            "attempt": claim.attempt,
            "manifest": columns.dump_extents(extents),
        }
        return await self._writer.run(lambda db: db.execute(SQL["adopt"], bound).rowcount == 1)

    async def commit(self, owner: str, commits: Sequence[Commit]) -> Committed:
        """Finish shards. Repeating a commit that has happened is accepted."""

        def run(db: sqlite3.Connection) -> Committed:
            accepted = set()
            for commit in commits:
                bound = {
                    "owner": owner,
                    "batch": commit.batch,
                    "idx": commit.index,
                    "attempt": commit.attempt,
                    "manifest": columns.dump_extents(commit.extents),
                    "tokens": columns.dump_tokens(commit.tokens),
                    **columns.bind_counts(commit.counts),
                }
                changed = db.execute(SQL["commit"], bound).rowcount
                if changed or db.execute(SQL["committed"], bound).fetchone():
                    accepted.add((commit.batch, commit.index))
            batches = sorted({commit.batch for commit in commits})
            done = [b for b in batches if db.execute(SQL["is_finished"], {"batch": b}).fetchone()]
            return Committed(accepted=frozenset(accepted), finished=tuple(done))

        return await self._writer.run(run)

    async def release(self, owner: str) -> None:
        """Give back everything that this owner holds."""
        await self._writer.run(lambda db: db.execute(SQL["release"], {"owner": owner}))

    async def take_back(self, now_us: int, *, but: str) -> int:
        """Free the shards of other owners whose lease has ended; return how many."""
        bound = {"now": now_us, "owner": but}
        return await self._writer.run(lambda db: db.execute(SQL["take_back"], bound).rowcount)

    async def finished(self) -> Sequence[str]:
        """Return the batches with all shards done that have not ended."""
        return await self._reader.run(_finished)

    async def results(self, batch_id: str) -> Sequence[ShardResult]:
        """Return the results of all shards of an open batch, by index."""

        def run(db: sqlite3.Connection) -> list[ShardResult]:
            rows = db.execute(SQL["manifest"], {"batch": batch_id})
            return [
                ShardResult(
                    index=row["idx"],
                    extents=columns.load_extents(row["manifest"]),
                    tokens=columns.load_tokens(row["tokens"]),
                )
                for row in rows
            ]

        return await self._reader.run(run)

    async def end(self, batch_id: str, now_us: int, tokens: Tokens) -> bool:
        """End a batch all of whose shards are done; False when it has ended before.

        Raises:
            DamagedError: the results do not add up to the requests, which would be a bug: the
                batch stays open for inspection.
        """

        def run(db: sqlite3.Connection) -> bool:
            bound = {"batch": batch_id, "now": now_us, "tokens": columns.dump_tokens(tokens)}
            row = db.execute(SQL["end"], bound).fetchone()
            if row is None:
                return False
            if row["requests"] != row["results"]:
                raise DamagedError(
                    f"batch {batch_id} has {row['requests']} requests and {row['results']} results"
                )
            db.execute(SQL["shards_delete"], bound)
            return True

        return await self._writer.run(run)

    async def outdated(self, created_before_us: int, limit: int) -> Sequence[str]:
        """Return ended batches that are old enough to be archived."""
        bound = {"before": created_before_us, "limit": limit}
        return await self._reader.run(
            lambda db: [batch for (batch,) in db.execute(SQL["outdated"], bound)]
        )

    async def archive(self, batch_id: str, now_us: int) -> None:
        """Mark the results of an ended batch as gone."""
        await self._writer.run(
            lambda db: db.execute(SQL["archive"], {"id": batch_id, "now": now_us})
        )

    async def forget_creates(self, now_us: int) -> None:
        """Drop the create calls and the places of deleted batches whose time is over."""

        def run(db: sqlite3.Connection) -> None:
            db.execute(SQL["creates_purge"], {"now": now_us})
            before = now_us - limits.DELETED_CURSOR_WINDOW_US
            db.execute(SQL["deleted_purge"], {"before": before})

        await self._writer.run(run)

    async def live(self) -> dict[str, bool]:
        """Return every batch id, with whether its segments are still needed."""
        return await self._reader.run(
            lambda db: {row["id"]: row["archived_us"] is None for row in db.execute(SQL["ids"])}
        )

    async def failure(self) -> None:
        """Wait until writing has failed, and raise it."""
        await self._writer.failure()

    async def close(self) -> None:
        """Close both connections. The last one folds the log into the file, if it may write.

        After a failure nothing is written any more: what the log holds is for the next start.
        """
        connections = (self._reader, self._writer)
        for connection in reversed(connections) if self._writer.has_failed else connections:
            await connection.close()


class _Connection:
    """One connection in one thread; each call is one transaction."""

    def __init__(self, threads: Executor, make_room: Callable[[], bool]) -> None:
        self._threads = threads
        self._make_room = make_room
        self._db: sqlite3.Connection | None = None
        self._failed = asyncio.Event()
        self._broken = False
        self._error: StoreError | None = None

    def open(self, path: Path, *, read_only: bool) -> None:
        """Connect, blocking; a writer creates the file and takes back all work."""
        self._db = self._threads.submit(connect, path, read_only=read_only).result()

    async def run(self, query: Query[T]) -> T:
        """Run `query` in a transaction of its own and return when it is durable.

        Raises:
            DiskFull: it did not happen.
            StoreError: whether it happened is unknown; `failure` raises it too.
        """
        if self._db is None:  # a request that is still under way when the process ends
            raise StoreError("the ledger is closed")
        loop = asyncio.get_running_loop()
        try:
            try:
                return await loop.run_in_executor(self._threads, self._run, query)
            except DiskFull:
                if not self._make_room():
                    raise
            return await loop.run_in_executor(self._threads, self._run, query)
        except (DamagedError, DiskFull):
            raise
        except StoreError as error:
            self._error = error
            self._failed.set()
            raise

    @property
    def has_failed(self) -> bool:
        """Whether a query has failed, so that what is on the disk is unknown."""
        return self._broken

    async def failure(self) -> None:
        """Wait until a query has failed, and raise it."""
        await self._failed.wait()
        assert self._error is not None
        raise self._error

    def _run(self, query: Query[T]) -> T:
        db = self._db  # which a close may take away meanwhile
        if db is None:  # closed while it waited for its turn
            raise StoreError("the ledger is closed")
        if self._broken:  # what was queued behind the query that failed
            raise StoreError("the ledger has failed")
        try:
            with db:  # commits, or rolls back on any exception
                db.execute("BEGIN")
                answer = query(db)
                crash.point("ledger_before_commit")
            crash.point("ledger_committed")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise DiskFull(f"the ledger has no room: {error}") from error
            self._broken = True
            raise StoreError(f"the ledger failed: {error}") from error
        return answer

    async def close(self) -> None:
        """Close the connection and end the thread."""
        db, self._db = self._db, None
        if db is not None:
            await asyncio.get_running_loop().run_in_executor(self._threads, db.close)
        self._threads.shutdown(wait=False)


def _check_queue(db: sqlite3.Connection, batch: Batch, queued_max: int) -> None:
    queued = db.execute(SQL["queued"], {"workspace": batch.workspace}).fetchone()[0]
    if queued + batch.requests <= queued_max:
        return
    fits_never = batch.requests > queued_max
    raise RateLimited(
        "This request would exceed your organization's limit on batch requests in the processing "
        f"queue: {queued} of {queued_max} are taken, and this batch has {batch.requests}",
        retry_after_s=None if fits_never else limits.QUEUE_FULL_RETRY_AFTER_S,
        should_retry=False if fits_never else None,
    )


def _known(db: sqlite3.Connection, workspace: str, key: str, now_us: int) -> Known | None:
    bound = {"workspace": workspace, "key": key, "now": now_us}
    row = db.execute(SQL["create_find"], bound).fetchone()
    if row is None:
        return None
    batch = _get(db, workspace, row["batch"])
    return None if batch is None else Known(batch=batch, digest=row["digest"])


def _get(db: sqlite3.Connection, workspace: str, batch_id: str) -> Batch | None:
    row = db.execute(SQL["batch_get"], {"id": batch_id, "workspace": workspace}).fetchone()
    return None if row is None else columns.read_batch(row)


def _finished(db: sqlite3.Connection) -> list[str]:
    return [batch for (batch,) in db.execute(SQL["finished"])]


def _claims(db: sqlite3.Connection, rows: Sequence[Row]) -> list[Claim]:
    claims = []
    for row in rows:
        batch = db.execute(SQL["batch_of_shard"], {"batch": row["batch"]}).fetchone()
        claims.append(
            Claim(
                batch=row["batch"],
                index=row["idx"],
                attempt=row["attempt"],
                workspace=row["workspace"],
                pool=row["pool"],
                offset=row["off"],
                length=row["len"],
                crc=row["crc"],
                requests=row["n"],
                version=batch["version"],
                betas=columns.read_betas(batch["betas"]),
                user_profile=batch["user_profile"],
                expires_us=batch["expires_us"],
                canceled=batch["cancel_us"] is not None,
                frozen=columns.load_extents(row["manifest"]),
            )
        )
    return sorted(claims, key=lambda claim: (claim.batch, claim.index))
