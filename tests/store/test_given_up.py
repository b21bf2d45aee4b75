"""A request that ends worker after worker is given up, and only it; in virtual time, any ledger."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits
from batchyard.dispatch.ending import read_manifest
from batchyard.dispatch.keeper import Keeper
from batchyard.errors import StoreError
from batchyard.segments.directory import DirectorySegments
from batchyard.upstream import Reply
from store.making import NOW, make_batch
from store.working import Working, create, until
from store.yards import message

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.ledger import Ledger
    from batchyard.model import Batch
    from batchyard.upstream import Call, Outcome

pytestmark = pytest.mark.anyio

LONG_AFTER = NOW + 1_000 * limits.LEASE_US
POISON = "r1"


class Deadly:
    """Answers at once, but ends the process that sends one of the requests."""

    name = "up"
    billing = "simulated"
    fetches_urls = True
    unset_key = None

    def __init__(self) -> None:
        self.has_killed = asyncio.Event()

    async def send(self, call: Call) -> Outcome:
        if call.custom_id == POISON:
            self.has_killed.set()
            await asyncio.Event().wait()
        return Reply(200, message(call.custom_id))


class Mortal:
    """A ledger that hears nothing more of a process that has died."""

    def __init__(self, real: Ledger) -> None:
        self._real = real
        self.is_dead = False

    def __getattr__(self, name: str) -> Any:
        if self.is_dead:
            raise StoreError("a dead process tells nothing")
        return getattr(self._real, name)


async def live(ledger: Ledger, store: DirectorySegments, batches: list[Batch]) -> bool:
    """Let a worker live until it is killed or all has ended; return whether it was killed."""
    upstream: Any = Deadly()
    mortal: Any = Mortal(ledger)
    worker = Working(mortal, store, upstream, requests=1, slots=4)
    running = asyncio.create_task(worker.worker.run())

    async def is_over() -> bool:
        return upstream.has_killed.is_set() or await _have_ended(ledger, batches)

    async def step() -> None:
        await worker.clock.advance(0.2)
        await asyncio.sleep(0.001)
        await worker.quiet()  # no lease ends because a thread is slow

    await until(is_over, step)
    mortal.is_dead = True
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError, StoreError, ExceptionGroup):
        await running
    await ledger.take_back(LONG_AFTER, but="")
    await Keeper(ledger, store, worker.clock, owner="").sweep()  # it may have died before the end
    return upstream.has_killed.is_set()


async def _have_ended(ledger: Ledger, batches: list[Batch]) -> bool:
    found = [await ledger.get("w", batch.id) for batch in batches]
    return all(batch is not None and batch.status == "ended" for batch in found)


async def test_it_is_given_up_after_so_many_deaths_and_the_others_have_answers(
    ledger: Ledger, tmp_path: Path
) -> None:
    store = DirectorySegments(tmp_path / "s")
    batches = [make_batch("poison", requests=3), make_batch("fine", requests=1)]
    for batch in batches:
        await create(ledger, store, batch)
    deaths = 0
    while await live(ledger, store, batches):
        deaths += 1
        assert deaths <= 2 * limits.FAILURES_TO_GIVE_UP
    assert deaths >= limits.FAILURES_TO_GIVE_UP
    for batch in batches:
        extents = read_manifest(store, batch.id)
        data = b"".join(store.read(each.segment, 0, each.length) for each in extents)
        results = {line["custom_id"]: line["result"] for line in map(json.loads, data.splitlines())}
        assert len(results) == batch.requests
        for name, result in results.items():
            is_poison = (batch.id, name) == (batches[0].id, POISON)
            assert result["type"] == ("errored" if is_poison else "succeeded")
            assert not is_poison or "8 times in a row" in result["error"]["error"]["message"]
