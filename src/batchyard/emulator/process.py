"""An emulator as a process of its own."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import uvloop

from batchyard.emulator.run import emulate
from batchyard.errors import ConfigError
from batchyard.server import place
from batchyard.server.guard import LOOPBACK_HOSTS
from batchyard.server.run import check_address, leave_on_end_of_input, leave_on_signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchyard.emulator.machine import Machine
    from batchyard.emulator.run import Emulation


def serve(
    what: Emulation, *, lifeline: bool, announce: Callable[[dict[str, object]], None]
) -> None:
    """Run an emulator until a signal, or the end of standard input, ends it.

    Args:
        what: to emulate.
        lifeline: also end when standard input closes.
        announce: told `url`, `pid` and `data` when it is ready.

    Raises:
        ConfigError, InvalidRequest: a setting cannot be used.
        DataDirectoryInUse: another process has the data directory.
    """
    if what.host not in LOOPBACK_HOSTS:
        raise ConfigError(
            f"host {what.host}: it accepts any key; only loopback addresses are allowed "
            "(127.0.0.1, ::1, localhost)"
        )

    def tell(url: str, _machine: Machine) -> None:
        announce({"url": url, "pid": os.getpid(), "data": str(what.data)})

    async def main() -> None:
        leaving = asyncio.Event()
        leave_on_signals(leaving)
        if lifeline:
            leave_on_end_of_input(leaving)
        await emulate(what, leaving=leaving, tell=tell)

    check_address(what.host, what.port, what.data)
    with place.lock(what.data):
        uvloop.run(main())
