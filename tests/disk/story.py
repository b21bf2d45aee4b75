"""A short life of a yard, recorded: some batches, every kind of end, a kill, an orderly leave.

The client keeps what it was told and by which answer. The moment of an answer is that at which the
yard began to write it to the socket: from then on a client may know.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, Any

from batchyard.ledger import sqlite_file
from disk.tracing import Recording, TracedYard
from helpers_upstream import Upstream
from helpers_yard import BATCHES, HEADERS, QUICK, request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from helpers_yard import Answer, Yard

# Small shards and chunks, so that a small load has many of each.
BOUNDS = QUICK | {
    "limits:SHARD_REQUESTS": 8,
    "limits:DISK_CHUNK_BYTES": 2_048,
    "limits:SPOOL_PIECE_BYTES": 1_000,
    "limits:SETTLE_BYTES": 100_000,
}
LARGE = "." * 15_000
"""In each request of one batch, so that its body arrives in several parts."""
CHECKPOINT_PAGES = 40
"""After how many pages of log the ledger moves them to its file, here."""


@dataclass(frozen=True)
class Told:
    """An answer with status 200."""

    request_id: str
    method: str
    path: str
    body: Any
    after: str | None
    """The answer that the same client had got before it asked."""


@dataclass
class Batch:
    """A create call that was acknowledged."""

    id: str
    prompts: dict[str, str]
    """By custom_id."""
    results: bytes = b""
    """What the results endpoint gave when it had ended."""


@dataclass
class Client:
    """A client of a recorded yard that remembers what it is told."""

    yard: Yard
    told: list[Told] = field(default_factory=list)
    batches: dict[str, Batch] = field(default_factory=dict)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        after = self.told[-1].request_id if self.told else None
        answer = self.yard.request(method, path, body, HEADERS)
        assert answer.status == 200, answer.body
        shown = None if path.endswith("/results") else answer.json()
        self.told.append(Told(answer.headers["request-id"], method, path, shown, after))
        return answer

    def create(
        self,
        prompts: Sequence[str],
        *,
        system: str | None = None,
        models: Sequence[str] = ("scripted",),
    ) -> str:
        extra = {} if system is None else {"system": system}
        requests = [
            request(prompt, model=model, **extra)
            for prompt, model in zip(prompts, cycle(models), strict=False)
        ]
        answer = self._ask("POST", BATCHES, json.dumps({"requests": requests}).encode())
        batch_id: str = answer.json()["id"]
        by_id = dict(zip((str(r["custom_id"]) for r in requests), prompts, strict=True))
        self.batches[batch_id] = Batch(batch_id, by_id)
        return batch_id

    def look(self, batch_id: str) -> None:
        self._ask("GET", f"{BATCHES}/{batch_id}")

    def end(self, batch_id: str) -> None:
        """Wait until a batch has ended and fetch its results."""
        self.yard.wait_ended(batch_id)
        self.look(batch_id)
        self.batches[batch_id].results = self._ask("GET", f"{BATCHES}/{batch_id}/results").body

    def cancel(self, batch_id: str) -> None:
        self._ask("POST", f"{BATCHES}/{batch_id}/cancel", b"")

    def delete(self, batch_id: str) -> None:
        self._ask("DELETE", f"{BATCHES}/{batch_id}")


@dataclass
class Expected:
    """What must be true of one batch after a cut."""

    may_be_gone: bool = False
    is_gone: bool = False
    shown: Mapping[str, Any] | None = None
    """The newest object that a client may have seen."""


@dataclass
class Story:
    """A recording, and what its client was told."""

    recording: Recording
    told: list[Told]
    batches: dict[str, Batch]
    moments: dict[str, int]
    """When each answer began to be sent, by its request-id."""

    def expected(self, moment: int) -> dict[str, Expected]:
        """Return what a cut at this moment must leave, by batch."""
        found: dict[str, Expected] = {}
        for told in self.told:
            batch_id = told.body["id"] if told.body else ""
            if told.method == "DELETE" and (not told.after or self.moments[told.after] < moment):
                found[batch_id].may_be_gone = True
            if self.moments[told.request_id] >= moment or not batch_id:
                continue
            expected = found.setdefault(batch_id, Expected())
            if told.method == "DELETE":
                expected.is_gone = True
            else:
                expected.shown = told.body
        return found

    def cuts(self) -> list[int]:
        """Return every moment at which the disk, or what is known, is another than before."""
        moments = {
            m + 1 for call in self.recording.calls for m in (call.when.entry, call.when.exit)
        }
        moments |= {moment + 1 for moment in self.moments.values()}
        return sorted(m for m in moments if m <= self.recording.end)


def pragmas(synchronous: str, checkpoint_pages: int | None) -> dict[str, object]:
    """Return the bound that sets up the ledger otherwise."""
    usual = "PRAGMA synchronous = FULL"
    assert usual in sqlite_file._PRAGMAS
    changed = [p.replace("FULL", synchronous) if p == usual else p for p in sqlite_file._PRAGMAS]
    bounds: dict[str, object] = {"ledger.sqlite_file:_PRAGMAS": changed}
    if checkpoint_pages is not None:
        bounds["ledger.sqlite_log:_PAGES"] = checkpoint_pages
    return bounds


def prompts(name: str, number: int, steps: str = "") -> list[str]:
    return [f"{name}-{n}{steps}" for n in range(number)]


def tell(root: Path, *, synchronous: str = "FULL") -> Story:
    """Live the story on a new data directory below `root`, and record it."""
    with Upstream() as upstream:
        yard = TracedYard(
            root / "data",
            upstream.url,
            slots=6,
            bounds=BOUNDS | pragmas(synchronous, CHECKPOINT_PAGES),
        )
        client = Client(yard)
        recording = Recording(yard.data)
        try:
            _first_life(client, upstream)
            yard.kill()
            recording.add(yard.traces[-1])
            _second_life(client, upstream)
            assert yard.stop() == 0, yard.read_log()
            recording.add(yard.traces[-1])
            _third_life(client)
            yard.kill()
            recording.add(yard.traces[-1])
        finally:
            if yard.process is not None:
                yard.kill()
        assert "Traceback" not in yard.read_log(), yard.read_log()
        assert "defect" not in yard.read_log(), yard.read_log()
    recording.verify()
    moments = _moments(recording, client.told)
    return Story(recording, client.told, client.batches, moments)


def _first_life(client: Client, upstream: Upstream) -> None:
    client.yard.start()
    whole = client.create([*prompts("whole", 18), "whole-bad|400"])
    client.end(whole)
    half = client.create([*prompts("half", 12), *prompts("held", 9, "|hold:half")])
    canceled = client.create(prompts("canceled", 20, "|hold:canceled"))
    client.cancel(canceled)
    upstream.gate("canceled").open()
    client.end(canceled)
    client.look(half)
    client.delete(whole)
    # The answers are written within milliseconds, and synced within a second: killed in between,
    # or after, as it comes.
    upstream.wait_until(lambda: upstream.number_answered("half-") == 12, "half is answered")


def _second_life(client: Client, upstream: Upstream) -> None:
    client.yard.start()
    upstream.gate("half").open()
    half, canceled = list(client.batches)[1:3]
    later = client.create(prompts("later", 25), system=LARGE)
    client.end(half)
    client.end(later)
    client.delete(canceled)


def _third_life(client: Client) -> None:
    client.yard.start()
    last = client.create(prompts("last", 9), models=("one", "two"))  # not sent as they came
    client.end(last)
    for batch_id in list(client.batches)[-2:]:
        client.look(batch_id)


def _moments(recording: Recording, told: list[Told]) -> dict[str, int]:
    wanted = {t.request_id: t.request_id.encode() for t in told}
    found: dict[str, int] = {}
    for sent in recording.sent:
        for request_id, text in wanted.items():
            if text in sent.data:
                found.setdefault(request_id, sent.moment)
    assert set(found) == set(wanted), "an answer is not in the recording"
    return found
