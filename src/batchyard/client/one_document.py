"""All that a run knows of one document: what was sent, what came, every try, what it cost."""

from __future__ import annotations

import itertools
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard import wire
from batchyard.client.problems import InputError
from batchyard.client.results import finals, formats, receipt
from batchyard.client.running.journal import Phase
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.client.results.collect import Outcome
    from batchyard.client.running.folder import DocumentEntry, Files
    from batchyard.client.running.journal import Shard, State

_NAMED = 3


@dataclass(frozen=True, slots=True)
class Try:
    """One time that a document was sent, or is to be; `outcome` is None before its end.

    `cost_micros` is what it was charged in micro-dollars, None when that is not known.
    """

    shard: Shard
    entry: DocumentEntry
    outcome: Outcome | None
    cost_micros: int | None


@dataclass(frozen=True, slots=True)
class OneDocument:
    """A document with its tries, the first one first.

    `params` are the parameters that were sent last, None when they are not known; `result` is the
    line of results as received, None when there is none; `text` is the report.
    """

    key: str
    tries: Sequence[Try]
    params: bytes | None
    result: bytes | None
    text: str | None

    @property
    def last(self) -> Try:
        """Return the try that counts: the last one with an outcome, or the last."""
        with_outcome = [each for each in self.tries if each.outcome is not None]
        return (with_outcome or self.tries)[-1]

    @property
    def cost_micros(self) -> int | None:
        """Return what all tries cost together, None when that is not known."""
        total = 0
        for each in self.tries:
            if each.outcome is None:
                continue
            if each.cost_micros is None:
                return None
            total += each.cost_micros
        return total


def look(files: Files, state: State, name: str) -> OneDocument:
    """Return a document of a run.

    Args:
        files: of the run, which may be under way.
        state: what its journal says.
        name: the key of the document, or the custom id of a request.

    Raises:
        InputError: the run has no such document.
        JournalError: a file of the run is not what it was.
    """
    assert state.config is not None
    entries = _find(files, state, name)
    tries = []
    with finals.Outcomes(files) as outcomes:
        for entry in entries:
            shard, outcome, cost = state.shards[entry.shard], None, None
            if shard.phase is Phase.COLLECTED:
                outcome = outcomes.get(shard.index, entry.key)
                cost = receipt.charged(outcome, state.config.model, shard.billing)
            tries.append(Try(shard, entry, outcome, cost))
    found = OneDocument(entries[0].key, tries, None, None, None)
    last = found.last
    result = text = None
    if last.outcome is not None:
        with formats.Answers(files) as answers:
            result = answers.line(last.shard.index, last.outcome)
            text = answers.text(last.shard.index, last.outcome)
    params = _params(files, last.shard.index, last.entry.custom_id)
    return OneDocument(found.key, tries, params, result, text)


def _find(files: Files, state: State, name: str) -> list[DocumentEntry]:
    """Return where a document stands, in the order in which it was sent.

    Raises:
        InputError: nowhere.
    """
    by_key: list[DocumentEntry] = []
    by_id: DocumentEntry | None = None
    near: list[str] = []
    for entry in files.read_documents(len(state.shards)):
        if state.shards[entry.shard].phase is Phase.REPLACED:
            continue
        if entry.key == name:
            by_key.append(entry)
        elif entry.custom_id == name and by_id is None:
            by_id = entry
        elif len(near) < _NAMED and name in entry.key and entry.key not in near:
            near.append(entry.key)
    if by_key:
        return by_key
    if by_id is not None:
        return _find(files, state, by_id.key)
    if not near:
        first = itertools.islice(files.read_documents(len(state.shards)), _NAMED)
        near = list(dict.fromkeys(entry.key for entry in first))
    hint = ", ".join(shown(key) for key in near)
    raise InputError(f"{files.out} has no document {shown(name)}; it has {hint}, …")


def _params(files: Files, shard: int, custom_id: str) -> bytes | None:
    path = files.requests(shard)
    if not path.exists():
        return None  # the batch was made elsewhere, and only its results are known
    with path.open("rb") as file:
        body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for request in wire.split(memoryview(body)):
        if request.custom_id == custom_id:
            return bytes(request.params)
    return None
