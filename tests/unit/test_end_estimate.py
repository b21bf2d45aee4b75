"""When a batch will have ended: with a basis, never earlier than limits allow."""

from __future__ import annotations

import pytest

from batchyard import limits
from batchyard.model import Batch
from batchyard.server.estimate import Estimates, Part, Wait

BEGIN_US = 1_790_000_000_000_000
S = limits.SECOND_US


def batch(requests: int = 1_000, *, window_s: int = 86_400, batch_id: str = "b") -> Batch:
    return Batch(
        id=batch_id,
        workspace="w",
        requests=requests,
        created_us=BEGIN_US,
        expires_us=BEGIN_US + window_s * S,
        version="2023-06-01",
        billing="standard",
    )


def test_the_rate_of_the_last_minutes_tells_the_end() -> None:
    found = Estimates().of(batch(), 100, BEGIN_US + 10 * S)
    assert found.ends_us == BEGIN_US + 100 * S
    assert found.basis == "900 left, 10.0 results a second over the last 10 s"


def test_only_the_last_five_minutes_count() -> None:
    estimates = Estimates()
    whole = batch(100_000)
    for second in range(0, 620, 10):  # ten a second, and then one
        results = second * 10 if second < 300 else 3_000 + (second - 300)
        found = estimates.of(whole, results, BEGIN_US + second * S)
    assert " 1.0 results a second over the last 300 s" in found.basis


@pytest.mark.parametrize(("results", "second"), [(0, 100), (500, 2)])
def test_without_a_basis_there_is_no_estimate(results: int, second: int) -> None:
    found = Estimates().of(batch(), results, BEGIN_US + second * S)
    assert found.ends_us is None
    assert found.basis == f"no basis: {results} results in the last {second} s"


def test_of_an_old_batch_that_was_never_looked_at_nothing_is_known_at_first() -> None:
    estimates = Estimates()
    late_us = BEGIN_US + 3_600 * S
    assert estimates.of(batch(), 500, late_us).ends_us is None
    assert estimates.of(batch(), 550, late_us + 10 * S).ends_us == late_us + 100 * S


def test_it_is_never_earlier_than_a_known_limit_allows() -> None:
    parts = {"up/m": Part(500, 2.0)}
    found = Estimates().of(batch(), 500, BEGIN_US + 10 * S, parts=parts)
    assert found.ends_us == BEGIN_US + 260 * S
    assert found.basis.endswith(", 500 of them in up/m, at most 2.0 a second")
    parts = {"up/m": Part(500, 1_000.0)}
    slow = Estimates().of(batch(), 500, BEGIN_US + 10 * S, parts=parts)
    assert slow.ends_us == BEGIN_US + 20 * S, "a limit above the rate changes nothing"
    parts = {"up/m": Part(500, 0.0)}
    none = Estimates().of(batch(), 500, BEGIN_US + 10 * S, parts=parts)
    assert none.ends_us == BEGIN_US + 20 * S, "nobody has a part of the limit"


def test_a_model_with_a_known_limit_tells_the_end_of_a_batch_of_several() -> None:
    parts = {"up/quick": Part(5_000), "up/slow": Part(9_950, 1.0)}
    found = Estimates().of(batch(20_000), 5_050, BEGIN_US + 50 * S, parts=parts)
    assert found.ends_us == BEGIN_US + 10_000 * S
    assert found.basis.endswith(", 9,950 of them in up/slow, at most 1.0 a second")


@pytest.mark.parametrize("limit", [None, 50.0])
def test_a_model_whose_results_come_slowly_tells_the_end_of_a_batch_of_several(
    limit: float | None,
) -> None:
    estimates, whole = Estimates(), batch(20_000)
    for second in range(2, 150):
        quick, slow = max(0, 10_000 - 100 * second), 10_000 - second
        parts = {"up/quick": Part(quick), "up/slow": Part(slow, limit)}
        if not quick:
            del parts["up/quick"]  # all its shards are done
        results = 20_000 - quick - slow
        found = estimates.of(whole, results, BEGIN_US + second * S, parts=parts)
        if second > 5:
            assert found.ends_us == pytest.approx(BEGIN_US + 10_000 * S, abs=S)
    assert found.basis.endswith(", 9,851 of them in up/slow, 1.0 a second")


def test_of_a_batch_of_very_many_models_those_with_the_most_left_are_remembered() -> None:
    estimates, whole = Estimates(), batch(200_000)
    for second in (0, 10, 100):
        parts = {f"up/{n}": Part(1_000) for n in range(100)} | {"up/slow": Part(9_000 - second)}
        found = estimates.of(whole, 91_000 + second, BEGIN_US + second * S, parts=parts)
    assert found.ends_us == BEGIN_US + 9_000 * S
    (seen,) = estimates._seen.values()
    assert [len(lefts) for _, lefts in seen.pools] == [16, 16]


def test_it_is_never_after_the_expiry_and_says_so() -> None:
    found = Estimates().of(batch(window_s=60), 10, BEGIN_US + 10 * S)
    assert found.ends_us == BEGIN_US + 60 * S
    assert found.basis.endswith("it expires before all is done")


def test_what_stands_still_has_no_end_but_a_reason() -> None:
    found = Estimates().of(batch(), 500, BEGIN_US + 10 * S, stopped="up/m: wrong key")
    assert (found.ends_us, found.basis) == (None, "not while it stands still: up/m: wrong key")


def test_it_is_never_before_the_known_end_of_what_is_waited_for() -> None:
    estimates, whole = Estimates(), batch(301)
    for second in (10, 50, 250):
        wait = Wait(600.0 - second)
        found = estimates.of(whole, 300, BEGIN_US + second * S, wait=wait)
        assert found.ends_us == BEGIN_US + 600 * S, "whenever it is asked"
    assert found.basis.endswith(", some wait for 350 s")
    busy = Estimates().of(batch(), 100, BEGIN_US + 10 * S, wait=Wait(5.0))
    assert busy.ends_us == BEGIN_US + 100 * S, "the others take longer"


def test_where_all_wait_what_is_left_begins_after_it() -> None:
    found = Estimates().of(batch(), 100, BEGIN_US + 10 * S, wait=Wait(60.0, is_of_all=True))
    assert found.ends_us == BEGIN_US + (10 + 60 + 90) * S
    assert found.basis.endswith(", all wait for 60 s")


def test_while_one_slow_call_lasts_the_end_is_not_said_to_be_now() -> None:
    estimates, whole = Estimates(), batch(301)
    estimates.of(whole, 300, BEGIN_US + 10 * S)
    for second in (20, 50, 100):
        found = estimates.of(whole, 300, BEGIN_US + second * S)
        assert found.ends_us == BEGIN_US + (second + second - 10) * S
    assert found.basis.endswith(", none in the last 90 s")


def test_a_wait_that_is_over_is_no_sign_of_slow_calls() -> None:
    estimates, whole = Estimates(), batch(301)
    estimates.of(whole, 300, BEGIN_US + 10 * S, wait=Wait(90.0))
    estimates.of(whole, 300, BEGIN_US + 99 * S, wait=Wait(1.0))
    found = estimates.of(whole, 300, BEGIN_US + 101 * S)
    assert found.ends_us == BEGIN_US + 103 * S
