"""Which documents are sent again, and as what: one round of repetitions over a run.

A round takes everything that can succeed, whatever the cause, into as few batches as possible. What
is sent for a document is decided by `again`; here is found whose turn it is. Reads the files of the
run, one shard at a time, and writes nothing.
"""

from __future__ import annotations

import mmap
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from batchyard import wire
from batchyard.client.inputs.custom_ids import to_custom_id
from batchyard.client.planning import plan
from batchyard.client.planning.spool import Spool
from batchyard.client.results import again, classes, collect, finals
from batchyard.client.running.journal import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from batchyard.client.results.collect import Outcome
    from batchyard.client.running.folder import DocumentEntry, Files
    from batchyard.client.running.journal import Shard, State

# What may be worth another try, and what only on request: of a person, or when the bill is paid.
REPEATABLE = frozenset({"retryable", "expired", "missing", "truncated", "paused", "invalid"})
# Of these an answer was paid, and another one would be paid once more.
PAID_AGAIN = frozenset({"truncated", "paused", "invalid"})
TOO_DEAR = "more than the ceiling that was approved"
CANCELED, BILLING = "canceled", "billing"
# Batches get smaller after one expired, but not so small that there are many of them.
_EXPIRED_REQUESTS_MIN = 10
_NEEDS_ANSWER = frozenset({"paused", "invalid"})


def on_request(state: State, *, canceled: bool = False) -> frozenset[str]:
    """Return the classes that a round by hand takes in beside those that are always worth a try.

    What was not answered for want of credit goes with it: who asks for it has paid the account.

    Args:
        state: of the run.
        canceled: whether what was canceled is asked for.
    """
    unpaid = {BILLING} if state.classes.get(BILLING) else set()
    return frozenset(unpaid | ({CANCELED} if canceled else set()))


@dataclass(frozen=True, slots=True)
class Last:
    """The last word on a document: its outcome, where that stands, and how often it was sent."""

    shard: int
    outcome: Outcome
    tries: int


@dataclass(frozen=True, slots=True)
class Bound:
    """What a round may cost, in micro-dollars.

    What was not charged is sent in any case. What is charged once more goes as long as all of the
    round together stays within `room`; what has no ceiling of its own, as long as there is room at
    all; nothing when `room` is None, and everything when `is_open`.
    `ceiling` returns what a request can cost, from its params.
    """

    ceiling: Callable[[bytes], int | None] = lambda _params: None
    room: int | None = None
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """What the next round sends.

    `again` counts by class the outcomes that no longer count; `notes` are for people. `micros` is
    what it can cost at most, None when that is not known. `left` counts by class the documents that
    could succeed and are not sent because of what they might cost, `left_prices` by class.
    """

    shards: Sequence[plan.Shard]
    again: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    micros: int | None = 0
    left: Mapping[str, int] = field(default_factory=dict)
    left_prices: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def left_micros(self) -> int | None:
        """Return what those that are left might cost together; None when that is not known."""
        total: int | None = 0
        for micros in self.left_prices.values():
            total = _plus(total, micros)
        return total


class _Result(msgspec.Struct, gc=False):
    message: msgspec.Raw = msgspec.Raw()


class _Line(msgspec.Struct, gc=False):
    custom_id: str
    result: _Result


_line = msgspec.json.Decoder(_Line)


def last_outcomes(
    files: Files, state: State, *, only: Callable[[Shard], bool] | None = None
) -> Iterator[Last]:
    """Yield the last outcome of every document that has one.

    Args:
        files: of the run.
        state: what its journal says.
        only: whether the documents of a collected shard are wanted; all if None.
    """
    found = finals.repeats(files, state)
    for shard in state.shards:
        if shard.phase is not Phase.COLLECTED or not (only is None or only(shard)):
            continue
        for outcome in collect.read_outcomes(files, shard.index):
            if found.is_last(shard.index, outcome.key):
                yield Last(shard.index, outcome, found.tries.get(outcome.key, 1))


@dataclass(slots=True)
class _Gathered:
    """The requests of a round: first those that are sent in any case."""

    bound: Bound
    free: list[plan.Request] = field(default_factory=list)
    paid: list[tuple[plan.Request, int | None, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    free_micros: int | None = 0

    def add(self, request: plan.Request, params: bytes, kind: str) -> None:
        """Take one more request for documents of a class."""
        micros = self.bound.ceiling(params)
        if kind in PAID_AGAIN:
            self.paid.append((request, micros, kind))
            return
        self.free.append(request)
        self.counts[kind] += 1 + len(request.copies)
        self.free_micros = _plus(self.free_micros, micros)

    def round(self, requests_max: int, notes: Sequence[str]) -> Round:
        """Return what the bound allows."""
        requests, total = [*self.free], self.free_micros
        left: Counter[str] = Counter()
        prices: dict[str, int | None] = {}
        for request, micros, kind in self.paid:
            wanted = _plus(total, micros)
            room = self.bound.room
            # Tools that the server runs have no ceiling: what is spent is all that can be judged.
            fits = room is not None and (room > 0 if wanted is None else wanted <= room)
            if fits or self.bound.is_open:
                requests.append(request)
                self.counts[kind] += 1 + len(request.copies)
                total = wanted
            else:
                left[kind] += 1 + len(request.copies)
                prices[kind] = _plus(prices.get(kind, 0), micros)
        notes = [*notes]
        if left:
            notes.append(f"{classes.named(left)} not sent again: {TOO_DEAR}")
        return Round(plan.pack(requests, requests_max), self.counts, notes, total, left, prices)


def _plus(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def gather(
    files: Files,
    state: State,
    settings: again.Settings,
    *,
    requests_max: int,
    also: frozenset[str] = frozenset(),
    bound: Bound | None = None,
) -> Round:
    """Return the next round; without shards when no document is worth another try.

    Args:
        files: of the run.
        state: of a run whose shards are all collected.
        settings: what bounds the tries of one document.
        requests_max: of a batch; fewer when documents expired.
        also: classes that are sent again as they were: canceled, billing.
        bound: what it may cost; None for whatever it does.

    Raises:
        ValueError: a file of the run is not what it was.
    """
    wanted = REPEATABLE | also
    number = state.round + 1
    gathered = _Gathered(bound or Bound(is_open=True))
    stops: Counter[tuple[str, str]] = Counter()
    notes: list[str] = []
    spool, largest = Spool(), 0
    found: dict[int, dict[str, Outcome]] = {}
    keys: set[tuple[int, str]] = set()  # of the documents; several may share a request
    for last in last_outcomes(files, state, only=lambda s: not s.classes or _any(s, wanted)):
        if last.outcome.class_ in wanted:
            found.setdefault(last.shard, {}).setdefault(last.outcome.custom_id, last.outcome)
            keys.add((last.shard, last.outcome.key))
    for index, entries in _entries(files, state, found):
        outcomes, shard = found.pop(index), state.shards[index]
        for outcome, params, message in _tries(files, index, outcomes):
            tried = outcome.as_tried
            decision = (
                again.Again(params)
                if tried.class_ in also
                else again.again(tried, params, message, settings)
            )
            if isinstance(decision, again.Stop):
                stops[outcome.class_, decision.reason] += 1
                continue
            owners = [each for each in entries[outcome.custom_id] if (index, each.key) in keys]
            largest = max(largest, shard.requests if tried.class_ == "expired" else 0)
            custom_id = to_custom_id(owners[0].key, number)
            body = b'{"custom_id":"%b","params":%b}' % (custom_id.encode(), decision.params)
            request = plan.request_of(owners, custom_id, spool.add(body))
            gathered.add(request, decision.params, outcome.class_)
        if set(shard.classes) == {"expired"} and shard.requests > 1:
            notes.append(f"all {shard.requests:,} requests of shard {index} expired")
    if largest:
        requests_max = min(requests_max, max(_EXPIRED_REQUESTS_MIN, -(-largest // 2)))
    for (kind, why), count in stops.items():
        notes.append(f"{classes.named({kind: count})} not sent again: {why}")
    return gathered.round(requests_max, notes)


def _any(shard: Shard, wanted: frozenset[str]) -> bool:
    return not wanted.isdisjoint(shard.classes)


def _entries(
    files: Files, state: State, wanted: Mapping[int, Mapping[str, Outcome]]
) -> Iterator[tuple[int, dict[str, list[DocumentEntry]]]]:
    """Yield the wanted entries of each wanted shard, by custom id."""
    shard, entries = -1, dict[str, "list[DocumentEntry]"]()
    for entry in files.read_documents(len(state.shards)) if wanted else ():
        if entry.shard not in wanted:
            continue
        if entry.shard != shard:
            if entries:
                yield shard, entries
            shard, entries = entry.shard, {}
        if entry.custom_id in wanted[entry.shard]:
            entries.setdefault(entry.custom_id, []).append(entry)
    if entries:
        yield shard, entries


def _tries(
    files: Files, shard: int, outcomes: Mapping[str, Outcome]
) -> Iterator[tuple[Outcome, bytes, bytes | None]]:
    """Yield each outcome with the params that were sent and the answer that came."""
    answers = _answers(files, shard, outcomes)
    with files.requests(shard).open("rb") as file:
        body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for entry in wire.split(memoryview(body)):
        outcome = outcomes.get(entry.custom_id)
        if outcome is not None:
            yield outcome, bytes(entry.params), answers.get(entry.custom_id)


def _answers(files: Files, shard: int, outcomes: Mapping[str, Outcome]) -> dict[str, bytes]:
    """Return the messages, as received, of the outcomes that are gone on from."""
    wanted = {key for key, outcome in outcomes.items() if outcome.class_ in _NEEDS_ANSWER}
    found: dict[str, bytes] = {}
    if not wanted:
        return found
    with files.results(shard).open("rb") as file:
        for raw in file:
            try:
                line = _line.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if line.custom_id in wanted and bytes(line.result.message):
                found.setdefault(line.custom_id, bytes(line.result.message))
    return found
