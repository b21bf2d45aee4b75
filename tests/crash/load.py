"""Clients that keep a journal of what was acknowledged, while a server is killed and started.

In the end everything in the journal must be true, whatever was done to the server.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crash.checking import assert_holds, assert_no_defect
from helpers_upstream import DEADLINE_S, Exchange, Upstream, follow_prompt, text_of
from helpers_yard import BATCHES, HEADERS, Yard, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEED = int(os.environ.get("BATCHYARD_CRASH_SEED", "20261121"))
CLIENTS = 2
OPEN_REQUESTS_MAX = 2_000


@dataclass
class Made:
    """A create call, and what was acknowledged of it."""

    prompts: list[str]
    batch_id: str | None = None
    cancel_sent: bool = False
    cancel: bool = False
    deleted: bool | None = False
    """None: a delete was sent and its answer did not come."""


def _set(event: threading.Event) -> threading.Event:
    event.set()
    return event


@dataclass
class Journal:
    """What the clients were told. One writer per entry."""

    up: threading.Event = field(default_factory=lambda: _set(threading.Event()))
    """Whether there may be a server to speak to; else the clients wait."""
    made: dict[str, Made] = field(default_factory=dict)
    """All that may have arrived, by name."""
    acknowledged: int = 0
    """Requests in create calls that were answered with 200."""
    dropped: int = 0
    """About how many of them will never be sent, because a cancel came before."""

    def known(self) -> list[Made]:
        return [made for made in self.made.values() if made.batch_id is not None]


class Client(threading.Thread):
    """Creates, cancels and deletes while the server comes and goes."""

    def __init__(
        self, number: int, seed: int, yard: Yard, upstream: Upstream, journal: Journal
    ) -> None:
        super().__init__(name=f"client-{number}")
        self._number = number
        self._rng = random.Random(seed)
        self._yard = yard
        self._upstream = upstream
        self._journal = journal
        self._mine: list[Made] = []
        self.leaving = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.leaving.is_set():
                if not self._journal.up.wait(0.05):
                    continue
                try:
                    self._act()
                except (OSError, http.client.HTTPException):
                    self.leaving.wait(0.005)  # the server is being killed or started
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.failure = error

    def _act(self) -> None:
        ended = [m for m in self._mine if m.batch_id and m.deleted is False]
        if ended and self._rng.random() < 0.15:
            self._cancel_or_delete(self._rng.choice(ended))
        elif self._open_requests() < OPEN_REQUESTS_MAX:
            self._create()
        else:
            self.leaving.wait(0.005)

    def _open_requests(self) -> int:
        journal = self._journal
        return journal.acknowledged - journal.dropped - len(self._upstream.answered)

    def _create(self) -> None:
        name = f"c{self._number}b{len(self._mine)}"
        size = self._rng.choice([1, 2, 40, 300, 501, 900])
        made = Made([f"{name}-{n}" for n in range(size)])
        self._mine.append(made)
        self._journal.made[name] = made
        try:
            answer = self._yard.post(BATCHES, {"requests": [request(p) for p in made.prompts]})
        except ConnectionRefusedError:  # it never arrived, and would only fill the journal
            del self._journal.made[name]
            self._mine.pop()
            raise
        assert answer.status == 200, answer.body
        made.batch_id = answer.json()["id"]
        self._journal.acknowledged += size

    def _cancel_or_delete(self, made: Made) -> None:
        path = f"{BATCHES}/{made.batch_id}"
        batch = self._yard.get(path)
        assert batch.status == 200, f"acknowledged, and gone: {batch.body!r}"
        if batch.json()["processing_status"] != "ended":
            answered = self._upstream.answered
            if not made.cancel_sent:
                self._journal.dropped += sum(prompt not in answered for prompt in made.prompts)
            made.cancel_sent = True
            answer = self._yard.request("POST", f"{path}/cancel", b"", HEADERS)
            assert answer.status == 200, answer.body
            made.cancel = made.cancel or answer.json()["cancel_initiated_at"] is not None
        elif self._rng.random() < 0.3:
            made.cancel = batch.json()["cancel_initiated_at"] is not None
            verify(self._yard, made)
            made.deleted = None
            answer = self._yard.request("DELETE", path)
            assert answer.status == 200, answer.body
            made.deleted = True


def verify(yard: Yard, made: Made) -> Counter[str]:
    """Check an ended batch; return what is wrong with it, by kind."""
    wrong: Counter[str] = Counter()
    answer = yard.get(f"{BATCHES}/{made.batch_id}/results")
    assert answer.status == 200, answer.body
    results: dict[str, Any] = {}
    for line in answer.lines():
        wrong["duplicated"] += line["custom_id"] in results
        results[line["custom_id"]] = line["result"]
    for prompt in made.prompts:
        result = results.pop(prompt, None)
        if result is None:
            wrong["lost"] += 1
        elif result["type"] == "succeeded":
            wrong["mixed up"] += result["message"]["content"][0]["text"] != text_of(prompt)
        else:
            wrong["not succeeded"] += not (made.cancel and result["type"] == "canceled")
    wrong["unknown"] += len(results)
    assert not +wrong, (made.batch_id, wrong)
    return wrong


class Latency:
    """An upstream that takes a few milliseconds."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    async def __call__(self, exchange: Exchange) -> None:
        await asyncio.sleep(self._rng.random() * 0.004)
        await follow_prompt(exchange)


def check(yard: Yard, journal: Journal) -> None:
    """Hold the whole journal against the server, which runs for the last time."""
    known = journal.known()
    for made in known:
        batch = yard.get(f"{BATCHES}/{made.batch_id}")
        if made.deleted is not False and batch.status == 404:
            continue
        assert made.deleted is not True, "a deleted batch is back"
        assert batch.status == 200, f"lost: {made.batch_id} {batch.body!r}"
        ended = yard.wait_ended(str(made.batch_id))
        if made.cancel:
            assert ended["cancel_initiated_at"] is not None
        else:
            # A cancel whose answer was lost may have happened all the same.
            made.cancel = ended["cancel_initiated_at"] is not None
        assert sum(ended["request_counts"].values()) == len(made.prompts)
        verify(yard, made)
    # What was never acknowledged is whole or absent.
    unknown = {m.prompts[0]: m for m in journal.made.values() if m.batch_id is None}
    ids = {made.batch_id for made in known}
    after = ""
    while True:
        page = yard.get(f"{BATCHES}?limit=1000{after}").json()
        for batch in page["data"]:
            if batch["id"] in ids:
                continue
            yard.wait_ended(batch["id"])
            results = yard.results(batch["id"])
            made = unknown[next(name for name in results if name.endswith("-0"))]
            made.batch_id = batch["id"]
            verify(yard, made)
        if not page["has_more"]:
            return
        after = f"&after_id={page['last_id']}"


@contextmanager
def clients_on(
    yard: Yard, upstream: Upstream, journal: Journal, *, leave_s: float = DEADLINE_S
) -> Iterator[Callable[[], None]]:
    """Let clients work on a yard that comes and goes, and is dead in the end.

    Args:
        yard: what they speak to.
        upstream: of that yard.
        journal: what they write down.
        leave_s: how long one of them may take to end.

    Yields:
        What raises when one of them has failed.
    """
    clients = [Client(n, SEED + n, yard, upstream, journal) for n in range(CLIENTS)]

    def assert_well() -> None:
        failed = [client.failure for client in clients if client.failure is not None]
        assert not failed, failed

    for client in clients:
        client.start()
    try:
        yield assert_well
    finally:
        for client in clients:
            client.leaving.set()
        for client in clients:
            client.join(leave_s)
        if yard.process is not None:
            yard.kill()
    assert_well()


def assert_kept(yard: Yard, journal: Journal) -> None:
    """Start a yard for the last time, and hold everything in the journal against it."""
    with yard:
        check(yard, journal)
        assert yard.stop() == 0
    assert_holds(yard.data)
    assert_no_defect(yard)


def figures(upstream: Upstream, journal: Journal) -> dict[str, Any]:
    """Return what a run comes to, for its report."""
    return {
        "seed": SEED,
        "acknowledged batches": len(journal.known()),
        "acknowledged requests": journal.acknowledged,
        "upstream calls": len(upstream.calls),
        "repeated": sum(number - 1 for number in upstream.counts.values()),
    }
