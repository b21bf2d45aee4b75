"""Whose shards are claimed: workspaces by weight, batches by priority and urgency, newcomers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits
from batchyard.fairness import Share, Shares
from batchyard.ledger import Here, Turn, Want, choosing
from batchyard.model import Counts
from store.making import DAY, LEASE, NOW, add, make_commit, make_held, take

if TYPE_CHECKING:
    from batchyard.ledger import Claim, Ledger
    from batchyard.model import Priority

pytestmark = pytest.mark.anyio

POOL = "up/m"


async def claim(ledger: Ledger, shares: Shares | None = None, *, now: int = NOW) -> Claim:
    (found,) = await ledger.claim("me", POOL, LEASE, 1, shares=shares or Shares(), now_us=now)
    return found


# Workspaces ----------------------------------------------------------------------------------


async def test_a_workspace_of_twice_the_weight_has_twice_the_shards(ledger: Ledger) -> None:
    for workspace in ("a", "b"):
        await add(ledger, workspace, *[POOL] * 20, workspace=workspace, requests=10)
    shares = Shares({"b": Share(2.0)})
    found = Counter([(await claim(ledger, shares)).workspace for _ in range(18)])
    assert found == {"a": 6, "b": 12}


async def test_what_workers_have_answered_counts_for_no_workspace(ledger: Ledger) -> None:
    for workspace in ("a", "b"):
        await add(ledger, workspace, *[POOL] * 3, workspace=workspace, requests=10)
    first, second = await claim(ledger), await claim(ledger)
    assert (first.workspace, second.workspace) == ("a", "b")
    await ledger.renew("me", LEASE, [make_held(second, counts=Counts(succeeded=9))])
    assert (await claim(ledger)).workspace == "b"


async def test_many_workspaces_are_read_once_a_second_and_each_has_its_turn(
    ledger: Ledger,
) -> None:
    for number in range(70):
        await add(ledger, f"b{number}", POOL, POOL, POOL, workspace=f"w{number:02}")
    await add(ledger, "alone", "up/alone", workspace="w00")
    reads = []
    real = choosing.read_lanes

    def counted(*args: Any) -> choosing.Lanes:
        reads.append(args)
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "read_lanes", counted)
        first = [(await claim(ledger)).workspace for _ in range(70)]
        second = [(await claim(ledger)).workspace for _ in range(70)]
        assert sorted(first) == sorted(second) == [f"w{number:02}" for number in range(70)]
        assert len(reads) == 1
        (alone,) = await ledger.claim("me", "up/alone", LEASE, 1)
        assert await ledger.claim("me", "up/alone", LEASE, 1, turn=alone.turn) == []
        absent = Turn("w00", "normal", 1_000)
        assert await ledger.claim("me", POOL, LEASE, 1, turn=absent) == []
        await claim(ledger)
        assert len(reads) == 2, "of the other pool"
        await claim(ledger, now=NOW + limits.SECOND_US)
        assert len(reads) == 3
    rest = [(await claim(ledger)).batch for _ in range(68)]
    assert len(rest) == 68
    assert await ledger.claim("me", POOL, LEASE, 1, now_us=NOW) == []


async def test_lanes_that_another_worker_has_emptied_are_read_again(
    ledger: Ledger,
) -> None:
    for number in range(65):
        await add(ledger, f"b{number:02}", workspace=f"w{number:02}")
    assert (await claim(ledger)).workspace == "w00"
    for number in range(1, 65):  # by their turns: the lanes that are kept do not know
        turn = Turn(f"w{number:02}", "normal", number + 1)
        assert await ledger.claim("other", POOL, LEASE, 1, turn=turn)
    late = await add(ledger, "late", workspace="zzz")
    assert (await claim(ledger)).batch == late.id


# Batches of one workspace --------------------------------------------------------------------


async def test_each_batch_has_a_shard_before_one_has_two_whatever_its_priority(
    ledger: Ledger,
) -> None:
    await add(ledger, "low", *[POOL] * 3, priority="low")
    await add(ledger, "mid", *[POOL] * 3)
    await add(ledger, "top", *[POOL] * 3, priority="high")
    order = [(await claim(ledger)).batch.removeprefix("msgbatch_") for _ in range(5)]
    assert order == ["top", "mid", "low", "top", "top"]


async def test_the_shards_that_run_are_counted_only_of_batches_that_have_begun(
    ledger: Ledger,
) -> None:
    """Tens of thousands may run of others, each the only shard of its batch."""
    for number in range(5):
        await add(ledger, f"tiny{number}")
        await take(ledger, "other")
    for name in ("one", "two"):
        await add(ledger, name, *[POOL] * 3)
    counted = []
    real = choosing._running

    def running(*args: Any) -> dict[int, int]:
        counted.append(real(*args))
        return counted[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "_running", running)
        order = [(await claim(ledger)).batch.removeprefix("msgbatch_") for _ in range(5)]
    assert order == ["one", "two", "one", "two", "one"]
    assert counted == [{}, {6: 1}, {6: 1, 7: 1}, {6: 2, 7: 1}, {6: 2, 7: 2}]


async def test_priority_orders_nothing_between_workspaces(ledger: Ledger) -> None:
    await add(ledger, "top", *[POOL] * 9, workspace="a", priority="high")
    await add(ledger, "low", *[POOL] * 9, workspace="b", priority="low")
    found = Counter([(await claim(ledger)).workspace for _ in range(8)])
    assert found == {"a": 4, "b": 4}


async def test_a_batch_that_soon_expires_has_more_shards(ledger: Ledger) -> None:
    await add(ledger, "late", *[POOL] * 12, at=NOW - DAY + limits.HOUR_US)
    await add(ledger, "early", *[POOL] * 12)
    found = Counter([(await claim(ledger)).batch for _ in range(14)])
    assert found == {"msgbatch_late": 12, "msgbatch_early": 2}


async def test_a_high_priority_is_found_behind_any_number_of_older_batches(
    ledger: Ledger,
) -> None:
    for number in range(100):
        await add(ledger, f"old{number}", POOL, POOL)
    await add(ledger, "top", POOL, POOL, priority="high")
    assert (await claim(ledger)).batch == "msgbatch_top"


async def test_the_priority_of_a_batch_is_kept(ledger: Ledger) -> None:
    batch = await add(ledger, "a", priority="high")
    assert await ledger.get("w", batch.id) == batch
    assert (await take(ledger)).priority == "high"


# Newcomers -----------------------------------------------------------------------------------


async def test_fresh_batches_are_those_of_which_no_shard_was_taken_in_this_pool(
    ledger: Ledger,
) -> None:
    await add(ledger, "begun", POOL, POOL, "up/n")
    await take(ledger)
    await add(ledger, "new", POOL, POOL)
    await add(ledger, "other", "up/n")
    found = await ledger.claim_fresh("me", POOL, LEASE, 9)
    assert [(each.batch, each.index) for each in found] == [("msgbatch_new", 0)]
    assert await ledger.claim_fresh("me", POOL, LEASE, 9) == []
    found = await ledger.claim_fresh("me", "up/n", LEASE, 9)
    assert [(each.batch, each.index) for each in found] == [
        ("msgbatch_begun", 2),
        ("msgbatch_other", 0),
    ]


async def test_fresh_batches_begin_by_workspaces_in_turn_and_by_priority(ledger: Ledger) -> None:
    for number in range(4):
        await add(ledger, f"a{number}", workspace="a")
    await add(ledger, "a-top", workspace="a", priority="high")
    await add(ledger, "b0", workspace="b")
    await add(ledger, "c0", workspace="c")
    found = await ledger.claim_fresh("me", POOL, LEASE, 5)
    assert sorted(each.batch.removeprefix("msgbatch_") for each in found) == [
        "a-top",
        "a0",
        "a1",
        "b0",
        "c0",
    ]


async def test_what_runs_is_only_counted_to_choose_between_workspaces(ledger: Ledger) -> None:
    for number in range(3):
        await add(ledger, f"a{number}", workspace="a")
    counted = []
    real = choosing._taken_up
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "_taken_up", lambda *args: counted.append(1) or real(*args))
        assert len(await ledger.claim_fresh("me", POOL, LEASE, 2)) == 2, "of one workspace"
        for number in range(3):
            await add(ledger, f"b{number}", workspace="b")
        assert len(await ledger.claim_fresh("me", POOL, LEASE, 4)) == 4, "all there are"
        assert counted == []
        for workspace in ("a", "b", "c"):
            for number in range(2):
                await add(ledger, f"more-{workspace}{number}", workspace=workspace)
        found = await ledger.claim_fresh("me", POOL, LEASE, 2)
        assert {each.workspace for each in found} == {"c"}, "the one with the fewest taken up"
        assert counted == [1]


async def test_a_workspace_with_much_in_flight_begins_last(ledger: Ledger) -> None:
    await add(ledger, "whale", POOL, workspace="a", requests=500)
    await take(ledger)
    await add(ledger, "more", workspace="a")
    await add(ledger, "small", workspace="b")
    found = await ledger.claim_fresh("me", POOL, LEASE, 1)
    assert [each.batch for each in found] == ["msgbatch_small"]


async def test_of_each_workspace_one_batch_is_claimed_that_is_not_open_here(
    ledger: Ledger,
) -> None:
    """Whether it has begun, elsewhere or before a restart, or not."""
    for name in ("a-low", "a-one", "a-two", "b-one", "c-one", "c-new"):
        priority: Priority = "low" if name == "a-low" else "normal"
        await add(ledger, name, *[POOL] * 9, workspace=name[0], priority=priority)
    turns = {}
    for name in ("a-low", "a-one", "a-two", "b-one", "c-one"):
        (found,) = await ledger.claim_fresh(
            "other", POOL, LEASE, 1, here=Here(served=frozenset("abc") - {name[0]})
        )
        turns[found.batch.removeprefix("msgbatch_")] = found.turn

    async def begun(*open_: str, limit: int = 9, served: str = "") -> list[str]:
        here = Here(served=frozenset(served), batches=frozenset(turns[name] for name in open_))
        found = await ledger.claim_fresh("me", POOL, LEASE, limit, here=here)
        assert all(claim.index or claim.batch == "msgbatch_c-new" for claim in found)
        return [claim.batch.removeprefix("msgbatch_") for claim in found]

    assert await begun() == ["a-one", "b-one", "c-one"]
    assert await begun("a-one", "c-one", served="b") == ["a-two", "c-new"]
    assert await begun("a-one", "a-two", "b-one") == ["a-low", "c-one"]
    assert await begun("a-one", "a-two", "a-low", "b-one", served="c") == []
    assert await begun(limit=1) == ["b-one"], "of the workspace with the fewest taken up"


async def test_no_workspace_begins_that_is_served(ledger: Ledger) -> None:
    for workspace in ("a", "b"):
        await add(ledger, workspace, workspace=workspace)
    here = Here(served=frozenset("a"))
    found = await ledger.claim_fresh("me", POOL, LEASE, 9, here=here)
    assert [claim.workspace for claim in found] == ["b"]
    assert await ledger.claim_fresh("me", POOL, LEASE, 9, here=here) == []


async def test_a_batch_that_was_given_back_is_fresh_again(ledger: Ledger) -> None:
    await add(ledger, "a")
    await take(ledger)
    await ledger.release("me")
    (again,) = await ledger.claim_fresh("other", POOL, LEASE, 9)
    assert again.attempt == 2


async def test_more_of_a_batch_is_claimed_by_its_turn_and_only_of_that_batch(
    ledger: Ledger,
) -> None:
    await add(ledger, "a", POOL, POOL, "up/n")
    await add(ledger, "b", POOL, POOL)
    first = await take(ledger)
    (second,) = await ledger.claim("me", POOL, LEASE, 1, turn=first.turn)
    assert (second.batch, second.index) == (first.batch, 1)
    assert await ledger.claim("me", POOL, LEASE, 1, turn=first.turn) == []
    assert (await take(ledger)).batch == "msgbatch_b"


# Several workers -----------------------------------------------------------------------------


def want(slots: int = 64, *, busy: int = 0, pool: str = POOL) -> Want:
    return Want(pool=pool, slots=slots, busy=busy, note=None)


async def granted(ledger: Ledger, owner: str, *wants: Want, now: int = NOW) -> dict[str, int]:
    """Ask as a worker does; return how many slots of each pool it may fill."""
    found = await ledger.share(owner, now, max(LEASE, now + 5), wants)
    return {pool: each.slots for pool, each in found.items()}


async def test_slots_pass_to_a_newcomer_as_the_calls_of_the_others_end(ledger: Ledger) -> None:
    async def ask(owner: str, busy: int) -> int:
        return (await granted(ledger, owner, want(busy=busy)))[POOL]

    assert await ask("old", 0) == 64
    assert await ask("new", 0) == 0
    assert await ask("old", 60) == 32  # begins none until 28 have ended
    assert await ask("new", 0) == 4
    assert await ask("old", 40) == 32
    assert await ask("new", 4) == 24
    assert await ask("old", 32) == 32
    assert await ask("new", 24) == 32


async def test_who_leaves_a_pool_leaves_its_slots(ledger: Ledger) -> None:
    await ledger.share("one", NOW, LEASE, [want(), want(pool="up/n")])
    await ledger.share("two", NOW, LEASE, [want()])
    await ledger.share("one", NOW, LEASE, [want(pool="up/n")])
    assert await granted(ledger, "two", want()) == {POOL: 64}


@pytest.mark.parametrize("how", ["release", "lease", "expired"])
async def test_the_slots_of_a_worker_that_died_are_free(ledger: Ledger, how: str) -> None:
    await ledger.share("dead", NOW, LEASE, [want()])
    now = NOW
    if how == "release":
        await ledger.release("dead")
    elif how == "lease":
        await ledger.take_back(LEASE + 1, but="")
    else:
        now = LEASE + 1  # nobody has swept
    assert await granted(ledger, "live", want(), now=now) == {POOL: 64}


async def test_pools_are_divided_each_on_its_own(ledger: Ledger) -> None:
    await ledger.share("one", NOW, LEASE, [want()])
    both = [want(), want(8, pool="up/n")]
    assert await granted(ledger, "two", *both) == {POOL: 0, "up/n": 8}


async def test_few_slots_that_go_round_are_had_by_each_in_turn_and_never_by_two(
    ledger: Ledger,
) -> None:
    had: list[str] = []
    has = {"one": 0, "two": 0, "three": 0}
    for second in range(60):
        for owner in has:
            now = NOW + second * limits.SECOND_US
            one = Want(pool=POOL, slots=1, busy=0, note=None, go_round=True)
            found = await ledger.share(owner, now, now + limits.LEASE_US, [one])
            has[owner] = found[POOL].slots
            assert sum(has.values()) <= 1
        had += [owner for owner, slots in has.items() if slots]
    assert all(had.count(owner) >= 12 for owner in has)
    assert len(had) >= 45


async def test_notes_of_workers_are_told_until_they_are_withdrawn(ledger: Ledger) -> None:
    async def notes() -> dict[tuple[str, str], str | None]:
        return {(t.owner, t.pool): t.note for t in await ledger.tellings(NOW)}

    wrong = Want(pool=POOL, slots=64, busy=0, note="wrong key")
    await ledger.share("one", NOW, LEASE, [wrong, want(pool="up/n")])
    await ledger.share("two", NOW, LEASE, [want()])
    at_first = {("one", POOL): "wrong key", ("one", "up/n"): None, ("two", POOL): None}
    assert await notes() == at_first
    await ledger.share("one", NOW, LEASE, [want(), want(pool="up/n")])
    assert await notes() == at_first | {("one", POOL): None}


async def test_news_tell_of_new_and_canceled_batches_and_of_nothing_else(ledger: Ledger) -> None:
    before = await ledger.news()
    assert await ledger.news() == before
    batch = await add(ledger, "a")
    created = await ledger.news()
    assert created.newest > before.newest
    found = await take(ledger)
    await ledger.renew("me", LEASE, [make_held(found)])
    assert await ledger.news() == created
    await ledger.cancel("w", batch.id, NOW)
    canceled = await ledger.news()
    assert (canceled.newest, canceled.canceling) == (created.newest, {batch.id})
    await ledger.commit("me", [make_commit(found)])
    await ledger.end(batch.id, NOW, make_commit(found).tokens)
    assert (await ledger.news()).canceling == frozenset()
