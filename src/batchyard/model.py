"""The values that the ledger keeps: batches, shards, counts. No I/O, only arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["in_progress", "canceling", "ended"]

Priority = Literal["low", "normal", "high"]
"""How a batch stands beside the others of its workspace."""

Billing = Literal["standard", "batch", "simulated"]
"""What a call costs: the list price, half of it, or nothing."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many requests ended in which way."""

    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0

    @property
    def total(self) -> int:
        """Return how many requests have a result."""
        return self.succeeded + self.errored + self.canceled + self.expired


@dataclass(frozen=True, slots=True)
class Tokens:
    """Sums over the `usage` of succeeded requests."""

    input: int = 0
    output: int = 0
    cache_write: int = 0
    cache_read: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a user sent in one create call. Times are microseconds since 1970."""

    id: str
    workspace: str
    requests: int
    created_us: int
    expires_us: int
    version: str
    betas: tuple[str, ...] = ()
    user_profile: str | None = None
    """The user profile that its requests are attributed to."""
    billing: Billing
    priority: Priority = "normal"
    cancel_us: int | None = None
    ended_us: int | None = None
    archived_us: int | None = None
    counts: Counts = Counts()
    tokens: Tokens = Tokens()

    @property
    def status(self) -> Status:
        """Return the `processing_status` of the wire."""
        if self.ended_us is not None:
            return "ended"
        return "in_progress" if self.cancel_us is None else "canceling"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """A run of requests that one worker takes at a time: a byte range of the requests segment."""

    index: int
    pool: str
    offset: int
    length: int
    requests: int
    crc: int | None = None
    """CRC-32 of the range; None for what was stored before there were checksums."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The first `length` bytes of a result segment. Bytes after them do not exist for anybody."""

    segment: str
    length: int
    blocks: tuple[int, ...] = ()
    """CRC-32 of each mebibyte; empty for what was stored before there were checksums."""
