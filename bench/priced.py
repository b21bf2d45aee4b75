"""A ledger whose calls take as long in virtual time as `bench/claims.py` has measured."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchyard import limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.ledger.sqlite import SqliteLedger
    from batchyard.testing.clock import ManualClock

RESULTS = Path(__file__).parent / "results"
SIZE = "1,000,000 / 1,000"
"""The size of the ledger at which statements were measured: the larger one."""

# What a method of the ledger costs: the statements that were measured, by how many items they were
# for. Between two of these the cost grows evenly.
STATEMENTS: dict[str, dict[int, str]] = {
    "pools_ready": {1: "pools_ready"},
    "pools_apart": {1: "pools_apart"},
    "claim_void": {1: "claim_void, nothing"},
    "claim": {1: "claim"},
    "claim_fresh": {1: "claim_fresh 1", 16: "claim_fresh 16"},
    "renew": {1: "renew 1", 20: "renew 20"},
    "share": {1: "share", 400: "share, 400 workers"},
    "commit": {1: "commit 1", 16: "commit 16"},
    "end_all": {1: "end 1", 16: "end 16"},
    "results": {1: "get"},
    "news": {1: "get"},
    "begin_sweep": {1: "begin_sweep, another's"},
}
# What a sweep costs: once for all processes, not for each, so it is no part of the simulation.
SWEEP = {
    "take_back": "take_back, nothing",
    "finished": "finished, nothing",
    "outdated": "outdated, nothing",
    "forget_creates": "forget_creates, nothing",
}
# Those that only read, always or when they find nothing: on the other connection of the worker.
READS = frozenset({"pools_ready", "pools_apart", "results", "news"})
LOOKS = {"claim": "pools_ready", "claim_fresh": "pools_ready", "claim_void": "claim_void, nothing"}
"""Each with the statement that looks."""


def statement_costs(store: str = "postgres", size: str = SIZE) -> dict[str, dict[str, Any]]:
    """Return what was measured, by statement."""
    measured = json.loads((RESULTS / "statements.json").read_text(encoding="utf-8"))
    return {
        cost["statement"]: cost
        for cost in measured["costs"]
        if cost["store"] == store and cost["size"] == size
    }


class Costly:
    """A ledger each of whose statements takes the time that was measured, one after the other."""

    def __init__(
        self,
        real: SqliteLedger,
        clock: ManualClock,
        costs: dict[str, Any],
        *,
        workers: int,
        creates_s: float,
    ) -> None:
        """Stand before a ledger.

        Args:
            real: the ledger.
            clock: in which calls take time.
            costs: of the statements, by name.
            workers: that share the pools.
            creates_s: batches a second that all of them are given.
        """
        self._real = real
        self._clock = clock
        self._costs = costs
        self._workers = workers
        self._creates_s = creates_s
        self._free = {True: asyncio.Lock(), False: asyncio.Lock()}
        self.poll_s = limits.SHARED_POLL_S
        self.renew_s = limits.SHARED_RENEW_INTERVAL_S
        self.counts: Counter[str] = Counter()
        self.items: Counter[str] = Counter()
        self.busy_s = 0.0
        """For how long the writing connection was busy."""
        self.spent_s = 0.0
        """The same of both connections."""
        self.wal_bytes = 0.0
        self.looked = 0
        """How many calls only read."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name not in STATEMENTS:
            return method

        async def timed(*args: Any, **kwargs: Any) -> Any:
            found = await method(*args, **kwargs)
            if name == "begin_sweep":
                found = False  # it is another's turn, as it is of nearly all
            if name == "news":  # batches that others take up are news too
                others = round(self._clock.monotonic_s() * self._creates_s)
                found = replace(found, newest=found.newest + others)
            items = self._items(name, args, found)
            looks = name in READS or (name in LOOKS and not items)
            seconds, written = self._price(name, items, kwargs)
            async with self._free[looks]:
                await self._clock.sleep(seconds)
            self.counts[name] += 1
            self.spent_s += seconds
            if looks:
                self.looked += 1
            else:
                self.items[name] += items
                self.wal_bytes += written
                self.busy_s += seconds
            return found

        return timed

    def _items(self, name: str, args: tuple[Any, ...], found: Any) -> int:
        match name:
            case "claim" | "claim_fresh" | "claim_void":
                return len(found)
            case "renew":
                return len(args[2])
            case "commit":
                return len(args[1])
            case "end_all":
                return len(args[0])
            case "begin_sweep":
                return 0  # no row is written
            case _:
                return 1

    def _price(self, name: str, items: int, kwargs: dict[str, Any]) -> tuple[float, float]:
        """Return the seconds and the bytes of WAL that a call takes."""
        measured = STATEMENTS[name]
        if name == "share":
            items = self._workers  # one row is written, those of all are read
        if name == "claim" and kwargs.get("turn") is not None:
            measured = {1: "claim, batch known"}
        if name in LOOKS and not items:
            measured = {1: LOOKS[name]}  # it looked, and took nothing
        ms, written = (
            between(items, self._points(measured, key)) for key in ("median_ms", "bytes")
        )
        least: float = self._costs["get"]["median_ms"]
        return max(least, ms) / 1e3, written

    def _points(self, measured: dict[int, str], key: str) -> list[tuple[int, float]]:
        return [(number, self._costs[name][key]) for number, name in measured.items()]


def between(number: int, points: Sequence[tuple[int, float]]) -> float:
    """Return the value at `number` of the line through one or two measured points.

    Through one of them only, it does not depend on the number.
    """
    (at, value), (end, last) = points[0], points[-1]
    return value if at == end else value + (number - at) * (last - value) / (end - at)
