"""Requests changed at random: nothing raises, and the quick and the thorough way agree."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import models, validate
from batchyard.validate import ordinary
from helpers_validate import BASE, NEW, OLD, said, text

FIVE, HOUR = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}

# Valid requests that together hold every part that the rules look at.
SEEDS: list[dict[str, Any]] = [
    BASE,
    BASE | {"system": "s", "temperature": 0.5, "stream": False},
    BASE
    | {
        "system": [text(cache_control=HOUR), text()],
        "messages": [said("user", text(), text(cache_control=FIVE)), said("assistant", text())],
    },
    BASE
    | {
        "messages": [
            said(
                "user",
                {"type": "image", "source": {"type": "url", "url": "http://a"}},
                {"type": "document", "source": {"type": "content", "content": [text()]}},
                {"type": "search_result", "source": "s", "title": "t", "content": [text()]},
            ),
            said("assistant", {"type": "tool_use", "id": "a", "name": "t", "input": {}}),
            said("user", {"type": "tool_result", "tool_use_id": "a", "content": [text()]}),
            {"role": "assistant", "content": "x"},
            {"role": "user", "content": "y"},
        ],
        "tools": [
            {"name": "t", "input_schema": {"type": "object"}, "cache_control": FIVE},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 1},
        ],
        "tool_choice": {"type": "tool", "name": "t"},
        "thinking": {"type": "disabled"},
        "output_config": {"format": {"type": "json_schema", "schema": {}}},
        "metadata": {"user_id": "u"},
        "container": {"skills": [{"type": "custom", "skill_id": "s"}]},
        "diagnostics": {"previous_message_id": None},
        "stop_sequences": ["a"],
        "service_tier": "auto",
        "cache_control": FIVE,
        "billing_policy": {"bill_to": "self"},
    },
]

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", " ", "x", "1h", "5m", "url", "text", "user", "assistant", "system",
                     "enabled", "tool_use", "tool_result", "document", "max", "any", "a\n"]),
    st.text(max_size=5),
    st.sampled_from([[], {}, [{}], [[]], {"type": "text"}, {"type": ["a"]}, {"type": "url"}]),
)  # fmt: skip
KEYS = st.sampled_from(
    [
        "type", "role", "content", "source", "cache_control", "citations", "name", "id", "input",
        "ttl", "url", "x", "store", "speed", "tool_use_id",
    ]
)  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container and key or index in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += places(inner)
    return found


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    request = copy.deepcopy(draw(st.sampled_from(SEEDS)))
    request["model"] = draw(st.sampled_from([*sorted(models.table().models), "qwen3-8b"]))
    for _ in range(draw(st.integers(0, 3))):
        all_places = places(request)
        if not all_places:
            break
        holder, key = all_places[draw(st.integers(0, len(all_places) - 1))]
        match draw(st.sampled_from(["set", "drop", "add", "repeat"])):
            case "set":
                holder[key] = copy.deepcopy(draw(JUNK))
            case "drop":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(KEYS)] = copy.deepcopy(draw(JUNK))
            case _ if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
    return request


VERSIONS = st.sampled_from([OLD, NEW])
BETAS = st.sampled_from([(), ("some-beta",), (models.EXTENDED_OUTPUT_BETA,)])


@pytest.mark.parametrize("request_", SEEDS)
def test_the_requests_that_are_changed_are_valid(request_: dict[str, Any]) -> None:
    assert validate.check(json.dumps(request_).encode(), version=OLD, betas=()) is None


@given(mutated(), VERSIONS, BETAS, st.booleans())
def test_a_changed_request_gets_the_same_answer_both_ways(
    request: dict[str, Any], version: str, betas: tuple[str, ...], strict: bool
) -> None:
    raw = json.dumps(request).encode()
    thorough = validate.examine(raw, version=version, betas=betas, strict=strict)
    if ordinary.is_fine(raw, version):
        assert thorough is None
    found = validate.check(raw, version=version, betas=betas, strict=strict)
    assert found == thorough
    assert found is None or (found.message and "\n" not in found.message)
    validate.names_url(raw)


@given(mutated())
def test_what_passes_strictly_passes(request: dict[str, Any]) -> None:
    raw = json.dumps(request).encode()
    if validate.check(raw, version=NEW, betas=(), strict=True) is None:
        assert validate.check(raw, version=NEW, betas=()) is None


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_any_bytes_get_an_answer(raw: bytes) -> None:
    found = validate.check(raw, version=OLD, betas=())
    assert found is None or found.message
    validate.names_url(raw)


def test_an_ordinary_request_takes_the_short_cut() -> None:
    for request in SEEDS[:2]:
        assert ordinary.is_fine(json.dumps(request).encode(), OLD)
    own = SEEDS[2] | {"messages": SEEDS[2]["messages"][:1]}
    assert ordinary.is_fine(json.dumps(own).encode(), NEW)
