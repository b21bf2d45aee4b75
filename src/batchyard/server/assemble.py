"""Put the parts of a yard together from its settings, and take them apart again."""

from __future__ import annotations

import contextlib
import random
import resource
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from batchyard import limits, models
from batchyard.dispatch.keeper import Keeper
from batchyard.dispatch.routes import Route, Routes
from batchyard.dispatch.worker import Worker
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.segments.directory import DirectorySegments
from batchyard.server.auth import OpenKeyRing
from batchyard.server.disk import Disk
from batchyard.server.guard import LOOPBACK_HOSTS
from batchyard.server.rates import Rates
from batchyard.server.yard import Yard
from batchyard.upstream.messages import MessagesUpstream
from batchyard.upstream.simulated import Settings, Simulated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from batchyard.clock import Clock
    from batchyard.ledger import Ledger
    from batchyard.segments import Segments
    from batchyard.server.auth import KeyRing
    from batchyard.server.config import Config, UpstreamConfig
    from batchyard.upstream import Upstream


@contextlib.asynccontextmanager
async def opened(
    config: Config,
    clock: Clock,
    *,
    upstreams: Mapping[str, Upstream] | None = None,
    keys: KeyRing | None = None,
    flush_s: float | None = None,
) -> AsyncIterator[Yard]:
    """Open a yard: recover what is on disk, and let go of everything at the end.

    The caller holds the lock on the data directory.

    Args:
        config: checked settings.
        clock: of leases, deadlines and waits.
        upstreams: in place of those of the settings, by the same names.
        keys: in place of any key being accepted.
        flush_s: how long answers gather before they are written; the usual time if None.

    Raises:
        ConfigError: the data or the table of models cannot be used.
    """
    if config.models is not None:
        models.use(config.models)
    disk = Disk(config.data, config.disk_reserve_bytes)
    disk.take_ballast()
    ledger = SqliteLedger(config.data / "ledger.db", make_room=disk.give_up_ballast)
    store = DirectorySegments(config.data / "segments")
    if upstreams is None:
        upstreams = {each.name: _upstream(each, clock) for each in config.upstreams}
    worker = _worker(config, clock, ledger, store, upstreams, flush_s)
    keeper = Keeper(ledger, store, clock, owner=worker.owner, tidy=disk.take_ballast)
    try:
        await keeper.clear_leftovers()
        yield Yard(
            ledger=ledger,
            store=store,
            worker=worker,
            keeper=keeper,
            routes=_routes(config),
            upstreams=upstreams,
            clock=clock,
            keys=keys or OpenKeyRing(),
            rates=Rates(clock, config.requests_per_minute),
            queued_max=config.queued_requests,
            disk=disk,
            spool=config.data / "spool",
            public_url=config.public_url,
            allowed_hosts=_allowed_hosts(config),
        )
    finally:
        for upstream in upstreams.values():
            await upstream.close()
        await ledger.close()


def _worker(
    config: Config,
    clock: Clock,
    ledger: Ledger,
    store: Segments,
    upstreams: Mapping[str, Upstream],
    flush_s: float | None,
) -> Worker:
    return Worker(
        ledger=ledger,
        store=store,
        upstreams=upstreams,
        routes=_routes(config),
        slots={each.name: each.slots for each in config.upstreams},
        clock=clock,
        rng=random.Random(),  # noqa: S311 - jitter
        calls_max=_calls_max(),
        flush_s=limits.FLUSH_INTERVAL_S if flush_s is None else flush_s,
    )


def _routes(config: Config) -> Routes:
    return Routes([Route(each.name, each.models) for each in config.upstreams])


def _calls_max() -> int:
    """Return how many calls may be in flight, after asking for all the descriptors there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return limits.CALLS_MAX
    return max(1, min(limits.CALLS_MAX, (hard - limits.DESCRIPTORS_SPARE) // 2))


def _allowed_hosts(config: Config) -> frozenset[str]:
    public = urlsplit(config.public_url).hostname if config.public_url else None
    return LOOPBACK_HOSTS | config.allowed_hosts | ({public} if public else set())


def _upstream(config: UpstreamConfig, clock: Clock) -> Upstream:
    if config.is_simulated:
        return Simulated(config.name, Settings.parse(config.url), clock)
    return MessagesUpstream(
        config.name,
        config.url,
        config.key,
        timeout_s=config.timeout_s,
        fetches_urls=config.fetches_urls,
    )
