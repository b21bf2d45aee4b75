"""The ledger as one process has it: it may be frozen, it may be dead, and the disk may be full."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from batchyard.errors import DiskFull

if TYPE_CHECKING:
    from collections.abc import Callable

# What a process writes into the ledger, where it may find the disk full.
WRITES = frozenset(
    {"claim", "claim_fresh", "claim_void", "claim_apart", "renew", "adopt", "commit", "reopen"}
    | {"end_all", "share", "release", "take_back", "spare", "absolve", "archive", "forget_creates"}
)


class Gated:
    """Passes every method of a ledger through a gate, which freezes one worker as SIGSTOP does.

    Writes may find the disk full.
    """

    def __init__(
        self,
        real: Any,
        gate: asyncio.Event,
        freeze_before: str | None,
        finds_full: Callable[[str], bool],
    ) -> None:
        self._real = real
        self._gate = gate
        self._freeze_before = freeze_before
        self._finds_full = finds_full
        self.is_dead = False
        """Whether its process was killed: it tells the ledger nothing more."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if not callable(method):
            return method

        async def gated(*args: Any, **kwargs: Any) -> Any:
            if self.is_dead:
                raise asyncio.CancelledError
            if name == self._freeze_before:
                self._freeze_before = None
                self._gate.clear()
            await self._gate.wait()
            if name in WRITES and self._finds_full(name):
                raise DiskFull("the ledger has no room")
            answer = await method(*args, **kwargs)
            await self._gate.wait()
            return answer

        return gated
