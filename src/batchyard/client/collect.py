"""From the results of a batch to reports on disk and one outcome for each document.

Results are matched by id, never by position; ids that were not submitted are counted and ignored,
documents without a result become `missing`. Collecting twice gives the same files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec

from batchyard import crash, price, wire
from batchyard.client import durable
from batchyard.client.custom_ids import from_custom_id
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from batchyard.client.folder import DocumentEntry, Files
    from batchyard.client.journal import Shard
    from batchyard.client.outputs import Tree

Class = Literal[
    "succeeded", "truncated", "paused", "refused", "empty", "needs_fix", "billing", "retryable",
    "expired", "canceled", "missing",
]  # fmt: skip
# Whose report is on disk, although the last two are not complete.
SAVED: frozenset[Class] = frozenset({"succeeded", "truncated", "paused"})
_ANSWERED = SAVED | {"refused", "empty"}

_RETRYABLE = frozenset({"api_error", "overloaded_error", "rate_limit_error", "timeout_error"})
_REASON_CHARS_MAX = 2_000


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What became of one document: a line of `outcomes-NNN.jsonl`.

    `usage` is None when nothing was answered, and so nothing is charged, and when an answer does
    not tell it, so that nobody knows what is charged.
    """

    key: str
    custom_id: str
    class_: Class = msgspec.field(name="class")
    type: str
    reason: str | None = None
    output: str | None = None
    model: str | None = None
    usage: price.Usage | None = None

    @property
    def is_saved(self) -> bool:
        """Whether the report is on disk."""
        return self.class_ in SAVED

    @property
    def is_answered(self) -> bool:
        """Whether the model answered, so that something is charged."""
        return self.class_ in _ANSWERED


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
    tree: Tree,
    shard: int,
    entries: Mapping[str, DocumentEntry],
    *,
    saved: Callable[[int], None],
) -> Summary:
    """Write the reports of a shard, then its outcomes; on return both are durable.

    Args:
        files: of the run.
        tree: where reports go.
        shard: whose results are on disk.
        entries: its documents by custom id.
        saved: called with the number of reports written so far; may raise to stop.
    """
    summary = Summary()

    def outcomes() -> Iterator[bytes]:
        left = dict(entries)
        for line in _lines(files.results(shard)):
            result = _read(line, summary)
            if result is None:
                continue
            entry = left.pop(result.custom_id, None)
            if entry is None:
                if result.custom_id in entries:
                    summary.repeated_ids += 1
                else:
                    summary.unknown_ids += 1
                    summary.unknown_first = summary.unknown_first or _key(result.custom_id)
                continue
            outcome, text = judge(entry, result.result)
            if outcome.is_saved and text is not None:
                tree.write(entry.output, text if text.endswith("\n") else text + "\n")
                crash.point("report_written")
            yield _counted(outcome, summary)
            saved(summary.saved)
        for entry in left.values():
            yield _counted(
                _unanswered(entry, "missing", "the results hold no line for it"), summary
            )

    durable.write(files.outcomes(shard), outcomes())
    return summary


def withdraw(files: Files, shard: int, entries: Iterable[DocumentEntry]) -> None:
    """Write the outcomes of a shard that was canceled before it was sent."""
    reason = "the run was canceled before it was sent"
    lines = (wire.encode(_unanswered(e, "canceled", reason)) + b"\n" for e in entries)
    durable.write(files.outcomes(shard), lines)


def read_outcomes(files: Files, shard: int) -> Iterator[Outcome]:
    """Yield what became of the documents of a collected shard."""
    for line in _lines(files.outcomes(shard)):
        yield _outcome.decode(line)


def tally(shards: Iterable[Shard]) -> dict[str, int]:
    """Count the documents of collected shards: saved, needing attention, canceled.

    Empty for shards that an earlier version collected without counting.
    """
    sums: dict[str, int] = {}
    for shard in shards:
        for name, count in shard.classes.items():
            word = "canceled" if name == "canceled" else "need attention"
            word = "saved" if name in SAVED else word
            sums[word] = sums.get(word, 0) + count
    return {word: sums[word] for word in ("saved", "need attention", "canceled") if word in sums}


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


def has_any(path: Path, entries: Mapping[str, DocumentEntry]) -> bool:
    """Whether any line of a results file is about one of these documents."""
    for line in _lines(path):
        try:
            if _id.decode(line).custom_id in entries:
                return True
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return False


def judge(entry: DocumentEntry, result: _Result) -> tuple[Outcome, str | None]:
    """Return the outcome of a result and the text of its report, None when there is none."""
    if result.type == "succeeded" and result.message is not None:
        return _answered(entry, result.message)
    if result.type == "errored":
        error = result.error.error if result.error else _Error(message="no reason was given")
        return _errored(entry, error), None
    if result.type == "expired":
        return _unanswered(entry, "expired", "24 hours passed before it was sent"), None
    if result.type == "canceled":
        return _unanswered(entry, "canceled", "the batch was canceled before it was sent"), None
    return _unanswered(entry, "missing", f"a result of unknown type {result.type}"), None


def _answered(entry: DocumentEntry, message: _Message) -> tuple[Outcome, str | None]:
    # Thinking and tool blocks are in the raw results; a report is what the model says.
    text = "".join(block.text or "" for block in message.content if block.type == "text")
    stop = message.stop_reason or "none"
    kind: Class = "succeeded"
    reason = None
    match stop:
        case "refusal":
            kind = "refused"
            details = message.stop_details or _Details()
            reason = details.explanation or details.category or "the model refused"
        case "max_tokens" | "model_context_window_exceeded":
            kind, reason = "truncated", f"the report is cut: stop_reason {stop}"
        case "pause_turn":
            kind, reason = "paused", "the model paused in a long turn; the report is not complete"
        case _:
            if not text.strip():
                kind, reason = "empty", f"the answer holds no text (stop_reason {stop})"
    outcome = Outcome(
        key=entry.key,
        custom_id=entry.custom_id,
        class_=kind,
        type=stop,
        reason=reason,
        output=entry.output if kind in SAVED else None,
        model=message.model,
        usage=_usage(message.usage),
    )
    return outcome, text if kind in SAVED else None


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
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield line
