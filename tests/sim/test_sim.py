"""Whatever happens, by seed: every accepted request has exactly one result, and no other call is
made than those that must be.

`BATCHYARD_SIM_SEEDS=1000` runs more worlds, `BATCHYARD_SIM_FIRST=n` begins at another seed.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from sim.world import Chances, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FIRST = int(os.environ.get("BATCHYARD_SIM_FIRST", "0"))
_SEEDS = range(_FIRST, _FIRST + int(os.environ.get("BATCHYARD_SIM_SEEDS", "30")))
_LAST_S = 200_000.0
FIGURES: Counter[str] = Counter()


@pytest.fixture(autouse=True, scope="module")
def _figures() -> Iterator[None]:
    yield
    print(f"\nsimulation figures: {dict(FIGURES)}, first seed {_FIRST}, 0 violations if all passed")


def _chances(rng: random.Random) -> Chances:
    def some(most: float) -> float:
        return rng.choice([0.0, 0.0, rng.random() * most])

    return Chances(
        error_500=some(0.5),
        busy_429=some(0.5),
        garbage=some(0.3),
        broken=some(0.3),
        refused_400=some(0.3),
        denied_401=some(0.1),
        stuck=some(0.1),
        slowest_s=rng.choice([0.0, 0.01, 1.0, 20.0]),
    )


def _world(seed: int, root: Path, *, exact_calls: bool) -> World:
    rng = random.Random(seed)
    return World(rng, root, rng.choice([1, 3, 16]), _chances(rng), exact_calls)


def _run(seed: int, story: object) -> None:
    try:
        asyncio.run(story)  # type: ignore[arg-type]
    except BaseException as error:
        error.add_note(f"seed {seed}: BATCHYARD_SIM_FIRST={seed} BATCHYARD_SIM_SEEDS=1")
        raise


async def _let_end(world: World) -> None:
    """Let everything end by itself, and check what is promised."""
    step = 0.5
    for process in world.processes:
        process.gate.set()
    while await world.open_batches():
        await world.clock.advance(step)
        world.check_alive()
        step = min(step * 1.3, 30.0)
        assert world.clock.monotonic_s() < _LAST_S, "a batch does not end"
    for sent in world.sent.values():
        await world.check_ended(sent)
    await world.close()
    FIGURES.update(worlds=1, calls=world.calls, looks=world.watch.looks)


async def one_process(seed: int, root: Path) -> list[str]:
    """One process that is killed, loses power, or leaves in good order, again and again."""
    world = _world(seed, root, exact_calls=True)
    rng = world.rng
    world.start()
    for _ in range(rng.randint(3, 25)):
        match rng.choice(["create", "create", "wait", "wait", "cancel", "kill", "power", "leave"]):
            case "create":
                await world.create()
            case "cancel" if world.sent:
                await world.cancel(rng.choice(list(world.sent.values())))
            case "kill":
                await world.restart(power_cut=False)
                world.start()
            case "power":
                await world.restart(power_cut=True)
                world.start()
            case "leave":
                await world.leave(world.processes[0])
                await world.restart(power_cut=rng.random() < 0.5)
                world.start()
        await world.clock.advance(rng.choice([0.0, 0.001, 0.03, 0.5, 1.1, 7.0, 61.0]))
        world.check_alive()
    await _let_end(world)
    return world.trace


async def many_processes(seed: int, root: Path) -> None:
    """Several workers, of which some freeze for longer than their lease and then come back."""
    world = _world(seed, root, exact_calls=False)
    rng = world.rng
    for _ in range(rng.randint(2, 3)):
        world.start()
    for _ in range(rng.randint(5, 30)):
        match rng.choice(["create", "create", "cancel", "freeze", "thaw", "thaw", "kill", "wait"]):
            case "create":
                await world.create()
            case "cancel" if world.sent:
                await world.cancel(rng.choice(list(world.sent.values())))
            case "freeze":
                rng.choice(world.processes).gate.clear()
            case "thaw":
                rng.choice(world.processes).gate.set()
            case "kill":
                process = rng.choice(world.processes)
                await world.kill(process)
                world.start()
        # A frozen worker learns late what it has lost; its calls until then are not judged.
        if not all(process.gate.is_set() for process in world.processes):
            world.frozen_until_us = world.clock.now_us() + 70_000_000
        await world.clock.advance(rng.choice([0.0, 0.01, 0.4, 2.0, 35.0, 70.0]))
        world.check_alive()
    world.frozen_until_us = world.clock.now_us() + 70_000_000
    await _let_end(world)


@pytest.mark.parametrize("seed", _SEEDS)
def test_one_process_may_die_at_any_moment(seed: int, root: Path) -> None:
    _run(seed, one_process(seed, root))


@pytest.mark.parametrize("seed", _SEEDS)
def test_a_worker_that_was_frozen_changes_nothing_that_others_have_done(
    seed: int, root: Path
) -> None:
    _run(seed, many_processes(seed, root))


def test_a_seed_is_the_same_story_every_time(root: Path) -> None:
    first = asyncio.run(one_process(7, root / "1"))
    again = asyncio.run(one_process(7, root / "2"))
    assert first == again
