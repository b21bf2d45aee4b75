"""Run the workers of a yard on a Ray cluster until told to end."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from batchyard import ids
from batchyard.clock import SystemClock, wait_first
from batchyard.cluster import engine
from batchyard.cluster.fleet import Fleet
from batchyard.dispatch.routes import Route, Routes
from batchyard.errors import ConfigError
from batchyard.ledger.backlog import BacklogReader
from batchyard.server import run, stores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchyard.clock import Clock
    from batchyard.server.config import Config

log = logging.getLogger(__name__)

_OTHERS_MAX_S = 60.0
"""For the workers of a launcher that was killed to end. Ray ends them within seconds, but those of
a client only when it has waited 30 s for the client to come back."""


async def up(
    config: Config,
    address: str,
    name: str,
    environment: Mapping[str, str],
    announce: Callable[[dict[str, object]], None],
) -> None:
    """Keep the workers until SIGINT or SIGTERM, then let them end.

    Args:
        config: checked settings, of role `worker`.
        address: of the Ray cluster, see `engine.connect`.
        name: of the yard on that cluster.
        environment: of this process.
        announce: told `role`, `pid`, `address` and the groups with their bounds, when it has
            joined the cluster and can use the stores.

    Raises:
        ConfigError: the settings, the stores or the cluster cannot be used.
        StoreError: the ledger failed.
    """
    url, segments = config.ledger, config.segments
    assert url is not None  # see `stores.check`
    assert segments is not None
    clock = SystemClock()
    if config.models is not None:
        config = replace(config, models=config.models.absolute())
    ledger, _ = stores.open_shared(url, segments, clock)
    await ledger.close()  # it has made or migrated the tables
    backlog = BacklogReader(url, clock)
    leaving = asyncio.Event()
    try:
        where = engine.connect(address, name)
        run.leave_on_signals(leaving)  # Ray has set its own before
        await _wait_alone(name, clock, leaving)
        if leaving.is_set():
            return
        fleet = Fleet(
            engine.RayEngine(config, environment),
            config.groups,
            Routes([Route(each.name, each.models) for each in config.upstreams]),
            clock,
            backlog.read,
        )
        announce({
            "role": "cluster",
            "pid": os.getpid(),
            "address": where,
            "groups": {g.name: [g.workers_min, g.workers_max] for g in config.groups},
        })  # fmt: skip
        await _keep(fleet, leaving)
    finally:
        await backlog.close()
        engine.disconnect()


async def _wait_alone(name: str, clock: Clock, leaving: asyncio.Event) -> None:
    """Wait until no launcher is there, nor a worker of one before us, or until told to leave.

    Raises:
        ConfigError: they stay.
    """
    deadline_s = clock.monotonic_s() + _OTHERS_MAX_S
    keeper = ids.nonce()
    is_told = False
    while not await engine.take_place(keeper) or engine.names():
        found = engine.names()
        if leaving.is_set():
            return
        if clock.monotonic_s() > deadline_s:
            raise ConfigError(
                f"yard {name} is on this Ray cluster already, with {len(found)} workers; end the "
                "process that keeps them, or take another --name"
            )
        if not is_told:
            log.info("waiting for the end of %d workers of a launcher before", len(found))
            is_told = True
        await wait_first(clock, leaving, 1.0)


async def _keep(fleet: Fleet, leaving: asyncio.Event) -> None:
    keeping = asyncio.create_task(fleet.run())
    telling = asyncio.create_task(leaving.wait())
    try:
        await asyncio.wait({keeping, telling}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        telling.cancel()
        fleet.leave()
    await keeping
