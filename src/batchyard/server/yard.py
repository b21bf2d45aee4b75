"""What the handlers share: one value, made at start, that holds the parts of a running yard."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchyard.server.elsewhere import Elsewhere

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from batchyard.clock import Clock
    from batchyard.dispatch.keeper import Keeper
    from batchyard.dispatch.routes import Routes
    from batchyard.dispatch.worker import Worker
    from batchyard.errors import StoreError
    from batchyard.ledger import Ledger
    from batchyard.model import Billing
    from batchyard.segments import Segments
    from batchyard.server.auth import KeyRing
    from batchyard.server.disk import Disk
    from batchyard.server.rates import Rates
    from batchyard.upstream import Upstream


class Failure:
    """The first failure of the store under a call, which ends a yard that has the store alone."""

    def __init__(self) -> None:
        self._error: StoreError | None = None
        self._has_come = asyncio.Event()

    def tell(self, error: StoreError) -> None:
        """Note a failure."""
        self._error = self._error or error
        self._has_come.set()

    async def wait(self) -> None:
        """Wait for it.

        Raises:
            StoreError: the failure. Never returns.
        """
        await self._has_come.wait()
        assert self._error is not None
        raise self._error


@dataclass(frozen=True, slots=True, kw_only=True)
class Yard:
    """A running yard."""

    ledger: Ledger
    store: Segments
    worker: Worker | Elsewhere
    """Of this process, or what is known of those that do its work."""
    keeper: Keeper
    routes: Routes
    upstreams: Mapping[str, Upstream]
    clock: Clock
    keys: KeyRing
    rates: Rates
    queued_max: int
    """Requests that a workspace may have in batches that have not ended."""
    shares_stores: bool = False
    """Whether other processes have the same ledger and segments."""
    disk: Disk
    spool: Path
    public_url: str | None
    """Origin and path prefix that clients use; None takes each request's own."""
    allowed_hosts: frozenset[str]
    """Values of `Host` that are answered, without port, lower case."""
    failure: Failure = field(default_factory=Failure)
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process is to end: answers that have no end of their own end then."""

    @property
    def own_worker(self) -> Worker:
        """Return the worker of this process, where it has one."""
        assert not isinstance(self.worker, Elsewhere)
        return self.worker

    def upstream_of_pool(self, pool: str) -> Upstream | None:
        """Return what the requests of a pool run on."""
        name = self.routes.upstream_of_pool(pool)
        return None if name is None else self.upstreams[name]

    def billing_of(self, pools: set[str]) -> Billing:
        """Return what calls in these pools cost: the dearest of them."""
        names = {self.routes.upstream_of_pool(pool) for pool in pools}
        kinds = {self.upstreams[name].billing for name in names if name is not None}
        if "standard" in kinds:
            return "standard"
        return "batch" if "batch" in kinds else "simulated"
