"""How many workers there should be: from the open work, as a function of values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.cluster.scaling import Scaler, useful
from batchyard.dispatch.routes import UNROUTED, Route, Routes
from batchyard.ledger.open_work import Backlog, Taken, Waiting
from batchyard.server.groups import Group

GPU = Group(name="gpu", upstreams=("llama",), workers_max=4, requests_per_worker=100)
REST = Group(name="workers", upstreams=("claude",), workers_max=8, requests_per_worker=1_000)
ROUTES = Routes([Route("claude", ("claude-*",)), Route("llama", ("*",))])


def waiting(pool: str, shards: int, requests: int, *, is_more: bool = False) -> Backlog:
    each = Waiting(pool=pool, shards=shards, requests=requests, is_more=is_more)
    return Backlog(waiting=(each,))


def of(backlog: Backlog) -> dict[str, int]:
    return useful((GPU, REST), backlog, ROUTES)


def test_a_worker_is_added_for_every_so_many_unanswered_requests_of_its_own_upstreams() -> None:
    assert of(Backlog()) == {"gpu": 0, "workers": 0}
    assert of(waiting("claude/claude-opus", 4, 2_000)) == {"gpu": 0, "workers": 2}
    assert of(waiting("claude/claude-opus", 5, 2_001)) == {"gpu": 0, "workers": 3}
    assert of(waiting("llama/small", 2, 150)) == {"gpu": 2, "workers": 0}


def test_what_is_taken_up_counts_with_what_waits() -> None:
    backlog = Backlog(
        waiting=(Waiting(pool="claude/claude-opus", shards=2, requests=900),),
        taken=(
            Taken(owner="a", pool="claude/claude-opus", shards=1, requests=400, inflight=64),
            Taken(owner="b", pool="claude/claude-sonnet", shards=1, requests=500, inflight=64),
        ),
    )
    assert of(backlog)["workers"] == 2


def test_there_are_never_more_workers_than_shards() -> None:
    assert of(waiting("llama/small", 1, 500)) == {"gpu": 1, "workers": 0}


def test_a_backlog_that_was_not_counted_to_its_end_wants_all_that_there_may_be() -> None:
    backlog = waiting("claude/claude-opus", 20_000, 20_000, is_more=True)
    assert of(backlog)["workers"] == REST.workers_max


@pytest.mark.parametrize("pool", [UNROUTED, "llama-that-was-removed/small"])
def test_a_pool_whose_upstream_is_gone_is_work_of_whoever_takes_its_model(pool: str) -> None:
    found = of(waiting(pool, 3, 300))
    # Nobody takes the first: one worker gives each an error. The second goes where the model does.
    nobody = pool == UNROUTED
    assert found == {"gpu": 0 if nobody else 3, "workers": 1 if nobody else 0}


def test_the_number_keeps_between_its_bounds() -> None:
    scaler = Scaler(Group(name="g", upstreams=("u",), workers_min=2, workers_max=5))
    assert [scaler.wanted(count, 0.0) for count in (0, 9)] == [2, 5]


def test_more_come_at_once_and_fewer_only_when_fewer_have_been_enough_for_a_while() -> None:
    group = Group(name="g", upstreams=("u",), workers_min=0, workers_max=9, scale_down_after_s=60)
    scaler = Scaler(group)
    seen = [(0.0, 1, 1), (1.0, 5, 5), (2.0, 0, 5), (30.0, 3, 5), (60.9, 1, 5), (61.1, 1, 3)]
    for now_s, useful_now, wanted in seen:
        assert scaler.wanted(useful_now, now_s) == wanted, now_s
    assert scaler.wanted(0, 90.5) == 1
    assert scaler.wanted(0, 1_000.0) == 0


@given(
    steps=st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(0, 12)), min_size=1, max_size=40),
    after_s=st.sampled_from([0.0, 10.0, 60.0]),
)
def test_the_number_is_the_highest_of_the_last_while(
    steps: list[tuple[float, int]], after_s: float
) -> None:
    group = Group(
        name="g", upstreams=("u",), workers_min=1, workers_max=8, scale_down_after_s=after_s
    )
    scaler, seen, now_s = Scaler(group), [], 0.0
    for passes_s, count in steps:
        now_s += passes_s
        seen.append((now_s, max(1, min(count, 8))))
        expected = max(each for at_s, each in seen if at_s >= now_s - after_s)
        assert scaler.wanted(count, now_s) == expected
