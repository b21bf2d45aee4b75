"""When the emulated yard has done all that can be done before time passes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchyard.emulator.model import ScriptedModel
    from batchyard.server.yard import Yard

_TURNS = 10  # of the loop, that a woken task gets to start its work
_LOOK_S = 0.001
_PATIENCE_S = 10.0  # of the machine; a yard that is loaded this long is loaded, not unsettled


async def settled(yard: Yard, model: ScriptedModel) -> None:
    """Wait until only the passing of time, or a client, can change anything."""
    loop = asyncio.get_running_loop()
    end = loop.time() + _PATIENCE_S
    calm = 0  # twice in a row: what is woken between two pieces of work is not seen
    while calm < 2 and loop.time() < end:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        if yard.keeper.is_quiet and yard.own_worker.is_quiet(model.waiting):
            calm += 1
        else:
            calm = 0
            await asyncio.sleep(_LOOK_S)
