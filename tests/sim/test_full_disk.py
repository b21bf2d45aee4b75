"""Whichever write of the ledger finds the disk full: what was claimed goes on, each batch ends."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import TYPE_CHECKING

import pytest

from sim.world import Chances, World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_AT_MOST_S = 100.0
_WRITES = 72
"""About as many as a story has."""


async def _tell(root: Path, finds_full: Callable[[str], bool]) -> None:
    """Two batches at a time, of which one has not begun and the other runs out, and a cancel."""
    world = World(random.Random(1), root, 3, Chances(exactly_s=0.7), exact_calls=True)
    world.finds_full = finds_full
    world.start()
    for _ in range(2):
        for requests in (8, 2):
            await world.create(requests=requests, shard=2, workspace="wrkspc_a")
            await world.clock.advance(0.9)
    await world.cancel(await world.create(requests=4, shard=2))
    while await world.open_batches():
        await world.clock.advance(0.5)
        world.check_alive()
        assert world.clock.monotonic_s() < _AT_MOST_S, "a batch does not end"
    for sent in world.sent.values():
        await world.check_ended(sent)
    assert set(world.calls_of.values()) == {1}, "a call was made again"
    await world.close()


def _full_at(writes: range) -> Callable[[str], bool]:
    counted = itertools.count(1)
    return lambda _: next(counted) in writes


@pytest.mark.parametrize("first", range(1, _WRITES, 8))
def test_a_batch_ends_whichever_write_finds_the_disk_full(root: Path, first: int) -> None:
    for number in range(first, first + 8):
        asyncio.run(_tell(root / str(number), _full_at(range(number, number + 1))))
    asyncio.run(_tell(root / "some", _full_at(range(first, first + 12))))


def test_the_story_writes_about_so_often(root: Path) -> None:
    methods: list[str] = []

    def note(method: str) -> bool:
        methods.append(method)
        return False

    asyncio.run(_tell(root, note))
    assert _WRITES * 2 / 3 < len(methods) < _WRITES, methods
    assert {"claim_void", "claim_fresh", "claim", "renew", "commit", "end_all"} <= {*methods}
