"""One safeguard after the other is taken away, here only, and the simulator must notice.

A test of safety that never failed is only hope. What is taken away is a clause of a statement, or a
step that a wrapped part leaves out; the code of the product has no switch for it. That a sync that
were missing is noticed at a power cut of the real server is shown in `tests/disk`.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from batchyard.dispatch import adopt
from batchyard.dispatch.calling import Caller
from batchyard.ledger.sqlite_file import SQL
from sim import test_expiry as expiry
from sim import test_interleavings as interleavings
from sim import test_stories as stories
from sim import world
from sim.test_sim import many_processes, one_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from batchyard.segments import Appender

Sabotage = pytest.MonkeyPatch
SEEDS = range(40)


def clause_out(patch: Sabotage, statement: str, clause: str) -> None:
    """Take a clause out of a statement of the ledger."""
    assert clause in SQL[statement]
    patch.setitem(SQL, statement, SQL[statement].replace(clause, ""))


# The harnesses ------------------------------------------------------------------------------------


def seeds_of(story: Callable[[int, Path], Any], place: Path) -> None:
    for seed in SEEDS:
        with tempfile.TemporaryDirectory(dir=place) as name:
            asyncio.run(story(seed, Path(name)))


def one_at_a_time(place: Path) -> None:
    seeds_of(one_process, place)


def several_at_once(place: Path) -> None:
    seeds_of(many_processes, place)


def every_order(place: Path) -> None:
    """Tell every order of events, those with an early loss first."""
    events = ("reply",) * interleavings.REQUESTS + ("lose", "expire", "cancel")
    for layout, pace_s in interleavings.CASES[1:]:
        orders: Iterable[tuple[str, ...]] = interleavings.orders(events)
        for order in sorted(orders, key=lambda order: order.index("lose")):
            with tempfile.TemporaryDirectory(dir=place) as name:
                asyncio.run(interleavings.tell(Path(name), order, layout, pace_s))


def a_worker_that_is_late(place: Path) -> None:
    stories.test_a_worker_that_lost_a_shard_before_it_adopted_sends_nothing(place / "data")


def two_attempts(place: Path) -> None:
    stories.test_of_two_attempts_with_the_same_answers_one_is_taken(place / "data")


def a_zombie_that_writes_on(place: Path) -> None:
    stories.test_what_was_adopted_stays_though_a_zombie_writes_on(place / "data")


def a_batch_that_expires(place: Path) -> None:
    expiry.test_no_call_starts_at_the_expiry_or_after_it(place / "data", answers=True)


# What is taken away -------------------------------------------------------------------------------


def fence_of_commit(patch: Sabotage) -> None:
    clause_out(patch, "commit", " AND owner = :owner AND attempt = :attempt")


def fence_of_adopt(patch: Sabotage) -> None:
    clause_out(patch, "adopt", " AND owner = :owner AND attempt = :attempt")


def fence_of_renew(patch: Sabotage) -> None:
    clause_out(patch, "renew", " AND owner = :owner AND attempt = :attempt")
    clause_out(patch, "held", " AND s.owner = :owner AND s.attempt = :attempt")


def one_commit_only(patch: Sabotage) -> None:
    clause_out(patch, "commit", " AND owner = :owner AND attempt = :attempt AND state = 1")


_COUNTS = " attempt = attempt + 1,"


def attempts_that_count(patch: Sabotage) -> None:
    for statement in [name for name, sql in SQL.items() if _COUNTS in sql]:
        clause_out(patch, statement, _COUNTS)


class _Blind(set[str]):
    """Ids that never meet others."""

    def isdisjoint(self, other: object) -> bool:
        return True


@dataclass(slots=True)
class _BlindAdopted(adopt.Adopted):
    covered: set[str] = field(default_factory=_Blind)


def ids_that_are_covered(patch: Sabotage) -> None:
    patch.setattr(adopt, "Adopted", _BlindAdopted)


class _LazyAppender(world._WatchedAppender):
    def sync(self) -> None:
        """Say that it is done."""


class _LazySegments(world.PowerCutSegments):
    def appender(self, name: str) -> Appender:
        super().appender(name).close()
        (self._root / name).unlink()
        return _LazyAppender(self._real.appender(name), self._synced)


def sync_before_commit(patch: Sabotage) -> None:
    patch.setattr(world, "PowerCutSegments", _LazySegments)


class _TrustingSegments(world.PowerCutSegments):
    def sync(self, name: str) -> None:
        """Trust that a process that died has synced it."""


def sync_before_adopt(patch: Sabotage) -> None:
    patch.setattr(world, "PowerCutSegments", _TrustingSegments)


class _ForgetfulGate(world.Gated):
    def __getattr__(self, name: str) -> Any:
        if name != "adopt":
            return super().__getattr__(name)

        async def adopt(*_: object, **__: object) -> bool:
            return True

        return adopt


def adopt_before_send(patch: Sabotage) -> None:
    patch.setattr(world, "Gated", _ForgetfulGate)


def look_at_the_time_before_a_call(patch: Sabotage) -> None:
    patch.setattr(Caller, "_is_over", lambda _, shard: shard.stopped.is_set())


@pytest.mark.parametrize(
    ("take_away", "harness", "noticed"),
    [
        (fence_of_commit, every_order, "gave up what was adopted"),
        (one_commit_only, every_order, "changed after its commit|gave up what was adopted"),
        (fence_of_adopt, a_worker_that_is_late, "a shard that another has"),
        (fence_of_renew, every_order, "two workers send the same request"),
        (attempts_that_count, several_at_once, "the old attempt|extent-name"),
        (ids_that_are_covered, two_attempts, "two results"),
        (sync_before_commit, one_at_a_time, "survive a power cut"),
        (sync_before_adopt, one_at_a_time, "survive a power cut"),
        (adopt_before_send, a_zombie_that_writes_on, "was asked again"),
        (look_at_the_time_before_a_call, a_batch_that_expires, "sent after its expiry"),
    ],
)
def test_what_is_taken_away_is_missed(
    take_away: Callable[[Sabotage], None],
    harness: Callable[[Path], None],
    noticed: str,
    memory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        take_away(patch)
        with pytest.raises(AssertionError, match=noticed):
            harness(memory)
