"""A worker as a process of its own: told what to do over standard input, its lifeline too.

When standard input closes, the server is dead: the worker ends at once, as if killed, which loses
nothing. On SIGTERM it lets its calls end for a while. Each second it writes a byte to standard
output; see `workers.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import pickle
import signal
import sys
import threading

import uvloop

from batchyard import limits
from batchyard.clock import SystemClock
from batchyard.errors import StoreError
from batchyard.server import assemble
from batchyard.server.workers import STORE_FAILED, Order

log = logging.getLogger(__name__)


def main() -> None:
    """Work until told to end."""
    os.umask(0o077)
    gc.set_threshold(limits.GC_THRESHOLD, 10, 10)
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s %(name)s[{os.getpid()}] %(message)s",
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(0, "rb", buffering=0, closefd=False) as orders:
        order = pickle.load(orders)  # noqa: S301 - from the server that started it
    assert isinstance(order, Order)
    if order.core is not None:
        with contextlib.suppress(OSError):  # it was taken from us since
            os.sched_setaffinity(0, {order.core})
    threading.Thread(target=_end_with_server, daemon=True).start()
    try:
        uvloop.run(_work(order))
    except Exception as error:
        failure = _store_failure(error)
        if failure is None:
            raise
        log.error("stopped, the store failed: %s", failure)  # noqa: TRY400 - it says all
        sys.exit(STORE_FAILED)


def _end_with_server() -> None:
    while os.read(0, 64):
        pass
    os._exit(1)


async def _work(order: Order) -> None:
    """Run one worker.

    Raises:
        ExceptionGroup: the store failed.
    """
    clock = SystemClock(offset_us=order.offset_us)
    async with assemble.opened_worker(order.config, clock, order.owner) as (ledger, worker, _):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.leave)
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(ledger.failure()),
                group.create_task(_give_signs(clock)),
            ]
            log.info("working owner=%s", worker.owner)
            await worker.run()
            for task in background:
                task.cancel()


async def _give_signs(clock: SystemClock) -> None:
    while True:
        os.write(1, b".")
        await clock.sleep(limits.RENEW_INTERVAL_S)


def _store_failure(error: Exception) -> Exception | None:
    if isinstance(error, ExceptionGroup):
        return next(filter(None, map(_store_failure, error.exceptions)), None)
    return error if isinstance(error, StoreError) else None


if __name__ == "__main__":
    main()
