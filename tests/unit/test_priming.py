"""One request of a group is sent first; the others wait for it, and for nothing else."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits
from batchyard.dispatch.pool import Pool
from batchyard.dispatch.prefix import Mark
from batchyard.dispatch.priming import Priming
from batchyard.dispatch.shard import Request, ShardRun
from unit.test_shard_run import Task, make

A, B, LONG = Mark(b"a", 300, 1), Mark(b"b", 300, 2), Mark(b"a", 3_600, 1)


@dataclass(eq=False)
class Asked:
    marks: tuple[Mark, ...] = (A,)


def started(priming: Priming, request: Asked, now_s: float = 0.0) -> None:
    assert priming.admit(request, now_s) is None
    priming.sent(request, now_s)


def test_the_first_goes_and_the_others_wait_until_its_answer_begins() -> None:
    priming, first, second = Priming(), Asked(), Asked()
    started(priming, first)
    assert priming.admit(second, 1.0) == b"a"
    assert priming.begun(second) == [], "only the primer's answer counts"
    assert priming.begun(first) == [b"a"]
    assert priming.admit(second, 2.0) is None
    assert priming.begun(first) == [], "told twice"


def test_another_prefix_does_not_wait() -> None:
    priming = Priming()
    started(priming, Asked())
    assert priming.admit(Asked((B,)), 0.0) is None


def test_when_the_primer_is_over_without_an_answer_the_next_one_primes() -> None:
    priming, first, second = Priming(), Asked(), Asked()
    started(priming, first)
    assert priming.left(second) == []
    assert priming.left(first) == [b"a"]
    started(priming, second, 3.0)
    assert priming.admit(Asked(), 3.0) == b"a"
    assert priming.begun(second) == [b"a"]
    assert priming.left(second) == [], "its end changes nothing any more"
    assert priming.admit(Asked(), 3.0) is None


def test_a_primer_that_is_sent_again_in_a_moment_keeps_the_others_waiting() -> None:
    priming, first = Priming(), Asked()
    started(priming, first)
    priming.delayed(first)
    assert priming.overdue(1e9) == [], "nothing is out"
    assert priming.admit(Asked(), 2.0) == b"a"


def test_where_some_primers_in_a_row_are_declined_the_others_wait_for_none() -> None:
    priming = Priming()
    for number in range(2):
        primer = Asked()
        started(priming, primer, float(number))
        assert priming.declined(primer) == []
        assert priming.left(primer) == [b"a"]
    primer = Asked()
    started(priming, primer, 2.0)
    assert priming.declined(primer) == [b"a"], "all that wait for it go"
    assert priming.left(primer) == []
    assert priming.admit(Asked(), 2.0) is None


def test_nobody_waits_longer_than_a_bounded_time_for_an_answer_to_begin() -> None:
    priming, first = Priming(), Asked()
    assert priming.admit(first, 0.0) is None
    assert priming.overdue(1e6) == [], "it waits for a place, as the others would"
    priming.sent(first, 100.0)
    due_s = 100.0 + limits.PRIMER_ANSWER_S
    assert priming.overdue(due_s - 0.1) == []
    assert priming.overdue(due_s) == [b"a"]
    assert not priming.is_primed(b"a")
    assert priming.admit(Asked(), due_s) is None
    assert priming.begun(first) == []


def test_an_entry_that_lapsed_is_primed_again_and_use_renews_it() -> None:
    for mark, ttl_s in ((A, 300.0), (LONG, 3_600.0)):
        usable_s = ttl_s - limits.CACHE_LAPSE_MARGIN_S
        priming, first = Priming(), Asked((mark,))
        started(priming, first)
        priming.begun(first)
        assert priming.admit(Asked((mark,)), usable_s - 1) is None
        assert priming.admit(Asked((mark,)), 2 * usable_s - 2) is None, "use has renewed it"
        last_s = 2 * usable_s - 2
        again = Asked((mark,))
        started(priming, again, last_s + usable_s)
        assert priming.admit(Asked((mark,)), last_s + usable_s) == b"a"


def test_the_time_of_an_entry_counts_from_the_start_of_its_writer() -> None:
    priming, first = Priming(), Asked()
    started(priming, first, 10.0)
    priming.begun(first)  # a long time later
    lapse_s = 10.0 + 300 - limits.CACHE_LAPSE_MARGIN_S
    assert priming.admit(Asked(), lapse_s) is None
    assert priming.admit(Asked(), lapse_s) == b"a", "the one before it primes"


def test_with_several_marks_the_shortest_that_is_not_written_is_waited_for() -> None:
    priming, first = Priming(), Asked((A, Mark(b"x", 300, 9)))
    other = Asked((A, Mark(b"y", 300, 9)))
    started(priming, first)
    assert priming.admit(other, 0.0) == b"a"
    assert priming.begun(first) == [b"a", b"x"]
    started(priming, other, 1.0)
    assert priming.admit(Asked((A, Mark(b"y", 300, 9))), 1.0) == b"y"
    assert priming.admit(Asked(), 1.0) is None


def test_so_many_prefixes_are_remembered_and_no_more() -> None:
    priming = Priming(entries_max=3)
    for number in range(10):
        request = Asked((Mark(bytes([number]), 300, 1),))
        started(priming, request)
        priming.begun(request)
    assert len(priming) == 3
    assert priming.admit(Asked((Mark(bytes([9]), 300, 1),)), 1.0) is None
    out = [Asked((Mark(bytes([number]), 300, 1),)) for number in range(50, 60)]
    for request in out:
        started(priming, request, 1.0)
    assert [priming.begun(request) for request in out] == [[r.marks[0].key] for r in out]


# In a pool ---------------------------------------------------------------------------------------


class Here:
    """A pool with a clock of its own."""

    def __init__(self, *shards: ShardRun) -> None:
        self.now_s = 0.0
        self.pool = Pool("p", None, 8, None, lambda: self.now_s)
        self.woken = 0
        self.out: dict[str, Request] = {}
        self.pool.on_release = self._wake
        for shard in shards:
            self.pool.add(shard)

    def _wake(self, pool: Pool) -> None:
        assert pool is self.pool
        self.woken += 1

    def take(self) -> str | None:
        """Send the next request that may go, and return its name."""
        found = self.pool.take(Task())  # type: ignore[arg-type]
        if found is None:
            return None
        request = found[1]
        self.pool.sent(request)
        self.out[request.custom_id] = request
        return request.custom_id

    def all(self) -> str:
        """Take all that may be sent."""
        names = []
        while (name := self.take()) is not None:
            names.append(name)
        return " ".join(names)


def shard(*groups: str, marks: dict[str, tuple[Mark, ...]] | None = None) -> ShardRun:
    """Return a shard of requests such as `a1`, with the mark of their letter; `-` is without."""
    known = {"a": (A,), "b": (B,), "-": ()} if marks is None else marks
    made = make(*groups)
    made.unsent.clear()
    made.unsent.extend(Request(name, b"{}", known[name[0]]) for name in groups)
    return made


def test_while_one_group_is_primed_other_groups_and_unmarked_requests_go() -> None:
    here = Here(shard("a1", "a2", "a3", "b1", "b2", "-1", "-2"))
    assert here.all() == "a1 b1 -1 -2"
    assert (here.pool.unsent, here.pool.parked, here.woken) == (0, 3, 0)
    here.pool.begun(here.out["a1"])
    assert here.woken == 1
    assert here.all() == "a2 a3"
    assert here.pool.parked == 1


def test_a_group_in_two_shards_has_one_primer() -> None:
    here = Here(shard("a1", "a2"), shard("a3", "a4"))
    assert here.all() == "a1"
    here.pool.begun(here.out["a1"])
    assert here.all().split() == ["a2", "a3", "a4"]


def test_when_the_primer_fails_one_other_goes_and_the_rest_waits_for_that() -> None:
    here = Here(shard("a1", "a2", "a3"))
    assert here.all() == "a1"
    here.pool.left(here.out["a1"])
    assert here.woken == 1
    assert here.all() == "a2"
    here.pool.begun(here.out["a2"])
    assert here.all() == "a3"


def test_what_waits_for_a_primer_ends_with_its_shard() -> None:
    for end in ("stop", "lose", "halt"):
        here = Here(made := shard("a1", "a2", "a3", "-1"))
        assert here.all() == "a1 -1"
        assert here.pool.parked == 2
        if end == "stop":
            made.stop("canceled", 60.0)
            assert [b"a2" in line or b"a3" in line for line in made.lines] == [True, True]
        else:
            getattr(made, end)()
            assert made.lines == []
        assert here.pool.parked == 0
        here.pool.left(here.out["a1"])
        assert here.all() == ""


def test_when_the_one_that_would_prime_next_is_canceled_a_tick_hands_on() -> None:
    other = shard("a4", "a5")
    here = Here(made := shard("a1", "a2"), other)
    assert here.all() == "a1"
    here.pool.left(here.out["a1"])  # a2 is to prime
    made.stop("canceled", 60.0)
    assert here.all() == ""
    here.pool.tick()
    assert here.woken == 2
    assert here.all() == "a4"


def test_a_tick_lets_all_go_whose_primer_has_been_out_for_too_long() -> None:
    here = Here(shard("a1", "a2", "a3"))
    assert here.all() == "a1"
    here.now_s = limits.PRIMER_ANSWER_S - 1
    here.pool.tick()
    assert here.all() == ""
    here.now_s += 1
    here.pool.tick()
    assert here.all() == "a2 a3"


def test_a_pool_in_which_much_waits_for_primers_claims_no_more() -> None:
    made = make("a1", "a2")
    made.unsent.clear()
    made.unsent.append(Request("a1", b"{}", (A,)))
    made.unsent.append(Request("a2", b"x" * limits.PARKED_BYTES_MAX, (A,)))
    here = Here(made)
    assert here.all() == "a1"
    assert not here.pool.is_hungry
    here.pool.begun(here.out["a1"])
    assert here.pool.is_hungry


@given(st.integers(0, 2**32))
def test_whatever_happens_everything_is_sent_once_and_nothing_waits_for_nobody(
    seed: int,
) -> None:
    rng = random.Random(seed)
    known = {"a": (A,), "b": (B,), "-": (), "c": (A, Mark(b"c", 300, 3))}
    shards = [
        shard(*(f"{rng.choice('abc-')}{n}.{k}" for k in range(rng.randint(1, 8))), marks=known)
        for n in range(3)
    ]
    here = Here(*shards)
    everything = {request.custom_id for each in shards for request in each.unsent}
    out: list[str] = []
    sent: list[str] = []
    ended: set[str] = set()

    def send() -> None:
        name = here.take()
        if name is not None:
            sent.append(name)
            out.append(name)

    for _ in range(2_000):
        here.now_s += rng.choice([0.0, 0.1, 1.0, 400.0])
        match rng.randrange(6):
            case 0 | 1:
                send()
            case 2 if out:
                here.pool.begun(here.out[rng.choice(out)])
            case 3 if out:
                here.pool.left(here.out[out.pop(rng.randrange(len(out)))])
            case 4 if out:
                here.pool.delayed(here.out[rng.choice(out)])
            case 5 if rng.random() < 0.02:
                stopped = rng.choice(shards)
                ended |= {r.custom_id for r in stopped.unsent} | set(stopped.parked)
                stopped.stop("canceled", 1.0)
            case _:
                here.pool.tick()
    for _ in range(2 * len(everything)):  # all that is out ends, and what waits follows
        while out:
            here.pool.left(here.out[out.pop()])
        here.pool.tick()
        send()
    assert len(sent) == len(set(sent))
    assert set(sent) | ended == everything
    assert here.pool.parked == 0
