"""What a run tells a screen, and how it waits: what the loop and the sender share."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from batchyard.client.problems import Detached

if TYPE_CHECKING:
    from collections.abc import Callable

BACKOFF_CAP_S = 60.0

Kind = Literal[
    "planned", "replaced", "sending", "created", "progress", "ended", "saving", "collected",
    "withdrawn", "waiting", "notice",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Something that a screen may show. `retry_in_s` is when the next call is due."""

    kind: Kind
    shard: int | None = None
    text: str = ""
    batch: str | None = None
    done: int = 0
    total: int = 0
    retry_in_s: float | None = None


class Pace:
    """Tells and waits, for the thread of one run.

    Args:
        pause: waits for seconds; returns True when the run is to be left.
        tell: gets everything that a screen may show.
    """

    def __init__(self, pause: Callable[[float], bool], tell: Callable[[Update], None]) -> None:
        self._pause = pause
        self.tell = tell

    def rest(self, seconds: float) -> None:
        """Wait.

        Raises:
            Detached: the run was left on request.
        """
        if self._pause(seconds):
            raise Detached("detached")

    def back_off(self, shard: int, total: int, attempt: int, wish: float | None, why: str) -> None:
        """Wait before attempt number `attempt` + 1, at least as long as the server wishes.

        Raises:
            Detached: the run was left on request.
        """
        delay = max(backoff(attempt), wish or 0.0)
        self.tell(Update(kind="waiting", shard=shard, text=why, total=total, retry_in_s=delay))
        self.rest(delay)


def backoff(attempt: int) -> float:
    """Return seconds to wait after failure number `attempt`: 1, 2, 4 … with jitter."""
    full = min(BACKOFF_CAP_S, 2.0 ** min(attempt - 1, 10))
    return full * random.uniform(0.75, 1.0)  # noqa: S311 - jitter, not a secret
