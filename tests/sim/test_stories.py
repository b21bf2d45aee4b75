"""Single stories that the seeds found, or that they meet too seldom."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.clock import steady_us
from sim.world import Chances, World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


def _tell(
    root: Path,
    story: Callable[[World], Awaitable[None]],
    *,
    slots: int = 16,
    seed: int = 1,
    damaged: frozenset[str] = frozenset(),
) -> None:
    async def run() -> None:
        world = World(random.Random(seed), root, slots, Chances(), exact_calls=False)
        await story(world)
        await world.close(but=damaged)

    asyncio.run(run())


async def _end_all(world: World) -> None:
    while await world.open_batches():
        await world.clock.advance(1)
        world.check_alive()
        assert world.clock.monotonic_s() < 10_000, "a batch does not end"
    for sent in world.sent.values():
        await world.check_ended(sent)


def test_an_answer_after_the_grace_of_a_canceled_batch_changes_nothing(root: Path) -> None:
    async def story(world: World) -> None:
        world.chances.stuck = 1.0
        world.start()
        sent = await world.create(requests=5)
        await world.clock.advance(1)
        assert world.calls > 0
        await world.cancel(sent)
        await world.clock.advance(limits.DRAIN_GRACE_S + 5)
        await world.check_ended(sent)
        await world.clock.advance(300)  # the answers come
        world.check_alive()
        await world.check_ended(sent)

    _tell(root, story)


def test_a_pool_that_was_paused_for_a_batch_that_is_gone_takes_the_next_batch(
    root: Path,
) -> None:
    async def story(world: World) -> None:
        world.chances.denied_401 = 1.0
        process = world.start()
        sent = await world.create(requests=5)
        await world.clock.advance(20)
        pools = await world.pools_of(sent)
        assert process.worker.troubles(pools)
        await world.cancel(sent)
        await world.clock.advance(3)
        await world.check_ended(sent)
        world.chances.denied_401 = 0.0
        await world.create(requests=5)
        await world.clock.advance(limits.UPSTREAM_PAUSE_S + 30)
        await _end_all(world)
        assert process.worker.troubles(pools) == {}

    _tell(root, story)


def test_a_refused_upstream_is_called_again_only_after_the_pause(root: Path) -> None:
    async def story(world: World) -> None:
        world.chances.denied_401 = 1.0
        world.chances.slowest_s = 0.0
        world.start()
        await world.create(requests=60)
        await world.clock.advance(10)
        first = world.calls
        assert 0 < first <= 4 * len(world.upstreams), "more than the slots were burnt"
        await world.clock.advance(limits.UPSTREAM_PAUSE_S - 15)
        assert world.calls == first
        world.chances.denied_401 = 0.0
        await _end_all(world)
        batch = await world.batch_of(next(iter(world.sent.values())))
        assert batch.counts.errored == 0, "a wrong key burnt requests"

    _tell(root, story, slots=4)


def test_a_worker_that_takes_its_own_lost_shard_again_keeps_it(root: Path) -> None:
    async def story(world: World) -> None:
        world.chances.exactly_s = 10.0
        process = world.start()
        await world.create(requests=5)
        await world.clock.advance(1.5)
        world.chances.exactly_s = 300.0
        # As after a long stop of the machine: the lease is over before it was renewed.
        assert await world.ledger.take_back(steady_us(world.clock) + limits.DAY_US, but="")
        process.worker.wake()
        await world.clock.advance(2 * limits.LEASE_US / limits.SECOND_US - 5)  # no sweep before
        world.check_alive()
        assert not await world.ledger.take_back(steady_us(world.clock), but=""), (
            "it let go of a living shard"
        )
        await _end_all(world)

    _tell(root, story)


def test_a_batch_whose_bytes_are_damaged_holds_up_no_other(root: Path) -> None:
    async def story(world: World) -> None:
        damaged = await world.create(requests=5)
        path = _requests(root)
        path.write_bytes(b"x" * path.stat().st_size)
        world.start()
        whole = await world.create(requests=5)
        await world.clock.advance(60)
        world.check_alive()
        await world.check_ended(whole)
        assert (await world.batch_of(damaged)).ended_us is None

    _tell(root, story, damaged=frozenset({"requests-damaged"}))


def _requests(root: Path) -> Path:
    (path,) = (root / "segments").rglob("requests")
    return path


def _damage_params(root: Path, custom_id: str) -> None:
    """Change a byte of the params of one request."""
    path = _requests(root)
    data = path.read_bytes()
    at = data.index(b'"max_tokens"', data.index(f"{custom_id} ".encode()))
    path.write_bytes(data[: at + 1] + b"x" + data[at + 2 :])


def test_requests_that_share_a_shard_with_damaged_ones_are_not_sent_and_end_with_a_cancel(
    root: Path,
) -> None:
    async def story(world: World) -> None:
        sent = await world.create(requests=6, shard=3)
        _damage_params(root, "r4")
        world.start()
        await world.clock.advance(60)
        assert world.calls == 3, "what may be damaged was sent"
        assert (await world.batch_of(sent)).ended_us is None
        await world.cancel(sent)
        await world.clock.advance(2)
        await world.check_ended(sent)
        batch = await world.batch_of(sent)
        assert (batch.counts.succeeded, batch.counts.canceled) == (3, 3)

    _tell(root, story)


def test_damaged_requests_end_when_their_time_is_over(root: Path) -> None:
    async def story(world: World) -> None:
        sent = await world.create(requests=6, shard=3, window_s=100)
        _damage_params(root, "r1")
        world.start()
        await world.clock.advance(50)
        await world.restart(power_cut=True)
        world.start()
        await world.clock.advance(60)
        await world.check_ended(sent)
        batch = await world.batch_of(sent)
        assert (batch.counts.succeeded, batch.counts.expired) == (3, 3)

    _tell(root, story)


def test_requests_whose_bytes_were_put_back_are_sent_after_a_start(root: Path) -> None:
    async def story(world: World) -> None:
        await world.create(requests=6, shard=3)
        whole = _requests(root).read_bytes()
        _damage_params(root, "r4")
        world.start()
        await world.clock.advance(60)
        _requests(root).write_bytes(whole)
        await world.restart(power_cut=False)
        world.start()
        await _end_all(world)
        assert set(world.calls_of.values()) == {1}
        assert world.calls == 6

    _tell(root, story)


def test_slots_that_were_stuck_in_a_canceled_batch_serve_the_next_one(root: Path) -> None:
    async def story(world: World) -> None:
        world.chances.exactly_s = 10_000.0
        world.start()
        stuck = await world.create(requests=4)
        await world.clock.advance(1)
        assert world.calls == 4
        world.chances.exactly_s = 0.5
        await world.create(requests=40, shard=20)  # more than a pool is hungry for
        await world.clock.advance(1)
        assert world.calls == 4, "there was a free slot"
        await world.cancel(stuck)
        await world.clock.advance(limits.DRAIN_GRACE_S + 60)
        await _end_all(world)
        assert world.clock.monotonic_s() < 1_000

    _tell(root, story, slots=4)


def test_nothing_is_sent_while_a_worker_leaves(root: Path) -> None:
    async def story(world: World) -> None:
        world.chances.slowest_s = 10.0
        process = world.start()
        await world.create(requests=60)
        await world.clock.advance(0.5)
        started = world.calls
        await world.leave(process)
        assert world.calls == started
        world.start()
        await _end_all(world)
        assert set(world.calls_of.values()) == {1}, "what was in flight was not drained"

    _tell(root, story, slots=2)


def test_a_small_batch_is_not_stuck_behind_a_large_one(root: Path) -> None:
    """Fairness, counted in calls: the newcomer is served within about one more shard."""

    async def story(world: World) -> None:
        world.chances.slowest_s = 1.0
        world.start()
        await world.create(requests=400, shard=10, workspace="wrkspc_a")
        await world.clock.advance(5)
        small = await world.create(requests=3, shard=10, workspace="wrkspc_b")
        before = world.calls
        while not any(name.startswith(small.batch.id) for name in world.calls_of):
            await world.clock.advance(0.05)
        assert world.calls - before <= 2 * 10 + 4
        await _end_all(world)

    _tell(root, story, slots=4)


def test_a_batch_that_expires_while_it_runs_keeps_what_was_sent_and_no_more(root: Path) -> None:
    async def story(world: World) -> None:
        world.chances.exactly_s = 9.0
        world.start()
        sent = await world.create(requests=10, window_s=20)
        await world.clock.advance(60)
        await world.check_ended(sent)
        batch = await world.batch_of(sent)
        assert (batch.counts.succeeded, batch.counts.expired) == (3, 7)
        assert world.calls == 3

    _tell(root, story, slots=1)


def test_a_cancel_that_another_process_took_is_seen_at_the_next_renewal(root: Path) -> None:
    async def story(world: World) -> None:
        world.chances.exactly_s = 9.0
        world.start()
        sent = await world.create(requests=10)
        await world.clock.advance(1)
        now = world.clock.now_us()
        batch = await world.ledger.cancel(sent.batch.workspace, sent.batch.id, now)
        assert batch is not None
        sent.cancel_us = batch.cancel_us
        await world.clock.advance(20)
        await world.check_ended(sent)
        batch = await world.batch_of(sent)
        assert (batch.counts.succeeded, batch.counts.canceled) == (1, 9)

    _tell(root, story, slots=1)


def test_a_worker_that_lost_a_shard_before_it_adopted_sends_nothing(root: Path) -> None:
    async def story(world: World) -> None:
        world.chances.exactly_s = 500.0
        first = world.start()
        await world.create(requests=3, shard=3)
        await world.clock.advance(1)
        await world.kill(first)
        late = world.start(freeze_before="adopt")
        await world.clock.advance(100)
        assert not late.gate.is_set()
        assert world.calls == 3
        winner = world.start()
        await world.clock.advance(100)
        assert world.calls == 6
        late.gate.set()
        await world.clock.advance(10)
        assert world.calls == 6, "it sent requests of a shard that another has"
        assert winner in world.processes
        await _end_all(world)

    _tell(root, story)


def test_what_was_adopted_stays_though_a_zombie_writes_on(root: Path) -> None:
    """Else the segment of the second attempt would share an id with the first, and be dropped."""

    async def story(world: World) -> None:
        world.chances.next_s = [5.0, 5.0, 5.0, 100.0, 900.0, 900.0]
        zombie = world.start()
        await world.create(requests=6, shard=6)
        await world.clock.advance(10)  # three are answered, three are out
        assert world.calls == 6
        zombie.gate.clear()
        await world.clock.advance(40)
        world.chances.next_s = [5.0, 5.0, 900.0]
        second = world.start()  # takes the shard over, with its three lines, and answers two more
        await world.clock.advance(20)
        assert world.calls == 9
        await world.clock.advance(60)  # an answer reaches the zombie, which writes it down
        await world.kill(second)
        world.chances.next_s = [5.0]
        world.start()
        await world.clock.advance(150)
        assert world.calls == 10, "what the second attempt had recorded was asked again"
        await _end_all(world)
        zombie.gate.set()
        await world.clock.advance(10)
        await _end_all(world)

    _tell(root, story, slots=3)


def test_of_two_attempts_with_the_same_answers_one_is_taken(root: Path) -> None:
    async def story(world: World) -> None:
        world.chances.next_s = [10.0] * 5 + [5.0, 5.0, 500.0, 500.0, 500.0]
        first = world.start()
        await world.create(requests=5, shard=5)
        await world.clock.advance(1)
        first.gate.clear()  # its calls go on, and it writes their answers down
        await world.ledger.take_back(steady_us(world.clock) + limits.DAY_US, but="")
        world.start()
        await world.clock.advance(15)
        assert world.calls == 10
        await world.restart(power_cut=False)
        world.start()
        await _end_all(world)
        assert world.calls == 10, "what the first attempt had recorded was asked again"

    _tell(root, story, slots=5)


def test_a_slot_whose_call_was_given_up_ends_with_its_worker_in_the_same_moment(
    root: Path,
) -> None:
    """Two cancels of one task arrive as one; the slot must not go on to the next request."""

    async def story(world: World) -> None:
        world.chances.stuck = 1.0
        process = world.start()
        await world.create(requests=1, shard=500)
        await world.create(requests=5, shard=500)
        await world.clock.advance(1)
        assert world.calls == 2, "one of each"
        first = min(process.worker._held.values(), key=lambda shard: shard.claim.requests)
        first.lose()
        calls = list(process.worker._slots.tasks)
        for call in calls:
            call.cancel()
        for _ in range(50):
            await asyncio.sleep(0)
        assert all(call.done() for call in calls), "a slot goes on"
        world.chances.stuck = 0.0
        await world.restart(power_cut=False)
        world.start()
        await _end_all(world)

    _tell(root, story, slots=2)
