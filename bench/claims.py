"""What a claim costs when very much waits: milliseconds for each statement of the dispatch.

    python bench/claims.py [--workspaces 1000] [--shards 1000000] [--running 2000] [--claims 100]

Fills a ledger on disk, then claims from it through the same class as a worker. Medians and the
slowest of all.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchyard.ledger import Held
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.model import Counts

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Callable

POOL = "up/m"
LEASE_US = 1 << 60


def fill(db: sqlite3.Connection, workspaces: int, shards: int, running: int) -> None:
    """Add a batch of each workspace, with equally many shards; some run."""
    each = shards // workspaces
    db.executemany(
        "INSERT INTO batches (id, workspace, requests, version, betas, billing, created_us,"
        " expires_us) VALUES (?, ?, 1, '', '', 'standard', 0, ?)",
        [(f"b{n}", f"w{n}", LEASE_US) for n in range(workspaces)],
    )
    db.executemany(
        "INSERT INTO shards (batch, idx, seq, workspace, pool, off, len, n, state, owner, lease_us,"
        " attempt, head) VALUES (?, ?, ?, ?, ?, 0, 1, 500, ?, ?, ?, ?, ?)",
        (
            (f"b{n}", i, n + 1, f"w{n}", POOL, int(runs), "o" if runs else None, LEASE_US, 1, not i)
            for n in range(workspaces)
            for i in range(each)
            for runs in [i < running // workspaces]
        ),
    )


async def timed(times: int, act: Callable[[], Awaitable[Any]]) -> tuple[str, list[Any]]:
    """Return the cost of something, as text, and what it returned."""
    found, seconds = [], []
    for _ in range(times):
        started = time.perf_counter()
        found.append(await act())
        seconds.append(time.perf_counter() - started)
    return f"{statistics.median(seconds) * 1e3:.2f} ms (max {max(seconds) * 1e3:.1f})", found


async def run(options: argparse.Namespace, path: Path) -> None:
    ledger = SqliteLedger(path)
    await ledger._writer.run(
        lambda t: fill(t.db, options.workspaces, options.shards, options.running)
    )
    costs = {}
    costs["pools"], _ = await timed(options.claims, ledger.pools_ready)
    costs["nothing void"], _ = await timed(
        options.claims, lambda: ledger.claim_void("me", 0, LEASE_US, 8)
    )
    costs["no newcomer"], _ = await timed(
        options.claims, lambda: ledger.claim_fresh("me", POOL, LEASE_US, 16)
    )
    costs["claim"], claims = await timed(
        options.claims,
        lambda: ledger.claim("me", POOL, LEASE_US, 1, now_us=time.monotonic_ns() // 1_000),
    )
    first = claims[0][0]
    costs["claim, batch known"], _ = await timed(
        options.claims, lambda: ledger.claim("me", POOL, LEASE_US, 1, turn=first.turn)
    )
    held = [
        Held(batch=c.batch, index=c.index, attempt=c.attempt, inflight=1, counts=Counts())
        for (c,) in claims[:20]
    ]
    costs["renewal of 20"], _ = await timed(20, lambda: ledger.renew("me", LEASE_US, held))
    print(
        f"claims    {options.shards:,} open shards, {options.workspaces:,} waiting workspaces, "
        f"{options.running:,} shards running: "
        + ", ".join(f"{name} {cost}" for name, cost in costs.items())
    )
    await ledger.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspaces", type=int, default=1_000)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--running", type=int, default=2_000)
    parser.add_argument("--claims", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchyard-bench-") as data:
        asyncio.run(run(options, Path(data) / "ledger.db"))


if __name__ == "__main__":
    main()
