"""The ledger in SQL: every method once, over a connection to whichever database.

A method is one or two queries, each a function that runs in a transaction of its own. Where several
processes write at once (`is_concurrent`), a transaction sees what others have committed meanwhile:
what must be decided by one of them alone is decided by a row that they contend for.

A query may be run again when it is not known whether its first run was committed: `again` says so.
Each is written so that the second run finds what the first has done: by its fence, its owner, or
the id of its batch.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from batchyard import fairness, limits
from batchyard.errors import DamagedError
from batchyard.ledger import (
    EMPTY,
    Claim,
    Commit,
    Committed,
    CreateKey,
    Held,
    Known,
    News,
    Page,
    Progress,
    Renewed,
    ShardResult,
    batches,
    choosing,
    columns,
    returning,
    sharing,
)
from batchyard.ledger.contact import until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from batchyard.fairness import Shares
    from batchyard.ledger import Granted, Here, Telling, Turn, Want
    from batchyard.ledger.contact import Contact
    from batchyard.model import Batch, Extent, ShardPlan, Tokens

    Row = Mapping[str, Any]
    Bound = Mapping[str, Any]

T = TypeVar("T")


class Transaction(Protocol):
    """A transaction that is under way. Statements go by their names."""

    again: bool
    """Whether an earlier run of the same query may have been committed."""

    def all(self, name: str, bound: Bound = ...) -> Sequence[Row]:
        """Run a statement; return its rows."""

    def one(self, name: str, bound: Bound = ...) -> Row | None:
        """Run a statement; return its first row."""

    def change(self, name: str, bound: Bound) -> int:
        """Run a statement; return how many rows it changed."""

    def each(self, name: str, bounds: Sequence[Bound]) -> None:
        """Run a statement with each of these, and look at no answer."""

    def one_of_each(self, name: str, bounds: Sequence[Bound]) -> Sequence[Row | None]:
        """Run a statement with each of these; return the first row of each."""


class Connection(Protocol):
    """What runs queries, each in a transaction of its own."""

    async def run(self, query: Callable[[Any], T], *, hurried: bool = False) -> T:
        """Run a query, and return when it is durable.

        Args:
            query: what to do.
            hurried: whether a client waits, who is told to come again rather than kept waiting.

        Raises:
            DiskFull: it did not happen.
            Overloaded: a client need not wait longer; whether it happened is unknown.
            StoreError: whether it happened is unknown.
        """


# Another worker may take what was chosen; the next choice sees it.
_CHOICES_MAX = 3


class SqlLedger:
    """A ledger over two connections: one that writes, and one that reads."""

    is_concurrent: ClassVar[bool] = False
    """Whether transactions of several processes run at the same time."""

    def __init__(
        self, writer: Connection, reader: Connection, contact: Contact | None = None
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._contact = contact
        """With the ledger; None where leases end whoever could renew them."""
        self._lanes: dict[str, choosing.Lanes] = {}
        """By pool: those that are kept for a second."""

    async def create(
        self,
        batch: Batch,
        shards: Sequence[ShardPlan],
        key: CreateKey,
        *,
        queued_max: int | None = None,
    ) -> Known | None:
        """Add a batch with its shards; see the protocol."""

        def run(t: Transaction) -> Known | None:
            return batches.add(t, batch, shards, key, queued_max)

        return await self._writer.run(run, hurried=True)

    async def known(self, workspace: str, key: str, now_us: int) -> Known | None:
        """Return the live create call under `key`."""
        return await self._reader.run(
            lambda t: batches.known(t, workspace, key, now_us), hurried=True
        )

    async def get(self, workspace: str, batch_id: str) -> Batch | None:
        """Return a batch of this workspace."""
        return await self._reader.run(lambda t: batches.get(t, workspace, batch_id), hurried=True)

    async def page(
        self, workspace: str, *, limit: int, after: str | None, before: str | None
    ) -> Page | None:
        """Return one page of the list; see the protocol."""

        def run(t: Transaction) -> Page | None:
            cursor = after or before
            bound: dict[str, Any] = {"workspace": workspace, "limit": limit + 1}
            statement = "batches_newest"
            if cursor is not None:
                row = t.one("batch_seq", {"workspace": workspace, "id": cursor})
                if row is None:
                    return None
                bound["seq"] = row["seq"]
                statement = "batches_after" if after else "batches_before"
            found = [columns.read_batch(row) for row in t.all(statement, bound)]
            page = found[:limit]
            if statement == "batches_before":
                page.reverse()
            return Page(batches=page, has_more=len(found) > limit)

        return await self._reader.run(run, hurried=True)

    async def cancel(self, workspace: str, batch_id: str, now_us: int) -> Batch | None:
        """Mark an open batch as canceled, once; return it as it is then."""

        def run(t: Transaction) -> Batch | None:
            bound = {"id": batch_id, "workspace": workspace, "now": now_us}
            t.change("batch_cancel", bound)
            return batches.get(t, workspace, batch_id)

        return await self._writer.run(run, hurried=True)

    async def delete(self, workspace: str, batch_id: str, now_us: int) -> bool:
        """Forget an ended batch but for its place in the list; see the protocol."""

        def run(t: Transaction) -> bool:
            bound = {"id": batch_id, "workspace": workspace, "now": now_us}
            gone = t.one("batch_delete", bound)
            if gone is None:
                return t.again and t.one("deleted_get", bound) is not None
            t.change("deleted_put", bound | {"seq": gone["seq"]})
            t.change("creates_of_batch_delete", {"batch": batch_id})
            t.change("accounts_of_batch_delete", {"batch": batch_id})
            return True

        return await self._writer.run(run, hurried=True)

    async def progress(self, batch_id: str) -> Progress:
        """Return how far the shards of an open batch are."""

        def run(t: Transaction) -> Progress:
            bound = {"batch": batch_id}
            row = t.one("progress", bound)
            assert row is not None  # it is made of sums
            pools = {row["pool"]: columns.read_rest(row) for row in t.all("progress_pools", bound)}
            return Progress(
                shards=row["shards"],
                shards_done=row["shards_done"],
                inflight=row["inflight"],
                counts=columns.read_counts(row),
                pools=pools,
            )

        return await self._reader.run(run, hurried=True)

    async def pools_ready(self) -> Sequence[str]:
        """Return the pools that have a shard to claim."""
        return await self._reader.run(lambda t: [row["pool"] for row in t.all("pools_ready")])

    async def claim(
        self,
        owner: str,
        pool: str,
        lease_us: int,
        limit: int,
        *,
        shares: Shares = fairness.EQUAL,
        now_us: int = 0,
        turn: Turn | None = None,
    ) -> Sequence[Claim]:
        """Take shards of one batch from a pool; see the protocol."""
        ends = until(self._contact, lease_us)
        for _ in range(_CHOICES_MAX):
            chosen = await self._reader.run(
                lambda t: (
                    self._choose(t, pool, shares, now_us)
                    if turn is None
                    else choosing.check(t, pool, turn)
                )
            )
            if chosen is None:
                if turn is not None or self._lanes.pop(pool, None) is None:
                    return []
                continue  # the lanes were read a moment ago
            take = choosing.take(owner, pool, ends, limit, [chosen])
            claims = await self._writer.run(take)
            if claims:
                if pool in self._lanes:
                    self._lanes[pool].take(claims)
                return claims
            if turn is None:
                self._lanes.pop(pool, None)
        return []

    def _choose(self, t: Transaction, pool: str, shares: Shares, now_us: int) -> Turn | None:
        lanes = self._lanes.get(pool)
        if lanes is None or not lanes.is_good(now_us):
            self._lanes.pop(pool, None)
            lanes = choosing.read_lanes(t, pool, now_us)
            if lanes.is_good(now_us):
                self._lanes[pool] = lanes
        return choosing.choose(t, pool, lanes, shares, now_us)

    async def claim_fresh(
        self,
        owner: str,
        pool: str,
        lease_us: int,
        limit: int,
        *,
        shares: Shares = fairness.EQUAL,
        here: Here | None = None,
    ) -> Sequence[Claim]:
        """Take the first shard of batches that have not begun in a pool; see the protocol."""
        ends = until(self._contact, lease_us)
        turns = await self._reader.run(lambda t: choosing.fresh(t, pool, shares, limit, here))
        take = choosing.take(owner, pool, ends, 1, turns)
        return await self._writer.run(take) if turns else []

    async def claim_void(
        self, owner: str, now_us: int, lease_us: int, limit: int
    ) -> Sequence[Claim]:
        """Take ready shards of canceled and expired batches, whatever their pool."""
        bound = {"owner": owner, "now": now_us, "limit": limit}
        ends = until(self._contact, lease_us)
        if not await self._reader.run(lambda t: t.one("has_void", bound)):
            return []
        return await self._writer.run(choosing.take_by(owner, "claim_void", bound, ends))

    async def pools_apart(self) -> Sequence[str]:
        """Return the pools with shards that failed often."""
        return await self._reader.run(lambda t: [row["pool"] for row in t.all("apart")])

    async def claim_apart(self, owner: str, pool: str, lease_us: int) -> Sequence[Claim]:
        """Take the one of these shards that has failed least."""
        bound, ends = {"owner": owner, "pool": pool}, until(self._contact, lease_us)
        return await self._writer.run(choosing.take_by(owner, "claim_apart", bound, ends))

    async def renew(self, owner: str, lease_us: int, held: Sequence[Held]) -> Sequence[Renewed]:
        """Extend the leases; shards that are missing in the answer are lost."""
        ends = until(self._contact, lease_us)

        def run(t: Transaction) -> list[Renewed]:
            fences = returning.fences(owner, held)
            lease = {"lease_us": ends()}
            told: list[dict[str, Any]] = [
                {"inflight": shard.inflight, "at_risk": int(shard.at_risk)}
                | columns.bind_counts(shard.counts)
                for shard in held
            ]
            t.each("renew", [f | lease | what for f, what in zip(fences, told, strict=True)])
            return [
                Renewed(batch=row["batch"], index=row["idx"], canceled=row["cancel_us"] is not None)
                for row in t.one_of_each("held", fences)
                if row is not None
            ]

        return await self._writer.run(run)

    async def adopt(
        self, owner: str, claim: Claim, extents: Sequence[Extent], *, has_gained: bool = True
    ) -> bool:
        """Freeze what this attempt takes over; see the protocol."""
        bound = {
            "owner": owner,
            "batch": claim.batch,
            "idx": claim.index,
            "attempt": claim.attempt,
            "manifest": columns.dump_extents(extents),
            "has_gained": int(has_gained),
        }
        return await self._writer.run(lambda t: t.change("adopt", bound) == 1)

    async def commit(self, owner: str, commits: Sequence[Commit]) -> Committed:
        """Finish shards. Repeating a commit that has happened is accepted."""

        def run(t: Transaction) -> Committed:
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
                if t.change("commit", bound) or t.one("committed", bound):
                    accepted.add((commit.batch, commit.index))
            done = () if self.is_concurrent else finished(t)
            return Committed(accepted=frozenset(accepted), finished=done)

        def finished(t: Transaction) -> tuple[str, ...]:
            batches = sorted({commit.batch for commit in commits})
            return tuple(batch for batch in batches if t.one("is_finished", {"batch": batch}))

        committed = await self._writer.run(run)
        if self.is_concurrent:
            # Of two that commit the last two shards at the same time neither sees the other's.
            done = await self._writer.run(finished)
            committed = Committed(accepted=committed.accepted, finished=done)
        return committed

    async def share(
        self,
        owner: str,
        now_us: int,
        lease_us: int,
        wants: Sequence[Want],
        accounts: Mapping[str, str] = EMPTY,
        lease_now: int | None = None,
    ) -> Mapping[str, Granted]:
        """Ask for slots; see the protocol."""
        divide = sharing.divide(
            owner,
            now_us,
            lease_us,
            wants,
            accounts,
            lease_now,
            is_concurrent=self.is_concurrent,
            knows_leases=self._knows_leases,
        )
        return await self._writer.run(divide)

    def _knows_leases(self) -> bool:
        return self._contact is None or self._contact.knows_leases

    async def tellings(self, lease_now: int) -> Sequence[Telling]:
        """Return what the workers that live have told with `share`, by pool and owner."""
        return await self._reader.run(lambda t: sharing.read_tellings(t, lease_now))

    async def accounts(self, batch_id: str) -> Sequence[tuple[str, str]]:
        """Return what each worker has counted for a batch: owner and account, oldest first."""

        def run(t: Transaction) -> list[tuple[str, str]]:
            rows = t.all("accounts_of_batch", {"batch": batch_id})
            return [(row["owner"], row["told"]) for row in rows]

        return await self._reader.run(run, hurried=True)

    async def news(self) -> News:
        """Return what other processes have done that a worker should look at."""
        return await self._reader.run(read_news)

    async def give_back(self, owner: str, held: Sequence[Held]) -> None:
        """Free attempts of which nothing is under way."""
        await self._writer.run(returning.give_back(owner, held))

    async def release(self, owner: str, *, has_died: bool = False, has_left: bool = False) -> None:
        """Give back everything that this owner holds; see the protocol."""
        release = returning.release(owner, has_died=has_died, has_left=has_left)
        await self._writer.run(release, hurried=True)

    async def take_back(self, lease_now: int, *, but: str) -> int:
        """Free the shards of other owners whose lease has ended; return how many."""
        if self._contact is not None:
            return await self._contact.take_back(self._writer, lease_now, but)
        return await self._writer.run(returning.take_back(lease_now, but))

    async def spare(self, owner: str) -> None:
        """Count nothing as failed that this owner holds."""
        await self._writer.run(lambda t: t.change("spare", {"owner": owner}), hurried=True)

    async def absolve(self, lost: Sequence[tuple[str, int, int]]) -> None:
        """Take back one failure of each; see the protocol."""
        bounds = [{"batch": batch, "idx": idx, "attempt": attempt} for batch, idx, attempt in lost]
        await self._writer.run(lambda t: t.each("absolve", sorted(bounds, key=str)))

    async def finished(self) -> Sequence[str]:
        """Return the batches with all shards done that have not ended."""
        return await self._reader.run(_finished)

    async def results(self, batch_id: str) -> Sequence[ShardResult]:
        """Return the results of all shards of an open batch, by index."""

        def run(t: Transaction) -> list[ShardResult]:
            rows = t.all("manifest", {"batch": batch_id})
            return [
                ShardResult(
                    index=row["idx"],
                    attempt=row["attempt"],
                    extents=columns.load_extents(row["manifest"]),
                    tokens=columns.load_tokens(row["tokens"]),
                )
                for row in rows
            ]

        return await self._reader.run(run)

    async def reopen(self, batch_id: str, indexes: Sequence[int]) -> None:
        """Make done shards of an open batch ready again; see the protocol."""
        bounds = [{"batch": batch_id, "idx": index} for index in indexes]
        await self._writer.run(lambda t: t.each("reopen", bounds))

    async def end(self, batch_id: str, now_us: int, tokens: Tokens) -> bool:
        """End a batch all of whose shards are done; False when it has ended before.

        Raises:
            DamagedError: the results do not add up to the requests; the batch stays open.
        """
        return batch_id in await self.end_all([(batch_id, tokens)], now_us)

    async def end_all(
        self,
        ends: Sequence[tuple[str, Tokens]],
        now_us: int,
        *,
        attempts: Mapping[str, int] = EMPTY,
    ) -> frozenset[str]:
        """End several batches, or none of them; see the protocol."""

        def run(t: Transaction) -> frozenset[str]:
            ended = set()
            for batch_id, tokens in sorted(ends):  # locks in one order
                bound = {
                    "batch": batch_id,
                    "now": now_us,
                    "tokens": columns.dump_tokens(tokens),
                    "attempts": attempts.get(batch_id, -1),
                }
                row = t.one("end", bound)
                if row is None:
                    continue
                if row["requests"] != row["results"]:
                    raise DamagedError(
                        f"batch {batch_id} has {row['requests']} requests and {row['results']} "
                        "results"
                    )
                t.change("shards_delete", {"batch": batch_id})
                ended.add(batch_id)
            return frozenset(ended)

        return await self._writer.run(run)

    async def outdated(self, created_before_us: int, limit: int) -> Sequence[str]:
        """Return ended batches that are old enough to be archived."""
        bound = {"before": created_before_us, "limit": limit}
        return await self._reader.run(lambda t: [row["id"] for row in t.all("outdated", bound)])

    async def archive(self, batch_id: str, now_us: int) -> None:
        """Mark the results of an ended batch as gone."""
        await self._writer.run(lambda t: t.change("archive", {"id": batch_id, "now": now_us}))

    async def forget_creates(self, now_us: int) -> None:
        """Drop the create calls and the places of deleted batches whose time is over."""

        def run(t: Transaction) -> None:
            t.change("creates_purge", {"now": now_us})
            before = now_us - limits.DELETED_CURSOR_WINDOW_US
            t.change("deleted_purge", {"before": before})
            t.change("accounts_purge", {"before": now_us - limits.ACCOUNTS_KEPT_US})

        await self._writer.run(run)

    async def live(self, batch_ids: Sequence[str]) -> frozenset[str]:
        """Return those of these batches whose segments are still needed."""
        bound = {"ids": json.dumps([*batch_ids])}
        return frozenset(r["id"] for r in await self._reader.run(lambda t: t.all("live", bound)))


def _finished(t: Transaction) -> list[str]:
    return [row["id"] for row in t.all("finished")]


def read_news(t: Transaction) -> News:
    """Return what other processes have done that a worker should look at."""
    newest = t.one("newest")
    assert newest is not None  # it is a maximum
    canceling = frozenset(row["id"] for row in t.all("canceling"))
    return News(newest=newest["seq"], canceling=canceling)
