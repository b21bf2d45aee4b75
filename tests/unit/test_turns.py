"""Whose request is sent next, in one pool."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from batchyard import limits
from batchyard.dispatch.pool import Pool
from batchyard.dispatch.turns import Turns
from batchyard.fairness import Share, Shares
from unit.test_shard_run import Task, make, settle

if TYPE_CHECKING:
    from batchyard.dispatch.shard import ShardRun
    from batchyard.model import Priority

NOW = 1_790_000_000_000_000


def shard(
    requests: int,
    *,
    workspace: str = "w",
    batch: str = "b",
    priority: Priority = "normal",
    left_us: int = limits.DAY_US,
) -> ShardRun:
    run = make(*(f"{batch}-{n}" for n in range(requests)))
    run.claim = dataclasses.replace(
        run.claim,
        batch=batch,
        workspace=workspace,
        priority=priority,
        expires_us=NOW + left_us,
        seq=1,
    )
    return run


def pool(slots: int, *shards: ShardRun, shares: Shares | None = None) -> Pool:
    made = Pool("p", None, slots, Turns(shares or Shares(), lambda: NOW))
    for run in shards:
        made.add(run)
    return made


def take(pool: Pool) -> tuple[ShardRun, str] | None:
    taken = pool.take(Task())  # type: ignore[arg-type]
    return None if taken is None else (taken[0], taken[1].custom_id)


def fill(pool: Pool, slots: int) -> Counter[str]:
    """Fill so many slots; return those of each batch."""
    found: Counter[str] = Counter()
    for _ in range(slots):
        taken = take(pool)
        if taken is not None:
            found[taken[0].claim.batch] += 1
    return found


def serve(pool: Pool, calls: int, slots: int) -> Counter[str]:
    """Let calls end in the order in which they began, so many at once; return calls by batch."""
    flying: list[tuple[ShardRun, str]] = []
    found: Counter[str] = Counter()
    for _ in range(calls):
        while len(flying) >= slots:
            run, custom_id = flying.pop(0)
            settle(run, custom_id)
        taken = take(pool)
        if taken is None:
            break
        flying.append(taken)
        found[taken[0].claim.batch] += 1
    for run, custom_id in flying:
        settle(run, custom_id)
    return found


def test_two_workspaces_have_equal_slots_whatever_their_size() -> None:
    both = pool(64, shard(500, workspace="whale", batch="a"), shard(100, workspace="x", batch="b"))
    found = fill(both, 64)
    assert (found["a"], found["b"]) == (32, 32)


def test_a_workspace_of_many_batches_has_no_more_slots_than_one_of_a_single_batch() -> None:
    many = [shard(50, workspace="many", batch=f"m{n}x") for n in range(9)]
    both = pool(64, *many, shard(100, workspace="one", batch="single"))
    assert fill(both, 60)["single"] == 30


def test_slots_follow_the_weights_of_workspaces() -> None:
    shares = Shares({"heavy": Share(3.0)})
    both = pool(
        64,
        shard(200, workspace="heavy", batch="h"),
        shard(200, workspace="light", batch="l"),
        shares=shares,
    )
    found = fill(both, 40)
    assert (found["h"], found["l"]) == (30, 10)


def test_what_one_does_not_use_the_others_have() -> None:
    both = pool(64, shard(500, workspace="whale", batch="a"), shard(3, workspace="x", batch="b"))
    found = fill(both, 64)
    assert (found["a"], found["b"]) == (61, 3)


def test_a_newcomer_has_the_next_slots_that_become_free() -> None:
    whale = shard(500, workspace="whale", batch="a")
    full = pool(8, whale)
    flying = [take(full) for _ in range(8)]
    full.add(shard(5, workspace="new", batch="n"))
    order = []
    for taken in flying[:4]:
        assert taken is not None
        settle(*taken)
        following = take(full)
        assert following is not None
        order.append(following[0].claim.batch)
    assert order == ["n", "n", "n", "n"]


def test_a_small_batch_shares_with_the_big_one_of_its_own_workspace() -> None:
    big = shard(500, batch="big")
    full = pool(8, big)
    first = take(full)
    full.add(shard(1, batch="small"))
    following = take(full)
    assert first is not None
    assert following is not None
    assert following[0].claim.batch == "small"


@pytest.mark.parametrize("slots", [1, 2, 5, 16])
def test_a_high_priority_gets_more_and_nobody_nothing(slots: int) -> None:
    three = pool(
        slots,
        shard(4_000, batch="low", priority="low"),
        shard(4_000, batch="mid"),
        shard(4_000, batch="top", priority="high"),
    )
    found = serve(three, 2_000, slots)
    assert found["top"] > found["mid"] > found["low"] > 0


def test_with_a_single_slot_turns_are_taken_in_proportion_to_the_weights() -> None:
    shares = Shares({"heavy": Share(3.0)})
    both = pool(
        1,
        shard(900, workspace="heavy", batch="h"),
        shard(900, workspace="light", batch="l"),
        shares=shares,
    )
    found = serve(both, 400, 1)
    assert abs(found["h"] - 300) <= 2


def test_of_few_slots_a_low_priority_holds_none_for_long() -> None:
    """A slot of its own would be more than its part of so few."""
    both = pool(4, shard(4_000, batch="low", priority="low"), shard(4_000, batch="top"))
    found = serve(both, 900, 4)
    assert abs(found["low"] - 100) <= 3


def test_who_had_nothing_to_send_for_a_while_does_not_catch_up_at_once() -> None:
    both = pool(1, shard(3, workspace="rare", batch="r"), shard(900, workspace="busy", batch="b"))
    serve(both, 300, 1)
    both.add(shard(100, workspace="rare", batch="r"))
    assert abs(serve(both, 40, 1)["r"] - 20) <= 1


def test_a_batch_rises_as_its_end_comes_near() -> None:
    both = pool(
        64,
        shard(500, batch="late", left_us=limits.HOUR_US),
        shard(500, batch="early"),
    )
    found = fill(both, 63)
    assert (found["late"], found["early"]) == (54, 9)


def test_a_batch_that_is_open_rises_as_its_end_comes_near() -> None:
    now = NOW
    both = Pool("p", None, 64, Turns(Shares(), lambda: now))
    both.add(shard(500, batch="late"))
    both.add(shard(500, batch="early", left_us=2 * limits.DAY_US))
    found = serve(both, 63, 63)
    assert abs(found["late"] - found["early"]) == 1
    now += limits.DAY_US - limits.HOUR_US
    both.tick()
    found = fill(both, 63)
    assert (found["late"], found["early"]) == (54, 9)


def test_a_shard_whose_requests_wait_for_a_durable_result_is_not_forgotten() -> None:
    run = shard(3, batch="suspected")
    run.kept_back = [run.unsent.pop(), run.unsent.pop()]
    both = pool(8, run, shard(1, batch="other"))
    assert fill(both, 8) == {"suspected": 1, "other": 1}
    settle(run, "suspected-0")
    run.take_lines()
    run.wrote()
    both.add(shard(1, batch="third"))
    assert fill(both, 8) == {"third": 1}
    assert (both.is_idle, both.turns.batches) == (False, 3)
    run.synced(run.written)
    assert fill(both, 8) == {"suspected": 2}


def test_a_pool_with_requests_that_wait_so_is_not_idle() -> None:
    run = shard(2)
    run.kept_back = [run.unsent.pop()]
    alone = pool(8, run)
    assert fill(alone, 8) == {"b": 1}
    settle(run, "b-0")
    assert not alone.is_idle
    run.stop("canceled", 0.0)
    assert alone.is_idle


def test_a_workspace_with_a_cap_leaves_slots_free_even_alone() -> None:
    shares = Shares(others=Share(1.0, 0.75))
    run = shard(100, workspace="whale", batch="a")
    alone = pool(8, run, shares=shares)
    assert alone.turns.ready(8) == 6
    taken = [take(alone) for _ in range(8)]
    assert sum(each is not None for each in taken) == 6
    assert alone.turns.ready(8) == 0
    alone.add(shard(5, workspace="new", batch="n"))
    assert [take(alone) is not None for _ in range(2)] == [True, True]
    assert taken[0] is not None
    settle(*taken[0])
    assert alone.turns.ready(8) == 1 + 3


def test_a_batch_that_was_alone_for_long_neither_owes_nor_has_a_credit() -> None:
    """While it is alone its turns are not counted; who comes then begins where it is."""
    first = pool(1, shard(4_000, workspace="a", batch="first"))
    assert serve(first, 1_000, 1)["first"] == 1_000
    first.add(shard(4_000, workspace="b", batch="second"))
    found = serve(first, 400, 1)
    assert abs(found["first"] - found["second"]) <= 1


def test_a_worker_with_a_part_of_the_slots_rounds_shares_down_and_fills_what_it_was_granted() -> (
    None
):
    shares = Shares({"a": Share(1.0, 0.3), "b": Share(1.0, 0.1)})
    both = pool(
        8, shard(9, workspace="a", batch="a"), shard(9, workspace="b", batch="b"), shares=shares
    )
    both.turns.divide({})
    assert fill(both, 8) == {"a": 2}
    both.turns.divide({"b": 3})
    assert sorted((name, n) for name, _, n in both.turns.limited()) == [("a", 2), ("b", 0)]
    assert fill(both, 8) == {"b": 3}
    late = pool(8, shares=shares)
    late.turns.divide({"a": 1})
    late.add(shard(9, workspace="a", batch="a"))
    assert fill(late, 8) == {"a": 1}


def test_who_is_left_alone_again_has_all_slots_and_shares_with_the_next() -> None:
    both = pool(4, shard(300, workspace="a", batch="a"), shard(20, workspace="b", batch="b"))
    assert serve(both, 50, 4)["b"] == 20
    both.add(shard(300, workspace="a", batch="a"))  # now it is known that nobody else is left
    assert serve(both, 100, 4) == {"a": 100}
    both.add(shard(300, workspace="c", batch="c"))
    found = serve(both, 100, 4)
    assert abs(found["a"] - found["c"]) <= 4


def test_a_batch_alone_sends_its_shards_in_the_order_in_which_they_were_opened() -> None:
    first, second = shard(3, batch="b"), shard(3, batch="b")
    alone = pool(8, first, second)
    taken = [take(alone) for _ in range(7)]
    assert [each[0] for each in taken if each is not None] == [first] * 3 + [second] * 3
    assert alone.unsent == 0
    assert alone.turns.ready(8) == 0


def test_shards_that_end_are_forgotten_and_take_no_part() -> None:
    stopped, lost = shard(5, workspace="s", batch="s"), shard(5, workspace="l", batch="l")
    live = shard(2, workspace="v", batch="v")
    three = pool(8, stopped, lost, live)
    stopped.stop("canceled", 0.0)
    lost.lose()
    assert three.turns.batches == 1
    assert fill(three, 8)["v"] == 2


def test_a_batch_asks_for_another_shard_before_it_runs_dry() -> None:
    """While others have enough: a full pool must not keep it from its next shard."""
    scarce, plenty = shard(9, batch="scarce"), shard(500, batch="plenty")
    both = pool(8, scarce, plenty)
    fill(both, 4)
    assert (len(scarce.inflight), len(plenty.inflight)) == (2, 2)
    assert both.turns.lacking() == []
    fill(both, 4)
    assert (len(scarce.unsent), len(scarce.inflight)) == (5, 4)
    assert both.turns.lacking() == [scarce.claim.turn]
    assert both.is_lacking(scarce)
    assert both.is_short(scarce)
    assert not both.is_lacking(plenty)
    scarce.claim = dataclasses.replace(scarce.claim, is_only=True)
    assert both.turns.lacking() == []
    assert not both.is_short(scarce), "its batch has no other shard"
    scarce.claim = dataclasses.replace(scarce.claim, is_only=False)
    assert both.is_short(scarce)
    both.drained.add(scarce.claim.turn)
    assert not both.is_short(scarce), "the ledger had no other shard of it"
    both.drained.clear()
    both.add(shard(500, batch="scarce"))
    assert not both.is_short(scarce), "its batch has enough, in another shard"
    assert not both.is_hungry
