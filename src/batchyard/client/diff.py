"""Two runs over the same inputs, side by side: documents by key, fields of structured answers.

Documents are looked at one after the other; what is kept is the shard of each document of the
second run. Answers are compared as they were received, structured ones as values.
"""

from __future__ import annotations

import difflib
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from batchyard.client.results import finals, formats, receipt
from batchyard.client.running.journal import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchyard.client.results.collect import Outcome
    from batchyard.client.results.receipt import Receipt
    from batchyard.client.running.folder import DocumentEntry, Files
    from batchyard.client.running.journal import State

What = Literal["same", "different", "only_a", "only_b"]
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Pair:
    """One document in both runs.

    `a` and `b` are what became of it, None where the run does not have it or not yet. It is `same`
    when both answers are, or neither run has one and it ended alike. `fields` are those of
    structured answers that differ, by their path (`author.name`). `other_input` when it is known
    that the inputs were not the same.
    """

    key: str
    what: What
    a: str | None
    b: str | None
    fields: tuple[str, ...] = ()
    other_input: bool = False


@dataclass(slots=True)
class Agreement:
    """In how many documents a field is there in either answer, and equal in both."""

    documents: int = 0
    equal: int = 0

    @property
    def percent(self) -> float:
        """Return the part of equal ones, in percent with one decimal."""
        return round(100 * self.equal / self.documents, 1) if self.documents else 0.0


@dataclass(slots=True)
class Sums:
    """What a comparison found, counted while it is iterated."""

    counts: dict[What, int] = field(
        default_factory=lambda: {"same": 0, "different": 0, "only_a": 0, "only_b": 0}
    )
    fields: dict[str, Agreement] = field(default_factory=dict)
    other_inputs: int = 0

    @property
    def both(self) -> int:
        """Return how many documents both runs have."""
        return self.counts["same"] + self.counts["different"]


class Side:
    """One of the runs, for reading. Use it in a `with` block."""

    def __init__(self, files: Files, state: State) -> None:
        self.files, self.state = files, state
        self._stack = ExitStack()
        self._answers = formats.Answers(files)
        self._outcomes = finals.Outcomes(files)
        self.found = finals.repeats(files, state)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._answers)
            stack.enter_context(self._outcomes)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def is_structured(self) -> bool:
        """Whether answers are to match a schema."""
        return self.state.config is not None and self.state.config.schema is not None

    def places(self) -> dict[str, int]:
        """Return the shard that has the last outcome of each document."""
        places: dict[str, int] = {}
        for entry in self.files.read_documents(len(self.state.shards)):
            if self.state.shards[entry.shard].phase is Phase.COLLECTED:
                places[entry.key] = self.found.where.get(entry.key, entry.shard)
        return places

    def outcome(self, shard: int, key: str) -> Outcome:
        """Return the outcome of a document."""
        return self._outcomes.get(shard, key)

    def text(self, shard: int, outcome: Outcome) -> str | None:
        """Return the answer for a document, None when there is none."""
        return self._answers.text(shard, outcome)

    def sums(self) -> Receipt:
        """Return tokens and money of what is collected so far."""
        return receipt.make(
            self.state,
            receipt.all_outcomes(self.files, self.state),
            self.state.finished_us or self.state.started_us,
            is_last=self.found.is_last,
        )


def compare(a: Side, b: Side, sums: Sums) -> Iterator[Pair]:
    """Yield every document of either run, in the order of the first; count into `sums`.

    Raises:
        JournalError: a file of a run is not what it was.
    """
    others = b.places()
    inputs = _inputs(b)
    is_structured = a.is_structured or b.is_structured
    for final in finals.finals(a.files, a.state, a.found):
        key = final.outcome.key
        shard = others.pop(key, None)
        if shard is None:
            yield _counted(Pair(key, "only_a", final.outcome.class_, None), sums)
            continue
        other = b.outcome(shard, key)
        mine, theirs = a.text(final.shard, final.outcome), b.text(shard, other)
        fields: tuple[str, ...] = ()
        is_same = mine == theirs if mine is not None else final.outcome.class_ == other.class_
        if is_structured and mine is not None and theirs is not None:
            values = _json(mine), _json(theirs)
            fields = _fields(*values, sums)
            is_same = values[0] == values[1] and not fields
        yield _counted(
            Pair(
                key,
                "same" if is_same else "different",
                final.outcome.class_,
                other.class_,
                fields,
                _is_other(final.entry, inputs.get(key, "")),
            ),
            sums,
        )
    for key, shard in others.items():
        yield _counted(Pair(key, "only_b", None, b.outcome(shard, key).class_), sums)


def lines(a: Side, b: Side, key: str) -> Iterator[str] | None:
    """Return the unified diff of the answers for one document; None when neither run has it.

    Raises:
        JournalError: a file of a run is not what it was.
    """
    texts = []
    for side in (a, b):
        shard = side.places().get(key)
        text = None if shard is None else side.text(shard, side.outcome(shard, key))
        texts.append((shard is not None, text or ""))
    if not any(is_there for is_there, _ in texts):
        return None
    mine, theirs = (text for _, text in texts)
    if a.is_structured or b.is_structured:
        mine, theirs = _pretty(mine), _pretty(theirs)
    first, second = (f"{side.files.out}: {key}" for side in (a, b))
    return difflib.unified_diff(mine.splitlines(), theirs.splitlines(), first, second, lineterm="")


def _counted(pair: Pair, sums: Sums) -> Pair:
    sums.counts[pair.what] += 1
    sums.other_inputs += pair.other_input
    return pair


def _inputs(side: Side) -> dict[str, str]:
    """Return the hash of the input of each document, as far as it is known."""
    return {
        entry.key: entry.sha256
        for entry in side.files.read_documents(len(side.state.shards))
        if entry.sha256
    }


def _is_other(entry: DocumentEntry, sha256: str) -> bool:
    return bool(entry.sha256 and sha256) and entry.sha256 != sha256


def _json(text: str) -> Any:
    """Return what a structured answer says; a text that is no JSON is itself."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _pretty(text: str) -> str:
    try:
        return msgspec.json.format(text.encode(), indent=2).decode()
    except msgspec.DecodeError:
        return text


def _fields(mine: Any, theirs: Any, sums: Sums) -> tuple[str, ...]:
    """Count the agreement of every field of two answers, and return those that differ."""
    if not (isinstance(mine, dict) and isinstance(theirs, dict)):
        return ()
    one, other = dict(_flat(mine)), dict(_flat(theirs))
    differing = []
    for name in dict.fromkeys([*one, *other]):
        agreement = sums.fields.setdefault(name, Agreement())
        agreement.documents += 1
        mine_, theirs_ = one.get(name, _NOTHING), other.get(name, _NOTHING)
        # In Python true is 1; in JSON it is not.
        if mine_ == theirs_ and isinstance(mine_, bool) == isinstance(theirs_, bool):
            agreement.equal += 1
        else:
            differing.append(name)
    return tuple(differing)


def _flat(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is no object, with its path; a list is one value."""
    for name, each in value.items():
        if isinstance(each, dict) and each:
            yield from _flat(each, f"{path}{name}.")
        else:
            yield f"{path}{name}", each
