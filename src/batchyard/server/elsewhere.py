"""The work of a yard that is done in other processes: what its API knows of them.

It knows what the ledger tells, and nothing else. New and canceled batches are found by the workers
themselves.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.dispatch.routes import UNROUTED
from batchyard.dispatch.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batchyard.clock import Clock
    from batchyard.dispatch.routes import Routes
    from batchyard.ledger import Ledger


class Elsewhere:
    """In the place of a worker."""

    owner = ""
    """Its name in the ledger: none, so leases of all owners are taken back when they have ended."""

    def __init__(self, ledger: Ledger, routes: Routes, clock: Clock) -> None:
        self._ledger = ledger
        self._routes = routes
        self._clock = clock
        self._leaving = asyncio.Event()
        self._notes: Mapping[str, str] = {}

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
            if name != UNROUTED and self._routes.upstream_of_pool(name) is None:
                found[name] = "its upstream is not configured any more"
            elif name in self._notes:
                found[name] = self._notes[name]
        return found

    def explain(self, batch_id: str, pools: Iterable[str]) -> list[Waiting]:
        """Return why requests of these pools wait, as far as the workers have said."""
        return [Waiting(name, "paused", why) for name, why in self.troubles(pools).items()]

    def account(self, batch_id: str) -> None:
        """Return nothing: the workers count calls, each its own."""

    def rate_max(self, pools: Iterable[str]) -> None:
        """Return nothing: what the workers have learned they keep to themselves."""

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
        self._notes = await self._ledger.notes()
