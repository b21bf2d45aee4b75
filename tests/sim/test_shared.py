"""Whatever happens to processes that share PostgreSQL and objects, by seed: one result each.

`BATCHYARD_SIM_SHARED_SEEDS=300` runs more worlds, `BATCHYARD_SIM_FIRST=n` begins at another seed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from sim import by_seed
from sim.shared import SharedWorld, settle
from store.making import stop_servers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_VARIABLE = "BATCHYARD_SIM_SHARED_SEEDS"
_SEEDS = by_seed.seeds(_VARIABLE, 2)
FIGURES: Counter[str] = Counter()


@pytest.fixture(autouse=True, scope="module")
def _servers() -> Iterator[None]:
    yield
    stop_servers()
    print(f"\nsimulation figures, both stores shared: {dict(FIGURES)}, first seed {by_seed.FIRST}")


async def _let_end(world: SharedWorld) -> None:
    world.failing = []
    await by_seed.let_end(world, FIGURES)
    await settle()
    FIGURES.update(world.ended)


async def one_process(seed: int, root: Path) -> list[str]:
    """One process that is killed or leaves, again and again: no call without need."""
    world = by_seed.make_world(SharedWorld, seed, root, exact_calls=True)
    deeds = ["create", "create", "wait", "cancel", "kill", "kill", "leave"]
    await by_seed.one_process(world, deeds, [0.0, 0.001, 0.5, 1.1, 7.0, 61.0], 20)
    await _let_end(world)
    return world.trace


async def many_processes(seed: int, root: Path) -> None:
    """Workers that are killed, freeze past their lease and wake, or lose the object store."""
    world = by_seed.make_world(SharedWorld, seed, root, exact_calls=False)
    deeds = ["create", "create", "cancel", "freeze", "thaw", "thaw", "kill", "fail", "wait"]
    await by_seed.several(world, deeds, 4, world.fail_writes)
    await _let_end(world)


@pytest.mark.parametrize("seed", _SEEDS)
def test_one_process_may_die_at_any_moment(seed: int, root: Path) -> None:
    by_seed.run(seed, _VARIABLE, one_process(seed, root))


@pytest.mark.parametrize("seed", _SEEDS)
def test_processes_may_die_freeze_and_lose_the_object_store(seed: int, root: Path) -> None:
    by_seed.run(seed, _VARIABLE, many_processes(seed, root))


def test_a_seed_is_the_same_story_every_time(root: Path) -> None:
    first = asyncio.run(one_process(4, root / "1"))
    again = asyncio.run(one_process(4, root / "2"))
    assert first == again
