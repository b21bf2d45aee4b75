"""Slots are requests in flight, not shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchyard import limits
from batchyard.dispatch.aside import PutBack
from batchyard.dispatch.pool import Pool
from batchyard.upstream import Call
from unit.test_shard_run import Task, make, settle

if TYPE_CHECKING:
    from batchyard.dispatch.shard import Request, ShardRun


def take(pool: Pool) -> tuple[ShardRun, Request] | None:
    return pool.take(Task())  # type: ignore[arg-type]


def test_requests_leave_shard_by_shard_until_none_is_left() -> None:
    pool = Pool("p", None, 4)
    first, second = make("a", "b"), make("c")
    pool.add(first)
    pool.add(second)
    assert pool.unsent == 3
    order = []
    while (taken := take(pool)) is not None:
        order.append((taken[0] is first, taken[1].custom_id))
    assert order == [(True, "a"), (True, "b"), (False, "c")]
    assert (pool.unsent, take(pool)) == (0, None)


@pytest.mark.parametrize(("unsent", "hungry"), [(0, True), (7, True), (8, False), (9, False)])
def test_a_pool_wants_more_when_less_is_unsent_than_two_rounds_of_its_slots(
    unsent: int, hungry: bool
) -> None:
    pool = Pool("p", None, 4)
    pool.add(make(*(f"r{n}" for n in range(unsent))))
    assert pool.is_hungry is hungry


def test_the_faster_requests_are_sent_the_more_shards_are_claimed_ahead() -> None:
    now_s = 0.0
    pool = Pool("p", None, 64, now_s=lambda: now_s)
    pool.add(make(*(f"r{n}" for n in range(4_000))))
    for _ in range(64):
        take(pool)
    now_s = 0.1
    assert pool.shards_ahead() == 0, "the first fill of the slots says nothing"
    for _ in range(3_000 - 64):
        take(pool)
    now_s = 0.25
    assert pool.shards_ahead() == 3_000 // limits.SHARD_REQUESTS
    for _ in range(10):
        take(pool)
    now_s = 0.3
    assert pool.shards_ahead() == 3_000 // limits.SHARD_REQUESTS, "too early to tell"
    now_s = 10.0
    assert pool.shards_ahead() == 0


def test_stragglers_do_not_keep_a_pool_from_claiming() -> None:
    pool = Pool("p", None, 2)
    shard = make("a", "b", "c")
    pool.add(shard)
    pool.busy = 2
    for _ in range(3):
        take(pool)
    assert len(shard.inflight) == 3
    assert pool.is_hungry


def test_a_shard_that_was_stopped_or_lost_is_passed_over() -> None:
    pool = Pool("p", None, 4)
    stopped, lost, live = make("a"), make("b"), make("c")
    for shard in (stopped, lost, live):
        pool.add(shard)
    stopped.stop("canceled", 0.0)
    lost.lose()
    taken = take(pool)
    assert taken is not None
    assert taken[0] is live
    settle(live, "c")
    assert take(pool) is None


def test_a_paused_pool_claims_only_what_it_can_try_with() -> None:
    now_s = 0.0
    pool = Pool("p", None, 4, now_s=lambda: now_s)
    pool.add(make("a", "b"))
    assert pool.is_hungry
    pool.pause("wrong key", 30.0)
    assert not pool.is_hungry
    assert (pool.pause_reason, pool.pausing.until_s) == ("wrong key", 30.0)
    assert (pool.ready, take(pool)) == (0, None), "it is not time yet"
    now_s = 30.0
    assert pool.ready == 1
    assert take(pool) is not None
    assert (pool.ready, take(pool)) == (0, None), "one is enough to find out"
    assert not pool.is_hungry
    pool.answered()
    assert pool.pause_reason is None
    assert take(pool) is not None
    pool.pause("wrong key", 30.0)
    assert pool.is_hungry, "nothing is left that would find out that the upstream is back"


def test_people_are_told_of_an_upstream_that_takes_no_call_and_not_of_one_hiccup() -> None:
    pool = Pool("p", None, 4)
    for _ in range(2):
        pool.refused("connection refused")
    assert pool.trouble is None
    pool.refused("connection refused")
    assert (pool.trouble, pool.is_idle) == ("connection refused", False)
    pool.answered()
    assert (pool.trouble, pool.is_idle) == (None, True)


@pytest.mark.parametrize(
    ("again", "fresh", "hungry"),
    [(0, 8, False), (100, 8, False), (100, 7, True), (8_191, 0, True), (8_192, 0, False)],
)
def test_a_pool_wants_more_when_less_was_never_sent_unless_too_much_is_sent_again(
    again: int, fresh: int, hungry: bool
) -> None:
    pool = Pool("p", None, 4)
    shard = make(*(f"r{n}" for n in range(again + fresh)))
    pool.add(shard)
    for request in list(shard.unsent)[:again]:
        call = Call(b"{}", "2023-06-01", (), "w")
        shard.put_back[request.custom_id] = PutBack(request, call)
    assert pool.is_hungry is hungry
