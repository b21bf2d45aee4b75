"""Start again on what a power cut has left, in one process and without waiting, and judge it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchyard import wire
from batchyard.dispatch.ending import read_manifest
from batchyard.dispatch.keeper import Keeper
from batchyard.dispatch.routes import Route, Routes
from batchyard.dispatch.worker import Worker
from batchyard.errors import DamagedError
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.segments.directory import DirectorySegments
from batchyard.server import place
from batchyard.server.byte_range import Span
from batchyard.server.results import ResultsResponse
from batchyard.testing.clock import ManualClock
from batchyard.upstream import Call, Outcome, Reply
from crash.checking import errors_in
from helpers_inline import InlineExecutor
from helpers_upstream import error, message, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from batchyard.model import Billing
    from disk.story import Batch, Expected

SLOTS = 6
LAST_S = 300.0
"""Simulated seconds within which everything must have ended."""


@dataclass
class Echo:
    """An upstream that answers as the one that was recorded would have."""

    name: str = "up"
    billing: Billing = "standard"
    fetches_urls: bool = True
    unset_key: str | None = None
    called: set[str] = field(default_factory=set)

    async def send(self, call: Call) -> Outcome:
        prompt = json.loads(call.params)["messages"][0]["content"]
        self.called.add(prompt)
        if prompt.endswith("|400"):
            return Reply(400, error("invalid_request_error", "scripted 400"))
        return Reply(200, message(prompt))

    def forward(self, request: object) -> Any:
        raise NotImplementedError

    async def close(self) -> None:
        pass


@dataclass
class Recovered:
    """What is there when everything has ended again."""

    shown: dict[str, dict[str, Any]]
    """The batches right after the start, as a client would see them."""
    results: dict[str, bytes]
    """Of the batches that have ended and can be read."""
    broken: dict[str, str]
    """What is the matter with the others."""
    called: set[str]
    """The prompts that were sent to the upstream since the start."""
    unsound: list[str]
    """What `batchyard check` finds in the end."""


def recover(data: Path, last_s: float = LAST_S) -> Recovered:
    """Start on a data directory as the server does, and work until every batch has ended.

    Args:
        data: the directory.
        last_s: simulated seconds after which what has not ended never will.

    Raises:
        AssertionError: the ledger is not sound, or segments belong to no batch.
        BatchyardError: it cannot be opened.
        ExceptionGroup: it cannot be worked with.
    """
    return asyncio.run(_recover(data, last_s))


async def _recover(data: Path, last_s: float) -> Recovered:
    asyncio.get_running_loop().set_default_executor(InlineExecutor())
    clock = ManualClock(time.time_ns() // 1_000)
    upstream = Echo()
    with place.lock(data), _closing(data) as (ledger, store):
        await Keeper(ledger, store, clock, owner="").clear_leftovers()
        shown = {row["id"]: _shown(row) for row in _rows(data)}
        stray = set(store.batches()) - set(shown)
        assert not stray, f"segments without a batch: {stray}"
        worker = Worker(
            ledger=ledger,
            store=store,
            upstreams={"up": upstream},
            routes=Routes([Route("up", ("*",))]),
            slots={"up": SLOTS},
            clock=clock,
            rng=random.Random(0),
        )
        keeper = Keeper(ledger, store, clock, owner=worker.owner)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(worker.run()), group.create_task(keeper.run())]
            while _open(data) and clock.monotonic_s() < last_s:
                await clock.advance(0.05 if clock.monotonic_s() < 2 else 5)
            tasks[1].cancel()
            worker.leave()
            while not tasks[0].done():
                await clock.advance(0.05)
        broken = dict.fromkeys(_open(data), "it does not end")
        results = {}
        for batch_id in set(shown) - set(broken):
            try:
                results[batch_id] = await _served(store, batch_id)
            except DamagedError as damage:
                broken[batch_id] = str(damage)
        await ledger.close()
    return Recovered(shown, results, broken, upstream.called, errors_in(data))


async def _served(store: DirectorySegments, batch_id: str) -> bytes:
    """Return the body of a whole transfer of results, as the server makes it.

    Raises:
        DamagedError: it would be cut.
    """
    extents = read_manifest(store, batch_id)
    response = ResultsResponse(store, extents, batch_id, None, gzip=False)
    return b"".join([chunk async for chunk in response._chunks(Span(0, response._length))])


@contextlib.contextmanager
def _closing(data: Path) -> Iterator[tuple[SqliteLedger, DirectorySegments]]:
    """Open both stores; let go of the ledger's connections however it ends."""
    ledger = SqliteLedger(data / "ledger.db", threads=InlineExecutor)
    try:
        yield ledger, DirectorySegments(data / "segments")
    finally:
        for connection in (ledger._reader, ledger._writer):
            if connection._db is not None:
                connection._db.close()


def _rows(data: Path) -> list[sqlite3.Row]:
    with contextlib.closing(sqlite3.connect(data / "ledger.db")) as db:
        db.row_factory = sqlite3.Row
        return db.execute("SELECT * FROM batches").fetchall()


def _open(data: Path) -> list[str]:
    return [row["id"] for row in _rows(data) if row["ended_us"] is None]


def _shown(row: sqlite3.Row) -> dict[str, Any]:
    ended = row["ended_us"] is not None
    return {
        "id": row["id"],
        "ended_at": wire.rfc3339(row["ended_us"]) if ended else None,
        "created_at": wire.rfc3339(row["created_us"]),
        "expires_at": wire.rfc3339(row["expires_us"]),
        "cancel_initiated_at": (
            None if row["cancel_us"] is None else wire.rfc3339(row["cancel_us"])
        ),
        "request_counts": {
            "processing": 0 if ended else row["requests"],
            **{k: row[k] for k in ("succeeded", "errored", "canceled", "expired")},
        },
    }


def synced_lines(tree: Mapping[str, bytes | None]) -> dict[str, set[str]]:
    """Return the custom_ids that have a whole result line in an image, by batch."""
    found: dict[str, set[str]] = {}
    for path, data in tree.items():
        parts = path.split("/")  # data/segments/<h2>/<batch>/r/<shard>.<attempt>.<nonce>
        if data is not None and len(parts) == 6 and parts[4] == "r":
            lines = data.split(b"\n")[:-1]
            found.setdefault(parts[3], set()).update(json.loads(x)["custom_id"] for x in lines)
    return found


def judge(
    recovered: Recovered,
    expected: Mapping[str, Expected],
    batches: Mapping[str, Batch],
    durable: Mapping[str, set[str]],
) -> list[str]:
    """Return what is wrong.

    Args:
        recovered: after the cut.
        expected: what clients had been told before it, by batch.
        batches: everything that was ever acknowledged.
        durable: requests whose result lines had been synced, by batch.
    """
    wrong = [f"{batch_id}: {text}" for batch_id, text in recovered.broken.items()]
    for batch_id, known in expected.items():
        found = recovered.shown.get(batch_id)
        if known.is_gone:
            wrong += [f"{batch_id} is back after its deletion"] if found else []
        elif found is None:
            wrong += [] if known.may_be_gone else [f"{batch_id} was acknowledged and is lost"]
        elif known.shown is not None:
            wrong += _differences(batch_id, known.shown, found)
    for batch_id, results in recovered.results.items():
        batch = batches.get(batch_id)
        if batch is None:
            wrong.append(f"{batch_id} was never asked for")
            continue
        wrong += [f"{batch_id}: {text}" for text in _faults(batch, results)]
        known = expected.get(batch_id)
        told = known is not None and known.shown is not None and known.shown["ended_at"]
        if told and results != batch.results:
            wrong.append(f"{batch_id} had ended, and its results are others now")
        again = {batch.prompts[c] for c in durable.get(batch_id, ())} & recovered.called
        if again and batch_id in expected:
            wrong.append(f"{batch_id}: synced results were asked for again: {sorted(again)}")
    return wrong


def _differences(batch_id: str, told: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    keys = ["created_at", "expires_at"]
    keys += ["cancel_initiated_at"] if told["cancel_initiated_at"] else []
    keys += ["ended_at", "request_counts"] if told["ended_at"] else []
    for key in keys:
        if told[key] != found[key]:
            yield f"{batch_id}: {key} was {told[key]} and is {found[key]}"


def _faults(batch: Batch, results: bytes) -> Iterator[str]:
    """Yield what is wrong with the results of one batch."""
    try:
        lines = [json.loads(line) for line in results.split(b"\n")[:-1]]
    except ValueError as fault:
        yield f"a result line does not parse: {fault}"
        return
    ids = [line["custom_id"] for line in lines]
    if sorted(ids) != sorted(batch.prompts):
        yield f"has results for {sorted(ids)} instead of {sorted(batch.prompts)}"
    for line in lines:
        prompt, result = batch.prompts.get(line["custom_id"], ""), line["result"]
        if result["type"] == "succeeded":
            if _text(result) != text_of(prompt):
                yield f"{prompt} has the answer of another"
        elif result["type"] == "errored":
            if not prompt.endswith("|400"):
                yield f"{prompt} failed: {result}"
        elif result["type"] != "canceled" or not prompt.startswith("canceled"):
            yield f"{prompt} is {result['type']}"


def _text(result: Mapping[str, Any]) -> str | None:
    """Return the text of a message, None when its shape is another."""
    try:
        return str(result["message"]["content"][0]["text"])
    except (LookupError, TypeError):
        return None
