"""Whatever happens to processes that share PostgreSQL and objects, by seed: one result each.

`BATCHYARD_SIM_SHARED_SEEDS=300` runs more worlds, `BATCHYARD_SIM_FIRST=n` begins at another seed.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from sim.shared import SharedWorld, settle
from sim.test_sim import _chances, _run
from store.making import stop_servers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FIRST = int(os.environ.get("BATCHYARD_SIM_FIRST", "0"))
_SEEDS = range(_FIRST, _FIRST + int(os.environ.get("BATCHYARD_SIM_SHARED_SEEDS", "2")))
_LAST_S = 200_000.0
FIGURES: Counter[str] = Counter()


@pytest.fixture(autouse=True, scope="module")
def _servers() -> Iterator[None]:
    yield
    stop_servers()
    print(f"\nsimulation figures, both stores shared: {dict(FIGURES)}, first seed {_FIRST}")


def _world(seed: int, root: Path, *, exact_calls: bool) -> SharedWorld:
    rng = random.Random(seed)
    slots = rng.choice([1, 3, 16])
    return SharedWorld(rng, root, slots, _chances(rng), exact_calls)


async def _let_end(world: SharedWorld) -> None:
    step = 0.5
    world.failing = []
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
    await settle()
    FIGURES.update(worlds=1, calls=world.calls, looks=world.watch.looks, **world.ended)


async def one_process(seed: int, root: Path) -> list[str]:
    """One process that is killed or leaves, again and again: no call without need."""
    world = _world(seed, root, exact_calls=True)
    rng = world.rng
    world.start()
    for _ in range(rng.randint(3, 20)):
        match rng.choice(["create", "create", "wait", "cancel", "kill", "kill", "leave"]):
            case "create":
                await world.create()
            case "cancel" if world.sent:
                await world.cancel(rng.choice(list(world.sent.values())))
            case "kill":
                await world.restart(power_cut=False)
                world.start()
            case "leave":
                await world.leave(world.processes[0])
                await world.restart(power_cut=False)
                world.start()
        await world.clock.advance(rng.choice([0.0, 0.001, 0.5, 1.1, 7.0, 61.0]))
        world.check_alive()
    await _let_end(world)
    return world.trace


async def many_processes(seed: int, root: Path) -> None:
    """Workers that are killed, freeze past their lease and wake, or lose the object store."""
    world = _world(seed, root, exact_calls=False)
    rng = world.rng
    for _ in range(rng.randint(2, 4)):
        world.start()
    deeds = ["create", "create", "cancel", "freeze", "thaw", "thaw", "kill", "fail", "wait"]
    for _ in range(rng.randint(5, 30)):
        match rng.choice(deeds):
            case "create":
                await world.create()
            case "cancel" if world.sent:
                await world.cancel(rng.choice(list(world.sent.values())))
            case "freeze":
                rng.choice(world.processes).gate.clear()
            case "thaw":
                rng.choice(world.processes).gate.set()
            case "kill":
                await world.kill(rng.choice(world.processes))
                world.start()
            case "fail":
                world.fail_writes(rng)
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
def test_processes_may_die_freeze_and_lose_the_object_store(seed: int, root: Path) -> None:
    _run(seed, many_processes(seed, root))


def test_a_seed_is_the_same_story_every_time(root: Path) -> None:
    first = asyncio.run(one_process(4, root / "1"))
    again = asyncio.run(one_process(4, root / "2"))
    assert first == again
