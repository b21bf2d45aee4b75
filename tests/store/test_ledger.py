"""The ledger, whatever it stands on: creation, claims, the fence, the end."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from batchyard.errors import StoreError
from batchyard.model import Counts, Extent, Tokens
from store.making import (
    DAY,
    LEASE,
    NOW,
    add,
    finish,
    make_batch,
    make_commit,
    make_held,
    make_key,
    make_shards,
    take,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchyard.ledger import Ledger

pytestmark = pytest.mark.anyio


# Creation ------------------------------------------------------------------------------------


async def test_a_created_batch_is_found_as_it_was_given(ledger: Ledger) -> None:
    batch = await add(ledger, "a", "up/m", "up/n")
    assert await ledger.get("w", batch.id) == batch
    assert batch.status == "in_progress"
    assert await ledger.pools_ready() == ["up/m", "up/n"]


async def test_a_batch_of_another_workspace_is_not_found(ledger: Ledger) -> None:
    batch = await add(ledger, "a")
    assert await ledger.get("other", batch.id) is None
    assert await ledger.cancel("other", batch.id, NOW) is None
    assert not await ledger.delete("other", batch.id, NOW)
    assert await ledger.page("other", limit=5, after=batch.id, before=None) is None
    assert await ledger.known("other", "key-a", NOW) is None
    assert await ledger.get("w", batch.id) == batch


async def test_a_batch_whose_shards_cannot_be_added_does_not_exist(ledger: Ledger) -> None:
    batch = make_batch("a")
    twice = [*make_shards("up/m"), *make_shards("up/m")]
    with pytest.raises(StoreError):
        await ledger.create(batch, twice, make_key("k"))
    assert await ledger.get("w", batch.id) is None
    assert await ledger.known("w", "k", NOW) is None
    assert await ledger.pools_ready() == []


@pytest.mark.parametrize("digest", [b"d", b"other"])
async def test_a_second_create_under_a_key_adds_nothing_and_answers_the_first(
    ledger: Ledger, digest: bytes
) -> None:
    first = make_batch("a")
    assert await ledger.create(first, make_shards("up/m"), make_key("k", digest=b"d")) is None
    known = await ledger.create(make_batch("b"), make_shards("up/m"), make_key("k", digest=digest))
    assert known is not None
    assert (known.batch, known.digest) == (first, b"d")  # what differs is for the caller to judge
    assert await ledger.get("w", "msgbatch_b") is None
    assert known == await ledger.known("w", "k", NOW)


async def test_keys_of_two_workspaces_do_not_meet(ledger: Ledger) -> None:
    for workspace in ("w", "x"):
        batch = make_batch(f"a{workspace}", workspace=workspace)
        assert await ledger.create(batch, make_shards("up/m"), make_key("k")) is None


async def test_a_key_is_forgotten_after_its_window(ledger: Ledger) -> None:
    window = make_key("k", until=NOW + 100)
    assert await ledger.create(make_batch("a"), make_shards("up/m"), window) is None
    assert await ledger.known("w", "k", NOW + 99) is not None
    assert await ledger.known("w", "k", NOW + 100) is None
    later = make_batch("b", at=NOW + 100)
    assert await ledger.create(later, make_shards("up/m"), make_key("k")) is None
    known = await ledger.known("w", "k", NOW + 100)
    assert known is not None
    assert known.batch == later


async def test_a_call_that_replaces_adds_a_batch_and_is_the_one_that_a_repeat_finds(
    ledger: Ledger,
) -> None:
    for name in ("a", "b"):
        key = make_key("sdk", replaces=True)
        assert await ledger.create(make_batch(name), make_shards("up/m"), key) is None
    known = await ledger.known("w", "sdk", NOW)
    assert known is not None
    assert known.batch.id == "msgbatch_b"


async def test_forgetting_creates_drops_only_what_is_over(ledger: Ledger) -> None:
    await ledger.create(make_batch("a"), make_shards("up/m"), make_key("k1", until=NOW + 5))
    await ledger.create(make_batch("b"), make_shards("up/m"), make_key("k2", until=NOW + 6))
    await ledger.forget_creates(NOW + 5)
    assert await ledger.known("w", "k1", NOW) is None
    assert await ledger.known("w", "k2", NOW) is not None


# Claiming ------------------------------------------------------------------------------------


async def test_a_claim_tells_all_that_a_worker_needs(ledger: Ledger) -> None:
    batch = await add(ledger, "a", "up/m", requests=7)
    claim = await take(ledger)
    assert dataclasses.asdict(claim) == {
        "batch": batch.id,
        "index": 0,
        "attempt": 1,
        "workspace": "w",
        "pool": "up/m",
        "offset": 0,
        "length": 100,
        "crc": None,
        "requests": 7,
        "version": "2023-06-01",
        "betas": ("beta-1", "beta-2"),
        "user_profile": "profile-1",
        "expires_us": NOW + DAY,
        "canceled": False,
        "frozen": (),
        "priority": "normal",
        "seq": 1,
        "failures": 0,
        "is_only": True,
    }


async def test_a_small_batch_does_not_wait_behind_a_big_one(ledger: Ledger) -> None:
    """Each shard is claimed once, the next one from the batch with the fewest running."""
    await add(ledger, "z", "up/m", "up/m", "up/m")
    await add(ledger, "a", "up/m")
    got = [(c.batch, c.index) for _ in range(4) for c in await ledger.claim("me", "up/m", LEASE, 1)]
    assert got == [("msgbatch_z", 0), ("msgbatch_a", 0), ("msgbatch_z", 1), ("msgbatch_z", 2)]
    assert await ledger.claim("other", "up/m", LEASE, 10) == []
    assert await ledger.pools_ready() == []


async def test_a_claim_takes_no_more_than_its_limit_and_one_workspace(ledger: Ledger) -> None:
    await add(ledger, "a", "up/m", "up/m", "up/m", workspace="w1")
    await add(ledger, "b", "up/m", workspace="w2")
    assert [c.index for c in await ledger.claim("me", "up/m", LEASE, 2)] == [0, 1]
    assert {c.workspace for c in await ledger.claim("me", "up/m", LEASE, 9)} == {"w2"}


async def test_pools_do_not_mix(ledger: Ledger) -> None:
    await add(ledger, "a", "up/m", "up/n")
    assert (await take(ledger, pool="up/n")).index == 1
    assert await ledger.claim("me", "up/", LEASE, 5) == []
    assert await ledger.claim("me", "up/x", LEASE, 5) == []


async def test_the_workspace_with_the_fewest_requests_in_flight_is_next(ledger: Ledger) -> None:
    await add(ledger, "whale", *["up/m"] * 5, workspace="whale", requests=100)
    await add(ledger, "small", *["up/m"] * 5, workspace="small", requests=10)
    order = [(await take(ledger)).workspace for _ in range(7)]
    # small 0 = whale 0: by name; then small has 10 at a time against the whale's 100.
    assert order == ["small", "whale", "small", "small", "small", "small", "whale"]


async def test_what_is_answered_no_longer_counts_as_in_flight(ledger: Ledger) -> None:
    await add(ledger, "a", *["up/m"] * 3, workspace="a", requests=100)
    await add(ledger, "b", *["up/m"] * 3, workspace="b", requests=60)
    first = await take(ledger)
    second = await take(ledger)
    assert (first.workspace, second.workspace) == ("a", "b")
    await ledger.renew("me", LEASE, [make_held(first, counts=Counts(succeeded=90))])
    assert (await take(ledger)).workspace == "a"


async def test_load_in_one_pool_is_no_handicap_in_another(ledger: Ledger) -> None:
    await add(ledger, "a", "up/m", "up/n", workspace="a", requests=100)
    await add(ledger, "b", "up/n", workspace="b", requests=100)
    assert (await take(ledger, pool="up/m")).workspace == "a"
    assert (await take(ledger, pool="up/n")).workspace == "a"  # 0 and 0 there: by name


async def test_void_takes_ready_shards_of_canceled_and_expired_batches_only(
    ledger: Ledger,
) -> None:
    canceled = await add(ledger, "canceled", "up/m", "gone/x")
    expired = await add(ledger, "expired", "up/m", at=NOW - DAY)
    running = await add(ledger, "running", "other/m")
    open_ = await add(ledger, "open", "up/m")
    await take(ledger, pool="other/m")
    assert [c.batch for c in await ledger.claim_void("me", NOW - 1, LEASE, 9)] == []
    await ledger.cancel("w", running.id, NOW)
    await ledger.cancel("w", canceled.id, NOW)
    claims = await ledger.claim_void("me", NOW, LEASE, 9)
    assert sorted((c.batch, c.index, c.canceled) for c in claims) == [
        (canceled.id, 0, True),
        (canceled.id, 1, True),
        (expired.id, 0, False),
    ]
    assert all(c.attempt == 1 for c in claims)
    assert (await take(ledger)).batch == open_.id


async def test_void_keeps_to_its_limit(ledger: Ledger) -> None:
    batch = await add(ledger, "a", *["up/m"] * 5)
    await ledger.cancel("w", batch.id, NOW)
    assert len(await ledger.claim_void("me", NOW, LEASE, 2)) == 2
    assert len(await ledger.claim_void("me", NOW, LEASE, 9)) == 3


# Leases and the fence ------------------------------------------------------------------------


async def test_a_lease_that_is_over_is_taken_back_and_the_next_attempt_is_higher(
    ledger: Ledger,
) -> None:
    await add(ledger, "a")
    await take(ledger)
    assert await ledger.take_back(LEASE, but="") == 0  # not over before it has passed
    assert await ledger.take_back(LEASE + 1, but="") == 1
    assert await ledger.take_back(LEASE + 1, but="") == 0
    assert (await take(ledger, "other")).attempt == 2


async def test_a_renewed_lease_is_not_taken_back(ledger: Ledger) -> None:
    batch = await add(ledger, "a")
    claim = await take(ledger)
    renewed = await ledger.renew("me", LEASE + 50, [make_held(claim)])
    assert [(r.batch, r.index, r.canceled) for r in renewed] == [(batch.id, 0, False)]
    assert await ledger.take_back(LEASE + 1, but="") == 0
    await ledger.cancel("w", batch.id, NOW)
    assert [r.canceled for r in await ledger.renew("me", LEASE, [make_held(claim)])] == [True]


async def test_progress_shows_what_the_last_renewals_told(ledger: Ledger) -> None:
    batch = await add(ledger, "a", "up/m", "up/m", "up/m", requests=10)
    first, second = await ledger.claim("me", "up/m", LEASE, 2)
    await ledger.renew("me", LEASE, [make_held(first, inflight=3, counts=Counts(1, 2, 0, 1))])
    await ledger.commit("me", [make_commit(second)])
    progress = await ledger.progress(batch.id)
    assert (progress.shards, progress.shards_done, progress.inflight) == (3, 1, 3)
    assert progress.counts == Counts(11, 2, 0, 1)


async def test_progress_of_nothing_is_nothing(ledger: Ledger) -> None:
    progress = await ledger.progress("msgbatch_none")
    assert (progress.shards, progress.inflight, progress.counts) == (0, 0, Counts())


@pytest.mark.parametrize("how", ["lease", "release", "reopened claim by the same owner"])
async def test_whoever_lost_the_shard_can_neither_renew_nor_adopt_nor_commit(
    ledger: Ledger, how: str
) -> None:
    batch = await add(ledger, "a")
    late = await take(ledger, "late")
    if how == "release":
        await ledger.release("late")
    else:
        await ledger.take_back(LEASE + 1, but="")
    winner_name = "late" if how.startswith("reopened") else "winner"
    winner = await take(ledger, winner_name)

    assert await ledger.renew("late", LEASE + DAY, [make_held(late)]) == []
    assert not await ledger.adopt("late", late, [Extent("zombie", 99)])
    assert (await ledger.commit("late", [make_commit(late)])).accepted == frozenset()

    # None of it left a trace.
    assert await ledger.take_back(LEASE + 1, but="") == 1
    again = await take(ledger, winner_name)
    assert (again.attempt, again.frozen) == (3, ())
    assert (await ledger.progress(batch.id)).counts == Counts()
    assert winner.attempt == 2


async def test_the_right_attempt_of_the_wrong_owner_is_refused(ledger: Ledger) -> None:
    await add(ledger, "a")
    claim = await take(ledger, "me")
    assert await ledger.renew("you", LEASE, [make_held(claim)]) == []
    assert not await ledger.adopt("you", claim, [])
    assert (await ledger.commit("you", [make_commit(claim)])).accepted == frozenset()


async def test_a_shard_that_nobody_holds_cannot_be_committed(ledger: Ledger) -> None:
    await add(ledger, "a")
    claim = await take(ledger)
    await ledger.take_back(LEASE + 1, but="")
    assert (await ledger.commit("me", [make_commit(claim)])).accepted == frozenset()


async def test_what_was_adopted_comes_with_the_next_claim(ledger: Ledger) -> None:
    await add(ledger, "a")
    claim = await take(ledger)
    frozen = (Extent("s/1", 10), Extent("s/2", 0))
    assert await ledger.adopt("me", claim, frozen)
    await ledger.take_back(LEASE + 1, but="")
    assert (await take(ledger)).frozen == frozen


async def test_release_gives_back_all_of_one_owner_and_nothing_else(ledger: Ledger) -> None:
    await add(ledger, "a", "up/m", "up/m", "up/m")
    mine = await ledger.claim("me", "up/m", LEASE, 2)
    await ledger.claim("you", "up/m", LEASE, 2)
    await ledger.commit("me", [make_commit(mine[0])])
    await ledger.release("me")
    assert [c.index for c in await ledger.claim("x", "up/m", LEASE, 9)] == [1]


# Commit and end ------------------------------------------------------------------------------


async def test_a_repeated_commit_is_accepted_and_changes_nothing(ledger: Ledger) -> None:
    batch = await add(ledger, "a")
    claim = await take(ledger)
    commit = make_commit(claim)
    for _ in range(2):
        committed = await ledger.commit("me", [commit])
        assert committed.accepted == {(batch.id, 0)}
        assert committed.finished == (batch.id,)
    (shard,) = await ledger.results(batch.id)
    assert (shard.extents, shard.tokens) == (commit.extents, commit.tokens)


async def test_another_commit_of_a_done_shard_is_refused(ledger: Ledger) -> None:
    batch = await add(ledger, "a")
    claim = await take(ledger)
    await ledger.commit("me", [make_commit(claim)])
    other = make_commit(claim, extents=[Extent("other", 3)], counts=Counts(errored=2))
    assert (await ledger.commit("me", [other])).accepted == frozenset()
    assert (await ledger.progress(batch.id)).counts == Counts(succeeded=2)


async def test_one_lost_commit_does_not_spoil_the_others(ledger: Ledger) -> None:
    await add(ledger, "a", "up/m", "up/m")
    lost, kept = await ledger.claim("me", "up/m", LEASE, 2)
    stale = dataclasses.replace(lost, attempt=0)
    committed = await ledger.commit("me", [make_commit(stale), make_commit(kept)])
    assert committed.accepted == {(kept.batch, kept.index)}


async def test_a_batch_is_finished_when_all_its_shards_are_done(ledger: Ledger) -> None:
    batch = await add(ledger, "a", "up/m", "up/m")
    await add(ledger, "b", "up/m")
    first, second = await ledger.claim("me", "up/m", LEASE, 2)
    assert (await ledger.commit("me", [make_commit(second)])).finished == ()
    assert await ledger.finished() == []
    assert not await ledger.end(batch.id, NOW + 5, Tokens())
    assert (await ledger.commit("me", [make_commit(first)])).finished == (batch.id,)
    assert await ledger.finished() == [batch.id]
    assert [shard.index for shard in await ledger.results(batch.id)] == [0, 1]


async def test_the_end_sets_counts_once_and_for_all(ledger: Ledger) -> None:
    batch = await add(ledger, "a", "up/m", "up/m", requests=5)
    for claim in await ledger.claim("me", "up/m", LEASE, 2):
        await ledger.commit("me", [make_commit(claim, counts=Counts(1, 2, 1, 1))])
    assert await ledger.end(batch.id, NOW + 5, Tokens(1, 2, 3, 4))
    assert not await ledger.end(batch.id, NOW + 6, Tokens())
    ended = await ledger.get("w", batch.id)
    assert ended == dataclasses.replace(
        batch, ended_us=NOW + 5, counts=Counts(2, 4, 2, 2), tokens=Tokens(1, 2, 3, 4)
    )
    assert ended is not None
    assert ended.status == "ended"
    assert await ledger.results(batch.id) == []
    assert await ledger.finished() == []
    assert (await ledger.progress(batch.id)).shards == 0


@pytest.mark.parametrize("counts", [Counts(succeeded=1), Counts(succeeded=2, errored=1)])
async def test_a_batch_whose_results_do_not_add_up_stays_open(
    ledger: Ledger, counts: Counts
) -> None:
    batch = await add(ledger, "a", requests=2)
    claim = await take(ledger)
    await ledger.commit("me", [make_commit(claim, counts=counts)])
    with pytest.raises(StoreError, match="2 requests and"):
        await ledger.end(batch.id, NOW + 5, Tokens())
    assert await ledger.get("w", batch.id) == batch
    assert len(await ledger.results(batch.id)) == 1


async def test_the_end_is_never_before_the_creation(ledger: Ledger) -> None:
    """The wall clock may be set back while a batch runs."""
    batch = await add(ledger, "a")
    await finish(ledger, batch, at=NOW - 99)
    ended = await ledger.get("w", batch.id)
    assert ended is not None
    assert ended.ended_us == NOW


async def test_a_commit_after_the_end_is_not_accepted(ledger: Ledger) -> None:
    batch = await add(ledger, "a")
    claim = await take(ledger)
    commit = make_commit(claim)
    await ledger.commit("me", [commit])
    await ledger.end(batch.id, NOW, Tokens())
    assert (await ledger.commit("me", [commit])).accepted == frozenset()


# Cancel, delete, archive ---------------------------------------------------------------------


async def test_cancel_is_set_once_and_never_after_the_end(ledger: Ledger) -> None:
    batch = await add(ledger, "a")
    canceled = await ledger.cancel("w", batch.id, NOW + 3)
    assert canceled == dataclasses.replace(batch, cancel_us=NOW + 3)
    assert canceled is not None
    assert canceled.status == "canceling"
    assert await ledger.cancel("w", batch.id, NOW + 9) == canceled

    other = await add(ledger, "b", "up/z")
    await finish(ledger, other)
    after = await ledger.cancel("w", other.id, NOW + 9)
    assert after is not None
    assert (after.cancel_us, after.status) == (None, "ended")
    assert await ledger.cancel("w", "msgbatch_none", NOW) is None


async def test_only_an_ended_batch_is_deleted_and_with_it_its_create_call(
    ledger: Ledger,
) -> None:
    batch = await add(ledger, "a")
    assert not await ledger.delete("w", batch.id, NOW)
    assert await ledger.get("w", batch.id) == batch
    await finish(ledger, batch)
    assert await ledger.delete("w", batch.id, NOW + 2)
    assert await ledger.get("w", batch.id) is None
    assert await ledger.known("w", "key-a", NOW) is None
    assert not await ledger.delete("w", batch.id, NOW + 3)
    assert await ledger.cancel("w", batch.id, NOW + 3) is None
    assert await ledger.live([batch.id]) == frozenset()


async def test_only_ended_batches_grow_old_and_are_archived_once(ledger: Ledger) -> None:
    old = await add(ledger, "old", "up/1", at=NOW - 10)
    await add(ledger, "open", "up/2", at=NOW - 10)
    young = await add(ledger, "young", "up/3", at=NOW)
    assert await ledger.outdated(NOW, 9) == []
    for batch, pool in ((old, "up/1"), (young, "up/3")):
        await ledger.commit("me", [make_commit(await take(ledger, pool=pool))])
        assert await ledger.end(batch.id, NOW, Tokens())
    assert await ledger.outdated(NOW - 10, 9) == [old.id]
    assert len(await ledger.outdated(NOW, 1)) == 1
    await ledger.archive(old.id, NOW + 1)
    await ledger.archive(old.id, NOW + 2)
    archived = await ledger.get("w", old.id)
    assert archived is not None
    assert archived.archived_us == NOW + 1
    assert await ledger.outdated(NOW - 10, 9) == []
    every = ["msgbatch_old", "msgbatch_open", "msgbatch_young", "msgbatch_no'ne"]
    assert await ledger.live(every) == {"msgbatch_open", "msgbatch_young"}
    assert await ledger.live(every[2:]) == {"msgbatch_young"}


async def test_an_open_batch_is_not_archived(ledger: Ledger) -> None:
    batch = await add(ledger, "a")
    await ledger.archive(batch.id, NOW)
    assert await ledger.get("w", batch.id) == batch


# Reopening -----------------------------------------------------------------------------------


async def test_what_was_acknowledged_is_there_after_reopening_and_leases_that_ended_are_free(
    open_ledger: Callable[[], Ledger],
) -> None:
    ledger = open_ledger()
    batch = await add(ledger, "a", "up/m", "up/m")
    first, second = await ledger.claim("me", "up/m", LEASE, 2)
    commit = make_commit(first)
    await ledger.commit("me", [commit])
    await ledger.adopt("me", second, [Extent("s", 5)])
    canceled = await ledger.cancel("w", batch.id, NOW + 1)
    await ledger.close()

    ledger = open_ledger()
    try:
        assert await ledger.get("w", batch.id) == canceled
        assert await ledger.known("w", "key-a", NOW) is not None
        await ledger.take_back(LEASE + 1, but="new")  # on one machine the opening has
        again = await take(ledger, "new")
        assert (again.index, again.attempt, again.frozen) == (1, 2, (Extent("s", 5),))
        assert (await ledger.results(batch.id))[0].extents == commit.extents
        assert await ledger.renew("me", LEASE, [make_held(second)]) == []
    finally:
        await ledger.close()
