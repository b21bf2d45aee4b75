"""Whatever happens, by seed: every accepted request has exactly one result, and no other call is
made than those that must be.

`BATCHYARD_SIM_SEEDS=1000` runs more worlds, `BATCHYARD_SIM_FIRST=n` begins at another seed.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import uvloop

from sim import by_seed
from sim.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_VARIABLE = "BATCHYARD_SIM_SEEDS"
_SEEDS = by_seed.seeds(_VARIABLE, 30)
FIGURES: Counter[str] = Counter()


@pytest.fixture(autouse=True, scope="module")
def _figures() -> Iterator[None]:
    yield
    figures = f"{dict(FIGURES)}, first seed {by_seed.FIRST}"
    print(f"\nsimulation figures: {figures}, 0 violations if all passed")


async def one_process(seed: int, root: Path) -> list[str]:
    """One process that is killed, loses power, or leaves in good order, again and again."""
    world = by_seed.make_world(World, seed, root, exact_calls=True)
    deeds = ["create", "create", "wait", "wait", "cancel", "kill", "power", "leave"]
    await by_seed.one_process(world, deeds, [0.0, 0.001, 0.03, 0.5, 1.1, 7.0, 61.0], 25)
    await by_seed.let_end(world, FIGURES)
    return world.trace


async def many_processes(seed: int, root: Path) -> None:
    """Several workers, of which some freeze for longer than their lease and then come back."""
    world = by_seed.make_world(World, seed, root, exact_calls=False)
    deeds = ["create", "create", "cancel", "freeze", "thaw", "thaw", "kill", "wait"]
    await by_seed.several(world, deeds, 3)
    await by_seed.let_end(world, FIGURES)


@pytest.mark.parametrize("seed", _SEEDS)
def test_one_process_may_die_at_any_moment(seed: int, root: Path) -> None:
    by_seed.run(seed, _VARIABLE, one_process(seed, root))


@pytest.mark.parametrize("seed", _SEEDS)
def test_a_worker_that_was_frozen_changes_nothing_that_others_have_done(
    seed: int, root: Path
) -> None:
    by_seed.run(seed, _VARIABLE, many_processes(seed, root))


def test_a_seed_is_the_same_story_every_time(root: Path) -> None:
    first = uvloop.run(one_process(7, root / "1"))
    again = uvloop.run(one_process(7, root / "2"))
    assert first == again
