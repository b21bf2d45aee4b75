"""Which requests have the same prefix, and in which order they stand."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits
from batchyard.dispatch.prefix import Prefix, Reader, order_keys, shared_marks
from batchyard.dispatch.routes import dispatch_order
from batchyard.segments.requests import plan_shards, sizes_of
from batchyard.wire import Entry

FIVE = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}
MODEL = "claude-opus-5-5"


def text(words: str, control: object = None, **more: object) -> dict[str, Any]:
    return {"type": "text", "text": words, **more} | (
        {} if control is None else {"cache_control": control}
    )


def params(system: Any = None, content: Any = "Why?", **fields: Any) -> dict[str, Any]:
    made = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    return made | ({} if system is None else {"system": system}) | fields


def read(fields: Any, reader: Reader | None = None) -> Prefix | None:
    data = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return (reader or Reader()).read(data)


def found(fields: Any) -> Prefix:
    prefix = read(fields)
    assert prefix is not None
    return prefix


def last_key(fields: Any) -> bytes:
    return found(fields).marks[-1].key


def entries(requests: list[Any]) -> list[Entry]:
    raws = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in requests]
    return [Entry(f"r{n}", msgspec.Raw(raw)) for n, raw in enumerate(raws)]


def test_what_comes_after_the_last_mark_does_not_count() -> None:
    system = [text("Be brief.", FIVE)]
    one = params(system, "Why?")
    other = params(system, [text("How?")], max_tokens=500, temperature=1.0, tool_choice=None)
    assert last_key(one) == last_key(other)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "claude-haiku-5-5"},
        {"tools": [{"name": "t", "input_schema": {"type": "object"}}]},
        {"system": [text("Be long.", FIVE)]},
        {"system": [text("First."), text("Be brief.", FIVE)]},
        {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
    ],
)
def test_whatever_stands_before_the_last_mark_counts(change: dict[str, Any]) -> None:
    base = params([text("Be brief.", FIVE)])
    assert last_key(base) != last_key(base | change)


@pytest.mark.parametrize(
    "change",
    [
        {"tool_choice": {"type": "none"}},
        {"thinking": {"type": "adaptive"}},
        {"output_config": {"effort": "low"}},
        {"messages": [{"role": "user", "content": [text("More"), text("Doc", FIVE)]}]},
        {"messages": [{"role": "assistant", "content": [text("Doc", FIVE)]}]},
    ],
)
def test_settings_of_the_messages_count_for_a_mark_in_the_messages_only(
    change: dict[str, Any],
) -> None:
    in_messages = params(content=[text("Doc", FIVE), text("Why?")])
    assert last_key(in_messages) != last_key(in_messages | change)
    in_system = params([text("Be brief.", FIVE)])
    assert last_key(in_system) == last_key(in_system | change | {"messages": []})


def test_a_mark_is_no_part_of_its_block() -> None:
    """So that a request that marks a block earlier has a prefix of the one that does not."""
    both = found(params([text("A", FIVE), text("B", FIVE)]))
    only_last = found(params([text("A"), text("B", HOUR)]))
    assert both.marks[-1].key == only_last.marks[-1].key
    assert [mark.ttl_s for mark in both.marks] == [300, 300]
    assert [mark.ttl_s for mark in only_last.marks] == [3_600]
    first = found(params([text("A", FIVE)]))
    assert first.marks[0].key == both.marks[0].key
    assert first.marks[0].size < both.marks[1].size
    inside = params([{"type": "text", "cache_control": FIVE, "text": "A"}])
    assert found(inside).marks[0].ttl_s == 300


def test_a_plain_system_prompt_is_a_block_of_text() -> None:
    as_text = params("A", [text("Doc", FIVE)])
    compact = json.dumps(params([text("A")], [text("Doc", FIVE)]), separators=(",", ":")).encode()
    assert read(json.dumps(as_text, separators=(",", ":")).encode()) is not None
    assert found(compact).marks[-1].key == last_key(
        json.dumps(as_text, separators=(",", ":")).encode()
    )


def test_a_mark_at_top_level_stands_for_the_last_block_that_can_be_cached() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "x"}
    automatic = params(content=[text("A"), text("B"), thinking], cache_control=HOUR)
    by_hand = params(content=[text("A"), text("B", FIVE), thinking])
    assert last_key(automatic) == last_key(by_hand)
    assert found(automatic).marks[-1].ttl_s == 3_600
    assert read(params(content="", cache_control=FIVE)) is None


@pytest.mark.parametrize(
    "fields",
    [
        params(),
        params("cache_control"),
        params([text('say "cache_control": {"type": "ephemeral"}')]),
        params([text("A", {"type": "forever"})]),
        params([text("A", {"type": "ephemeral", "ttl": "2h"})]),
        params([text("A", "yes")]),
        params([text("A", FIVE)] * 5),
        params([{"type": "text", "text": "A", "cache_control": None}]),
        params([text("A", FIVE)], model=5),
        params([text("A", FIVE)], messages={"role": "user"}),
        params([text("A", FIVE)], cache_control=7),
        params(["A", text("B", FIVE)]),
        params([text("A", FIVE)], tools={"name": "x"}),
        params([text("A", "no"), text("B", FIVE)]),
        b'{"cache_control": ',
        b'{"system": [{"cache_control": {"type": "ephemeral"}, "text": "\xff"}]}',
        b'{"system":' + b"[" * 500 + b'"cache_control"' + b"]" * 500 + b"}",
        b'["cache_control"]',
    ],
)
def test_what_is_not_marked_or_cannot_be_read_has_no_prefix(fields: Any) -> None:
    assert read(fields) is None
    # By what it is ordered matters not: it is refused.
    assert order_keys(entries([fields])) == [b""] or fields == params(["A", text("B", FIVE)])


_blocks = st.lists(
    st.tuples(st.sampled_from("ABC"), st.sampled_from([None, FIVE, HOUR])), max_size=4
)


def _made(blocks: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    return [text(words * 30, control) for words, control in blocks]


@given(st.lists(st.tuples(_blocks, _blocks, st.booleans()), min_size=1, max_size=12))
def test_a_reader_that_remembers_reads_the_same_as_one_that_does_not(made: Any) -> None:
    reader = Reader()
    for system, content, compact in made * 3:
        fields = params(_made(system), [*_made(content), text("q")])
        data = json.dumps(fields, separators=(",", ":") if compact else None).encode()
        assert reader.read(data) == Reader().read(data)


@given(
    st.lists(
        st.tuples(st.sampled_from("pq"), _blocks, st.sampled_from(["ok", "broken", "plain"])),
        max_size=30,
    )
)
def test_dispatch_order_is_a_permutation_by_pool_then_prefix_then_arrival(made: Any) -> None:
    requests: list[Any] = []
    for _, blocks, kind in made:
        fields = params(_made(blocks))
        requests.append(b"{" if kind == "broken" else params() if kind == "plain" else fields)
    pools = [pool for pool, _, _ in made]
    keys = order_keys(entries(requests))
    order = dispatch_order(pools, keys)
    assert sorted(order) == list(range(len(made)))
    places = [(pools[index], not keys[index], keys[index], index) for index in order]
    assert places == sorted(places)


def test_longer_common_prefixes_stand_nearer() -> None:
    rng = random.Random(4)
    made = [(f"S{a}", f"D{b}", f"Q{c}") for a in range(3) for b in range(3) for c in range(3)]
    rng.shuffle(made)
    requests = [params([text(a, FIVE)], [text(b, FIVE), text(c, FIVE)]) for a, b, c in made]
    order = dispatch_order(["p"] * len(made), order_keys(entries(requests)))
    for depth in (1, 2):
        runs = [made[index][:depth] for index in order]
        changes = sum(one != two for one, two in pairwise(runs))
        assert changes == len(set(runs)) - 1, "equal prefixes do not stand together"


def test_requests_without_a_mark_keep_their_order_and_come_last() -> None:
    requests = [params(), params([text("A", FIVE)]), params("x"), params([text("A", FIVE)])]
    assert dispatch_order(["p"] * 4, order_keys(entries(requests))) == [1, 3, 0, 2]


# Shards ------------------------------------------------------------------------------------------


def _groups_cut(sizes: list[int]) -> list[int]:
    """Return into how many shards each group is cut, given the requests in each."""
    made = entries(
        [params([text(f"group {n}", FIVE)]) for n, size in enumerate(sizes) for _ in range(size)]
    )
    pools, keys = ["p"] * len(made), order_keys(made)
    order = dispatch_order(pools, keys)
    shards = plan_shards(made, sizes_of(made), pools, order, keys)
    assert sum(shard.requests for shard in shards) == len(made)
    assert all(shard.requests <= limits.SHARD_REQUESTS for shard in shards)
    holds: dict[bytes, set[int]] = {}
    at = iter(order)
    for shard in shards:
        for _ in range(shard.requests):
            holds.setdefault(keys[next(at)], set()).add(shard.index)
    return sorted(len(found) for found in holds.values())


def test_groups_that_fit_are_not_cut() -> None:
    assert _groups_cut([200] * 7) == [1] * 7
    assert _groups_cut([500, 400, 300, 260]) == [1] * 4
    assert _groups_cut([100, 450, 60, 480, 30, 499]) == [1] * 6


def test_a_group_larger_than_a_shard_spans_as_few_as_it_needs_and_one() -> None:
    assert _groups_cut([1_200])[-1] == 3
    assert _groups_cut([30, 1_200])[-1] <= 4


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8))
def test_a_group_that_fits_into_a_shard_is_in_one_so_one_worker_has_it(sizes: list[int]) -> None:
    assert _groups_cut(sizes) == [1] * len(sizes)


@given(st.lists(st.integers(1, 700), min_size=1, max_size=8))
def test_cutting_at_groups_makes_no_more_than_twice_the_shards(sizes: list[int]) -> None:
    made = entries([b"{}"] * sum(sizes))
    keys = [bytes([n + 1]) for n, size in enumerate(sizes) for _ in range(size)]
    order, pools = list(range(len(made))), ["p"] * len(made)
    shards = plan_shards(made, sizes_of(made), pools, order, keys)
    assert sum(shard.requests for shard in shards) == len(made)
    assert len(shards) <= 2 * -(-len(made) // limits.SHARD_REQUESTS)
    assert [shard.offset for shard in shards[1:]] == [s.offset + s.length for s in shards[:-1]]


# What is worth priming ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "bytes_", "primes"),
    [
        ("claude-opus-5-5", 100, False),  # caches from 512 tokens
        ("claude-opus-5-5", 600, True),
        ("claude-haiku-4-5", 5_000, False),  # from 4,096
        ("claude-haiku-4-5", 6_500, True),
        ("somebody-elses", 10, True),
    ],
)
def test_a_prefix_that_cannot_reach_the_minimum_of_its_model_is_not_primed(
    model: str, bytes_: int, primes: bool
) -> None:
    prefix = found(params([text("x" * bytes_, FIVE)], model=model))
    assert bool(shared_marks(prefix, "w")) is primes


def test_caches_of_workspaces_are_apart() -> None:
    prefix = found(params([text("x" * 900, FIVE)]))
    (one,), (other,) = shared_marks(prefix, "a"), shared_marks(prefix, "b")
    assert one.key != other.key
    assert shared_marks(None, "a") == ()
