"""Shares, priorities, urgency, and the division of slots among workers."""

from __future__ import annotations

import random

import pytest

from batchyard import limits
from batchyard.errors import InvalidRequest
from batchyard.fairness import PRIORITIES, Share, Shares, read_priority, slots_of, weight_of

DAY = limits.DAY_US
HOUR = limits.HOUR_US


def test_a_call_without_a_priority_is_normal() -> None:
    assert read_priority(None) == "normal"
    assert [read_priority(name) for name in PRIORITIES] == ["low", "normal", "high"]


@pytest.mark.parametrize("text", ["", "HIGH", "urgent", "9", " high"])
def test_another_priority_is_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(InvalidRequest, match="low, normal, high are allowed") as caught:
        read_priority(text)
    assert caught.value.message.startswith("batchyard-priority: ")
    assert caught.value.should_retry is False


def test_priority_weighs_and_never_nothing() -> None:
    low, normal, high = (weight_of(priority, DAY) for priority in PRIORITIES)
    assert 0 < low < normal < high
    assert normal == 1.0


def test_a_batch_weighs_more_the_less_time_it_has_left() -> None:
    weights = [weight_of("normal", hours * HOUR) for hours in (24, 6, 3, 1)]
    assert weights == [1.0, 1.0, 2.0, 6.0]
    assert weight_of("normal", 1) == weight_of("normal", 0) == weight_of("normal", -5) == 64.0
    assert weight_of("low", HOUR // 2) > weight_of("normal", DAY)


def test_a_workspace_that_is_not_named_has_the_share_of_the_others() -> None:
    shares = Shares({"a": Share(2.0, 0.5)}, Share(1.0, 0.8))
    assert shares.of("a") == Share(2.0, 0.5)
    assert shares.of("b") == Share(1.0, 0.8)


@pytest.mark.parametrize(
    ("most", "slots", "expected"), [(1.0, 64, 64), (0.8, 64, 51), (0.5, 1, 1), (0.01, 10, 1)]
)
def test_a_share_is_whole_slots_and_one_at_least(most: float, slots: int, expected: int) -> None:
    assert Share(1.0, most).slots(slots) == expected


def test_a_worker_alone_has_all_slots() -> None:
    assert slots_of("me", 64, {}) == 64


def test_slots_are_divided_evenly_and_odd_ones_go_to_somebody() -> None:
    assert slots_of("b", 10, {"a": 4, "c": 3}) == 3
    assert slots_of("a", 10, {"b": 3, "c": 3}) == 4
    assert slots_of("c", 2, {"a": 1, "b": 1}) == 0


def test_a_newcomer_waits_until_the_others_have_let_go() -> None:
    assert slots_of("new", 64, {"old": 64}) == 0
    assert slots_of("old", 64, {"new": 0}) == 32
    assert slots_of("new", 64, {"old": 50}) == 14
    assert slots_of("new", 64, {"old": 32}) == 32


@pytest.mark.parametrize("seed", range(30))
def test_workers_together_never_fill_more_slots_than_there_are(seed: int) -> None:
    """They come, go, ask in any order, and let go of slots only when their calls end."""
    rng = random.Random(seed)
    slots = rng.choice([1, 3, 10, 64])
    granted: dict[str, int] = {}  # what the ledger says
    may: dict[str, int] = {}
    busy: dict[str, int] = {}
    for _ in range(400):
        who = f"w{rng.randrange(6)}"
        if rng.random() < 0.1:
            for state in (granted, may, busy):
                state.pop(who, None)  # it has left, or died
            continue
        others = {name: number for name, number in granted.items() if name != who}
        may[who] = slots_of(who, slots, others)
        granted[who] = max(may[who], busy.get(who, 0))
        for name, most in may.items():  # calls begin where they may, and end anywhere
            now = busy.get(name, 0)
            busy[name] = rng.randint(0, max(now, most)) if now < most else rng.randint(0, now)
        assert sum(busy.values()) <= slots
        assert sum(granted.values()) <= slots


def test_workers_that_keep_asking_come_to_an_even_division() -> None:
    granted: dict[str, int] = {}
    for _ in range(3):
        for who in ("a", "b", "c"):
            others = {name: number for name, number in granted.items() if name != who}
            granted[who] = slots_of(who, 64, others)
    assert sorted(granted.values()) == [21, 21, 22]


def test_slots_that_cannot_be_divided_go_round() -> None:
    owners = ["a", "b", "c"]

    def had(turn: int) -> list[str]:
        free = dict.fromkeys(owners, 0)
        return [
            owner
            for owner in owners
            if slots_of(owner, 1, {o: n for o, n in free.items() if o != owner}, turn)
        ]

    assert [len(had(turn)) for turn in range(3)] == [1, 1, 1]
    assert {owner for turn in range(3) for owner in had(turn)} == set(owners)
