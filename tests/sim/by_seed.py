"""Stories that follow from a seed, for worlds of one machine and of many."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, TypeVar

import uvloop

from sim.world import Chances, World

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

FIRST = int(os.environ.get("BATCHYARD_SIM_FIRST", "0"))
_LAST_S = 200_000.0
W = TypeVar("W", bound=World)


def seeds(variable: str, usual: int) -> range:
    """Return the seeds to try; an environment variable says how many instead of as usual."""
    return range(FIRST, FIRST + int(os.environ.get(variable, usual)))


def make_world(kind: type[W], seed: int, root: Path, *, exact_calls: bool) -> W:
    rng = random.Random(seed)
    world = kind(rng, root, rng.choice([1, 3, 16]), chances(rng), exact_calls)
    full = random.Random(f"full disk {seed}")
    chance = full.choice([0.0, 0.0, 0.02, 0.3])
    world.finds_full = lambda _: full.random() < chance
    return world


def chances(rng: random.Random) -> Chances:
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


def run(seed: int, variable: str, story: Coroutine[object, object, object]) -> None:
    """Run a story; a failure says how to repeat it."""
    try:
        uvloop.run(story)
    except BaseException as error:
        error.add_note(f"seed {seed}: BATCHYARD_SIM_FIRST={seed} {variable}=1")
        raise


async def one_process(
    world: World, deeds: Sequence[str], waits: Sequence[float], most: int
) -> None:
    """One process to which something happens again and again, up to so many times."""
    rng = world.rng
    world.start()
    for _ in range(rng.randint(3, most)):
        match rng.choice(deeds):
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
                await world.restart(power_cut="power" in deeds and rng.random() < 0.5)
                world.start()
        await world.clock.advance(rng.choice(waits))
        world.check_alive()


async def several(
    world: World,
    deeds: Sequence[str],
    most: int,
    fail: Callable[[random.Random], None] | None = None,
    *,
    length: tuple[int, int] = (5, 30),
) -> None:
    """Two processes to so many, of which some freeze for longer than their lease or are killed."""
    rng = world.rng
    for _ in range(rng.randint(2, most)):
        world.start()
    for _ in range(rng.randint(*length)):
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
            case "fail" if fail is not None:
                fail(rng)
        # A frozen worker learns late what it has lost; its calls until then are not judged.
        if not all(process.gate.is_set() for process in world.processes):
            world.frozen_until_us = world.clock.now_us() + 70_000_000
        await world.clock.advance(rng.choice([0.0, 0.01, 0.4, 2.0, 35.0, 70.0]))
        world.check_alive()
    world.frozen_until_us = world.clock.now_us() + 70_000_000


async def let_end(world: World, figures: Counter[str]) -> None:
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
    figures.update(worlds=1, calls=world.calls, looks=world.watch.looks)
