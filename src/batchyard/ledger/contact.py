"""Whose leases have ended: known to who has had the ledger for a whole one without a break.

A lease ends because its owner is dead, or frozen, or because nobody could renew it: the database
was away, the disk was full, another program held the file, the machine slept. So nobody takes a
lease that has ended, or slots that were had by one, before it has had the ledger itself for a whole
lease: who lives has had the time to renew.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from batchyard import ids, limits
from batchyard.clock import steady_us
from batchyard.errors import DiskFull
from batchyard.ledger import returning

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchyard.clock import Clock
    from batchyard.ledger.sql import Connection, Transaction


class _BreakError(Exception):
    """There was a break in the contact with the ledger, and nothing may be taken."""


def until(contact: Contact | None, lease_us: int) -> Callable[[], int]:
    """Return what tells the end of a lease that is asked for now: its query may wait for long."""
    if contact is None:
        return lambda: lease_us
    clock = contact.clock
    length_us = lease_us - steady_us(clock)
    return lambda: steady_us(clock) + length_us


class Contact:
    """Since when this process has had the ledger without a break.

    A break is also a time in which nothing was committed, though nothing failed: a synchronous
    standby was away, a pooler or a lock let nobody through, this process stood still. It is not
    told from having written nothing, so who wants contact writes now and then.
    """

    def __init__(self, clock: Clock) -> None:
        """Begin without any.

        Args:
            clock: the one that leases are asked for in.
        """
        self.clock = clock
        self._name = ids.nonce()
        self._lease_s = limits.LEASE_US / limits.SECOND_US
        # Who lives renews at each fifth of a lease, or sooner: a stall that ends leases is longer.
        self._gap_s = self._lease_s * 2 / 3
        self._since_s = self._wrote_s = float("-inf")

    def broke(self) -> None:
        """Begin anew."""
        self._wrote_s = float("-inf")

    def wrote(self, began_s: float) -> None:
        """Note that something was committed just now, by a transaction that began then."""
        now_s = self.clock.monotonic_s()
        if now_s - self._wrote_s > self._gap_s:
            self._since_s = now_s
        self._wrote_s = began_s

    @property
    def is_fresh(self) -> bool:
        """Whether something was committed lately enough to write nothing for its sake."""
        return self.clock.monotonic_s() - self._wrote_s <= self._gap_s / 4

    @property
    def knows_leases(self) -> bool:
        """Whether a lease that has ended is free: who held it could have renewed it."""
        now_s = self.clock.monotonic_s()
        return now_s - self._wrote_s <= self._gap_s and now_s - self._since_s >= self._lease_s

    async def keep(self, writer: Connection, lease_now: int) -> None:
        """Write a row, if nothing was written for a while."""
        if self.is_fresh:
            return
        lease_us = lease_now + limits.LEASE_US
        proof = {"pool": "#contact", "owner": self._name, "slots": 0, "lease_us": lease_us}
        proof |= {"note": None, "told": None}
        with contextlib.suppress(DiskFull):
            await writer.run(lambda t: t.change("share_put", proof))

    async def take_back(self, writer: Connection, lease_now: int, but: str) -> int:
        """Free the shards whose lease has ended, if that is known; see `Ledger.take_back`."""
        await self.keep(writer, lease_now)
        free = returning.take_back(lease_now, but)

        def run(t: Transaction) -> int:
            freed = free(t)
            if not self.knows_leases:  # it has waited itself, while others could not renew
                raise _BreakError
            return freed

        with contextlib.suppress(_BreakError):
            return await writer.run(run) if self.knows_leases else 0
        return 0
