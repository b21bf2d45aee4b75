"""Named points at which a test may kill this process, to prove that nothing is lost.

Does nothing unless `BATCHYARD_CRASH_AT` names a point (`name`, or `name:3` for its third time).
"""

from __future__ import annotations

import os
import signal
from functools import cache
from itertools import count

_reached = count(1)


@cache
def _wanted() -> tuple[str, int]:
    name, _, turn = os.environ.get("BATCHYARD_CRASH_AT", "").partition(":")
    return name, int(turn or 1)


def point(name: str) -> None:
    """Die here, as if by power cut, when the environment says so."""
    target, turn = _wanted()
    if name == target and next(_reached) == turn:
        os.kill(os.getpid(), signal.SIGKILL)
