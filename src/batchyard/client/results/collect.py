"""From the results of a batch to reports on disk and one outcome for each document.

Results are matched by id, never by position; ids that were not submitted are counted and ignored,
documents without a result become `missing`. Documents that share a request share its result; the
first of them carries its usage. Collecting twice gives the same files.
"""

from __future__ import annotations

import mmap
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import msgspec

from batchyard import crash, price, wire
from batchyard.client.inputs.custom_ids import from_custom_id
from batchyard.client.results import again
from batchyard.client.results.classes import SAVED, Class
from batchyard.client.running import durable
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from batchyard.client.results.outputs import Tree
    from batchyard.client.results.schema import Schema
    from batchyard.client.running.folder import DocumentEntry, Files

    Keeping = Callable[["Outcome"], "Outcome"]
    Entries = Mapping[str, DocumentEntry | Sequence[DocumentEntry]]

_ANSWERED = SAVED | {"refused", "empty", "invalid"}

_RETRYABLE = frozenset({"api_error", "overloaded_error", "rate_limit_error", "timeout_error"})
_REASON_CHARS_MAX = 2_000


class Kept(msgspec.Struct, frozen=True, gc=False):
    """Where the answer stands that a document keeps: a shard, and a line of its results."""

    shard: int
    custom_id: str
    at: int | None


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What became of one document: a line of `outcomes-NNN.jsonl`.

    `output` is the name of its report below the output folder, where the run writes such files.
    `usage` is None when nothing was answered, and so nothing is charged, and when an answer does
    not tell it, so that nobody knows what is charged. `at` is the byte of the results file where
    the line begins that this was read from. `same_as` is the document whose request this one
    shares, and which carries the usage. `continues` when the answer goes on from earlier turns.
    `kept` when this try was not answered and the answer to an earlier one stays the last word:
    class and report are of that one, and `tried` is what became of this.
    """

    key: str
    custom_id: str
    class_: Class = msgspec.field(name="class")
    type: str
    reason: str | None = None
    output: str | None = None
    model: str | None = None
    usage: price.Usage | None = None
    at: int | None = None
    same_as: str | None = None
    continues: bool = False
    kept: Kept | None = None
    tried: Class | None = None

    @property
    def as_tried(self) -> Outcome:
        """Return the outcome with the class of this try, whatever an earlier one gave."""
        return self if self.tried is None else msgspec.structs.replace(self, class_=self.tried)

    def answered_in(self, shard: int) -> tuple[int, Outcome]:
        """Return the shard, and the outcome as it stands there, whose answer counts.

        Args:
            shard: where this outcome stands.
        """
        if self.kept is None:
            return shard, self
        there = msgspec.structs.replace(
            self, custom_id=self.kept.custom_id, at=self.kept.at, kept=None
        )
        return self.kept.shard, there

    @property
    def is_saved(self) -> bool:
        """Whether the report is on disk."""
        return self.class_ in SAVED

    @property
    def is_answered(self) -> bool:
        """Whether the model answered for this document, so that something is charged for it."""
        return self.class_ in _ANSWERED and self.same_as is None and self.kept is None


@dataclass(slots=True)
class Summary:
    """What collecting a shard found."""

    classes: dict[Class, int] = field(default_factory=dict)
    unknown_ids: int = 0
    unknown_first: str = ""
    repeated_ids: int = 0
    unreadable: int = 0

    @property
    def saved(self) -> int:
        """Return how many reports were written."""
        return sum(count for name, count in self.classes.items() if name in SAVED)

    @property
    def documents(self) -> int:
        """Return how many documents have an outcome; more than requests where some share one."""
        return sum(self.classes.values())

    def ignore(self, custom_id: str, *, is_repeated: bool) -> None:
        """Count a line that is not the first of a request of the shard."""
        if is_repeated:
            self.repeated_ids += 1
        else:
            self.unknown_ids += 1
            self.unknown_first = self.unknown_first or _key(custom_id)

    @property
    def oddities(self) -> str:
        """Return what was ignored in the results, for people; empty when nothing was."""
        found = {
            f"unknown ids ignored (first {self.unknown_first})": self.unknown_ids,
            "repeated ids ignored": self.repeated_ids,
            "unreadable lines ignored": self.unreadable,
        }
        return ", ".join(f"{count} {text}" for text, count in found.items() if count)


class _Block(msgspec.Struct, gc=False):
    type: str
    text: str | None = None


class _Details(msgspec.Struct, gc=False):
    category: str | None = None
    explanation: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: list[_Block]
    stop_reason: str | None = None
    stop_details: _Details | None = None
    model: str | None = None
    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Error(msgspec.Struct, gc=False):
    type: str = "api_error"
    message: str = ""


class _ErrorResponse(msgspec.Struct, gc=False):
    error: _Error


class _Result(msgspec.Struct, gc=False):
    type: str
    message: _Message | None = None
    error: _ErrorResponse | None = None


class _Line(msgspec.Struct, gc=False):
    custom_id: str
    result: _Result


class _Counts(msgspec.Struct, gc=False):
    """What every `usage` has."""

    input_tokens: int
    output_tokens: int


class _Id(msgspec.Struct, gc=False):
    custom_id: str


_line = msgspec.json.Decoder(_Line)
_id = msgspec.json.Decoder(_Id)
_counts = msgspec.json.Decoder(_Counts)
_outcome = msgspec.json.Decoder(Outcome)


def collect(
    files: Files,
    tree: Tree | None,
    shard: int,
    entries: Entries,
    *,
    saved: Callable[[int], None],
    schema: Schema | None = None,
    is_again: bool = False,
    earlier: Callable[[], Mapping[str, tuple[int, Outcome]]] = dict,
) -> Summary:
    """Write the reports of a shard, then its outcomes; on return both are durable.

    Args:
        files: of the run.
        tree: where reports go; None when no document gets a file of its own.
        shard: whose results are on disk.
        entries: its documents by custom id; several when they share a request.
        saved: called with the number of reports written so far; may raise to stop.
        schema: what answers have to look like.
        is_again: whether the shard sends documents again, so that answers may continue others.
        earlier: returns, by key, the answers that documents of the shard had before, with their
            shards; asked only when a request was not answered.
    """
    summary = Summary()
    before = earlier_texts(files, shard) if is_again else {}
    kept = _keeping(earlier) if is_again else _as_it_is

    def outcomes() -> Iterator[bytes]:
        left = dict(entries)
        for at, line in _numbered(files.results(shard)):
            result = _read(line, summary)
            if result is None:
                continue
            owners = left.pop(result.custom_id, None)
            if owners is None:
                summary.ignore(result.custom_id, is_repeated=result.custom_id in entries)
                continue
            first, *others = _all(owners)
            outcome, text = judge(first, result.result, schema, before.get(result.custom_id, ""))
            outcome = msgspec.structs.replace(outcome, at=at)
            for each in (outcome, *(_twin(outcome, entry) for entry in others)):
                if tree is not None and each.output is not None and text is not None:
                    tree.add(each.output, text if text.endswith("\n") else text + "\n")
                    crash.point("report_written")
                yield _counted(kept(each), summary)
            saved(summary.saved)
        for owners in left.values():
            for entry in _all(owners):
                reason = "the results hold no line for it"
                yield _counted(kept(_unanswered(entry, "missing", reason)), summary)

    def reports_first() -> Iterator[bytes]:
        with nullcontext() if tree is None else tree.grouped():
            yield from outcomes()

    durable.write(files.outcomes(shard), reports_first())
    return summary


def _all(owners: DocumentEntry | Sequence[DocumentEntry]) -> Sequence[DocumentEntry]:
    return owners if isinstance(owners, list | tuple) else [owners]  # type: ignore[list-item]


def _twin(outcome: Outcome, entry: DocumentEntry) -> Outcome:
    """Return the outcome of another document with the same request; it costs nothing more."""
    return msgspec.structs.replace(
        outcome, key=entry.key, output=entry.output if outcome.output is not None else None,
        usage=None,
        same_as=outcome.key,
    )  # fmt: skip


def _as_it_is(outcome: Outcome) -> Outcome:
    return outcome


def _keeping(earlier: Callable[[], Mapping[str, tuple[int, Outcome]]]) -> Keeping:
    """Return what makes of each outcome of a repetition the last word on its document."""
    answers = cache(earlier)

    def kept(outcome: Outcome) -> Outcome:
        if outcome.class_ in _ANSWERED:
            return outcome
        return _kept(outcome, answers().get(outcome.key))

    return kept


def _kept(outcome: Outcome, earlier: tuple[int, Outcome] | None) -> Outcome:
    """Return what counts of a try without an answer: the answer that the document had before."""
    if earlier is None or outcome.class_ == "billing":  # when it is paid, it is sent anyway
        return outcome
    shard, before = earlier
    reason = (
        f"{before.reason or before.type}; sent again, and not answered: "
        f"{outcome.reason or outcome.type}"
    )
    return msgspec.structs.replace(
        before,
        custom_id=outcome.custom_id,
        reason=reason[:_REASON_CHARS_MAX],
        usage=None,
        at=outcome.at,
        same_as=outcome.same_as,
        kept=before.kept or Kept(shard, before.custom_id, before.at),
        tried=outcome.class_,
    )


def earlier_texts(files: Files, shard: int) -> dict[str, str]:
    """Return, by custom id, what the model had said in the turns that a shard continues."""
    texts: dict[str, str] = {}
    with files.requests(shard).open("rb") as file:
        body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for entry in wire.split(memoryview(body)):
        text = again.earlier_text(bytes(entry.params))
        if text:
            texts[entry.custom_id] = text
    return texts


def withdraw(
    files: Files,
    shard: int,
    entries: Iterable[DocumentEntry],
    earlier: Mapping[str, tuple[int, Outcome]],
) -> Summary:
    """Write the outcomes of a shard that was canceled before it was sent.

    Args:
        files: of the run.
        shard: that is not sent.
        entries: its documents.
        earlier: as for `collect`.
    """
    reason, summary = "the run was canceled before it was sent", Summary()
    outcomes = (_unanswered(entry, "canceled", reason) for entry in entries)
    lines = (_counted(_kept(each, earlier.get(each.key)), summary) for each in outcomes)
    durable.write(files.outcomes(shard), lines)
    return summary


def read_outcomes(files: Files, shard: int) -> Iterator[Outcome]:
    """Yield what became of the documents of a collected shard."""
    for line in _lines(files.outcomes(shard)):
        yield _outcome.decode(line)


def is_whole(path: Path, requests: int) -> bool:
    """Whether a results file has a line for each request and no torn one."""
    count, last = 0, b""
    for line in _lines(path):
        count, last = count + 1, line
    try:
        _id.decode(last)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return count >= requests


def judge(
    entry: DocumentEntry, result: _Result, schema: Schema | None = None, before: str = ""
) -> tuple[Outcome, str | None]:
    """Return the outcome of a result and the text of its report, None when there is none.

    Args:
        entry: the document.
        result: what came.
        schema: what the report has to look like.
        before: what the model had said before it paused.
    """
    if result.type == "succeeded" and result.message is not None:
        return _answered(entry, result.message, schema, before)
    if result.type == "errored":
        error = result.error.error if result.error else _Error(message="no reason was given")
        return _errored(entry, error), None
    if result.type == "expired":
        return _unanswered(entry, "expired", "24 hours passed before it was sent"), None
    if result.type == "canceled":
        return _unanswered(entry, "canceled", "the batch was canceled before it was sent"), None
    return _unanswered(entry, "missing", f"a result of unknown type {result.type}"), None


def text_of(message: _Message) -> str:
    """Return what the model says; thinking and tool blocks are in the raw results."""
    return "".join(block.text or "" for block in message.content if block.type == "text")


def text_of_line(line: bytes, custom_id: str) -> str | None:
    """Return what the model says in a line of results; None when it is not the line of that id."""
    try:
        read = _line.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if read.custom_id != custom_id or read.result.message is None:
        return None
    return text_of(read.result.message)


def _answered(
    entry: DocumentEntry, message: _Message, schema: Schema | None, before: str
) -> tuple[Outcome, str | None]:
    text = before + text_of(message)
    stop = message.stop_reason or "none"
    kind, reason = _ending(message, stop)
    if kind == "succeeded" and not text.strip():
        kind, reason = "empty", f"the answer holds no text (stop_reason {stop})"
    if kind == "succeeded" and schema is not None:
        reason = schema.problem(text)
        kind = "succeeded" if reason is None else "invalid"
    outcome = Outcome(
        key=entry.key,
        custom_id=entry.custom_id,
        class_=kind,
        type=stop,
        reason=reason[:_REASON_CHARS_MAX] if reason else None,
        output=entry.output if kind in SAVED else None,
        model=message.model,
        usage=_usage(message.usage),
        continues=bool(before),
    )
    return outcome, text if kind in SAVED else None


def _ending(message: _Message, stop: str) -> tuple[Class, str | None]:
    """Return what the stop reason of an answer makes of it, and why."""
    match stop:
        case "refusal":
            details = message.stop_details or _Details()
            return "refused", details.explanation or details.category or "the model refused"
        case "max_tokens" | "model_context_window_exceeded":
            return "truncated", f"the report is cut: stop_reason {stop}"
        case "pause_turn":
            return "paused", "the model paused in a long turn; the report is not complete"
        case _:
            return "succeeded", None


def _usage(raw: msgspec.Raw | msgspec.UnsetType) -> price.Usage | None:
    """Return the usage of an answer; None when it does not tell what was used."""
    if isinstance(raw, msgspec.UnsetType):
        return None
    try:
        _counts.decode(raw)
        return price.read_usage(raw)
    except (msgspec.DecodeError, ValueError):
        return None


def _errored(entry: DocumentEntry, error: _Error) -> Outcome:
    kind: Class = "needs_fix"
    if error.type == "billing_error" or "credit balance" in error.message.lower():
        kind = "billing"
    elif error.type in _RETRYABLE:
        kind = "retryable"
    return Outcome(
        key=entry.key,
        custom_id=entry.custom_id,
        class_=kind,
        type=error.type,
        reason=error.message[:_REASON_CHARS_MAX],
    )


def _unanswered(entry: DocumentEntry, kind: Class, reason: str) -> Outcome:
    return Outcome(key=entry.key, custom_id=entry.custom_id, class_=kind, type=kind, reason=reason)


def _key(custom_id: str) -> str:
    """Return the key behind an id that is not ours: a person may know whose document that is."""
    try:
        return shown(from_custom_id(custom_id).key)
    except ValueError:
        return shown(custom_id)


def _counted(outcome: Outcome, summary: Summary) -> bytes:
    summary.classes[outcome.class_] = summary.classes.get(outcome.class_, 0) + 1
    return wire.encode(outcome) + b"\n"


def _read(line: bytes, summary: Summary) -> _Line | None:
    try:
        return _line.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        summary.unreadable += 1
        return None


def _lines(path: Path) -> Iterator[bytes]:
    for _, line in _numbered(path):
        yield line


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield every line that is not empty, after the byte at which it begins."""
    at = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield at, line
            at += len(line)
