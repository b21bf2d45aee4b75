"""One attempt at one shard: the first result of a request wins."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits, result
from batchyard.dispatch.adopt import Adopted
from batchyard.dispatch.aside import PutBack
from batchyard.dispatch.shard import Request, ShardRun
from batchyard.dispatch.suspects import give_up, given_up, unseen
from batchyard.ledger import Claim
from batchyard.model import Counts, Extent, Tokens
from batchyard.price import Usage
from batchyard.upstream import Call


class Task:
    """What does a request: all that a shard may do to it is end it."""

    def __init__(self) -> None:
        self.canceled = 0

    def cancel(self) -> None:
        self.canceled += 1


def take(shard: ShardRun, task: Task | None = None) -> Request | None:
    return shard.take(task or Task())  # type: ignore[arg-type]


def claim(requests: int) -> Claim:
    return Claim(
        batch="b",
        index=3,
        attempt=2,
        workspace="w",
        pool="p",
        offset=0,
        length=0,
        crc=None,
        requests=requests,
        version="",
        betas=(),
        user_profile=None,
        expires_us=0,
        canceled=False,
        frozen=(),
    )


def make(*ids: str, covered: tuple[str, ...] = ()) -> ShardRun:
    adopted = Adopted()
    for custom_id in covered:
        adopted.covered.add(custom_id)
        adopted.tally.add("succeeded", Usage(1, 1, 1, 0, 1))
    if covered:
        adopted.extents.append(Extent("old", 10))
    return ShardRun(claim(len(ids)), [Request(c, b"{}") for c in ids], adopted)


def taken(shard: ShardRun) -> str:
    request = take(shard)
    assert request is not None
    return request.custom_id


def settle(shard: ShardRun, custom_id: str) -> None:
    shard.settle(custom_id, "succeeded", f"line {custom_id}\n".encode(), Usage(1, 2, 3, 4, 5))


def kinds(shard: ShardRun) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in shard.lines]
    return [(line["custom_id"], line["result"]["type"]) for line in lines]


def test_what_was_adopted_is_not_sent_again_but_counts() -> None:
    shard = make("a", "b", "c", covered=("a", "c"))
    assert taken(shard) == "b"
    assert take(shard) is None
    assert shard.counts == Counts(succeeded=2)
    assert not shard.is_done
    settle(shard, "b")
    assert shard.is_done
    assert shard.tokens == Tokens(3, 4, 9, 7)
    assert shard.extents == (Extent("old", 10),)


def test_lines_are_handed_over_once() -> None:
    shard = make("a", "b")
    for _ in range(2):
        settle(shard, taken(shard))
    assert shard.take_fresh_bytes() == len(b"line a\nline b\n")
    assert shard.take_lines() == [b"line a\n", b"line b\n"]
    assert (shard.take_lines(), shard.take_fresh_bytes()) == ([], 0)


def test_a_second_result_of_a_request_changes_nothing() -> None:
    shard = make("a", "b")
    custom_id = taken(shard)
    settle(shard, custom_id)
    settle(shard, custom_id)
    shard.fail(custom_id, "api_error", "late", None)
    settle(shard, "b")  # was never sent
    settle(shard, "stranger")
    assert (shard.counts, len(shard.lines)) == (Counts(succeeded=1), 1)


def test_stopping_ends_the_unsent_and_leaves_time_to_what_is_in_flight() -> None:
    shard = make("a", "b", "c")
    taken(shard)
    shard.stop("canceled", 60.0)
    assert kinds(shard) == [("b", "canceled"), ("c", "canceled")]
    assert (shard.stopped.is_set(), shard.deadline_s, shard.is_done) == (True, 60.0, False)
    shard.stop("expired", 99.0)  # the first reason stays
    assert (shard.stop_reason, shard.deadline_s, len(shard.lines)) == ("canceled", 60.0, 2)
    settle(shard, "a")
    assert shard.counts == Counts(succeeded=1, canceled=2)
    assert shard.is_done


@pytest.mark.parametrize(
    ("reason", "tried", "kind"),
    [
        ("canceled", None, "canceled"),
        ("canceled", ("api_error", "x"), "canceled"),
        ("expired", None, "expired"),
        ("expired", ("overloaded_error", "busy"), "errored"),
    ],
)
def test_time_out_in_flight_ends_with_what_the_last_try_met(
    reason: str, tried: tuple[str, str] | None, kind: str
) -> None:
    shard = make("a")
    custom_id = taken(shard)
    if tried is not None:
        shard.note_try(custom_id, *tried)
    shard.stop(reason, 60.0)  # type: ignore[arg-type]
    shard.give_up(custom_id)
    assert kinds(shard) == [("a", kind)]
    settle(shard, custom_id)  # the answer comes after all
    shard.give_up(custom_id)
    assert len(shard.lines) == 1
    if kind == "errored":
        assert b"overloaded_error" in shard.lines[0]


def test_what_is_abandoned_has_its_result_and_its_call_ended() -> None:
    shard = make("a", "b", "c")
    tasks = [Task(), Task()]
    for task in tasks:
        take(shard, task)
    shard.stop("canceled", 60.0)
    settle(shard, "a")
    shard.take_lines()
    shard.abandon()
    assert kinds(shard) == [("b", "canceled")]
    assert [task.canceled for task in tasks] == [0, 1], "a call that had ended was canceled"
    assert shard.is_done


def test_losing_a_shard_ends_its_calls_and_records_nothing() -> None:
    shard = make("a", "b")
    task = Task()
    take(shard, task)
    shard.lose()
    settle(shard, "a")
    assert (task.canceled, shard.lines, shard.is_done) == (1, [], False)


def test_giving_up_without_a_reason_leaves_the_request_to_the_next_attempt() -> None:
    shard = make("a", "b")
    custom_id = taken(shard)
    shard.halt()
    shard.give_up(custom_id)
    assert shard.lines == []
    assert shard.stopped.is_set()
    assert take(shard) is None
    assert not shard.is_done


def test_a_lost_shard_takes_nothing_more() -> None:
    shard = make("a", "b")
    custom_id = taken(shard)
    shard.lose()
    settle(shard, custom_id)
    assert take(shard) is None
    assert (shard.lines, shard.is_done, shard.stopped.is_set()) == ([], False, True)


def test_a_lost_shard_that_was_complete_is_not_done() -> None:
    shard = make("a")
    settle(shard, taken(shard))
    assert shard.is_done
    shard.lose()
    assert not shard.is_done


def test_a_segment_name_is_new_each_time_and_says_shard_and_attempt() -> None:
    shard = make("a")
    names = {shard.segment_name() for _ in range(100)}
    assert len(names) == 100
    assert all("/b/r/3.2." in name for name in names)


@given(st.integers(1, 12), st.integers(0, 2**32))
def test_whatever_happens_each_request_gets_at_most_one_line(count: int, seed: int) -> None:
    rng = random.Random(seed)
    ids = [f"r{n}" for n in range(count)]
    covered = tuple(c for c in ids if rng.random() < 0.3)
    shard = make(*ids, covered=covered)
    for _ in range(40):
        target = rng.choice(ids)
        match rng.randrange(12):
            case 0:
                shard.stop(rng.choice(["canceled", "expired"]), 1.0)
            case 1 if rng.random() < 0.2:
                shard.halt()
            case 2 | 3:
                line = result.succeeded(target, b'{"usage":{}}')
                shard.settle(target, "succeeded", line, Usage())
            case 4:
                shard.fail(target, "api_error", "x", None)
            case 5:
                shard.give_up(target)
            case _:
                take(shard)
    found = [custom_id for custom_id, _ in kinds(shard)]
    assert len(set(found)) == len(found)
    assert not set(found) & set(covered)
    assert shard.counts.total == len(found) + len(covered) <= count
    assert shard.is_done == (shard.counts.total == count)
    held = shard.held()
    assert (held.counts, held.inflight) == (shard.counts, len(shard.inflight))


# Suspected ---------------------------------------------------------------------------------------


def suspected(*ids: str, covered: tuple[str, ...] = ()) -> ShardRun:
    requests = [Request(custom_id, b"{}") for custom_id in ids]
    adopted = Adopted(covered=set(covered))
    for _ in covered:
        adopted.tally.add("succeeded", None)
    return ShardRun(claim(len(ids)), requests, adopted, is_suspected=True)


def test_a_suspected_shard_sends_one_request_alone_until_its_result_is_durable() -> None:
    shard = suspected("a", "b", "c", "d", covered=("a",))
    told: list[str] = []
    shard.on_let_go = lambda: told.append("now")
    assert (taken(shard), shard.durable) == ("b", 1)
    assert take(shard) is None
    settle(shard, "b")
    shard.synced(shard.written)
    shard.take_lines()
    shard.synced(shard.written)
    assert (take(shard), shard.durable, told) == (None, 1, []), "it is in memory only"
    shard.wrote()
    shard.synced(shard.written)
    assert (shard.durable, told) == (2, ["now"])
    assert [taken(shard), taken(shard)] == ["c", "d"]


def test_what_waits_for_a_suspected_request_ends_with_its_batch() -> None:
    shard = suspected("a", "b", "c")
    assert taken(shard) == "a"
    shard.stop("canceled", 0.0)
    assert sorted(kinds(shard)) == [("b", "canceled"), ("c", "canceled")]
    shard.settle("a", "succeeded", b'{"custom_id":"a"}', None)
    assert take(shard) is None
    assert shard.is_done


def test_after_a_suspected_request_that_waits_for_its_next_try_the_next_is_sent_alone() -> None:
    shard = suspected("a", "b", "c")
    first = take(shard)
    assert first is not None
    assert shard.set_aside(PutBack(first, Call(b"{}", "2023-06-01", (), "w")), 60.0, "429")
    assert taken(shard) == "b"
    assert take(shard) is None


def test_the_request_that_was_sent_alone_is_given_up_unseen_and_later_all_of_the_shard() -> None:
    numbers = (limits.FAILURES_TO_SET_APART, limits.FAILURES_TO_GIVE_UP, limits.FAILURES_MAX)
    failed = [dataclasses.replace(claim(3), failures=n) for n in numbers]
    assert [given_up(c, has_gained=False) for c in failed] == [0, 1, 3]
    assert [given_up(c, has_gained=True) for c in failed] == [0, 0, 0]
    records = [("a", b"1"), ("b", b"2"), ("c", b"3")]
    assert list(unseen(records, 1, {"a"})) == [("a", b"1"), ("b", b"{}"), ("c", b"3")]


@pytest.mark.anyio
async def test_a_shard_that_gives_one_request_up_goes_on_with_the_others() -> None:
    shard = make("a", "b", "c")
    give_up(shard, 1)
    assert kinds(shard) == [("a", "errored")]
    assert [taken(shard), taken(shard)] == ["b", "c"]
