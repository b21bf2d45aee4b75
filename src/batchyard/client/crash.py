"""Named points at which a test may kill this process, to prove that the run survives it.

Does nothing unless `BATCHYARD_CRASH_AT` names a point (`name`, or `name:3` for its third time).
"""

from __future__ import annotations

import os
import signal

_seen: dict[str, int] = {}


def point(name: str) -> None:
    """Die here, as if by power cut, when the environment says so."""
    wanted = os.environ.get("BATCHYARD_CRASH_AT")
    if not wanted:
        return
    target, _, turn = wanted.partition(":")
    if target == name:
        _seen[name] = _seen.get(name, 0) + 1
        if _seen[name] == int(turn or 1):
            os.kill(os.getpid(), signal.SIGKILL)
