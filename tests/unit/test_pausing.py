"""Whether a refusal is for one request or for all, and what waits for that."""

from __future__ import annotations

import pytest

from batchyard import limits
from batchyard.dispatch.aside import PutBack, Refused
from batchyard.dispatch.pausing import Pausing
from batchyard.dispatch.pool import Pool
from batchyard.dispatch.shard import Request, ShardRun
from batchyard.upstream import Call
from unit.test_shard_run import Task, make

PAUSE_S = limits.UPSTREAM_PAUSE_S
ONE = Request("one", b"{}")


def refuse(pausing: Pausing, number: int, request: Request | None = None) -> bool:
    """Refuse a call for what may be meant for all; return whether that pauses."""
    if pausing.is_borne(number):
        return False
    pausing.begin("no", PAUSE_S, request)
    return True


def take(pausing: Pausing, number: int) -> None:
    pausing.newest_taken = max(pausing.newest_taken, number)
    pausing.taken(number)


def test_twice_as_many_refusals_are_borne_each_time_that_later_calls_are_taken() -> None:
    pausing, number = Pausing(), 0
    for borne in (1, 2, 4, 8, 16):
        for _ in range(borne - 1):
            assert not refuse(pausing, number)
            number += 1
        assert refuse(pausing, number)
        take(pausing, number + 1)
        number += 2
        assert pausing.reason is None


def test_half_as_many_are_borne_each_time_that_the_one_that_tries_is_refused() -> None:
    pausing = Pausing()
    for number in range(0, 16, 2):
        refuse(pausing, number)
        take(pausing, number + 1)
    pausing.begin("no", PAUSE_S)
    for number in range(20, 30):
        pausing.tries(ONE, PAUSE_S)
        assert refuse(pausing, number, ONE)
    take(pausing, 25)
    assert [refuse(pausing, 40), refuse(pausing, 41)] == [False, True], "as after the first time"


def test_the_end_of_a_call_that_was_sent_before_ends_a_pause_and_proves_nothing() -> None:
    pausing = Pausing()
    assert refuse(pausing, 10)
    take(pausing, 9)
    assert pausing.reason is None
    assert refuse(pausing, 11)


def test_one_at_a_time_may_try_when_the_pause_is_over() -> None:
    pausing = Pausing()
    pausing.begin("no", PAUSE_S)
    assert not pausing.may_try(PAUSE_S - 1)
    assert pausing.may_try(PAUSE_S)
    pausing.tries(ONE, PAUSE_S)
    assert pausing.trying is ONE
    assert not pausing.may_try(2 * PAUSE_S - 1)
    assert pausing.may_try(2 * PAUSE_S), "one that takes its time keeps nobody waiting for ever"


@pytest.mark.parametrize("speaks", [False, True])
def test_a_try_counts_when_others_were_taken_since_the_last_that_counted(*, speaks: bool) -> None:
    pausing = Pausing()
    assert not pausing.is_own(5, Refused(5, 5), speaks_of_request=speaks)
    take(pausing, 6)
    assert pausing.is_own(7, Refused(5, 5), speaks_of_request=speaks)
    again = pausing.is_own(8, Refused(5, 7), speaks_of_request=speaks)
    assert again == speaks, "nobody was taken since, and nobody else is refused either"
    assert not pausing.is_own(9, Refused(9, 9), speaks_of_request=speaks)
    assert not pausing.is_own(10, Refused(5, 8), speaks_of_request=speaks), "another one is"
    take(pausing, 11)
    assert pausing.is_own(12, Refused(9, 9), speaks_of_request=speaks)


# Requests that are set aside ---------------------------------------------------------------------


class Here:
    """A pool whose time is told, and one shard."""

    def __init__(self, *custom_ids: str) -> None:
        self.now_s = 0.0
        self.pool = Pool("p", None, 4, None, lambda: self.now_s)
        self.shard = make(*custom_ids)
        self.pool.add(self.shard)

    def take(self) -> Request | None:
        found = self.pool.take(Task())  # type: ignore[arg-type]
        return None if found is None else found[1]

    def refuse(self, size: int = 2, shard: ShardRun | None = None) -> Request:
        """Take the next request, and set it aside."""
        request = self.take()
        assert request is not None
        call = Call(b"", "v", (), "w")
        back = PutBack(request._replace(params=b"x" * size), call, 1, 0, None)
        self.pool.set_aside(shard or self.shard, back, self.now_s + PAUSE_S, "403")
        return request


def test_who_was_refused_comes_again_behind_the_others_when_its_time_has_come() -> None:
    here = Here("a", "b", "c")
    here.refuse()
    assert (set(here.shard.aside), here.shard.inflight, here.pool.unsent) == ({"a"}, {}, 2)
    here.now_s = PAUSE_S - 1
    here.pool.tick()
    assert here.shard.aside
    here.now_s = PAUSE_S
    here.pool.tick()
    assert (here.shard.aside, here.shard.retrying) == ({}, {})
    assert [getattr(here.take(), "custom_id", None) for _ in range(4)] == ["b", "c", "a", None]
    assert set(here.shard.put_back) == {"a"}


def test_a_paused_pool_tries_with_one_that_was_not_refused_and_then_with_the_oldest() -> None:
    here = Here("a", "b", "c")
    for _ in range(2):
        here.refuse()
        here.now_s += 1
    here.pool.pause("no", 0.0)
    tried = []
    for _ in range(3):
        assert here.pool.ready == 1
        request = here.take()
        assert request is not None
        tried.append(request.custom_id)
        assert (here.pool.ready, here.take()) == (0, None)
        here.now_s += PAUSE_S
    assert tried == ["c", "a", "b"]


def test_a_paused_pool_opens_a_further_shard_when_something_of_each_was_refused() -> None:
    here = Here("a", "b", "c")
    here.refuse()
    here.pool.pause("no", 0.0)
    assert here.pool.is_hungry
    assert here.pool.begins >= 1
    here.pool.add(make("d"))
    assert not here.pool.is_hungry


def test_a_pool_opens_nothing_more_while_too_much_is_set_aside() -> None:
    here = Here("a", "b", "c")
    here.refuse(limits.PARKED_BYTES_MAX)
    assert not here.pool.is_hungry
    assert here.pool.lacking() == []
    here.shard.stop("canceled", 0.0)
    here.pool.tick()
    assert here.pool.is_hungry, "it is gone"


def test_what_is_set_aside_is_open_and_ends_with_its_shard() -> None:
    here = Here("a", "b")
    here.refuse()
    here.take()
    here.shard.settle("b", "errored", b"{}\n")
    assert here.shard.has_open
    assert not here.pool.is_idle
    here.shard.stop("canceled", 0.0)
    assert (here.shard.is_done, here.shard.has_open, here.shard.retrying) == (True, False, {})
