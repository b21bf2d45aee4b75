"""Which batches are open at the same time, in virtual time: none waits for the end of another."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits
from batchyard.errors import SegmentRefused
from sim.caching import CacheWorld

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.ledger import Claim
    from batchyard.model import Batch
    from batchyard.upstream import Call

SHARD = 20


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SHARD_REQUESTS", SHARD)


class World(CacheWorld):
    """Counts the calls by the first word of their prompts."""

    def __init__(self, root: Path, slots: int, **more: Any) -> None:
        super().__init__(root, slots=slots, latency=1.0, **more)
        self.sent = Counter[str]()
        self.seconds: dict[str, float] = {}
        """How much longer calls take, by that word."""
        self.model.instead = self._told

    def _told(self, call: Call, _: int) -> float | None:
        name = call.params.split(b'"content":"')[1].split()[0].decode()
        self.sent[name] += 1
        return self.seconds.get(name)

    async def make(self, name: str, number: int, workspace: str = "w", model: str = "m") -> Batch:
        said = [{"role": "user", "content": f"{name} {n}"} for n in range(number)]
        made = [{"model": model, "max_tokens": 9, "messages": [each]} for each in said]
        return await self.create(made, workspace=workspace)

    async def until(self, name: str, number: int = 1, within_s: float = 200.0) -> Counter[str]:
        """Wait until so many calls have a name; return what was sent meanwhile."""
        before = self.sent.copy()
        for _ in range(int(within_s * 10)):
            if self.sent[name] >= number:
                return self.sent - before
            await self.clock.advance(0.1)
        raise AssertionError(f"sent: {self.sent}")

    @property
    def open_batches(self) -> int:
        return len({shard.claim.batch for shard in self.worker._held.values()})


@pytest.mark.parametrize("workspaces", ["abc", "aaa"], ids=["of three", "of one workspace"])
def test_batches_that_had_begun_go_on_together_after_a_restart(root: Path, workspaces: str) -> None:
    async def story() -> None:
        world = World(root, 8)
        for number, workspace in enumerate(workspaces):
            await world.make(f"b{number}", 20 * SHARD, workspace)
        await world.until("b2", SHARD + 1)
        await world.close()

        world = World(root, 8)
        for number in range(3):
            await world.until(f"b{number}", within_s=10.0)
        await world.until("b0", 80)
        assert all(60 <= world.sent[f"b{number}"] <= 100 for number in range(3)), world.sent
        await world.close()

    asyncio.run(story())


def test_all_batches_that_had_begun_are_open_a_moment_after_a_restart(root: Path) -> None:
    async def story() -> None:
        names = [f"b{number}" for number in range(24)]
        world = World(root, 24)
        for name in names:
            await world.make(name, 10 * SHARD)
        for name in names:
            await world.until(name, SHARD + 1)
        await world.close()

        world = World(root, 24)
        await world.clock.advance(1.9)
        assert world.open_batches == 24
        await world.close()

    asyncio.run(story())


def test_a_batch_that_is_refused_is_not_taken_up_shard_by_shard(root: Path) -> None:
    async def story() -> None:
        world = World(root, 2)
        bad = await world.make("bad", 20 * SHARD)
        await world.make("good", 20 * SHARD)
        await world.until("bad", SHARD + 5)
        await world.until("good", SHARD + 5)
        await world.close()

        world = World(root, 2)
        opening: Any = world.worker._opening
        load, tried = opening._load, list[int]()

        def refuse(claim: Claim) -> object:
            if claim.batch != bad.id:
                return load(claim)
            tried.append(claim.index)
            raise SegmentRefused("cannot read it: permission denied")

        opening._load = refuse
        await world.until("good", 20)
        await world.clock.advance(20.0)
        assert 1 <= len(tried) <= 4, tried
        await world.close()

    asyncio.run(story())


def test_a_batch_that_had_begun_goes_on_beside_any_number_of_new_ones(root: Path) -> None:
    """After a restart into the many batches of another workspace."""

    async def story() -> None:
        world = World(root, 4)
        await world.make("begun", 5 * SHARD, "b")
        await world.until("begun", SHARD + 5)
        await world.close()

        world = World(root, 0)  # takes up nothing
        for _ in range(2):
            await world.make("whale", 20 * SHARD, "a")
        for _ in range(300):
            await world.make("tiny", 1, "a")
        await world.close()

        world = World(root, 2)
        sent = await world.until("begun", 40)
        assert sent["whale"] + sent["tiny"] <= 60
        await world.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("slots", "whales", "workspace", "calls_max"),
    [
        (1, 1, "w", 100),
        (1, 2, "w", 100),
        (4, 4, "w", 100),
        (4, 8, "w", 100),
        (4, 4, "another", 100),
        (4, 12, "another", 100),
        (4, 4, "w", 3),
        (4, 4, "another", 3),
    ],
)
def test_a_newcomer_is_sent_within_one_shard_however_many_batches_are_open(
    root: Path, slots: int, whales: int, workspace: str, calls_max: int
) -> None:
    async def story() -> None:
        world = World(root, slots, calls_max=calls_max)
        for _ in range(whales):
            await world.make("whale", 3 * SHARD)
        await world.until("whale", 2 * slots)
        await world.make("newcomer", 1, workspace)
        sent = await world.until("newcomer")
        assert sent["whale"] <= SHARD + 2 * slots
        await world.close()

    asyncio.run(story())


def test_small_batches_have_their_part_beside_as_many_large_ones_as_there_are_slots(
    root: Path,
) -> None:
    async def story() -> None:
        world = World(root, 4)
        for _ in range(4):
            await world.make("whale", 20 * SHARD, "a")
        await world.until("whale", 8)
        for _ in range(100):
            await world.make("small", 1, "b")
        sent = await world.until("small", 50)
        assert sent["whale"] <= 75
        await world.close()

    asyncio.run(story())


def test_large_batches_do_not_open_without_bound(root: Path) -> None:
    async def story() -> None:
        world = World(root, 2)
        made = [await world.make("large", 3 * SHARD) for _ in range(20)]
        most = 0
        while world.sent["large"] < 45 * SHARD:
            await world.clock.advance(0.5)
            most = max(most, world.open_batches)
        assert 4 <= most <= 10
        await world.end(*made, within_s=2_000.0)
        assert world.sent["large"] == 20 * 3 * SHARD
        await world.close()

    asyncio.run(story())


def test_a_newcomer_does_not_wait_for_what_a_slow_model_has_open(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose shards are all the memory that there is for more than the slots need."""

    async def story() -> None:
        monkeypatch.setattr(limits, "SHARD_REQUESTS", 5 * SHARD)
        world = World(root, 4)
        world.seconds["slow"] = 1e6
        for number in range(4):
            await world.make("slow", 20 * SHARD, f"slow-{number}", model="slow")
        await world.make("whale", 20 * SHARD, model="quick")
        await world.until("whale", 5)
        open_ = sum(shard.claim.length for shard in world.worker._held.values())
        monkeypatch.setattr(limits, "OPEN_BYTES_MAX", open_ - 1)
        await world.make("newcomer", 1, model="quick")
        sent = await world.until("newcomer", within_s=20.0)
        assert sent["whale"] <= 8
        world.seconds.clear()
        await world.close()

    asyncio.run(story())
