"""Shards that fail again and again, and what workers tell of themselves, in every ledger."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from batchyard import limits
from batchyard.ledger import Rest, Want
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.model import Counts, Extent
from store.making import (
    DAY,
    LEASE,
    NOW,
    add,
    finish,
    make_commit,
    make_held,
    take,
)

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.ledger import Claim, Ledger

pytestmark = pytest.mark.anyio

APART = limits.FAILURES_TO_SET_APART


async def lose(ledger: Ledger, times: int = 1) -> Claim:
    """Claim a shard, and let the lease end, so many times; return the last claim."""
    for _ in range(times):
        found = await ledger.claim("me", "up/m", LEASE, 1)
        found = found or await ledger.claim_apart("me", "up/m", LEASE)
        assert await ledger.take_back(LEASE + 1, but="") == 1
    return found[0]


async def failures(ledger: Ledger) -> int:
    """Return how often the one shard has failed in a row, as its next claim tells."""
    (claim,) = await ledger.claim("x", "up/m", LEASE, 1) or await ledger.claim_apart(
        "x", "up/m", LEASE
    )
    await ledger.release("x")
    return claim.failures


async def test_a_lease_that_ends_is_a_failure_and_an_orderly_end_is_none(ledger: Ledger) -> None:
    await add(ledger, "a")
    await lose(ledger)
    assert await failures(ledger) == 1
    await take(ledger)
    await ledger.release("me")
    assert await failures(ledger) == 1
    await take(ledger)
    await ledger.release("me", has_died=True)
    assert await failures(ledger) == 2


async def test_an_attempt_that_made_no_call_or_is_told_to_end_does_not_fail(
    ledger: Ledger,
) -> None:
    await add(ledger, "a")
    claim = await take(ledger)
    await ledger.renew("me", LEASE, [dataclasses.replace(make_held(claim), at_risk=False)])
    await ledger.take_back(LEASE + 1, but="")
    assert await failures(ledger) == 0
    await take(ledger)
    await ledger.spare("me")
    await ledger.release("me", has_died=True)
    assert await failures(ledger) == 0


async def test_a_result_that_was_left_ends_the_row_of_failures(ledger: Ledger) -> None:
    await add(ledger, "a")
    await lose(ledger, 2)
    claim = await take(ledger)
    assert await ledger.adopt("me", claim, [], has_gained=False)
    await ledger.take_back(LEASE + 1, but="")
    assert await failures(ledger) == 3
    (claim,) = await ledger.claim_apart("me", "up/m", LEASE)
    assert await ledger.adopt("me", claim, [Extent("s/1", 10)], has_gained=True)
    await ledger.release("me")
    assert await failures(ledger) == 0


async def test_a_worker_that_lives_takes_back_the_failure_that_it_was_charged_with(
    ledger: Ledger,
) -> None:
    await add(ledger, "a")
    claim = await take(ledger)
    await ledger.take_back(LEASE + 1, but="")
    await ledger.absolve([(claim.batch, claim.index, claim.attempt)])
    assert await failures(ledger) == 0
    await ledger.absolve([(claim.batch, claim.index, claim.attempt)])
    assert await failures(ledger) == 0, "never below"


async def test_a_shard_that_failed_often_is_claimed_apart_and_the_least_suspected_first(
    ledger: Ledger,
) -> None:
    await add(ledger, "a")
    await lose(ledger, APART + 1)
    await add(ledger, "b")
    await lose(ledger, APART)
    fine = await add(ledger, "c")
    assert await ledger.pools_apart() == ["up/m"]
    assert (await take(ledger)).batch == fine.id
    assert await ledger.claim("me", "up/m", LEASE, 9) == []
    assert await ledger.claim_fresh("me", "up/m", LEASE, 9) == []
    found = [await ledger.claim_apart("me", "up/m", LEASE) for _ in range(3)]
    assert [[(c.batch, c.failures) for c in claims] for claims in found] == [
        [("msgbatch_b", APART)],
        [("msgbatch_a", APART + 1)],
        [],
    ]
    assert await ledger.pools_apart() == []


async def test_a_shard_that_was_set_apart_ends_with_its_batch(ledger: Ledger) -> None:
    batch = await add(ledger, "a")
    await lose(ledger, APART)
    assert await ledger.finished() == []
    assert (await ledger.progress(batch.id)).pools == {"up/m": Rest(0, 0, queued=2)}
    await ledger.cancel("w", batch.id, NOW)
    (claim,) = await ledger.claim_void("me", NOW, LEASE, 9)
    assert (claim.batch, claim.canceled) == (batch.id, True)
    committed = await ledger.commit("me", [make_commit(claim)])
    assert committed.finished == (batch.id,)


async def test_a_start_counts_what_the_end_of_the_server_before_had_left(tmp_path: Path) -> None:
    """As after a kill or a power cut. Only on one machine: elsewhere leases end."""
    for times in range(1, 5):
        ledger = SqliteLedger(tmp_path / "ledger.db")
        if times == 1:
            await add(ledger, "a")
        await ledger.claim("me", "up/m", LEASE, 1) or await ledger.claim_apart("me", "up/m", LEASE)
        await ledger.close()
    ledger = SqliteLedger(tmp_path / "ledger.db")
    assert await ledger.claim("me", "up/m", LEASE, 1) == []
    (claim,) = await ledger.claim_apart("me", "up/m", LEASE)
    assert (claim.attempt, claim.failures) == (5, 4)
    await ledger.close()


# What workers tell -------------------------------------------------------------------------------


def want(pool: str = "up/m", *, slots: int = 64, busy: int = 0, told: str | None = None) -> Want:
    return Want(pool=pool, slots=slots, busy=busy, note=None, told=told)


async def test_what_a_worker_tells_of_a_pool_is_read_by_the_others_while_its_lease_lasts(
    ledger: Ledger,
) -> None:
    first = await ledger.share("one", NOW, LEASE, [want(told='{"busy":1}')])
    assert (first["up/m"].slots, first["up/m"].peers) == (64, ())
    second = await ledger.share("two", NOW, LEASE, [want(told='{"busy":2}')])
    (peer,) = second["up/m"].peers
    assert (peer.owner, peer.slots, peer.told) == ("one", 64, '{"busy":1}')
    told = await ledger.tellings(NOW + 1)
    assert [(t.owner, t.told, t.left_us) for t in told] == [
        ("one", '{"busy":1}', LEASE - NOW - 1),
        ("two", '{"busy":2}', LEASE - NOW - 1),
    ]
    assert await ledger.tellings(LEASE + 1) == []
    await ledger.share("one", NOW, LEASE, [])
    assert [t.owner for t in await ledger.tellings(NOW)] == ["two"]


async def test_few_slots_are_all_of_one_worker_until_it_has_no_work_there(
    ledger: Ledger,
) -> None:
    few = limits.SLOTS_DIVIDED_MIN - 1
    for _ in range(3):
        one = await ledger.share("one", NOW, LEASE, [want(slots=few)])
        two = await ledger.share("two", NOW, LEASE, [want(slots=few)])
        assert (one["up/m"].slots, two["up/m"].slots) == (few, 0)
    await ledger.share("one", NOW, LEASE, [])
    two = await ledger.share("two", NOW, LEASE, [want(slots=few)])
    assert two["up/m"].slots == few


async def test_few_slots_go_from_a_worker_with_trouble_to_one_without(ledger: Ledger) -> None:
    few = limits.SLOTS_DIVIDED_MIN - 1

    async def ask(owner: str, note: str | None = None, busy: int = 0) -> int:
        asked = dataclasses.replace(want(slots=few, busy=busy), note=note)
        return (await ledger.share(owner, NOW, LEASE, [asked]))["up/m"].slots

    assert [await ask("one"), await ask("two")] == [few, 0]
    assert await ask("one", "no connection", busy=5) == 0
    assert await ask("two") == few - 5, "not what its calls still fill"
    assert await ask("one", "no connection") == 0
    assert await ask("two", busy=few) == few
    assert await ask("one") == 0, "it may come back, but not to slots that are filled"
    assert await ask("two", "no connection", busy=few) == 0
    assert await ask("one", "no connection") == 0, "both have: nothing is won by a change"
    assert await ask("two", "no connection", busy=few) == few


async def test_a_trouble_that_all_workers_have_moves_no_slots(ledger: Ledger) -> None:
    few = limits.SLOTS_DIVIDED_MIN - 1
    asked = dataclasses.replace(want(slots=few), note="no connection")
    for _ in range(3):
        found = [await ledger.share(owner, NOW, LEASE, [asked]) for owner in ("one", "two")]
        assert [each["up/m"].slots for each in found] == [few, 0]


async def test_a_lease_is_renewed_without_a_change_of_what_was_told(ledger: Ledger) -> None:
    batch = await add(ledger, "a")
    claim = await take(ledger)
    await ledger.renew("me", LEASE, [make_held(claim, counts=Counts(succeeded=1))])
    await ledger.renew("me", LEASE + 9, [dataclasses.replace(make_held(claim), counts=None)])
    assert (await ledger.progress(batch.id)).counts == Counts(succeeded=1)
    assert await ledger.take_back(LEASE + 9, but="") == 0


async def test_accounts_are_kept_of_each_worker_and_go_with_their_batch(ledger: Ledger) -> None:
    batch = await add(ledger, "a")
    other = await add(ledger, "b")
    await ledger.share("one", NOW, LEASE, [], {batch.id: "1", other.id: "5", "msgbatch_no": "9"})
    await ledger.share("two", NOW + 1, LEASE, [], {batch.id: "2"})
    await ledger.share("one", NOW + 2, LEASE, [], {batch.id: "3"})
    assert list(await ledger.accounts(batch.id)) == [("two", "2"), ("one", "3")]
    assert list(await ledger.accounts("msgbatch_no")) == [], "of a batch that there is not"
    await ledger.release("one")
    assert len(await ledger.accounts(batch.id)) == 2, "the calls were made"
    await finish(ledger, batch)
    assert len(await ledger.accounts(batch.id)) == 2
    await ledger.delete("w", batch.id, NOW)
    assert list(await ledger.accounts(batch.id)) == []
    await ledger.share("two", NOW, LEASE, [], {batch.id: "4"})
    assert list(await ledger.accounts(batch.id)) == [], "and nothing brings it back"
    await ledger.forget_creates(NOW + DAY)
    assert len(await ledger.accounts(other.id)) == 1
    await ledger.forget_creates(NOW + limits.ACCOUNTS_KEPT_US)
    assert list(await ledger.accounts(other.id)) == []


async def test_what_was_in_flight_in_a_process_that_ended_without_a_word_is_counted(
    ledger: Ledger,
) -> None:
    batch = await add(ledger, "a")
    for end, total in (
        (lambda: ledger.take_back(LEASE + 1, but=""), "3"),
        (lambda: ledger.release("me", has_died=True), "6"),
        (lambda: ledger.release("me"), "9"),
        (lambda: ledger.take_back(LEASE - 1, but=""), "9"),  # it has not ended
        (lambda: ledger.take_back(LEASE + 1, but="me"), "9"),
        (lambda: ledger.release("me", has_left=True), "9"),  # it counts what it had itself
        (lambda: ledger.release("me"), "12"),
    ):
        claims = await ledger.claim("me", "up/m", LEASE, 1)
        claims = claims or await ledger.claim_apart("me", "up/m", LEASE)
        await ledger.renew("me", LEASE, [make_held(claim, inflight=3) for claim in claims])
        await end()
        assert list(await ledger.accounts(batch.id)) == [("", total)]
    await ledger.forget_creates(NOW + limits.ACCOUNTS_KEPT_US)
    assert list(await ledger.accounts(batch.id)) == []


async def test_the_next_start_counts_what_the_last_one_had_in_flight(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    batch = await add(ledger, "a", "up/m", "up/m")
    claims = await ledger.claim("me", "up/m", LEASE, 2)
    await ledger.renew("me", LEASE, [make_held(claim, inflight=4) for claim in claims])
    await ledger.close()
    for _ in range(2):
        ledger = SqliteLedger(tmp_path / "ledger.db")
        assert list(await ledger.accounts(batch.id)) == [("", "8")]
        await ledger.close()
