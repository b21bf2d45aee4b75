"""The share of a workspace is one of all workers together, in virtual time."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from batchyard.fairness import Share, Shares
from sim.caching import MODEL, CacheWorld

if TYPE_CHECKING:
    from pathlib import Path


def _plain(count: int) -> list[dict[str, Any]]:
    return [
        {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": f"Free {n}"}]}
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("most", "slots", "workers", "allowed", "used", "latency"),
    [
        (0.03, 64, 1, 1, 1, 0.5),
        (0.03, 64, 4, 1, 1, 0.5),
        (0.03, 64, 4, 1, 1, 20.0),
        (0.05, 64, 4, 3, 3, 20.0),
        (0.5, 64, 3, 32, 30, 20.0),
        (0.03, 16, 4, 1, 1, 0.5),
        (1 / 22, 64, 3, 2, 2, 20.0),
    ],
)
def test_a_workspace_never_has_more_than_its_share_of_the_slots_of_all_workers(
    root: Path, most: float, slots: int, workers: int, allowed: int, used: int, latency: float
) -> None:
    async def run() -> None:
        shares = Shares({"w": Share(1.0, most)})
        world = CacheWorld(root, slots=slots, workers=workers, latency=latency, shares=shares)
        batch = await world.create(_plain(500 * workers))
        await world.clock.advance(1.0)
        seconds = max(30, round(3 * latency))
        for _ in range(2 * seconds):
            await world.clock.advance(0.5)
        assert world.model.at_once <= allowed
        calls = len(world.model.calls)
        assert calls > 0.6 * used * seconds / (latency * 1.25), "and it has nearly all of it"
        await world.cancel(batch)
        await world.close()

    asyncio.run(run())


def test_a_share_of_less_than_a_slot_in_each_worker_goes_round_among_their_shards(
    root: Path,
) -> None:
    async def run() -> None:
        shares = Shares({"w": Share(1.0, 0.03)})
        world = CacheWorld(root, slots=64, workers=4, latency=0.5, shares=shares)
        batch = await world.create(_plain(2_000))
        await world.clock.advance(60.0)
        with closing(sqlite3.connect(root / "ledger.db")) as db:
            held = "SELECT owner, succeeded FROM shards WHERE batch = ?"
            answered = dict(db.execute(held, [batch.id]).fetchall())
        assert len(answered) == 4, "each worker has one"
        assert min(answered.values()) >= 10
        await world.cancel(batch)
        await world.close()

    asyncio.run(run())


@pytest.mark.parametrize(("workers", "expected"), [(1, 32), (2, 16), (4, 8)])
def test_a_batch_of_one_shard_has_its_part_of_the_slots_of_one_worker(
    root: Path, workers: int, expected: int
) -> None:
    """Beside a large one of another workspace, as docs/configuration.md says."""

    async def run() -> None:
        world = CacheWorld(root, slots=64, workers=workers, latency=3.0)
        large = await world.create(_plain(3_000), workspace="large")
        await world.clock.advance(10.0)
        small = await world.create(_plain(400), workspace="small")
        await world.clock.advance(10.0)
        inflight = await world.ledger.progress(small.id), await world.ledger.progress(large.id)
        assert [each.inflight for each in inflight] == [expected, 64 - expected]
        await world.cancel(small)
        await world.cancel(large)
        await world.close()

    asyncio.run(run())
