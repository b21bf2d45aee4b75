"""Thousands of short stories, by seed: few requests, few disasters, nothing that takes a day.

`test_sim.py` has long ones, of which far fewer can be told. `BATCHYARD_SIM_SHORT=100000` tries more
seeds, `BATCHYARD_SIM_FIRST=n` begins at another one.
"""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from sim import by_seed
from sim.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

_VARIABLE = "BATCHYARD_SIM_SHORT"
_SIZES = (1, 2, 5)
_AT_ONCE = 100
"""Seeds to a test: they are many, and each takes a moment."""
ALONE = by_seed.seeds(_VARIABLE, 1_500)
TOGETHER = by_seed.seeds(_VARIABLE, 500)
FIGURES: Counter[str] = Counter()


@pytest.fixture(autouse=True, scope="module")
def _figures() -> Iterator[None]:
    yield
    print(
        f"\nshort stories: {dict(FIGURES)}, first seed {by_seed.FIRST}, 0 violations if all passed"
    )


async def one_process(seed: int, root: Path) -> None:
    world = by_seed.make_world(World, seed, root, exact_calls=True)
    world.sizes, world.windows_s = _SIZES, (2, 10, 40)
    deeds = ["create", "create", "cancel", "kill", "power", "leave"]
    await by_seed.one_process(world, deeds, [0.0, 0.001, 0.03, 0.5, 1.1], 8)
    await by_seed.let_end(world, FIGURES)


async def two_processes(seed: int, root: Path) -> None:
    world = by_seed.make_world(World, seed, root, exact_calls=False)
    world.sizes, world.windows_s = _SIZES, (20, 60, 300)
    deeds = ["create", "create", "cancel", "freeze", "thaw", "kill"]
    await by_seed.several(world, deeds, 2, length=(3, 6))
    await by_seed.let_end(world, FIGURES)


def tell(
    story: Callable[[int, Path], Coroutine[object, object, object]],
    seeds: range,
    first: int,
    root: Path,
) -> None:
    for seed in seeds[first : first + _AT_ONCE]:
        by_seed.run(seed, _VARIABLE, story(seed, root / str(seed)))
        shutil.rmtree(root / str(seed))


@pytest.mark.parametrize("first", range(0, len(ALONE), _AT_ONCE))
def test_one_process_may_die_at_any_moment(first: int, root: Path) -> None:
    tell(one_process, ALONE, first, root)


@pytest.mark.parametrize("first", range(0, len(TOGETHER), _AT_ONCE))
def test_one_of_two_processes_may_freeze_or_die(first: int, root: Path) -> None:
    tell(two_processes, TOGETHER, first, root)
