"""What requests begin with in common, and where the breakpoint goes."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.client.inputs.template import Template
from batchyard.client.planning import caching, estimate
from batchyard.client.planning.caching import Breakpoint, Prefix, Shared

WEIGHTS = estimate.prior("claude-opus-4-8")
LONG = "Be precise and name the place where you found it. " * 40
TOOL = {"name": "look", "description": LONG, "input_schema": {"type": "object"}}


def request(user: Any, system: str | None = None, **more: Any) -> dict[str, Any]:
    params = {"model": "m", "max_tokens": 1, **more}
    if system is not None:
        params["system"] = system
    return {**params, "messages": [{"role": "user", "content": user}]}


def prefix(*requests: dict[str, Any], minimum: int | None = 100) -> Prefix | None:
    shared = Shared("m")
    for each in requests:
        shared.add(each)
    return shared.prefix(WEIGHTS, minimum)


def where(*requests: dict[str, Any], minimum: int | None = 100) -> str | None:
    found = prefix(*requests, minimum=minimum)
    return None if found is None else found.where


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (request("a", LONG), request("b", LONG), "system"),
        (request(LONG + "a"), request(LONG + "b"), "prompt"),
        (request(LONG + "a", LONG), request(LONG + "b", LONG), "prompt"),
        (request("short a", LONG), request("short b", LONG), "system"),
        (request("a", LONG + " one"), request("b", LONG + " two"), "system"),
        (request("a", tools=[TOOL]), request("b", tools=[TOOL]), "tools"),
        (request("a", LONG, tools=[TOOL]), request("b", LONG, tools=[]), None),
        (request("a"), request("b"), None),
        # Another choice of tools loses what is cached of the messages, and only that.
        (request(LONG + "a", LONG, tool_choice={"type": "any"}), request(LONG + "b", LONG),
         "system"),
        # A file stands before the text.
        (request([{"type": "document"}, {"type": "text", "text": LONG}], LONG),
         request([{"type": "document"}, {"type": "text", "text": LONG}], LONG), "system"),
    ],
)  # fmt: skip
def test_the_prefix_ends_where_the_first_difference_is(
    one: dict, other: dict, expected: str | None
):
    assert where(one, other) == expected


def test_a_shared_system_prompt_below_the_minimum_is_helped_by_the_prompt():
    one, other = (request(LONG[:200] + end, "Be short.") for end in "ab")

    assert where(one, other, minimum=10_000) == "prompt"


def test_requests_for_other_models_do_not_count():
    shared = Shared("m")
    shared.add(request("x", LONG))
    shared.add({**request("y", "other"), "model": "another"})

    assert shared.requests == 1
    assert shared.has_same_system


@given(st.lists(st.text(st.sampled_from("ab \n"), max_size=12), min_size=1, max_size=8))
def test_every_request_begins_with_the_shared_part_and_keeps_its_words(ends: list[str]):
    users = [LONG + end for end in ends]
    found = prefix(*map(request, users))
    assert found is not None

    for user in users:
        placed = caching.place(request(user), Breakpoint(found, "1h"))
        assert placed is not None
        blocks = placed["messages"][0]["content"]
        assert "".join(block["text"] for block in blocks) == user
        assert ["cache_control" in block for block in blocks] == [True, False][: len(blocks)]
        assert all(block["text"].strip() for block in blocks)


def test_tools_get_the_breakpoint_at_the_last_of_them():
    found = prefix(
        request("a", tools=[{"name": "x"}, TOOL]), request("b", tools=[{"name": "x"}, TOOL])
    )
    assert found is not None

    placed = caching.place(request("a", tools=[{"name": "x"}, TOOL]), Breakpoint(found, "5m"))

    assert placed is not None
    assert [each.get("cache_control") for each in placed["tools"]] == [
        None, {"type": "ephemeral", "ttl": "5m"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [request("x", "something else"), request("x", LONG, cache_control={"type": "ephemeral"})],
)
def test_a_request_that_begins_otherwise_or_has_a_marker_is_left_as_it_is(other: dict):
    found = prefix(request("a", LONG), request("b", LONG))
    assert found is not None

    assert caching.place(other, Breakpoint(found, "1h")) is None


@pytest.mark.parametrize(
    ("text", "before", "after", "name", "line"),
    [
        ("all the same", "all the same", "", "", 0),
        ("a {{ x.y }} b\n{{ z }} c", "a ", " b\n c", "x", 1),
        ("{% set n = 1 %}a\n{{ n }} b", "a\n", " b", "n", 2),
        ("a\n{% for p in parts %}{{ p }}{% endfor %} b", "a\n", " b", "parts", 2),
        ("{# note #}a {% if x %}c{% endif %}", "a ", "", "x", 1),
    ],
)
def test_the_outline_of_a_template_is_what_never_changes(
    tmp_path: Path, text: str, before: str, after: str, name: str, line: int
):
    (tmp_path / "t.j2").write_text(text)

    outline = Template(tmp_path / "t.j2").outline()

    assert (outline.before, outline.after) == (before, after)
    assert outline.where.endswith(f":{line}")
    assert not name or outline.name in {name, "p"}
