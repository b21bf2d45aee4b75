"""Runs that are killed at random against the real yard, and against an emulator that fails calls.

Between run and server stands a link that loses answers; half of the lives hide that the server
knows idempotency keys, so that lost batches are found in the list, among those of other runs over
documents of the same names.

`BATCHYARD_RUN_KILLS` is the number of kills for each server; `BATCHYARD_RUN_SEED` draws the same
once more, but for what real time decides.
"""

from __future__ import annotations

import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest

import helpers_seed
from batchyard.testing import Emulator
from client.link import Link
from client.lives import Life
from helpers_yard import QUICK, Yard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KILLS = int(os.environ.get("BATCHYARD_RUN_KILLS", "3"))
_PASS = [None] * 3
FAULTS = {
    "create": [*_PASS, "drop", "reset", "accept_502", "refuse", 529],
    "retrieve": [*_PASS, "reset", 500],
    "list": [*_PASS, "reset", 529],
    "results": [*_PASS, "cut", "reset", 503],
}
SCRIPT = """
seed = {seed}
[[request]]
custom_id = ["n??_Dmd", "n??_Dmd_R0*"]
share = 0.25
outcome = "errored"
error = "overloaded_error"
[[request]]
custom_id = ["n??_Dmd", "n??_Dmd_R0*"]
share = 0.15
outcome = "expired"
[[request]]
custom_id = ["n??_Dmd", "n??_Dmd_R0*"]
first = 2
outcome = "truncated"
[[call]]
on = "create"
fault = "drop"
after = {first}
[[call]]
on = "create"
fault = "drop"
after = {second}
[[call]]
on = "results"
fault = "cut"
after = {first}
"""


@pytest.fixture
def draw() -> random.Random:
    return random.Random(helpers_seed.seed("BATCHYARD_RUN_SEED"))


def lives(
    path: Path,
    link: Link,
    draw: random.Random,
    *,
    begin: Callable[[], None] = lambda: None,
    between: Callable[[], None] = lambda: None,
) -> str:
    """Live until there were enough kills; return the figures."""
    kills = runs = 0
    while kills < KILLS:
        link.follow({})
        begin()
        link.hides_yard = draw.random() < 0.5
        life = Life(path / str(runs), link, draw, between)
        link.follow({on: draw.choices(steps, k=4) for on, steps in FAULTS.items()})
        kills += life.live()
        shutil.rmtree(life.path)
        runs += 1
    met = ", ".join(f"{n} {name}" for name, n in sorted(link.met.items()))
    return f"{kills} kills in {runs} runs, all reports once and whole, each shard one batch; {met}"


def test_a_run_killed_at_random_keeps_one_batch_a_shard_at_a_yard_that_is_killed_too(
    tmp_path: Path, draw: random.Random
):
    with Yard(tmp_path / "yard", "simulated:?words=40", bounds=QUICK) as yard, Link(0) as link:
        link.target = yard.port

        def maybe_kill() -> None:
            if draw.random() < 0.15:
                yard.kill()
                yard.start()
                link.target = yard.port

        print(lives(tmp_path, link, draw, between=maybe_kill), f"{yard.starts - 1} kills of it")


def test_a_run_killed_at_random_keeps_one_batch_a_shard_where_answers_are_dropped(
    tmp_path: Path, draw: random.Random
):
    with Emulator(words=40) as emulator, Link(0) as link:
        link.target = int(emulator.url.rpartition(":")[2])

        def begin() -> None:
            first, second = draw.randrange(4), draw.randrange(4)
            emulator.follow(SCRIPT.format(seed=draw.randrange(1 << 30), first=first, second=second))

        print(lives(tmp_path, link, draw, begin=begin))
