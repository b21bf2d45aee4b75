"""Run a yard: take the data directory, recover, listen, work, and leave in order.

On SIGINT or SIGTERM, or when the lifeline closes, it stops listening and claiming, lets the
calls in flight end for a while, and exits; a second signal ends it at once, which loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import resource
import signal
import socket
import sys
from typing import TYPE_CHECKING, TextIO
from urllib.parse import urlsplit

import uvicorn

from batchyard import limits, wire
from batchyard.clock import Clock, SystemClock
from batchyard.dispatch.keeper import Keeper
from batchyard.dispatch.routes import Route, Routes
from batchyard.dispatch.worker import Worker
from batchyard.errors import ConfigError, DataDirectoryInUse
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.segments.directory import DirectorySegments
from batchyard.server import app
from batchyard.server.auth import OpenKeyRing
from batchyard.server.guard import LOOPBACK_HOSTS
from batchyard.server.yard import Yard
from batchyard.upstream.messages import MessagesUpstream
from batchyard.upstream.simulated import Settings, Simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from batchyard.server.config import Config, UpstreamConfig
    from batchyard.upstream import Upstream

log = logging.getLogger(__name__)

_KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that they close first
_CLOSE_S = 5  # for responses under way at the end


def check(config: Config) -> None:
    """Refuse settings that would be unsafe.

    Raises:
        ConfigError: it would listen beyond this machine, where any key would be accepted.
    """
    if config.host not in LOOPBACK_HOSTS:
        raise ConfigError(
            f"host {config.host}: keys are not built yet, so any key would open the yard; "
            "only loopback addresses are allowed (127.0.0.1, ::1, localhost)"
        )


def lock(data: Path) -> TextIO:
    """Take a data directory for this process, and hold it as long as the file is open.

    Raises:
        DataDirectoryInUse: another process has it.
        ConfigError: it cannot be made or written.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data / "spool").mkdir(mode=0o700, exist_ok=True)
        file = (data / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot use data directory {data}: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read(20).strip()
        raise DataDirectoryInUse(
            f"data directory {data} is in use by another batchyard process"
            + (f" (pid {holder})" if holder.isdigit() else "")
        ) from None
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


async def serve(
    config: Config, *, lifeline: bool, announce: Callable[[dict[str, object]], None]
) -> None:
    """Run a yard until it is told to end. The caller holds the lock on the data directory.

    Args:
        config: checked settings.
        lifeline: also end when standard input closes.
        announce: told `url`, `pid` and `data` when the yard is ready.

    Raises:
        ConfigError: the data or the address cannot be used.
        ExceptionGroup: the store failed while running.
    """
    clock: Clock = SystemClock()
    listener = _listen(config.host, config.port)
    ledger = SqliteLedger(config.data / "ledger.db")
    store = DirectorySegments(config.data / "segments")
    upstreams = {each.name: _upstream(each, clock) for each in config.upstreams}
    routes = Routes([Route(each.name, each.models) for each in config.upstreams])
    worker = Worker(
        ledger=ledger,
        store=store,
        upstreams=upstreams,
        routes=routes,
        slots={each.name: each.slots for each in config.upstreams},
        clock=clock,
        rng=random.Random(),  # noqa: S311 - jitter
        calls_max=_calls_max(),
    )
    keeper = Keeper(ledger, store, clock, owner=worker.owner)
    await keeper.clear_leftovers()
    yard = Yard(
        ledger=ledger,
        store=store,
        worker=worker,
        routes=routes,
        upstreams=upstreams,
        clock=clock,
        keys=OpenKeyRing(),
        spool=config.data / "spool",
        public_url=config.public_url,
        allowed_hosts=_allowed_hosts(config),
    )
    try:
        await _run(config, yard, keeper, listener, lifeline=lifeline, announce=announce)
    finally:
        for upstream in upstreams.values():
            await upstream.close()
        await ledger.close()


async def _run(
    config: Config,
    yard: Yard,
    keeper: Keeper,
    listener: socket.socket,
    *,
    lifeline: bool,
    announce: Callable[[dict[str, object]], None],
) -> None:
    server = _Server(
        uvicorn.Config(
            app.build(yard),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_CLOSE_S,
        )
    )
    leaving = asyncio.Event()
    _on_signals(leaving)
    if lifeline:
        _on_end_of_input(leaving)
    endpoint = config.data / "server.json"
    async with asyncio.TaskGroup() as group:
        background = [group.create_task(keeper.run()), group.create_task(yard.ledger.failure())]
        working = group.create_task(yard.worker.run())
        serving = group.create_task(server.serve([listener]))
        try:
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)
            ready: dict[str, object] = {
                "url": _url(listener),
                "pid": os.getpid(),
                "data": str(config.data),
            }
            _publish(endpoint, ready)
            announce(ready)
            await leaving.wait()
            log.info("leaving: calls in flight may end")
        finally:
            server.should_exit = True
            yard.worker.leave()
            for task in background:
                task.cancel()
            with contextlib.suppress(FileNotFoundError):
                endpoint.unlink()
        await asyncio.wait({working, serving})


class _Server(uvicorn.Server):
    """The HTTP server, with signals left to us: it would stop alone and raise them again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Take no signals."""
        yield


def _publish(endpoint: Path, ready: dict[str, object]) -> None:
    """Write where the yard is to be found, for other processes of this machine."""
    temporary = endpoint.with_suffix(".new")
    temporary.write_bytes(wire.encode(ready))
    temporary.replace(endpoint)


def _calls_max() -> int:
    """Return how many calls may be in flight, after asking for all the descriptors there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return limits.CALLS_MAX
    return max(1, min(limits.CALLS_MAX, (hard - limits.DESCRIPTORS_SPARE) // 2))


def _on_signals(leaving: asyncio.Event) -> None:
    """Leave on the first signal, end at once on the second."""

    def leave() -> None:
        if leaving.is_set():
            os._exit(1)
        leaving.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, leave)


def _on_end_of_input(leaving: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def readable() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            leaving.set()

    loop.add_reader(descriptor, readable)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    listener.listen(2048)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _allowed_hosts(config: Config) -> frozenset[str]:
    public = urlsplit(config.public_url).hostname if config.public_url else None
    return LOOPBACK_HOSTS | config.allowed_hosts | ({public} if public else set())


def _upstream(config: UpstreamConfig, clock: Clock) -> Upstream:
    if config.is_simulated:
        return Simulated(config.name, Settings.parse(config.url), clock)
    return MessagesUpstream(config.name, config.url, config.key, timeout_s=config.timeout_s)
