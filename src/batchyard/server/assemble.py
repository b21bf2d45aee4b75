"""Put the parts of a yard together from its settings, and take them apart again."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from batchyard import descriptors, ids, limits, models
from batchyard.dispatch.ceilings import Ceilings
from batchyard.dispatch.keeper import Keeper
from batchyard.dispatch.routes import Route, Routes
from batchyard.dispatch.worker import Worker
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.segments.directory import DirectorySegments
from batchyard.server import stores
from batchyard.server.auth import OpenKeyRing
from batchyard.server.disk import Disk
from batchyard.server.elsewhere import AmongOthers, Elsewhere
from batchyard.server.guard import LOOPBACK_HOSTS
from batchyard.server.rates import Rates
from batchyard.server.workers import Workers
from batchyard.server.yard import Yard
from batchyard.upstream.http import Clients, StreamTimeouts
from batchyard.upstream.messages import MessagesUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

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
    lock: int | None = None,
) -> AsyncIterator[Yard]:
    """Open a yard: recover what is on disk, and let go of everything at the end.

    The caller holds the lock on the data directory.

    Args:
        config: checked settings.
        clock: of leases, deadlines and waits.
        upstreams: in place of those of the settings, by the same names.
        keys: in place of any key being accepted.
        flush_s: how long answers gather before they are written; the usual time if None.
        lock: the descriptor of the lock on the data directory, for worker processes to share.

    Raises:
        ConfigError: the data or the table of models cannot be used.
    """
    _prepare(config)
    disk = Disk(config.data, config.disk_reserve_bytes)
    ledger, store = _stores(config, clock, disk)
    disk.take_ballast()  # now that it is known whose directory this is
    upstreams = _upstreams(config, clock) if upstreams is None else upstreams
    worker: Worker | Elsewhere | None = _elsewhere(config, clock, ledger, store, lock)
    if worker is None:
        worker = _worker(config, clock, ledger, store, upstreams, flush_s)
        if config.ledger is not None:
            worker = AmongOthers(worker, ledger, _routes(config), clock)
    keeper = _keeper(config, clock, ledger, store, worker.owner, disk.take_ballast)
    try:
        await _start(config, store, upstreams)
        if config.ledger is None:
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
            shares_stores=config.ledger is not None,
            disk=disk,
            spool=config.data / "spool",
            public_url=config.public_url,
            allowed_hosts=_allowed_hosts(config),
        )
    finally:
        for upstream in upstreams.values():
            await upstream.close()
        await ledger.close()


@contextlib.asynccontextmanager
async def opened_worker(
    config: Config, clock: Clock, owner: str
) -> AsyncIterator[tuple[Ledger, Worker, Keeper]]:
    """Open what one of several worker processes needs.

    On one machine the server has opened the yard, and keeps house for all.

    Args:
        config: checked settings.
        clock: of leases, deadlines and waits.
        owner: the name of the worker in the ledger.

    Raises:
        ConfigError: the data or the table of models cannot be used.
    """
    _prepare(config)
    if config.ledger is None:
        disk = Disk(config.data, config.disk_reserve_bytes)
        ledger, store = _stores(config, clock, disk, joins=True)
    else:
        ledger, store = _shared(config, clock)
    ours = [e for e in config.upstreams if config.only is None or e.name in config.only]
    upstreams = _sharing({each.name: _upstream(each, clock) for each in ours})
    try:
        await _start(config, store, upstreams)
        worker = _worker(config, clock, ledger, store, upstreams, None, owner)
        yield ledger, worker, _keeper(config, clock, ledger, store, owner, None)
    finally:
        for upstream in upstreams.values():
            await upstream.close()
        await ledger.close()


def _prepare(config: Config) -> None:
    """Ask for descriptors, and read the table of models: later, a failing disk would end the work.

    Raises:
        ConfigError: the table cannot be used.
    """
    descriptors.raise_limit()
    if config.models is not None:
        models.use(config.models)
    models.table()


def _stores(
    config: Config, clock: Clock, disk: Disk, *, joins: bool = False
) -> tuple[Ledger, Segments]:
    if not joins:
        disk.make_room_to_start()
    if config.ledger is not None:
        return _shared(config, clock)
    stores.check_file_system(config.data)
    ledger = SqliteLedger(
        config.data / "ledger.db",
        make_room=disk.give_up_ballast,
        shared=config.workers > 1,
        joins=joins,
        clock=clock if config.workers > 1 else None,
    )
    return ledger, DirectorySegments(
        config.data / "segments", disk.give_up_ballast, descriptors.result_files_max()
    )


def _shared(config: Config, clock: Clock) -> tuple[Ledger, Segments]:
    assert config.ledger is not None
    assert config.segments is not None  # see `stores.check`
    return stores.open_shared(config.ledger, config.segments, clock)


def _elsewhere(
    config: Config, clock: Clock, ledger: Ledger, store: Segments, lock: int | None
) -> Elsewhere | None:
    """Return what stands for workers in other processes; None when this one works itself."""
    if config.role == "api":
        return Elsewhere(ledger, _routes(config), clock)
    if config.workers > 1:
        return Workers(config, ledger, store, _routes(config), clock, lock)
    return None


def _keeper(
    config: Config,
    clock: Clock,
    ledger: Ledger,
    store: Segments,
    owner: str,
    tidy: Callable[[], None] | None,
) -> Keeper:
    if config.ledger is None:
        return Keeper(ledger, store, clock, owner=owner, tidy=tidy)
    return Keeper(
        ledger,
        store,
        clock,
        owner=owner,
        tidy=tidy,
        interval_s=limits.SHARED_KEEPER_INTERVAL_S,
        rng=random.Random(),  # noqa: S311 - jitter
    )


def _worker(
    config: Config,
    clock: Clock,
    ledger: Ledger,
    store: Segments,
    upstreams: Mapping[str, Upstream],
    flush_s: float | None,
    owner: str | None = None,
) -> Worker:
    return Worker(
        ledger=ledger,
        store=store,
        upstreams=upstreams,
        routes=_routes(config),
        slots={each.name: each.slots for each in config.upstreams},
        clock=clock,
        rng=random.Random(),  # noqa: S311 - jitter
        calls_max=descriptors.calls_max(),
        flush_s=limits.FLUSH_INTERVAL_S if flush_s is None else flush_s,
        shares=config.shares,
        ceilings=Ceilings({each.name: each.limits for each in config.upstreams}),
        own_slots=frozenset(each.name for each in config.upstreams if each.engine is not None),
        # Who shares its ledger is one of several, alone in its process or not.
        owner=ids.nonce() if owner is None and config.ledger is not None else owner,
    )


def _routes(config: Config) -> Routes:
    return Routes([Route(each.name, each.models) for each in config.upstreams])


def _allowed_hosts(config: Config) -> frozenset[str]:
    public = urlsplit(config.public_url).hostname if config.public_url else None
    return LOOPBACK_HOSTS | config.allowed_hosts | ({public} if public else set())


def _upstreams(config: Config, clock: Clock) -> dict[str, Upstream]:
    works = config.role != "api"
    return _sharing({each.name: _upstream(each, clock, works=works) for each in config.upstreams})


def _sharing(upstreams: dict[str, Upstream]) -> dict[str, Upstream]:
    """Let upstreams share the descriptors of the process."""
    clients = Clients(descriptors.calls_max())
    for upstream in upstreams.values():
        if isinstance(upstream, MessagesUpstream):
            upstream.share(clients)
    return upstreams


async def _start(config: Config, store: Segments, upstreams: Mapping[str, Upstream]) -> None:
    """Look whether results can be written, and load the models that this process holds.

    Raises:
        ConfigError: a model cannot be loaded.
        StoreError: no results can be written.
    """
    if config.role != "api":
        await asyncio.to_thread(store.check_creates)
    for upstream in upstreams.values():
        start = getattr(upstream, "start", None)
        if start is not None:
            await start()


def _upstream(config: UpstreamConfig, clock: Clock, *, works: bool = True) -> Upstream:
    if config.is_simulated:
        # Not at every start: the simulated model is as much to load as the rest of the server.
        from batchyard.upstream.simulated import Settings, Simulated  # noqa: PLC0415

        return Simulated(config.name, Settings.parse(config.url), clock)
    timeouts = StreamTimeouts(
        first_byte_s=config.first_byte_timeout_s,
        idle_s=config.idle_timeout_s,
        whole_s=config.stream_timeout_s,
    )
    if config.engine is not None:
        from batchyard.upstream.engine import adapter, vllm  # noqa: PLC0415 - as above

        return adapter.EngineUpstream(
            config.name,
            config.engine.model.rpartition("/")[2],
            vllm.VllmEngine(config.engine) if works else None,
            clock,
            timeouts=timeouts,
            timeout_s=config.timeout_s,
            stream_above_tokens=config.stream_above_tokens,
        )
    return MessagesUpstream(
        config.name,
        config.url,
        config.key,
        timeout_s=config.timeout_s,
        stream_above_tokens=config.stream_above_tokens,
        stream_timeouts=timeouts,
        fetches_urls=config.fetches_urls,
        unset_key=config.unset_key,
    )
