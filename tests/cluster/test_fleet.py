"""The fleet keeps its workers: on an engine that does what a test says, and a clock of the test."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from batchyard.cluster.fleet import (
    DISBAND_MAX_S,
    LEAVE_MAX_S,
    LEAVE_UNSEEN_S,
    LOOK_INTERVAL_S,
    Fleet,
)
from batchyard.dispatch.routes import Route, Routes
from batchyard.errors import ConfigError, Overloaded
from batchyard.ledger.open_work import Backlog, Waiting
from batchyard.server.groups import Group
from batchyard.testing.clock import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

GROUP = Group(
    name="g", upstreams=("up",), workers_min=1, workers_max=4, requests_per_worker=10,
    scale_down_after_s=0.0,
)  # fmt: skip


class Worker:
    """A worker that a test lets begin, end and die."""

    def __init__(self, name: str) -> None:
        self.name = name
        loop = asyncio.get_running_loop()
        self.began: asyncio.Future[str | None] = loop.create_future()
        self.over: asyncio.Future[str | None] = loop.create_future()
        self.was_told_to_leave = False
        self.was_killed = False
        self.is_out_of_reach = False

    async def ready(self) -> str | None:
        return await asyncio.shield(self.began)

    async def ended(self) -> str | None:
        return await asyncio.shield(self.over)

    async def leave(self) -> None:
        self.was_told_to_leave = True

    def kill(self) -> None:
        self.was_killed = True
        if self.is_out_of_reach:
            return
        for future in (self.began, self.over):
            if not future.done():
                future.set_exception(RuntimeError("killed"))
                future.exception()  # somebody looks, or nobody does

    def begin(self) -> None:
        self.began.set_result(None)

    def end(self) -> None:
        self.over.set_result(None)

    def die(self) -> None:
        self.kill()
        self.was_killed = False


class Engine:
    """Starts workers that do nothing."""

    def __init__(self) -> None:
        self.started: list[Worker] = []

    def start(self, group: Group, name: str) -> Worker:
        self.started.append(Worker(name))
        return self.started[-1]


class World:
    """A fleet with its engine and its clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engine = Engine()
        self.requests = 0
        self.is_away = False
        self.fleet = Fleet(self.engine, (GROUP,), Routes([Route("up")]), self.clock, self._look)
        self.running: asyncio.Task[None]

    async def _look(self) -> Backlog:
        if self.is_away:
            raise Overloaded("away", retry_after_s=1)
        return Backlog(waiting=(Waiting(pool="up/m", shards=99, requests=self.requests),))

    @property
    def workers(self) -> list[Worker]:
        return self.engine.started

    async def look(self) -> None:
        """Let the fleet look at the work once more."""
        await self.clock.advance(LOOK_INTERVAL_S)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    opened = World()
    opened.running = asyncio.create_task(opened.fleet.run())
    await opened.look()
    yield opened
    opened.running.cancel()
    for worker in opened.workers:
        worker.kill()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await opened.running


async def test_as_many_workers_are_started_as_there_is_work_for(world: World) -> None:
    assert len(world.workers) == 1
    world.requests = 25
    await world.look()
    assert len(world.workers) == 3
    world.requests = 1_000
    await world.look()
    assert len(world.workers) == 4
    assert len({worker.name for worker in world.workers}) == 4


async def test_the_youngest_are_told_to_leave_when_the_work_is_done(world: World) -> None:
    world.requests = 30
    await world.look()
    for worker in world.workers:
        worker.begin()
    world.requests = 15
    await world.look()
    assert [worker.was_told_to_leave for worker in world.workers] == [False, False, True]
    world.workers[2].end()
    await world.look()
    assert world.fleet.sizes() == {"g": 2}
    assert len(world.workers) == 3


async def test_one_that_dies_is_replaced_at_once_and_then_later_each_time(world: World) -> None:
    for pause_s in (0.0, 0.5, 1.0, 2.0):
        number = len(world.workers)
        world.workers[-1].begin()
        world.workers[-1].die()
        if pause_s:
            await world.clock.advance(pause_s * 0.9)
            assert len(world.workers) == number, "it waits longer each time"
        await world.clock.advance(pause_s * 0.2 + 0.001)
        assert len(world.workers) == number + 1


async def test_one_that_has_lived_for_long_is_replaced_at_once_again(world: World) -> None:
    for _ in range(4):
        world.workers[-1].die()
        await world.clock.advance(10.0)
    await world.clock.advance(60.0)
    number = len(world.workers)
    world.workers[-1].die()
    await world.clock.advance(0.001)
    assert len(world.workers) == number + 1


async def test_those_that_die_with_one_node_are_one_event(world: World) -> None:
    world.requests = 40
    await world.look()
    for pause_s in (0.0, 0.5, 1.0):
        number = len(world.workers)
        for worker in world.workers[-4:]:
            worker.die()
            await world.clock.advance(0.000_1)  # they are not noticed at once
        if pause_s:
            await world.clock.advance(pause_s * 0.9)
            assert len(world.workers) == number, "four deaths count once"
        await world.clock.advance(pause_s * 0.2 + 0.001)
        assert len(world.workers) == number + 4


async def test_a_death_long_after_another_one_is_an_event_of_its_own(world: World) -> None:
    world.requests = 20
    await world.look()
    old = world.workers[0]
    for _ in range(4):
        world.workers[-1].die()
        await world.clock.advance(10.0)
    await world.clock.advance(60.0)
    old.die()  # it has lived for long: the pauses begin again
    await world.clock.advance(0.001)
    for pause_s in (0.5, 1.0):
        number = len(world.workers)
        world.workers[-1].die()
        await world.clock.advance(pause_s * 0.9)
        assert len(world.workers) == number
        await world.clock.advance(pause_s * 0.2)
        assert len(world.workers) == number + 1


async def test_one_that_cannot_be_reached_is_ended_before_another_takes_its_place(
    world: World,
) -> None:
    world.workers[0].begin()
    world.workers[0].over.set_exception(ConnectionError("the node does not answer"))
    await world.clock.advance(0.001)
    assert world.workers[0].was_killed
    assert len(world.workers) == 2


async def test_while_the_ledger_is_away_the_number_stays(world: World) -> None:
    world.requests = 30
    await world.look()
    world.is_away = True
    await world.look()
    assert world.fleet.sizes() == {"g": 3}
    world.workers[0].die()
    await world.clock.advance(0.001)
    assert world.fleet.sizes() == {"g": 3}, "one that died is replaced all the same"


async def test_all_are_told_to_leave_and_waited_for(world: World) -> None:
    world.requests = 20
    await world.look()
    for worker in world.workers:
        worker.begin()
    world.fleet.leave()
    await world.clock.advance(0.001)
    assert all(worker.was_told_to_leave for worker in world.workers)
    world.workers[0].end()
    await world.clock.advance(1.0)
    assert not world.running.done()
    world.workers[1].end()
    await world.clock.advance(0.001)
    await world.running
    assert len(world.workers) == 2, "none is started in the place of one that leaves"


async def test_one_that_does_not_leave_is_killed_in_the_end(world: World) -> None:
    world.workers[0].begin()
    world.fleet.leave()
    await world.clock.advance(LEAVE_MAX_S - 1)
    assert not world.workers[0].was_killed
    await world.clock.advance(2.0)
    assert world.workers[0].was_killed
    await world.running


async def test_one_that_does_not_tell_its_end_is_not_waited_for_for_ever(world: World) -> None:
    world.workers[0].begin()
    world.workers[0].is_out_of_reach = True
    world.fleet.leave()
    await world.clock.advance(DISBAND_MAX_S - 1)
    assert world.workers[0].was_killed
    assert not world.running.done()
    await world.clock.advance(2.0)
    assert world.running.done()
    await world.running


async def test_one_that_never_found_a_place_is_not_waited_for(world: World) -> None:
    world.fleet.leave()
    await world.clock.advance(LEAVE_UNSEEN_S + 1)
    assert world.workers[0].was_killed
    await world.running


async def test_settings_that_no_worker_can_use_end_it_with_the_reason(world: World) -> None:
    world.workers[0].began.set_result("segments: there is no such bucket")
    world.workers[0].end()
    await world.clock.advance(1.0)
    with pytest.raises(ConfigError, match="no such bucket"):
        await world.running


async def test_one_node_that_cannot_use_the_settings_does_not_end_the_others(world: World) -> None:
    world.workers[0].begin()
    world.requests = 20
    await world.look()
    world.workers[1].began.set_result("another version is installed here")
    world.workers[1].end()
    await world.clock.advance(LOOK_INTERVAL_S)
    assert not world.running.done()
    assert world.fleet.sizes() == {"g": 2}
