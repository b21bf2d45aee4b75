"""Run a yard: listen, work, and leave in order.

On SIGINT or SIGTERM, or when the lifeline closes, it stops listening and claiming, lets the calls
in flight and the answers under way end for a while, and exits; a second signal ends it at once,
which loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, TextIO

import uvicorn

from batchyard import ids, limits
from batchyard.clock import SystemClock
from batchyard.errors import ConfigError
from batchyard.server import app, assemble
from batchyard.server.guard import LOOPBACK_HOSTS
from batchyard.server.place import published

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from starlette.types import ASGIApp

    from batchyard.server.config import Config
    from batchyard.server.yard import Yard

log = logging.getLogger(__name__)

_KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that they close first
CLOSE_S = 60  # for answers under way at the end, as long as for calls
_LEAVE_MAX_S = max(limits.DRAIN_GRACE_S, CLOSE_S) + 30  # whatever holds it up


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


async def serve(
    config: Config,
    lock: TextIO,
    *,
    lifeline: bool,
    announce: Callable[[dict[str, object]], None],
) -> None:
    """Run a yard until it is told to end.

    Args:
        config: checked settings.
        lock: on the data directory.
        lifeline: also end when standard input closes.
        announce: told `url`, `pid` and `data` when the yard is ready.

    Raises:
        ConfigError: the data or the address cannot be used.
        ExceptionGroup: the store failed while running.
    """
    gc.set_threshold(limits.GC_THRESHOLD, 10, 10)
    leaving = asyncio.Event()
    listener = listen(config.host, config.port)
    async with assemble.opened(config, SystemClock(), lock=lock.fileno()) as yard:
        leave_on_signals(leaving)
        if lifeline:
            leave_on_end_of_input(leaving)
        ready: dict[str, object] = {
            "url": url_of(listener),
            "pid": os.getpid(),
            "data": str(config.data),
        }
        with contextlib.ExitStack() as stack:

            def tell() -> None:
                stack.enter_context(published(config.data, ready))
                announce(ready)

            await run(yard, app.build(yard), listener, leaving=leaving, tell=tell)


async def work(
    config: Config, *, lifeline: bool, announce: Callable[[dict[str, object]], None]
) -> None:
    """Run a worker of its own, with a ledger that it shares, until it is told to end.

    Args:
        config: checked settings.
        lifeline: also end when standard input closes.
        announce: told `role`, `pid` and `owner` when it works.

    Raises:
        ConfigError: the stores or the table of models cannot be used.
        ExceptionGroup: the store failed while running.
    """
    gc.set_threshold(limits.GC_THRESHOLD, 10, 10)
    leaving = asyncio.Event()

    def tell(hello: dict[str, object]) -> None:
        leave_on_signals(leaving)
        if lifeline:
            leave_on_end_of_input(leaving)
        announce(hello)

    await work_until(leaving, config, ids.nonce(), tell)


async def work_until(
    leaving: asyncio.Event,
    config: Config,
    owner: str,
    announce: Callable[[dict[str, object]], None],
) -> None:
    """Run a worker until `leaving` is set by whoever ends it.

    Args:
        leaving: set from outside.
        config: checked settings, with a ledger and segments that are shared.
        owner: its name in the ledger, never used before.
        announce: told `role`, `pid` and `owner` when it works.

    Raises:
        ConfigError: the stores or the table of models cannot be used.
        ExceptionGroup: the store failed while running.
    """
    async with (
        assemble.opened_worker(config, SystemClock(), owner) as (ledger, worker, keeper),
        asyncio.TaskGroup() as group,
    ):
        background = [
            group.create_task(keeper.run()),
            group.create_task(ledger.failure()),
        ]
        working = group.create_task(worker.run())
        announce({"role": "worker", "pid": os.getpid(), "owner": owner})
        try:
            await leaving.wait()
            log.info("leaving: calls in flight may end")
        finally:
            worker.leave()
            for task in background:
                task.cancel()
        await working


async def run(
    yard: Yard,
    application: ASGIApp,
    listener: socket.socket,
    *,
    leaving: asyncio.Event,
    tell: Callable[[], None],
    close_s: int | None = None,
) -> None:
    """Serve and work until `leaving` is set.

    Args:
        yard: its parts.
        application: what answers requests.
        listener: a listening socket.
        leaving: set by whoever ends it.
        tell: called once, when requests are answered.
        close_s: how long answers under way may take at the end; None for the usual time.

    Raises:
        ExceptionGroup: the store failed.
    """
    server = _Server(
        uvicorn.Config(
            application,
            http="batchyard.server.protocol:Protocol",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # `public_url` says what is in front of it, not a request
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=CLOSE_S if close_s is None else close_s,
        )
    )
    async with asyncio.TaskGroup() as group:
        background = [
            group.create_task(yard.keeper.run()),
            group.create_task(yard.ledger.failure()),
        ]
        if yard.shares_stores:
            background.append(group.create_task(yard.keeper.clear_old_leftovers()))
        else:  # a network that fails is no such end: nothing is in doubt that is named anew
            background.append(group.create_task(yard.failure.wait()))
        working = group.create_task(yard.worker.run())
        serving = group.create_task(server.serve([listener]))
        try:
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)
            tell()
            await leaving.wait()
            log.info("leaving: calls in flight may end")
        finally:
            server.should_exit = True
            yard.leaving.set()
            yard.worker.leave()
            for task in background:
                task.cancel()
        await asyncio.wait({working, serving})


class _Server(uvicorn.Server):
    """The HTTP server, with signals left to us: it would stop alone and raise them again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Take no signals."""
        yield


def leave_on_signals(leaving: asyncio.Event) -> None:
    """Leave on the first signal, end at once on the second, or when leaving takes far too long."""

    def leave() -> None:
        if leaving.is_set():
            os._exit(1)
        # Even if a library holds up the whole process: the log shows where it stood, and ending at
        # once loses nothing.
        faulthandler.dump_traceback_later(_LEAVE_MAX_S, exit=True)
        leaving.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, leave)


def leave_on_end_of_input(leaving: asyncio.Event) -> None:
    """Leave when standard input closes."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def readable() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            leaving.set()

    loop.add_reader(descriptor, readable)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigError: the address cannot be used.
    """
    listener = _bound(host, port)
    listener.listen(2048)
    return listener


def check_address(host: str, port: int, data: Path) -> None:
    """Refuse an address in use while there is no data directory that a failed start would leave.

    Raises:
        ConfigError: the address cannot be used.
    """
    with contextlib.suppress(OSError):  # of a name that cannot be: the start says it
        if not data.exists():
            _bound(host, port).close()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        how = "; --port takes another, 0 a free one" if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}{how}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the origin that a listening socket answers at."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
