"""The last word on every document of a run, in the order of the inputs.

A document may stand in several shards, because it was sent again; the last collected one counts.
What is read is the list of documents, and of each shard where its outcomes lie: never all outcomes
at once. Memory grows with the documents that were sent again, and with the largest shard.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Self

import msgspec

from batchyard.client.problems import JournalError
from batchyard.client.results import collect
from batchyard.client.running.journal import Phase
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from batchyard.client.results.collect import Outcome
    from batchyard.client.running.folder import DocumentEntry, Files
    from batchyard.client.running.journal import State, Wait

_SHARDS_OPEN = 4
_REASONS: Mapping[Wait, str] = {
    "budget": "the budget is reached",
    "billing": "the account has to be paid first",
    "pilot": "somebody has to look at the pilot first",
}


@dataclass(frozen=True, slots=True)
class Repeats:
    """Which documents stand in several shards.

    `where` has the shard that counts of each document that was sent again, `tries` how often it was
    sent. `later` are the shards that hold such documents.
    """

    where: Mapping[str, int]
    tries: Mapping[str, int]
    later: frozenset[int]

    def is_last(self, shard: int, key: str) -> bool:
        """Whether the outcome in this shard is the last word on a document."""
        return self.where.get(key, shard) == shard


@dataclass(frozen=True, slots=True)
class Final:
    """The last word on a document, the shard that it stands in, and how often it was sent."""

    entry: DocumentEntry
    outcome: Outcome
    shard: int
    tries: int


def repeats(files: Files, state: State) -> Repeats:
    """Find the documents that were sent again.

    Raises:
        JournalError: the list of documents is damaged.
    """
    replaced = [shard.index for shard in state.shards if shard.phase is Phase.REPLACED]
    collected = {shard.index for shard in state.shards if shard.phase is Phase.COLLECTED}
    later = frozenset(
        shard.index
        for shard in state.shards
        if shard.index in collected
        and (
            shard.round > 0
            or shard.why in {"retry", "rerun"}
            or (replaced and shard.index > replaced[0])
        )
    )
    where: dict[str, int] = {}
    tries: Counter[str] = Counter()
    if later:
        for entry in files.read_documents(len(state.shards)):
            if entry.shard in later:
                where[entry.key] = entry.shard
        for entry in files.read_documents(len(state.shards)):
            if entry.key in where and entry.shard in collected:
                tries[entry.key] += 1
    return Repeats(where, tries, later)


def unsent(files: Files, state: State) -> Iterator[DocumentEntry]:
    """Yield the documents that were never sent, because their shards still wait.

    One that waits to be sent again is not among them: its earlier outcome counts until then.

    Raises:
        JournalError: the list of documents is damaged.
    """
    waiting = {shard.index for shard in state.shards if shard.phase is Phase.PLANNED}
    if not waiting:
        return
    collected = {shard.index for shard in state.shards if shard.phase is Phase.COLLECTED}
    known: set[str] = set()
    if any(state.shards[index].round for index in waiting):
        entries = files.read_documents(len(state.shards))
        known = {entry.key for entry in entries if entry.shard in collected}
    for entry in files.read_documents(len(state.shards)):
        if entry.shard in waiting and entry.key not in known:
            yield entry


def finals(
    files: Files, state: State, found: Repeats | None = None, *, waits_for: Wait | None = None
) -> Iterator[Final]:
    """Yield the last word on every document that has one, in the order of the inputs.

    Args:
        files: of the run.
        state: what its journal says.
        found: the documents that were sent again, if that is known.
        waits_for: what those that were never sent wait for; they come too then, as `not_sent`.

    Raises:
        JournalError: a file of the run is not what it was.
    """
    found = found or repeats(files, state)
    again = dict(found.where)
    never = set() if waits_for is None else {entry.key for entry in unsent(files, state)}
    with Outcomes(files) as outcomes:
        for entry in files.read_documents(len(state.shards)):
            if entry.key in never:
                if state.shards[entry.shard].phase is Phase.PLANNED:
                    assert waits_for is not None
                    outcome = collect.Outcome(
                        key=entry.key, custom_id=entry.custom_id, class_="not_sent",
                        type="not_sent", reason=_REASONS[waits_for],
                    )  # fmt: skip
                    yield Final(entry, outcome, entry.shard, 0)
                continue
            shard = again.pop(entry.key, None)
            if shard is None:
                is_collected = state.shards[entry.shard].phase is Phase.COLLECTED
                if entry.shard in found.later or not is_collected:
                    continue  # it was given where it stands first, or has no outcome yet
                shard = entry.shard
            outcome = outcomes.get(shard, entry.key)
            yield Final(entry, outcome, shard, found.tries.get(entry.key, 1))


Costs = dict[str, tuple[int, int | None]]


def costs(
    files: Files,
    state: State,
    charged: Callable[[Outcome, str, str | None], int | None],
    *,
    upto: int | None = None,
) -> Costs:
    """Return the tries of every document that was sent again, and what all of them cost.

    Args:
        files: of the run.
        state: what its journal says.
        charged: returns what an outcome was charged, in micro-dollars, from it, the model of the
            run, and how its shard was billed.
        upto: the last shard that counts; None for all.
    """
    assert state.config is not None
    keys = {
        entry.key
        for entry in files.read_documents(len(state.shards))
        if state.shards[entry.shard].round
    }
    found: Costs = {}
    for shard in state.shards[: None if upto is None else upto + 1]:
        if shard.phase is not Phase.COLLECTED:
            continue
        for outcome in collect.read_outcomes(files, shard.index):
            if outcome.key not in keys:
                continue
            tries, before = found.get(outcome.key, (0, 0))
            cost = charged(outcome, state.config.model, shard.billing)
            total = None if before is None or cost is None else before + cost
            found[outcome.key] = tries + 1, total
    return found


class _Key(msgspec.Struct, gc=False):
    key: str


_key = msgspec.json.Decoder(_Key)
_outcome = msgspec.json.Decoder(collect.Outcome)


class Outcomes:
    """The outcomes of the shards used last, by key: where each lies in its file."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._open: OrderedDict[int, tuple[BinaryIO, dict[str, int]]] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file, _index in self._open.values():
            file.close()

    def get(self, shard: int, key: str) -> Outcome:
        """Return the outcome of a document.

        Raises:
            JournalError: the file of the shard does not have it.
        """
        file, places = self._opened(shard)
        if key not in places:
            raise JournalError(f"{self._files.outcomes(shard)} has nothing on {shown(key)}")
        file.seek(places[key])
        return _outcome.decode(file.readline())

    def _opened(self, shard: int) -> tuple[BinaryIO, dict[str, int]]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) == _SHARDS_OPEN:
            self._open.popitem(last=False)[1][0].close()
        file = self._files.outcomes(shard).open("rb")
        places: dict[str, int] = {}
        at = 0
        for line in file:
            places[_key.decode(line).key] = at
            at += len(line)
        self._open[shard] = file, places
        return self._open[shard]
