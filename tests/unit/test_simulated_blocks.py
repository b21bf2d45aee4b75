"""The simulated model's thinking and web searches: shapes, usage, and how they are streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from batchyard.testing.clock import ManualClock
from batchyard.upstream import Call, Forward, Reply
from batchyard.upstream.simulated import Settings, Simulated

pytestmark = pytest.mark.anyio

VERSION = "2026-10-21"
OLD_MODEL = "claude-haiku-4-5"
NEW_MODEL = "claude-opus-5-5"
ENABLED = {"type": "enabled", "budget_tokens": 1_024}
SEARCH = {"type": "web_search_20260318", "name": "web_search"}
EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


def params(**fields: Any) -> bytes:
    usual = {
        "model": OLD_MODEL,
        "max_tokens": 2_000,
        "messages": [{"role": "user", "content": "Describe gears."}],
    }
    return json.dumps(usual | fields).encode()


async def message(**fields: Any) -> Message:
    simulated = Simulated("sim", Settings(words=60), ManualClock())
    outcome = await simulated.send(Call(params(**fields), VERSION, (), "w"))
    assert isinstance(outcome, Reply)
    assert outcome.status == 200, outcome.body
    return Message.model_validate_json(outcome.body)


def kinds(found: Message) -> list[str]:
    return [block.type for block in found.content]


def text(found: Message) -> str:
    return "".join(block.text for block in found.content if block.type == "text")


async def test_thinking_stands_before_the_text_and_counts_as_output() -> None:
    plain, thought = await message(), await message(thinking=ENABLED)
    assert kinds(thought) == ["thinking", "text"]
    block = thought.content[0]
    assert block.type == "thinking"
    assert block.thinking.startswith("[Simulated thinking: no model was called.]")
    assert block.signature
    assert text(thought) == text(plain)
    details = thought.usage.output_tokens_details
    assert details is not None
    assert 0 < details.thinking_tokens <= ENABLED["budget_tokens"]
    assert thought.usage.output_tokens == plain.usage.output_tokens + details.thinking_tokens
    assert plain.usage.output_tokens_details is None


@pytest.mark.parametrize(
    ("model", "thinking", "is_shown"),
    [
        (OLD_MODEL, ENABLED, True),
        (OLD_MODEL, ENABLED | {"display": "omitted"}, False),
        ("claude-opus-4-6", {"type": "adaptive"}, True),
        (NEW_MODEL, {"type": "adaptive"}, False),
        (NEW_MODEL, {"type": "adaptive", "display": "summarized"}, True),
        (NEW_MODEL, {"type": "adaptive", "display": "omitted"}, False),
    ],
)
async def test_thinking_is_shown_as_asked_or_as_the_model_does(
    model: str, thinking: dict[str, Any], *, is_shown: bool
) -> None:
    found = await message(model=model, thinking=thinking)
    block = found.content[0]
    assert block.type == "thinking"
    assert bool(block.thinking) == is_shown
    assert block.signature
    assert found.usage.output_tokens_details is not None
    assert found.usage.output_tokens_details.thinking_tokens > 10


async def test_disabled_thinking_is_none() -> None:
    assert kinds(await message(thinking={"type": "disabled"})) == ["text"]


async def test_thinking_that_uses_up_max_tokens_leaves_no_room_for_text() -> None:
    found = await message(model=NEW_MODEL, max_tokens=5, thinking={"type": "adaptive"})
    assert kinds(found) == ["thinking"]
    assert (found.stop_reason, found.usage.output_tokens) == ("max_tokens", 5)
    assert found.usage.output_tokens_details is not None
    assert found.usage.output_tokens_details.thinking_tokens == 5


async def test_a_request_that_may_search_the_web_searches_once() -> None:
    plain = await message(tools=[SEARCH], tool_choice={"type": "none"})
    found = await message(tools=[SEARCH])
    assert kinds(found) == ["server_tool_use", "web_search_tool_result", "text"]
    use, outcome = found.content[:2]
    assert use.type == "server_tool_use"
    assert (use.name, use.input) == ("web_search", {"query": "Describe gears."})
    assert outcome.type == "web_search_tool_result"
    assert outcome.tool_use_id == use.id
    assert isinstance(outcome.content, list)
    for each in outcome.content:
        assert each.url.startswith("https://example.com/simulated/")
        assert "nothing was searched" in each.title
    assert found.stop_reason == "end_turn"
    assert found.usage.server_tool_use is not None
    assert found.usage.server_tool_use.web_search_requests == 1
    assert found.usage.input_tokens > plain.usage.input_tokens + 200, "results are read too"
    assert plain.usage.server_tool_use is None


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [SEARCH], "tool_choice": {"type": "none"}},
        {"tools": [{"name": "web_search", "input_schema": {"type": "object"}}]},
        {"tools": [SEARCH], "max_tokens": 0},
    ],
)
async def test_a_request_that_may_not_search_does_not(fields: dict[str, Any]) -> None:
    found = await message(**fields)
    assert "server_tool_use" not in kinds(found)
    assert found.usage.server_tool_use is None


async def test_thinking_and_searches_are_streamed_as_the_whole_message_has_them() -> None:
    fields = {"thinking": ENABLED, "tools": [SEARCH]}
    whole = await message(**fields)
    simulated = Simulated("sim", Settings(words=60), ManualClock())
    body = params(**fields, stream=True)
    async with simulated.forward(Forward("POST", "/v1/messages", VERSION, (), "w", body)) as reply:
        frames = [chunk async for chunk in reply.chunks()]
    events = [json.loads(frame.split(b"data: ")[1]) for frame in frames]
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "ping":
            continue
        typed = EVENT.validate_python(event)
        if typed.type == "content_block_start":
            blocks.append(event["content_block"] | {"json": ""})
        if typed.type == "content_block_delta":
            kind, value = list(event["delta"].items())[1]
            blocks[-1]["json" if kind == "partial_json" else kind] += value
    for block in blocks:
        partial = block.pop("json")
        if partial:
            assert block["input"] == {}
            block["input"] = json.loads(partial)
    assert blocks == [block.to_dict() for block in whole.content]
    start = events[0]["message"]["usage"]
    assert "output_tokens_details" not in start
    assert "server_tool_use" not in start
    [end] = [event for event in events if event["type"] == "message_delta"]
    assert end["usage"]["output_tokens_details"] == whole.usage.output_tokens_details.to_dict()  # type: ignore[union-attr]
