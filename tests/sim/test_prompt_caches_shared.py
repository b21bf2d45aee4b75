"""Prompt caches with several workers, both at work when a batch with prefixes comes."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from sim.caching import MODEL, CacheWorld, grouped

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.model import Batch


def _plain(count: int) -> list[dict[str, Any]]:
    return [
        {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": f"Free {n}"}]}
        for n in range(count)
    ]


async def _holders(world: CacheWorld, root: Path, batch: Batch) -> set[str]:
    """Let time pass until the workers hold all of a batch, or half a minute; return their names."""
    owners: set[str] = set()
    for _ in range(300):
        await world.clock.advance(0.1)
        with closing(sqlite3.connect(root / "ledger.db")) as db:
            rows = db.execute("SELECT owner FROM shards WHERE batch = ?", [batch.id]).fetchall()
        owners |= {owner for (owner,) in rows if owner is not None}
        if all(owner is not None for (owner,) in rows):
            break
    return owners


def _send(
    root: Path, made: list[dict[str, Any]], *, workers: int, are_busy: bool = True
) -> tuple[set[str], int, float]:
    """Send a batch through workers; return who held it, prefixes written, share read."""

    async def run() -> tuple[set[str], int, float]:
        world = CacheWorld(root, slots=128, workers=workers)
        if are_busy:
            plain = await world.create(_plain(500 * workers))
            await world.clock.advance(3.0)
            assert await _holders(world, root, plain) == {f"worker-{n + 1}" for n in range(workers)}
        batch = await world.create(made)
        holders = await _holders(world, root, batch)
        await world.end(batch)
        assert world.kinds(batch) == {"succeeded": len(made)}
        written = sum(usage.cache_write_tokens > 0 for _, _, usage in world.lines(batch))
        share = world.share_read(batch)
        if are_busy:
            await world.end(plain)
        await world.close()
        return holders, written, share

    return asyncio.run(run())


def test_nearly_all_cacheable_tokens_are_read_where_two_workers_divide_the_groups(
    root: Path,
) -> None:
    holders, written, share = _send(root, grouped(40, 50), workers=2)
    assert len(holders) == 2
    assert share >= 0.97
    assert written <= 40 + 3, "each of the four shards ends with a group, or shares one"


def test_a_group_of_several_shards_stays_with_the_worker_whose_requests_wait_for_its_first(
    root: Path,
) -> None:
    holders, written, share = _send(root, grouped(1, 1_000), workers=2, are_busy=False)
    assert (len(holders), written) == (1, 1)
    assert share >= 0.99


@pytest.mark.parametrize("workers", [2, 3])
def test_a_group_of_several_shards_is_written_at_most_once_by_each_worker(
    root: Path, workers: int
) -> None:
    holders, written, share = _send(root, grouped(1, 500 * workers), workers=workers)
    assert 1 <= written <= len(holders) <= workers
    assert share >= 0.99
