"""Requests that wait for the primer of their prefix, by its key, in the order in which they came.

They stay with their shard, which takes them away without a word when it ends. Who is released goes
back to where it stood: before what is unsent of its shard. Pure.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchyard.dispatch.shard import Request, ShardRun

_REQUEST_BYTES = 1_024  # of memory, beside its params


class Parking:
    """The requests of one pool that wait for a primer."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, deque[tuple[ShardRun, Request]]] = {}
        self.size = 0
        """Bytes of memory that they take; some may be gone already."""

    def __len__(self) -> int:
        return sum(
            shard.is_parked(request) for queue in self._waiting.values() for shard, request in queue
        )

    @property
    def keys(self) -> Iterable[bytes]:
        """Return the keys that are waited for."""
        return self._waiting.keys()

    def park(self, shard: ShardRun, key: bytes) -> None:
        """Let the next request of a shard wait for the prefix with this key."""
        request = shard.park()
        self._waiting.setdefault(key, deque()).append((shard, request))
        self.size += len(request.params) + _REQUEST_BYTES

    def release(self, key: bytes) -> bool:
        """Let all that wait for this key try again; return whether there were any."""
        queue = self._waiting.pop(key, None)
        found = False
        while queue:
            shard, request = queue.pop()
            self.size -= len(request.params) + _REQUEST_BYTES
            found = shard.unpark(request) or found
        return found

    def release_one(self, key: bytes) -> bool:
        """Let the first that waits for this key try again; return whether there was one."""
        queue = self._waiting.get(key)
        found = False
        while queue and not found:
            shard, request = queue.popleft()
            self.size -= len(request.params) + _REQUEST_BYTES
            found = shard.unpark(request)
        if not queue:
            self._waiting.pop(key, None)
        return found
