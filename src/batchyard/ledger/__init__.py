"""The ledger: batches, shards, leases, and which bytes are the result.

Everything that must be exclusive or atomic happens here, in one transaction each. A method that has
returned is durable. Workers are fenced: `renew`, `adopt` and `commit` name owner and attempt, and
change nothing for whoever has lost the shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Never, Protocol

from batchyard.fairness import EQUAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchyard.fairness import Shares
    from batchyard.model import Batch, Counts, Extent, Priority, ShardPlan, Tokens


EMPTY: Mapping[str, Never] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateKey:
    """By what a repeated create call is recognised."""

    key: str
    digest: bytes
    until_us: int
    replaces: bool
    """Whether a newer call under the same key takes its place: SDK retries name no key, so two
    equal batches on purpose share one, and a retry repeats the newer of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An earlier create call under the same key."""

    batch: Batch
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Batches newest first, and whether there are more in the direction that was asked for."""

    batches: Sequence[Batch]
    has_more: bool


class Rest(NamedTuple):
    """Requests of a batch in a pool that have no result."""

    inflight: int
    """Taken up."""
    unsent: int
    """Of the same shards, not taken up."""
    queued: int
    """Of shards that nobody works on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What is known of a batch that has not ended."""

    shards: int
    shards_done: int
    inflight: int
    counts: Counts
    pools: Mapping[str, Rest]
    """Of the shards that are not done, each with their requests that have no result."""


class Turn(NamedTuple):
    """A batch in a pool, as a claim asks for it."""

    workspace: str
    priority: Priority
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What a worker works on in a pool, as it asks for more batches."""

    served: frozenset[str] = frozenset()
    """Workspaces of which none is to begin."""
    batches: frozenset[Turn] | None = None
    """Where those are wanted that have begun: all batches but these, which are open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One attempt at one shard, ours until the lease ends."""

    batch: str
    index: int
    attempt: int
    workspace: str
    pool: str
    offset: int
    length: int
    crc: int | None
    requests: int
    version: str
    betas: tuple[str, ...]
    user_profile: str | None
    expires_us: int
    canceled: bool
    frozen: tuple[Extent, ...]
    """What earlier attempts have adopted: part of the result, not to be sent again."""
    priority: Priority = "normal"
    seq: int = 0
    """The place of its batch in the list."""
    failures: int = 0
    """Attempts in a row that ended with their worker and left no result."""
    is_only: bool = False
    """Whether its batch has no other shard: there is nothing more to claim of it."""

    @property
    def turn(self) -> Turn:
        """Return how more of its batch is asked for."""
        return Turn(self.workspace, self.priority, self.seq)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How far the attempt at one shard is, for its renewal."""

    batch: str
    index: int
    attempt: int
    inflight: int
    counts: Counts | None
    """Its results so far; None leaves what was told before, while it is opened."""
    at_risk: bool = True
    """Whether it counts as a failure of the shard, if the worker ends now without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """A shard that is still ours."""

    batch: str
    index: int
    canceled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What one of several workers asks for of a pool."""

    pool: str
    slots: int
    """That the pool has, over all workers."""
    busy: int
    """Slots that this worker fills now."""
    note: str | None
    """Why the requests of the pool wait, if they do."""
    told: str | None = None
    """What it knows of the pool, for the other workers and for people."""
    go_round: bool = False
    """Whether few slots go round, rather than all to one worker as long as it has work."""
    is_new: bool = False
    """Whether it had no slots before."""


class Peer(NamedTuple):
    """Another worker that has work in a pool."""

    owner: str
    slots: int
    told: str | None
    note: str | None = None
    """Why requests of the pool wait there, if they do."""


class Granted(NamedTuple):
    """What a worker may fill of a pool, and who else is there."""

    slots: int
    peers: tuple[Peer, ...]
    known: str | None = None
    """What the last worker there knew, for one that is new and finds no other with slots."""


class Telling(NamedTuple):
    """What a worker that lives has told of a pool."""

    pool: str
    owner: str
    slots: int
    note: str | None
    told: str | None
    left_us: int
    """Until its lease ends; it told when that began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What a worker of another process should look at."""

    newest: int
    """The place of the newest batch in the list."""
    canceling: frozenset[str]
    """The batches that were canceled and have not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The result of one shard: exact byte lengths that are on stable storage."""

    batch: str
    index: int
    attempt: int
    extents: tuple[Extent, ...]
    counts: Counts
    tokens: Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """Which commits hold, and which batches have no open shard left."""

    accepted: frozenset[tuple[str, int]]
    finished: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """The result of one shard, for the manifest of its batch."""

    index: int
    attempt: int
    extents: tuple[Extent, ...]
    tokens: Tokens


class Ledger(Protocol):
    """The interface of a ledger. Every method may raise StoreError; a writing one DiskFull.

    Leases (`lease_us`, `lease_now`) are in the steady time of the caller's machine, which nobody
    sets (`clock.steady_us`): a wall clock that is set ends no lease. Everything else is wall time.

    Those that a client waits for raise Overloaded when the database is away: `create`, `known`,
    `get`, `page`, `cancel`, `delete`, `progress`. The others wait for its return.
    """

    is_concurrent: ClassVar[bool]
    """Whether processes of other hosts may write too."""
    poll_s: float
    """How often, in seconds, another process may look for news."""
    renew_s: float
    """How often, in seconds, a worker renews its leases."""

    async def create(
        self,
        batch: Batch,
        shards: Sequence[ShardPlan],
        key: CreateKey,
        *,
        queued_max: int | None = None,
    ) -> Known | None:
        """Add a batch with its shards and remember the call, in one transaction.

        Args:
            batch: new.
            shards: of the batch.
            key: by which a repeat of the call is recognised.
            queued_max: requests that the workspace may have in open batches, this one included.

        Returns:
            None when it was added; else the earlier call under the same key, and nothing is added.

        Raises:
            RateLimited: the queue has no room for it.
        """

    async def known(self, workspace: str, key: str, now_us: int) -> Known | None:
        """Return the live create call under `key`."""

    async def get(self, workspace: str, batch_id: str) -> Batch | None:
        """Return a batch of this workspace."""

    async def page(
        self, workspace: str, *, limit: int, after: str | None, before: str | None
    ) -> Page | None:
        """Return one page of the list; None when the cursor names no batch of the workspace.

        A deleted batch is a cursor for `limits.DELETED_CURSOR_WINDOW_US`, so that a client may
        delete what it lists. Source: the clients ask for the next page by the last id they saw.
        """

    async def cancel(self, workspace: str, batch_id: str, now_us: int) -> Batch | None:
        """Mark an open batch as canceled, once; return it as it is then."""

    async def delete(self, workspace: str, batch_id: str, now_us: int) -> bool:
        """Forget an ended batch but for its place in the list; False when there is none.

        Its segments are the caller's.
        """

    async def progress(self, batch_id: str) -> Progress:
        """Return how far the shards of an open batch are."""

    async def pools_ready(self) -> Sequence[str]:
        """Return the pools that have a shard to claim."""

    async def claim(
        self,
        owner: str,
        pool: str,
        lease_us: int,
        limit: int,
        *,
        shares: Shares = EQUAL,
        now_us: int = 0,
        turn: Turn | None = None,
    ) -> Sequence[Claim]:
        """Take shards of one batch from a pool.

        The workspace is the one with the fewest requests in flight, the batch its one with the
        fewest running shards, both divided by weight: a small batch does not wait behind a big one.

        Args:
            owner: who takes them.
            pool: of the shards.
            lease_us: until when.
            limit: shards at the most.
            shares: the weights of the workspaces.
            now_us: from which the urgency of batches is counted.
            turn: the batch, where the choice is made already.
        """

    async def claim_fresh(
        self,
        owner: str,
        pool: str,
        lease_us: int,
        limit: int,
        *,
        shares: Shares = EQUAL,
        here: Here | None = None,
    ) -> Sequence[Claim]:
        """Take the first shard of batches that have not begun in a pool.

        Workspaces take turns as in `claim`; within one, the higher priority comes first. Where
        `here` says so, of each workspace one batch that is not open there instead, which may have
        begun.
        """

    async def claim_void(
        self, owner: str, now_us: int, lease_us: int, limit: int
    ) -> Sequence[Claim]:
        """Take ready shards of canceled and expired batches, whatever their pool."""

    async def pools_apart(self) -> Sequence[str]:
        """Return the pools with shards that failed often, which no other claim takes."""

    async def claim_apart(self, owner: str, pool: str, lease_us: int) -> Sequence[Claim]:
        """Take the one of these shards that has failed least."""

    async def renew(self, owner: str, lease_us: int, held: Sequence[Held]) -> Sequence[Renewed]:
        """Extend the leases; shards that are missing in the answer are lost."""

    async def adopt(
        self, owner: str, claim: Claim, extents: Sequence[Extent], *, has_gained: bool = True
    ) -> bool:
        """Freeze what this attempt takes over; False when the shard is lost.

        Args:
            owner: who adopts.
            claim: of the shard.
            extents: all that is taken over.
            has_gained: whether the attempt before left a result; its failures are forgotten then.
        """

    async def commit(self, owner: str, commits: Sequence[Commit]) -> Committed:
        """Finish shards. Repeating a commit that has happened is accepted."""

    async def share(
        self,
        owner: str,
        now_us: int,
        lease_us: int,
        wants: Sequence[Want],
        accounts: Mapping[str, str] = EMPTY,
        lease_now: int | None = None,
    ) -> Mapping[str, Granted]:
        """Ask for slots of all pools that this worker has work in; return how many it may fill.

        Whatever it had of other pools is free then. Never more are granted than a pool has.

        Args:
            owner: the worker.
            now_us: the time.
            lease_us: until when it may have them.
            wants: of each pool.
            accounts: what it has counted, by batch, for `accounts`.
            lease_now: the time that leases are in; `now_us` if that is the same.
        """

    async def tellings(self, lease_now: int) -> Sequence[Telling]:
        """Return what the workers that live have told with `share`, by pool and owner."""

    async def accounts(self, batch_id: str) -> Sequence[tuple[str, str]]:
        """Return what each worker has counted for a batch: owner and account, oldest first.

        Without an owner it is a number: of what was in flight in processes that ended.
        """

    async def news(self) -> News:
        """Return what other processes have done that a worker should look at."""

    async def release(self, owner: str, *, has_died: bool = False, has_left: bool = False) -> None:
        """Give back everything that this owner holds.

        Args:
            owner: whose.
            has_died: whether its process ended without a word: what was at risk has failed then.
            has_left: whether it has counted itself what it had in flight. Else it is told, as it
                was at the last renewal, with the accounts: what became of a call is unknown.
        """

    async def give_back(self, owner: str, held: Sequence[Held]) -> None:
        """Free attempts of which nothing is under way, for others or for the owner itself later.

        Those that the owner does not hold any more are passed over.
        """

    async def begin_sweep(self, lease_now: int, lease_us: int) -> bool:
        """Return whether this process is to keep house now; no other one is until `lease_us`.

        Always where the processes have one server, whose duty it is.
        """

    async def take_back(self, lease_now: int, *, but: str) -> int:
        """Free the shards whose lease has ended, but for one owner's; return how many.

        An owner whose process was held up still knows its shards; it renews them late. What was
        at risk has failed; after `limits.FAILURES_TO_SET_APART` failures it is set apart.
        """

    async def spare(self, owner: str) -> None:
        """Count nothing as failed that this owner holds: it ends for another reason."""

    async def absolve(self, lost: Sequence[tuple[str, int, int]]) -> None:
        """Take back one failure of each: who held it lives.

        Args:
            lost: batch, index and attempt.
        """

    async def finished(self) -> Sequence[str]:
        """Return the batches with all shards done that have not ended."""

    async def results(self, batch_id: str) -> Sequence[ShardResult]:
        """Return the results of all shards of an open batch, by index."""

    async def reopen(self, batch_id: str, indexes: Sequence[int]) -> None:
        """Make done shards of an open batch ready again.

        Their extents stay frozen: the next attempt takes over what is whole of them.
        """

    async def end(self, batch_id: str, now_us: int, tokens: Tokens) -> bool:
        """End a batch all of whose shards are done; False when it has ended before.

        Raises:
            DamagedError: its results are not as many as its requests.
        """

    async def end_all(
        self,
        ends: Sequence[tuple[str, Tokens]],
        now_us: int,
        *,
        attempts: Mapping[str, int] = EMPTY,
    ) -> frozenset[str]:
        """End several batches, each as `end` does, or none of them; return those that ended now.

        Args:
            ends: the batches, and the tokens of each.
            now_us: the time.
            attempts: the sum of the attempts at the shards of a batch, as they were when its
                manifest was made; it does not end if one has been taken up again since.

        Raises:
            DamagedError: the results of one are not as many as its requests.
        """

    async def outdated(self, created_before_us: int, limit: int) -> Sequence[str]:
        """Return ended batches that are old enough to be archived."""

    async def archive(self, batch_id: str, now_us: int) -> None:
        """Mark the results of an ended batch as gone."""

    async def forget_creates(self, now_us: int) -> None:
        """Drop the create calls that no repeat may refer to any more.

        With them go the places of deleted batches that no list goes on from any more, and old
        accounts.
        """

    async def live(self, batch_ids: Sequence[str]) -> frozenset[str]:
        """Return those of these batches whose segments are still needed."""

    async def failure(self) -> None:
        """Wait until writing has failed, and raise that: what the ledger holds is unknown then.

        Raises:
            StoreError: the failure. Never returns.
        """

    async def close(self) -> None:
        """Let go of the database."""
