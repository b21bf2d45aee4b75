"""The work of a yard that is done in other processes: what its API knows of them.

It knows what the ledger tells, and nothing else. New and canceled batches are found by the workers
themselves. What they see of their pools and count of their calls they write into the ledger each
second, and from there it is told as a worker of this process would tell it, a second or two old.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.clock import steady_us
from batchyard.dispatch import accounts, waiting
from batchyard.dispatch.routes import UNROUTED
from batchyard.dispatch.waiting import Heard, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from batchyard.clock import Clock
    from batchyard.dispatch.accounts import Account
    from batchyard.dispatch.routes import Routes
    from batchyard.dispatch.worker import Worker
    from batchyard.ledger import Ledger, Rest, Telling

_HOMELESS = "its upstream is not configured any more"


class Elsewhere:
    """In the place of a worker."""

    owner: str = ""
    """Its name in the ledger: none, so leases of all owners are taken back when they have ended."""

    def __init__(self, ledger: Ledger, routes: Routes, clock: Clock) -> None:
        self._ledger = ledger
        self._routes = routes
        self._clock = clock
        self._leaving = asyncio.Event()
        self._tellings: Mapping[str, Sequence[Telling]] = {}
        """What the workers that live have told, by pool."""
        self._listened_s = 0.0

    @property
    def cancel_takes_s(self) -> float:
        """Return after how long no worker sends anything of a batch that was canceled."""
        return limits.NEWS_AGE_MAX * self._ledger.poll_s

    def wake(self) -> None:
        """Do nothing: workers look for new batches themselves."""

    def cancel(self, batch_id: str) -> None:
        """Do nothing: workers look for canceled batches themselves."""

    def leave(self) -> None:
        """Let `run` return."""
        self._leaving.set()

    def troubles(self, pools: Iterable[str]) -> dict[str, str]:
        """Return why the requests of these pools wait, as the workers have said of late."""
        found = {}
        for name in pools:
            tellings = self._tellings.get(name, ())
            notes = [each.note for each in tellings if each.note is not None]
            held = (held for each in self._heard(name) for held in each.told.held)
            notes += [each.detail for each in held if each.reason == "paused"]
            if self._is_homeless(name):
                found[name] = _HOMELESS
            elif notes:
                found[name] = notes[0]
        return found

    def explain(self, batch_id: str, pools: Mapping[str, Rest]) -> list[Waiting]:
        """Return why requests of a batch wait, as the workers have said of late.

        Args:
            batch_id: of the batch.
            pools: of its requests that have no result, with how many these are.
        """
        found: list[Waiting] = []
        now_s = self._clock.monotonic_s()
        for name, rest in pools.items():
            if self._is_homeless(name):
                found.append(Waiting(name, "unconfigured", _HOMELESS))
            else:
                unsent = max(0, rest.unsent) + rest.queued
                found += waiting.explain(
                    name, self._heard(name), batch_id, rest.inflight, now_s, unsent=unsent
                )
        return found

    def _is_homeless(self, pool: str) -> bool:
        return pool != UNROUTED and self._routes.upstream_of_pool(pool) is None

    def _heard(self, pool: str) -> list[Heard]:
        since_s = self._clock.monotonic_s() - self._listened_s
        return [
            Heard(waiting.load(each.told), _age_us(each) / limits.SECOND_US + since_s)
            for each in self._tellings.get(pool, ())
        ]

    async def account(self, batch_id: str) -> Account | None:
        """Return what all workers together have counted of the calls of a batch."""
        told = await self._ledger.accounts(batch_id)
        return accounts.merge(text for _, text in told)

    def told_us(self, pools: Iterable[str]) -> int | None:
        """Return when the oldest of what it says of these pools was told; None if nothing was."""
        ages = [heard.age_s for name in pools for heard in self._heard(name)]
        if not ages:
            return None
        return self._clock.now_us() - round(max(ages) * limits.SECOND_US)

    def rate_max(self, pool: str) -> float | None:
        """Return how many calls a second a pool can make at most, where that is known."""
        return waiting.rate_max(self._heard(pool))

    async def run(self) -> None:
        """Listen to what the workers say until `leave` is called.

        Raises:
            StoreError: the ledger failed.
        """
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listening())
            await self._leaving.wait()
            listening.cancel()

    async def _listening(self) -> None:
        while True:
            await self._listen()
            await self._clock.sleep(self._ledger.poll_s)

    async def _listen(self) -> None:
        found: dict[str, list[Telling]] = {}
        for each in await self._ledger.tellings(steady_us(self._clock)):
            found.setdefault(each.pool, []).append(each)
        self._tellings, self._listened_s = found, self._clock.monotonic_s()


class AmongOthers(Elsewhere):
    """The worker of this process, where other processes have the same ledger.

    They send calls of the same batches. So it answers as a process without a worker does: its own
    worker tells in the ledger, too.
    """

    def __init__(self, worker: Worker, ledger: Ledger, routes: Routes, clock: Clock) -> None:
        super().__init__(ledger, routes, clock)
        self._worker = worker
        self.owner = worker.owner

    def wake(self) -> None:
        """Look for work now: there may be new shards."""
        self._worker.wake()

    def cancel(self, batch_id: str) -> None:
        """Start no further call of a batch here; the others look for that themselves."""
        self._worker.cancel(batch_id)

    def leave(self) -> None:
        """Let the worker end; `run` returns when it has."""
        self._worker.leave()

    async def run(self) -> None:
        """Work, and listen to what all workers say, until `leave` is called.

        Raises:
            ExceptionGroup: the store failed.
        """
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listening())
            await self._worker.run()
            listening.cancel()


def _age_us(telling: Telling) -> int:
    """Return how long ago a worker told, in the time of the ledger."""
    return max(0, limits.LEASE_US - telling.left_us)
