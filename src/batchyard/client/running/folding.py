"""What the events of a journal say together: the state of a run, and what may follow what. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec import structs

from batchyard.client.problems import JournalError
from batchyard.client.running import journal
from batchyard.client.running.journal import (
    Approved,
    Collected,
    Created,
    Deleted,
    Disowned,
    Downloaded,
    Duplicate,
    Ended,
    Event,
    Extended,
    Finished,
    Intent,
    Left,
    Moved,
    NotCreated,
    Phase,
    PlannedShard,
    Saving,
    Shard,
    Started,
    State,
    Terms,
    Why,
    Withdrawn,
)
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


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
    Duplicate: frozenset(Phase) - {Phase.PLANNED, Phase.WITHDRAWN, Phase.REPLACED},
    Deleted: frozenset({Phase.COLLECTED}),
    Withdrawn: frozenset({Phase.PLANNED}),
    Ended: frozenset({Phase.CREATED}),
    Downloaded: frozenset({Phase.ENDED}),
    Collected: frozenset({Phase.DOWNLOADED, Phase.WITHDRAWN}),
}


def apply(state: State, event: Event) -> State:  # noqa: PLR0911 - one for each kind
    """Return the state after one more event.

    Raises:
        JournalError: it cannot follow.
    """
    match event:
        case Started():
            return _start(state, event)
        case Extended():
            return _extend(state, event)
        case Terms():
            return replace(state, terms=event)
        case Saving():
            # What a finished run is to delete is still to be done.
            kept = event.delete and any(s.batch and s.batch not in s.deleted for s in state.shards)
            finished_us = None if kept else state.finished_us
            return replace(state, saving=event, finished_us=finished_us)
        case Moved():
            assert state.config is not None
            is_own = event.base_url is None
            config = structs.replace(
                state.config, base_url=event.base_url, local=is_own, upstreams=event.upstreams
            )
            return replace(state, config=config)
        case Approved():
            return replace(state, is_approved=True)
        case Finished():
            return replace(state, finished_us=event.at)
        case Left():
            return state
        case _:
            return _advance(state, event)


def _start(state: State, event: Started) -> State:
    if state.run:
        raise JournalError("the journal starts twice")
    if event.format not in journal.FORMATS_READ:
        known = " and ".join(map(str, sorted(journal.FORMATS_READ)))
        raise JournalError(
            f"the journal has format {event.format}; this version reads formats {known}"
        )
    shards = tuple(_planned(s, i, 0, "first") for i, s in enumerate(event.shards))
    documents = event.documents
    if documents is None:
        documents = sum(shard.requests for shard in shards)
    return State(
        event.run, event.config, shards, event.at, documents=documents, approved=event.approved,
        terms=event.terms or Terms(), saving=event.saving or Saving(),
    )  # fmt: skip


def _extend(state: State, event: Extended) -> State:
    if not state.run:
        raise JournalError("the journal is extended before it starts")
    shards = list(state.shards)
    for index in event.replaces:
        if not 0 <= index < len(shards) or shards[index].phase is not Phase.PLANNED:
            raise JournalError(f"shard {index} cannot be replaced: it is not one that waits")
        shards[index] = replace(shards[index], phase=Phase.REPLACED)
    shards += [
        _planned(s, i, event.round, event.why) for i, s in enumerate(event.shards, len(shards))
    ]
    again = dict(state.again)
    for name, count in event.again.items():
        again[name] = again.get(name, 0) + count
    rounds = state.automatic_rounds
    if event.why == "rerun":
        rounds = 0  # for what is new, all rounds are still to come
    elif event.why == "retry" and not event.by_hand:
        rounds += event.round > state.round
    return replace(
        state,
        config=event.config or state.config,
        shards=tuple(shards),
        again=again,
        documents=state.documents if event.documents is None else event.documents,
        automatic_rounds=rounds,
        approved=event.approved or state.approved,
        is_approved=state.is_approved and not any(s.why == "pilot" for s in event.shards),
        finished_us=None,
    )


def _planned(shard: PlannedShard, index: int, round_: int, why: Why) -> Shard:
    return Shard(
        index=index, requests=shard.requests, bytes=shard.bytes, sha256=shard.sha256,
        round=round_, why=shard.why or why,
    )  # fmt: skip


def _advance(state: State, event: Event) -> State:
    index: int = getattr(event, "shard", -1)
    if not 0 <= index < len(state.shards):
        raise JournalError(f"the journal speaks of shard {index}, which does not exist")
    shard = state.shards[index]
    if shard.phase not in _BEFORE[type(event)]:
        raise JournalError(
            f"shard {index} is {shard.phase}: {journal.name_of(event)} cannot follow"
        )
    after = _step(shard, event)
    if isinstance(event, Ended | Downloaded) and state.config is not None:
        # With the results, so that what was under way as the run moved counts as at the new one.
        after = replace(after, server=state.config.base_url)
    shards = (*state.shards[:index], after, *state.shards[index + 1 :])
    return replace(state, shards=shards)


def _step(shard: Shard, event: Event) -> Shard:  # noqa: PLR0911 - one for each event
    match event:
        case Intent():
            first = event.at if shard.phase is Phase.PLANNED else shard.intent_us
            return replace(
                shard, phase=Phase.INTENDED, generation=event.generation, intent_us=first,
                ceiling_micros=event.ceiling_micros,
            )  # fmt: skip
        case Created():
            return replace(
                shard, phase=Phase.CREATED, batch=event.batch, adopted=event.adopted,
                created_us=event.at,
            )  # fmt: skip
        case NotCreated():
            doubt_us = shard.doubt_us
            if event.guessed and doubt_us is None:
                doubt_us = shard.intent_us
            return replace(
                shard, phase=Phase.PLANNED, generation=shard.generation + 1, doubt_us=doubt_us
            )
        case Disowned():
            return replace(
                shard, phase=Phase.INTENDED, batch=None, adopted=False,
                disowned=(*shard.disowned, event.batch),
            )  # fmt: skip
        case Duplicate():
            return replace(shard, duplicates=(*shard.duplicates, event.batch))
        case Deleted():
            return replace(shard, deleted=(*shard.deleted, event.batch))
        case Withdrawn():
            return replace(shard, phase=Phase.WITHDRAWN)
        case Ended():
            return replace(
                shard, phase=Phase.ENDED, billing=event.billing, billing_assumed=event.assumed,
                repeated_calls=event.repeated_calls,
            )  # fmt: skip
        case Downloaded():
            return replace(shard, phase=Phase.DOWNLOADED)
        case Collected():
            return replace(
                shard, phase=Phase.COLLECTED, classes=event.classes, cost_micros=event.cost_micros
            )
        case _:
            raise AssertionError(f"no step for {shown(event)}")


def read(lines: Sequence[bytes]) -> State:
    """Return the state that the lines of a journal tell.

    Raises:
        JournalError: a line is damaged.
    """
    events = (journal.decode(line, number) for number, line in enumerate(lines, 1))
    return fold(event for event in events if event is not None)
