"""The memory of a run: plain files in `OUT/.batchyard/`, and what they say.

    journal.jsonl       one event per line, appended and synced; a torn last line never happened
    documents.jsonl     custom_id, key, content hash, report name and shard of every document
    requests-000.json   the exact create body of shard 0
    results-000.jsonl   its results as received
    outcomes-000.jsonl  what became of each of its documents

The state of a run is a fold over the events, and nothing else. The order that makes it safe:
bodies are on disk before the `run` event, the `intent` event before the create call, results and
reports before the events that say so.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from batchyard import wire
from batchyard.client.problems import JournalError
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FORMAT = 1


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that happened, at a wall time in microseconds since 1970."""

    at: int = 0


class Config(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked for; enough to go on without the command line. Holds no key."""

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


class PlannedShard(msgspec.Struct, frozen=True, kw_only=True):
    """A create body on disk."""

    requests: int
    bytes: int
    sha256: str


class Started(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The run exists: all bodies are on disk."""

    run: str
    config: Config
    shards: tuple[PlannedShard, ...]
    format: int = FORMAT


class Intent(Event, frozen=True, kw_only=True):
    """The create call of a shard is about to be sent."""

    shard: int
    generation: int
    key: str


class Created(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A batch exists for the shard; `adopted` when it was found instead of answered."""

    shard: int
    batch: str
    adopted: bool = False


class NotCreated(Event, frozen=True, kw_only=True):
    """It is certain that the last intent made no batch."""

    shard: int
    reason: str


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
    """

    shard: int
    counts: dict[str, int]
    billing: str | None = None
    assumed: bool = False


class Downloaded(Event, frozen=True, kw_only=True):
    """The results are on disk, whole."""

    shard: int
    bytes: int


class Collected(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The reports of the shard are on disk; `classes` counts what became of its documents."""

    shard: int
    classes: dict[str, int] = {}


class Finished(Event, frozen=True, kw_only=True):
    """Receipt and list of errors are on disk."""


class Left(Event, frozen=True, kw_only=True):
    """Somebody detached."""


_KINDS: dict[str, type[Event]] = {
    "run": Started,
    "intent": Intent,
    "created": Created,
    "not_created": NotCreated,
    "disowned": Disowned,
    "withdrawn": Withdrawn,
    "ended": Ended,
    "downloaded": Downloaded,
    "collected": Collected,
    "finished": Finished,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What the journal says of one shard."""

    index: int
    requests: int
    bytes: int
    sha256: str
    phase: Phase = Phase.PLANNED
    generation: int = 0
    intent_us: int = 0
    created_us: int = 0
    batch: str | None = None
    adopted: bool = False
    disowned: tuple[str, ...] = ()
    billing: str | None = None
    billing_assumed: bool = False
    classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to send, wait for or save."""
        return self.phase is Phase.COLLECTED


@dataclass(frozen=True, slots=True)
class State:
    """What the journal says of the run. `run` is empty before its first event."""

    run: str = ""
    config: Config | None = None
    shards: tuple[Shard, ...] = ()
    started_us: int = 0
    finished_us: int | None = None

    @property
    def nothing_sent(self) -> bool:
        """Whether no create call can have reached a server."""
        return all(shard.phase is Phase.PLANNED and not shard.disowned for shard in self.shards)

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
        return frozenset(others.union(mine.disowned))


def encode(event: Event) -> bytes:
    """Return the line of an event, without its end."""
    fields: dict[str, Any] = msgspec.to_builtins(event)
    return wire.encode({"event": _NAMES[type(event)]} | fields)


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


def fold(events: Iterable[Event]) -> State:
    """Return the state after `events`.

    Raises:
        JournalError: an event cannot follow the ones before it.
    """
    state = State()
    for event in events:
        state = apply(state, event)
    return state


# What may follow what.
_BEFORE: dict[type[Event], frozenset[Phase]] = {
    Intent: frozenset({Phase.PLANNED, Phase.INTENDED}),
    Created: frozenset({Phase.INTENDED}),
    NotCreated: frozenset({Phase.INTENDED}),
    Disowned: frozenset({Phase.CREATED, Phase.ENDED, Phase.DOWNLOADED}),
    Withdrawn: frozenset({Phase.PLANNED}),
    Ended: frozenset({Phase.CREATED}),
    Downloaded: frozenset({Phase.ENDED}),
    Collected: frozenset({Phase.DOWNLOADED, Phase.WITHDRAWN}),
}


def apply(state: State, event: Event) -> State:
    """Return the state after one more event.

    Raises:
        JournalError: it cannot follow.
    """
    match event:
        case Started():
            return _start(state, event)
        case Finished():
            return replace(state, finished_us=event.at)
        case Left():
            return state
        case _:
            return _advance(state, event)


def _start(state: State, event: Started) -> State:
    if state.run:
        raise JournalError("the journal starts twice")
    if event.format != FORMAT:
        raise JournalError(
            f"the journal has format {event.format}; this version reads format {FORMAT}"
        )
    shards = tuple(
        Shard(index=i, requests=s.requests, bytes=s.bytes, sha256=s.sha256)
        for i, s in enumerate(event.shards)
    )
    return State(event.run, event.config, shards, event.at)


def _advance(state: State, event: Event) -> State:
    index: int = getattr(event, "shard", -1)
    if not 0 <= index < len(state.shards):
        raise JournalError(f"the journal speaks of shard {index}, which does not exist")
    shard = state.shards[index]
    if shard.phase not in _BEFORE[type(event)]:
        raise JournalError(f"shard {index} is {shard.phase}: {_NAMES[type(event)]} cannot follow")
    shards = (*state.shards[:index], _step(shard, event), *state.shards[index + 1 :])
    return replace(state, shards=shards)


def _step(shard: Shard, event: Event) -> Shard:
    match event:
        case Intent():
            first = event.at if shard.phase is Phase.PLANNED else shard.intent_us
            return replace(
                shard, phase=Phase.INTENDED, generation=event.generation, intent_us=first
            )
        case Created():
            return replace(
                shard, phase=Phase.CREATED, batch=event.batch, adopted=event.adopted,
                created_us=event.at,
            )  # fmt: skip
        case NotCreated():
            return replace(shard, phase=Phase.PLANNED, generation=shard.generation + 1)
        case Disowned():
            return replace(
                shard, phase=Phase.INTENDED, batch=None, adopted=False,
                disowned=(*shard.disowned, event.batch),
            )  # fmt: skip
        case Withdrawn():
            return replace(shard, phase=Phase.WITHDRAWN)
        case Ended():
            return replace(
                shard, phase=Phase.ENDED, billing=event.billing, billing_assumed=event.assumed
            )
        case Downloaded():
            return replace(shard, phase=Phase.DOWNLOADED)
        case Collected():
            return replace(shard, phase=Phase.COLLECTED, classes=event.classes)
        case _:
            raise AssertionError(f"no step for {shown(event)}")


def read(lines: Sequence[bytes]) -> State:
    """Return the state that the lines of a journal tell.

    Raises:
        JournalError: a line is damaged.
    """
    events = (decode(line, number) for number, line in enumerate(lines, 1))
    return fold(event for event in events if event is not None)
