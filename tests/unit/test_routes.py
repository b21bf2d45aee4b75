"""Which request waits in which pool, and in which order they leave."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits
from batchyard.dispatch.routes import UNROUTED, Route, Routes, dispatch_order
from batchyard.wire import Entry

ROUTES = Routes(
    [
        Route("claude", ("claude-*", "anthropic/*")),
        Route("local", ("qwen[23]-?b", "org/*")),
        Route("rest", ("gpt-*",)),
    ]
)


def entry(params: object) -> Entry:
    raw = params if isinstance(params, bytes) else json.dumps(params).encode()
    return Entry("a", msgspec.Raw(raw))


def of_models(*models: object) -> list[Entry]:
    return [entry({"messages": [], "model": model}) for model in models]


@pytest.mark.parametrize(
    ("model", "upstream"),
    [
        ("claude-opus-5-5", "claude"),
        ("claude-", "claude"),
        ("Claude-opus", None),
        ("anthropic/x/y", "claude"),
        ("qwen2-7b", "local"),
        ("qwen2-70b", None),
        ("qwen4-7b", None),
        ("gpt-oss", "rest"),
        ("", None),
        ("x claude-y", None),
        ("claude-\n", "claude"),
    ],
)
def test_the_first_route_with_a_pattern_that_fits_has_the_model(
    model: str, upstream: str | None
) -> None:
    assert ROUTES.upstream_for(model) == upstream


def test_an_earlier_route_hides_a_later_one() -> None:
    routes = Routes([Route("one", ("a*",)), Route("two", ("*",))])
    assert [routes.upstream_for(model) for model in ("ab", "b")] == ["one", "two"]


def test_a_pool_is_one_model_of_one_upstream() -> None:
    entries = of_models("claude-a", "claude-b", "org/with/slashes", "claude-a")
    assert ROUTES.pools(entries) == [
        "claude/claude-a",
        "claude/claude-b",
        "local/org/with/slashes",
        "claude/claude-a",
    ]


ODD = [
    entry({"messages": []}),
    *of_models("unknown", "", 5, None, [], "m" * 257, "claude-" + "m" * 250),
    entry(b'{"model":"\xff"}'),
    entry(b"{" * 100_000),
    entry(b'{"x":' + b"[" * 100_000),
]


@pytest.mark.parametrize("odd", ODD)
def test_what_no_upstream_takes_waits_apart(odd: Entry) -> None:
    assert ROUTES.pools([odd]) == [UNROUTED]


def test_the_pool_of_the_unrouted_has_no_upstream_even_with_a_route_for_all() -> None:
    assert Routes([Route("all")]).upstream_of_pool(UNROUTED) is None


def test_models_beyond_the_most_frequent_share_one_pool_of_their_upstream() -> None:
    most = limits.BATCH_POOLS_MAX
    often = [f"claude-{n}" for n in range(most)] * 2
    rare = [f"claude-rare-{n}" for n in range(50)] + [f"org/rare-{n}" for n in range(50)]
    pools = ROUTES.pools(of_models(*often, *rare))
    assert pools[: len(often)] == [f"claude/{model}" for model in often]
    assert set(pools[len(often) :]) == {"claude/*", "local/*"}
    assert len(set(pools)) <= most + 2


@pytest.mark.parametrize(
    ("pool", "upstream"),
    [
        ("claude/claude-a", "claude"),
        ("claude/anything at all", "claude"),  # it was put there under an earlier configuration
        ("local/org/a/b", "local"),
        ("removed/claude-a", "claude"),
        ("removed/org/a/b", "local"),
        ("removed/unknown", None),
        ("removed/*", None),
        ("claude/*", "claude"),
        ("/", None),
    ],
)
def test_a_pool_of_a_removed_upstream_goes_where_its_model_goes_now(
    pool: str, upstream: str | None
) -> None:
    assert ROUTES.upstream_of_pool(pool) == upstream


@given(st.lists(st.sampled_from(["b/x", "a/y", "/", "a/x"]), min_size=1, max_size=30))
def test_dispatch_order_is_by_pool_then_as_they_arrived(pools: list[str]) -> None:
    order = dispatch_order(pools)
    assert sorted(order) == list(range(len(pools)))
    keys = [(pools[index], index) for index in order]
    assert keys == sorted(keys)
