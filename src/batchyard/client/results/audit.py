"""The audit record: what was asked for every document, who answered, what it cost.

A line of `audit.jsonl` can be checked by somebody who has the inputs: hashes of the input and of
what was sent, the parameters, batch, message and request id, the usage as received, the cost, and
the version of the price table. It holds no text of a document and no answer.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
from typing import TYPE_CHECKING

import msgspec

from batchyard import price, wire
from batchyard.client.running.journal import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from batchyard.client.results.collect import Outcome
    from batchyard.client.results.finals import Outcomes
    from batchyard.client.results.formats import Answers
    from batchyard.client.running.folder import DocumentEntry, Files
    from batchyard.client.running.journal import Shard, State

FILE = "audit.jsonl"
# What the prompt is made of; its hash stands for it.
_PROMPT = ("system", "messages")
_PARAMETER_BYTES_MAX = 200  # a longer one (tools, a schema) is given by its hash


class _Message(msgspec.Struct, gc=False):
    id: str | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")


class _Error(msgspec.Struct, gc=False):
    request_id: str | None = None


class _Result(msgspec.Struct, gc=False):
    message: _Message | None = None
    error: _Error | None = None


class _Line(msgspec.Struct, gc=False):
    result: _Result


_line = msgspec.json.Decoder(_Line)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Sent(msgspec.Struct, gc=False):
    """What a record tells of a request, whichever documents share it."""

    params_sha256: str
    prompt_sha256: str
    params: dict[str, object]


def records(
    files: Files,
    state: State,
    *,
    outcomes: Outcomes,
    answers: Answers,
    cost: Callable[[int, Outcome], int | None],
) -> Iterator[bytes]:
    """Yield the lines of the audit record: shard by shard, each in the order of its documents.

    Args:
        files: of the run.
        state: what its journal says.
        outcomes: of its documents.
        answers: its results as received.
        cost: returns what an outcome of a shard was charged, in micro-dollars.
    """
    version = price.version()
    entries = files.read_documents(len(state.shards))
    for index, group in itertools.groupby(entries, key=lambda entry: entry.shard):
        shard = state.shards[index]
        if shard.phase is not Phase.COLLECTED:
            continue
        sent = _Requests(files, index)
        for entry in group:
            outcome = outcomes.get(index, entry.key)
            record = _record(entry, outcome, shard, sent.get(entry.custom_id))
            record["cost_micros"] = cost(index, outcome)
            record["prices"] = version
            line = answers.line(index, outcome)
            yield wire.encode(record | _received(line)) + b"\n"


def _record(
    entry: DocumentEntry, outcome: Outcome, shard: Shard, sent: _Sent | None
) -> dict[str, object]:
    return {
        "key": entry.key,
        "custom_id": entry.custom_id,
        "same_as": outcome.same_as,
        "input_sha256": entry.sha256,
        "prompt_sha256": sent.prompt_sha256 if sent else None,
        "params_sha256": sent.params_sha256 if sent else None,
        "params": sent.params if sent else None,
        "round": shard.round,
        "batch": shard.batch,
        "class": outcome.as_tried.class_,
        "type": outcome.type,
        "model": outcome.model,
    }


def _received(line: bytes | None) -> dict[str, object]:
    """Return what the server says of the answer: its ids, and the usage as received."""
    message = error = None
    if line is not None:
        try:
            result = _line.decode(line).result
            message, error = result.message, result.error
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    return {
        "message_id": message.id if message else None,
        "request_id": error.request_id if error else None,
        "usage": message.usage if message else None,
    }


class _Requests:
    """The requests of a shard by custom id, read from its create body."""

    def __init__(self, files: Files, shard: int) -> None:
        self._params: Mapping[str, bytes | memoryview] = {}
        if not files.requests(shard).exists():
            return  # the batch was made elsewhere, and only its results are known
        with files.requests(shard).open("rb") as file:
            body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._params = {entry.custom_id: entry.params for entry in wire.split(memoryview(body))}

    def get(self, custom_id: str) -> _Sent | None:
        """Return what was sent; None when the body has no such request."""
        params = self._params.get(custom_id)
        if params is None:
            return None
        fields = _fields.decode(params)
        prompt = hashlib.sha256()
        for name in _PROMPT:
            prompt.update(bytes(fields.pop(name, msgspec.Raw(b"null"))) + b"\n")
        return _Sent(
            hashlib.sha256(bytes(params)).hexdigest(),
            prompt.hexdigest(),
            {name: _short(value) for name, value in fields.items()},
        )


def _short(value: msgspec.Raw) -> object:
    data = bytes(value)
    if len(data) <= _PARAMETER_BYTES_MAX:
        return value
    return {"sha256": hashlib.sha256(data).hexdigest()}
