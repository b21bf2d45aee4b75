"""The memory of a run: plain files in `OUT/.batchyard/`, and what they say.

    journal.jsonl       one event per line, appended and synced; a torn last line never happened
    documents.jsonl     custom_id, key, content hash, report name and shard of every request
    requests-000.json   the exact create body of shard 0
    results-000.jsonl   its results as received
    outcomes-000.jsonl  what became of each of its documents

The state of a run is a fold over the events (`folding`), and nothing else. The order that makes it
safe: bodies are on disk before the `run` or `extended` event, the `intent` event before the create
call, results and reports before the events that say so.

A run grows: `extended` appends shards, for a further round of what failed, for a shard that is cut
into smaller ones, or for inputs that are new. A document that stands in several shards has the
outcome of the last of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from batchyard import wire
from batchyard.client.problems import JournalError

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 3
# 2 has `extended`, and the terms of a run; 3 begins with its terms and how it is saved.
FORMATS_READ = frozenset({1, 2, FORMAT})

RETRIES_DEFAULT = 3
Why = Literal["first", "pilot", "rest", "retry", "rerun"]
OrphanPolicy = Literal["adopt", "wait", "resubmit", "fail"]
Wait = Literal["budget", "billing", "pilot"]
"""What the rest of a run waits for: a larger budget, a paid account, a look at its pilot."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that happened, at a wall time in microseconds since 1970."""

    at: int = 0


class Config(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked for; enough to go on without the command line. Holds no key.

    `sources` are where the documents were, empty when they cannot be read again; `folder` is what
    the names of the templates are relative to. `imported` when the batches were made elsewhere:
    only their results are known, or the requests too.
    """

    model: str
    max_tokens: int
    prompt: str
    prompt_sha256: str
    system: str | None = None
    system_sha256: str | None = None
    betas: tuple[str, ...] = ()
    suffix: str = ".md"
    shard_requests: int
    local: bool = False
    base_url: str | None = None
    upstreams: tuple[str, ...] = ()
    params: dict[str, Any] = {}
    override: str | None = None
    cache: str = "off"
    schema: dict[str, Any] | None = None
    name: str | None = None
    sources: tuple[str, ...] = ()
    id_field: str | None = None
    encoding: str | None = None
    folder: str | None = None
    imported: Literal["results", "requests"] | None = None


class PlannedShard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A create body on disk; `why` is set where the event does not say it for all its shards."""

    requests: int
    bytes: int
    sha256: str
    why: Why | None = None


class Started(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The run exists: all bodies are on disk.

    `documents` is how many it has, when that is not the number of its requests. `approved` are the
    ceilings, in micro-dollars, that were shown before it began: in batches, and at a server that
    charges the synchronous price; None when no price was known. `terms` and `saving` are what later
    events of those kinds change; None for what holds without them.
    """

    run: str
    config: Config
    shards: tuple[PlannedShard, ...]
    documents: int | None = None
    approved: tuple[int, int] | None = None
    terms: Terms | None = None
    saving: Saving | None = None
    format: int = 1


class Extended(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The run has more shards: all their bodies and documents are on disk.

    `round` counts the times that documents were sent again, 0 for those sent for the first time.
    `replaces` are shards that were not sent and whose documents are in the new ones. `again` counts
    by class the last outcomes that no longer count, because their documents are in the new shards.
    `documents` is how many documents the run has now, None for as many as before. `by_hand` when a
    person asked for it, so that it is no automatic round. `config` is what was asked for
    from now on, None when that is as before. `approved` is what all of the run may cost now, as in
    `Started`, None for as before.
    """

    round: int
    why: Why
    shards: tuple[PlannedShard, ...]
    replaces: tuple[int, ...] = ()
    again: dict[str, int] = {}
    documents: int | None = None
    by_hand: bool = False
    config: Config | None = None
    approved: tuple[int, int] | None = None


class Terms(Event, frozen=True, kw_only=True, omit_defaults=True):
    """What the run may do from now on; the last such event counts.

    `budget_micros` is what it may cost in micro-dollars, None for no limit; `retries` how many
    rounds start by themselves; `on_orphan` what becomes of a create call without an answer.
    """

    budget_micros: int | None = None
    retries: int = RETRIES_DEFAULT
    on_orphan: OrphanPolicy = "wait"


class Approved(Event, frozen=True, kw_only=True):
    """The pilot was looked at: the rest may be sent."""


class Intent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The create call of a shard is about to be sent.

    `ceiling_micros` is what it may cost at most, None when the price is not known.
    """

    shard: int
    generation: int
    key: str
    ceiling_micros: int | None = None


class Created(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A batch exists for the shard; `adopted` when it was found instead of answered."""

    shard: int
    batch: str
    adopted: bool = False


class NotCreated(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The last intent made no batch; `guessed` when that is only as good as certain."""

    shard: int
    reason: str
    guessed: bool = False


class Disowned(Event, frozen=True, kw_only=True):
    """An adopted batch turned out to be somebody else's."""

    shard: int
    batch: str


class Withdrawn(Event, frozen=True, kw_only=True):
    """The run was canceled before the shard was sent."""

    shard: int


class Ended(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The server has all results.

    `billing` is how it charges, None when it does not say; `assumed` when we say it instead.
    `repeated_calls` is how many calls of an upstream it made more than one for a request, None when
    it does not say.
    """

    shard: int
    counts: dict[str, int]
    billing: str | None = None
    assumed: bool = False
    repeated_calls: int | None = None


class Downloaded(Event, frozen=True, kw_only=True):
    """The results are on disk, whole."""

    shard: int
    bytes: int


class Duplicate(Event, frozen=True, kw_only=True):
    """A second batch of the shard was found at the server; it is canceled and never read."""

    shard: int
    batch: str


class Collected(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The reports of the shard are on disk; `classes` counts what became of its documents.

    `cost_micros` is what its answers cost, None when that is not known.
    """

    shard: int
    classes: dict[str, int] = {}
    cost_micros: int | None = None


class Saving(Event, frozen=True, kw_only=True, omit_defaults=True):
    """How answers are written from now on; the last such event counts.

    `formats` are those of `formats.checked`, none for one text file for each document. `audit` is
    the path of the audit record, None for the usual one. `delete` when the server's copy goes as
    soon as everything is on disk.
    """

    formats: tuple[str, ...] = ()
    audit: str | None = None
    delete: bool = False


class Deleted(Event, frozen=True, kw_only=True):
    """The server has deleted its copy of a batch; everything of it was on disk before."""

    shard: int
    batch: str


class Finished(Event, frozen=True, kw_only=True):
    """Receipt and list of errors are on disk."""


class Moved(Event, frozen=True, kw_only=True):
    """The server of the run is at another address from now on, or one of our own before it."""

    base_url: str | None
    """None for one of our own."""
    upstreams: tuple[str, ...] = ()
    """Of that one."""


class Left(Event, frozen=True, kw_only=True):
    """Somebody detached."""


_KINDS: dict[str, type[Event]] = {
    "run": Started,
    "extended": Extended,
    "terms": Terms,
    "approved": Approved,
    "intent": Intent,
    "created": Created,
    "not_created": NotCreated,
    "disowned": Disowned,
    "duplicate": Duplicate,
    "withdrawn": Withdrawn,
    "ended": Ended,
    "downloaded": Downloaded,
    "collected": Collected,
    "saving": Saving,
    "deleted": Deleted,
    "finished": Finished,
    "moved": Moved,
    "detached": Left,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class Phase(StrEnum):
    """How far a shard is."""

    PLANNED = "planned"
    INTENDED = "intended"
    CREATED = "created"
    ENDED = "ended"
    DOWNLOADED = "downloaded"
    COLLECTED = "collected"
    WITHDRAWN = "withdrawn"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What the journal says of one shard.

    `doubt_us` is when the first create call was made of which it was only guessed that it made no
    batch; `duplicates` are batches of it that are not the one that is kept. `server` is the address
    that told of the end of its batch, or gave its results, last; None for a server of the run.
    """

    index: int
    requests: int
    bytes: int
    sha256: str
    round: int = 0
    why: Why = "first"
    phase: Phase = Phase.PLANNED
    generation: int = 0
    intent_us: int = 0
    doubt_us: int | None = None
    created_us: int = 0
    batch: str | None = None
    adopted: bool = False
    server: str | None = None
    disowned: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    billing: str | None = None
    billing_assumed: bool = False
    repeated_calls: int | None = None
    classes: Mapping[str, int] = field(default_factory=dict)
    ceiling_micros: int | None = None
    cost_micros: int | None = None

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to send, wait for or save."""
        return self.phase in {Phase.COLLECTED, Phase.REPLACED}

    @property
    def is_at_server(self) -> bool:
        """Whether it was sent, or may have been, and is not collected."""
        unsent = {Phase.PLANNED, Phase.WITHDRAWN}
        return not self.is_settled and self.phase not in unsent

    @property
    def is_doubtful(self) -> bool:
        """Whether it waits to be sent, and a batch that was only guessed not to be may exist."""
        return self.phase is Phase.PLANNED and self.doubt_us is not None


@dataclass(frozen=True, slots=True)
class State:
    """What the journal says of the run. `run` is empty before its first event."""

    run: str = ""
    config: Config | None = None
    shards: tuple[Shard, ...] = ()
    started_us: int = 0
    finished_us: int | None = None
    documents: int = 0
    terms: Terms = field(default_factory=Terms)
    saving: Saving = field(default_factory=Saving)
    is_approved: bool = False
    again: Mapping[str, int] = field(default_factory=dict)
    automatic_rounds: int = 0
    approved: tuple[int, int] | None = None

    @property
    def nothing_sent(self) -> bool:
        """Whether no create call can have reached a server."""
        unsent = {Phase.PLANNED, Phase.REPLACED}
        return all(
            shard.phase in unsent and not shard.disowned and not shard.is_doubtful
            for shard in self.shards
        )

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to send, wait for or save, but what may be sent once more."""
        return all(shard.is_settled for shard in self.shards)

    @property
    def round(self) -> int:
        """Return the number of the last round of repetitions, 0 before the first."""
        return max((shard.round for shard in self.shards), default=0)

    @property
    def piloted(self) -> int:
        """Count the requests of the pilot of what was begun last, 0 when it has none."""
        return sum(shard.requests for shard in self._newest if shard.why == "pilot")

    @property
    def newest(self) -> int:
        """Count the requests of what was begun last."""
        return sum(shard.requests for shard in self._newest)

    @property
    def _newest(self) -> list[Shard]:
        begun = [s for s in self.shards if s.why != "retry" and s.phase is not Phase.REPLACED]
        latest = max((shard.round for shard in begun), default=0)
        return [shard for shard in begun if shard.round == latest]

    @property
    def classes(self) -> dict[str, int]:
        """Count the last outcomes of documents by class; those under way again do not count."""
        sums: dict[str, int] = {}
        for shard in self.shards:
            for name, count in shard.classes.items():
                sums[name] = sums.get(name, 0) + count
        for name, count in self.again.items():
            sums[name] = sums.get(name, 0) - count
        return {name: count for name, count in sums.items() if count > 0}

    @property
    def at_server(self) -> int:
        """Count the shards that were sent, or may have been, and are not collected."""
        return sum(shard.is_at_server or shard.is_doubtful for shard in self.shards)

    @property
    def waits_for(self) -> Wait | None:
        """Return what keeps the rest of the run from being sent while nothing is under way.

        What was not answered for want of credit is part of the rest, also when all shards were
        sent.
        """
        if self.finished_us is not None or any(shard.is_at_server for shard in self.shards):
            return None
        # Nothing goes on by itself for what was refused elsewhere, before the run was imported.
        is_ours = self.config is None or self.config.imported is None or self.round > 0
        if is_ours and self.classes.get("billing"):
            return "billing"
        waiting = [shard for shard in self.shards if shard.phase is Phase.PLANNED]
        if not waiting:
            return None
        if any(map(self.is_held, waiting)):
            return "pilot"
        return None if self.terms.budget_micros is None else "budget"

    def is_held(self, shard: Shard) -> bool:
        """Whether a shard waits until somebody has looked at the pilot."""
        return (
            not self.is_approved
            and shard.phase is Phase.PLANNED
            and shard.why == "rest"
            and any(other.why == "pilot" for other in self.shards)
        )

    def taken(self, index: int) -> frozenset[str]:
        """Return the batches that cannot be the one of a shard whose create call is open.

        Those that it gave back, and those of other shards; but not one that another shard adopted
        since the call and has not confirmed by its results: it may be ours.
        """
        mine = self.shards[index]
        others = {
            shard.batch
            for shard in self.shards
            if shard.batch
            and shard.index != index
            and not (shard.adopted and not shard.is_settled and shard.created_us >= mine.intent_us)
        }
        return frozenset(others.union(mine.disowned, *(s.duplicates for s in self.shards)))


def name_of(event: Event) -> str:
    """Return the word that stands for an event in its line."""
    return _NAMES[type(event)]


def encode(event: Event) -> bytes:
    """Return the line of an event, without its end."""
    fields: dict[str, Any] = msgspec.to_builtins(event)
    return wire.encode({"event": name_of(event)} | fields)


def decode(line: bytes, number: int) -> Event | None:
    """Return the event of a line; None for a kind that this version does not know.

    Raises:
        JournalError: the line is not an event.
    """
    try:
        fields = wire.decode(line)
        kind = _KINDS.get(fields.pop("event"))
        return None if kind is None else msgspec.convert(fields, kind)
    except (ValueError, AttributeError, KeyError, msgspec.ValidationError) as error:
        raise JournalError(f"journal.jsonl:{number}: not an event: {error}") from None
