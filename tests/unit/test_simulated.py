"""The simulated model as an upstream: answers, limits, errors, streams, models."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from anthropic.types import ModelCapabilities, ModelInfo
from anthropic.types.beta.message_create_params import MessageCreateParamsStreaming as BetaParams
from anthropic.types.message_create_params import MessageCreateParamsStreaming as Params

from batchyard.clock import SystemClock
from batchyard.errors import ConfigError
from batchyard.testing.clock import ManualClock
from batchyard.upstream import Call, Forward, Reply, Upstream
from batchyard.upstream.simulated import Settings, Simulated

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.anyio

OLD = "2023-06-01"
NEW = "2026-10-21"


def model(url: str = "simulated:", clock: ManualClock | None = None) -> Simulated:
    return Simulated("sim", Settings.parse(url), clock or ManualClock())


def params(**fields: Any) -> dict[str, Any]:
    return {
        "model": "claude-haiku-4-5",
        "max_tokens": 2_000,
        "messages": [{"role": "user", "content": "Describe gears."}],
    } | fields


async def ask(
    upstream: Simulated, fields: object, *, version: str = NEW, betas: tuple[str, ...] = ()
) -> tuple[int, dict[str, Any]]:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    outcome = await upstream.send(Call(body, version, betas, "wrkspc_a"))
    assert isinstance(outcome, Reply)
    return outcome.status, json.loads(outcome.body)


async def message(upstream: Simulated, **fields: Any) -> dict[str, Any]:
    status, body = await ask(upstream, params(**fields))
    assert status == 200, body
    return body


async def forward(
    upstream: Simulated, method: Any, path: str, body: object = None
) -> tuple[int, Mapping[str, str], bytes]:
    data = b"" if body is None else json.dumps(body).encode()
    async with upstream.forward(Forward(method, path, NEW, (), "wrkspc_a", data)) as reply:
        return reply.status, reply.headers, b"".join([chunk async for chunk in reply.chunks()])


async def test_the_answer_is_a_whole_message_and_says_that_it_is_simulated() -> None:
    body = await message(model())
    assert list(body) == [
        "model", "id", "type", "role", "content", "container", "stop_reason", "stop_sequence",
        "stop_details", "usage", "diagnostics",
    ]  # fmt: skip
    assert body["model"] == "claude-haiku-4-5-20251001"
    assert body["id"].startswith("msg_01")
    assert body["content"][0]["text"].startswith("[Simulated answer: no model was called.]")
    assert body["stop_reason"] == "end_turn"
    assert body["usage"] | {"input_tokens": 0, "output_tokens": 0} == {
        "input_tokens": 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 0,
        "service_tier": "standard",
        "inference_geo": "not_available",
    }
    assert 5 < body["usage"]["input_tokens"] < 15
    assert 150 < body["usage"]["output_tokens"] < 500


async def test_it_is_an_upstream() -> None:
    upstream: Upstream = model()
    assert (upstream.name, upstream.billing) == ("sim", "simulated")
    await upstream.close()


async def test_the_same_request_and_seed_give_the_same_message() -> None:
    assert await message(model("simulated:?seed=7")) == await message(model("simulated:?seed=7"))


async def test_another_seed_or_prompt_gives_another_text() -> None:
    first = await message(model("simulated:?seed=7"))
    for other in (
        await message(model("simulated:?seed=8")),
        await message(model("simulated:?seed=7"), system="Be brief."),
    ):
        assert other["content"] != first["content"]
        assert other["id"] != first["id"]


async def test_each_call_has_its_own_request_id() -> None:
    upstream = model()
    call = Call(json.dumps(params()).encode(), NEW, (), "w")
    ids = {(await upstream.send(call)).request_id for _ in range(3)}  # type: ignore[union-attr]
    assert len(ids) == 3


@pytest.mark.parametrize("tokens", [1, 2, 10, 50])
async def test_max_tokens_cuts_the_text_and_is_what_is_counted(tokens: int) -> None:
    whole = (await message(model()))["content"][0]["text"]
    cut = await message(model(), max_tokens=tokens)
    assert whole.startswith(cut["content"][0]["text"])
    assert cut["stop_reason"] == "max_tokens"
    assert cut["usage"]["output_tokens"] == tokens


async def test_max_tokens_of_zero_fills_the_cache_only() -> None:
    body = await message(model(), max_tokens=0)
    assert (body["content"], body["stop_reason"]) == ([], "max_tokens")
    assert body["usage"]["output_tokens"] == 0


async def test_the_earliest_stop_sequence_ends_the_text() -> None:
    body = await message(model(), stop_sequences=["called", "no model", "not in the text"])
    assert body["content"] == [{"type": "text", "text": "[Simulated answer: "}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "no model")


async def test_a_stop_sequence_after_the_cut_does_not_count() -> None:
    body = await message(model(), max_tokens=3, stop_sequences=["called"])
    assert (body["stop_reason"], body["stop_sequence"]) == ("max_tokens", None)


TOOL = {
    "name": "save",
    "input_schema": {
        "type": "object",
        "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 10}},
        "required": ["score"],
    },
}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "save"}])
async def test_a_forced_tool_is_used_with_valid_input(choice: dict[str, str]) -> None:
    body = await message(model(), tools=[TOOL], tool_choice=choice)
    [block] = body["content"]
    assert block["type"] == "tool_use"
    assert block["id"].startswith("toolu_01")
    assert block["name"] == "save"
    assert 1 <= block["input"]["score"] <= 10
    assert body["stop_reason"] == "tool_use"


async def test_a_tool_that_is_not_forced_is_not_used() -> None:
    body = await message(model(), tools=[TOOL], tool_choice={"type": "auto"})
    assert body["stop_reason"] == "end_turn"


async def test_a_tool_call_over_max_tokens_is_cut() -> None:
    choice = {"type": "any"}
    body = await message(model(), tools=[TOOL], tool_choice=choice, max_tokens=5)
    assert (body["stop_reason"], body["usage"]["output_tokens"]) == ("max_tokens", 5)


async def test_a_json_schema_gets_valid_json() -> None:
    form = {"type": "json_schema", "schema": TOOL["input_schema"]}
    body = await message(model(), output_config={"format": form})
    assert 1 <= json.loads(body["content"][0]["text"])["score"] <= 10
    assert body["stop_reason"] == "end_turn"


async def test_tokens_count_everything_in_the_prompt() -> None:
    upstream = model()
    small = (await message(upstream))["usage"]["input_tokens"]
    for more in (
        {"system": "You are terse."},
        {"system": [{"type": "text", "text": "You are terse."}]},
        {"tools": [TOOL]},
        {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "file", "file_id": "f"}}]}]},
        {"messages": [{"role": "user", "content": [
            {"type": "document", "source": {
                "type": "text", "media_type": "text/plain", "data": "Gears. " * 50}}]}]},
        {"messages": [{"role": "user", "content": [
            {"type": "document", "source": {
                "type": "base64", "media_type": "application/pdf", "data": "AAAA" * 50}}]}]},
        {"messages": [
            {"role": "user", "content": "Describe gears."},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "t", "name": "save", "input": {}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [
                    {"type": "text", "text": "Gears. " * 50}]}]}]},
    ):  # fmt: skip
        assert (await message(upstream, **more))["usage"]["input_tokens"] > small


BAD: dict[str, tuple[object, int, str, str]] = {
    "not JSON": (b"{", 400, "invalid_request_error", "The request body is not valid JSON: "),
    "no object": (b"[]", 400, "invalid_request_error", ""),
    "lone surrogate": (b'{"model":"m","max_tokens":1,"messages":"\\ud800"}', 400,
                       "invalid_request_error", ""),
    "no messages": ({"model": "claude-haiku-4-5", "max_tokens": 5}, 400, "invalid_request_error",
                    "messages: Field required"),
    "over the cap": (params(max_tokens=64_001), 400, "invalid_request_error",
                     "max_tokens: 64001 > 64000, which is the maximum allowed number of output"),
    "negative": (params(max_tokens=-1), 400, "invalid_request_error",
                 "max_tokens: must be greater than or equal to 1"),
    "sampling": (params(temperature=1), 400, "invalid_request_error",
                 "temperature: Extra inputs are not permitted"),
    "retired model": (params(model="claude-3-haiku-20240307"), 404, "not_found_error",
                      "model: claude-3-haiku-20240307"),
    "unknown model": (params(model="claude-does-not-exist-9"), 404, "not_found_error",
                      "model: claude-does-not-exist-9"),
    "blank stop": (params(stop_sequences=[" "]), 400, "invalid_request_error",
                   "stop_sequences: each stop sequence must contain non-whitespace"),
    "tool not there": (params(tools=[TOOL], tool_choice={"type": "tool", "name": "x"}), 400,
                       "invalid_request_error", "tool_choice: Tool 'x' not found in provided"),
    "tool without name": (params(tools=[TOOL], tool_choice={"type": "tool"}), 400,
                          "invalid_request_error", "tool_choice.tool.name: Field required"),
    "any of none": (params(tool_choice={"type": "any"}), 400, "invalid_request_error",
                    "tool_choice: "),
    "odd choice": (params(tool_choice={"type": "odd"}), 400, "invalid_request_error",
                   "tool_choice.type: "),
    "tools no list": (params(tools={}), 400, "invalid_request_error", "tools: "),
    "nameless tool": (params(tools=[{}]), 400, "invalid_request_error",
                      "tools.0.custom.name: Field required"),
    "format": (params(output_config={"format": {"type": "xml"}}), 400, "invalid_request_error",
               "output_config.format.type: "),
    "schema missing": (params(output_config={"format": {"type": "json_schema"}}), 400,
                       "invalid_request_error", "output_config.format.schema: "),
    "schema": (params(output_config={"format": {"type": "json_schema", "schema": {
        "properties": {"a": {"if": {}}}}}}), 400, "invalid_request_error",
        "output_config.format.schema.properties.a.if: "),
    "tool schema": (params(tools=[{"name": "t", "input_schema": {"type": "string"}}],
                           tool_choice={"type": "any"}), 400, "invalid_request_error",
                    "tools.0.custom.input_schema.type: Input should be 'object'"),
    "odd ttl": (params(cache_control={"type": "ephemeral", "ttl": [1]}), 400,
                "invalid_request_error",
                "cache_control.ephemeral.ttl: Input should be '5m' or '1h'"),
    "cache control": (params(cache_control={"type": "odd"}), 400, "invalid_request_error",
                      "cache_control.type: Input should be 'ephemeral'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_request_gets_the_envelope_of_the_api(name: str) -> None:
    fields, status, kind, text = BAD[name]
    found, body = await ask(model(), fields)
    assert (found, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["error"]["message"].startswith(text)
    assert body["request_id"].startswith("req_01")


async def test_the_cap_is_reported_in_the_words_of_the_api() -> None:
    _, body = await ask(model(), params(max_tokens=64_001))
    assert body["error"]["message"] == (
        "max_tokens: 64001 > 64000, which is the maximum allowed number of output tokens for "
        "claude-haiku-4-5-20251001"
    )


async def test_a_model_of_another_maker_is_answered_under_its_name() -> None:
    assert (await message(model(), model="qwen3:8b"))["model"] == "qwen3:8b"


async def test_the_beta_for_long_output_holds_in_batches_only() -> None:
    fields = params(model="claude-opus-4-6", max_tokens=300_000)
    assert (await ask(model(), fields, betas=("output-300k-2026-03-24",)))[0] == 200
    assert (await forward(model(), "POST", "/v1/messages", fields))[0] == 400


async def test_sampling_is_taken_under_the_old_version() -> None:
    assert (await ask(model(), params(temperature=1), version=OLD))[0] == 200


async def test_the_answer_takes_its_latency() -> None:
    clock = ManualClock()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(message(model("simulated:?latency=2", clock)))
        await clock.advance(1.999)
        assert not task.done()
        await clock.advance(0.001)
        assert task.done()


async def test_jitter_spreads_the_latency_within_its_share() -> None:
    clock = ManualClock()
    upstream = model("simulated:?latency=10&jitter=0.5", clock)
    ends: list[float] = []

    async def one(number: int) -> None:
        await message(upstream, system=f"Number {number}")
        ends.append(clock.monotonic_s())

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(one(number))
        await clock.advance(15)
    assert len(set(ends)) == 20
    assert all(5 <= end <= 15 for end in ends)


async def test_a_call_lets_others_run_even_without_latency() -> None:
    order: list[str] = []

    async def other() -> None:
        order.append("other")

    upstream = Simulated("sim", Settings(), SystemClock())
    async with asyncio.TaskGroup() as group:
        group.create_task(other())
        await message(upstream)
        order.append("answer")
    assert order == ["other", "answer"]


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("simulated:", Settings()),
        ("simulated:?", Settings()),
        ("simulated:?latency=0.2&seed=7", Settings(latency=0.2, seed=7)),
        ("simulated:?jitter=1&words=5", Settings(jitter=1.0, words=5)),
    ],
)
def test_settings_are_read_from_the_url(url: str, settings: Settings) -> None:
    assert Settings.parse(url) == settings


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("simulated", None),
        ("simulated:?speed=1", "latency, jitter, words, seed"),
        ("simulated:?latency=-1", "from 0 to"),
        ("simulated:?latency=nan", "from 0 to"),
        ("simulated:?jitter=2", "from 0 to 1"),
        ("simulated:?words=0", "from 1 to"),
        ("simulated:?seed=x", "whole number"),
        ("simulated:?seed=1&seed=2", "twice"),
        ("simulated://host", "simulated:?latency=0.2"),
        ("http://host", "simulated:?latency=0.2"),
    ],
)
def test_a_bad_setting_is_refused_with_what_is_allowed(url: str, text: str | None) -> None:
    if text is None:
        assert Settings.parse(url) == Settings()
        return
    with pytest.raises(ConfigError, match=text.replace("?", r"\?")):
        Settings.parse(url)


def read_events(data: bytes) -> list[dict[str, Any]]:
    found = []
    for event in data.decode().split("\n\n")[:-1]:
        name, payload = event.split("\n")
        fields = json.loads(payload.removeprefix("data: "))
        assert name == f"event: {fields['type']}"
        found.append(fields)
    return found


async def test_a_thinking_budget_is_counted_without_max_tokens() -> None:
    fields = params(thinking={"type": "enabled", "budget_tokens": 20_000})
    del fields["max_tokens"]
    assert (await forward(model(), "POST", "/v1/messages/count_tokens", fields))[0] == 200


async def test_a_beta_of_a_direct_call_lets_its_types_through() -> None:
    fields = params(tools=[{"type": "mcp_toolset", "mcp_server_name": "m"}])
    body = json.dumps(fields).encode()
    for betas, status in (((), 400), (("mcp-client-2025-11-20",), 200)):
        call = Forward("POST", "/v1/messages", NEW, betas, "wrkspc_a", body)
        async with model().forward(call) as reply:
            assert reply.status == status


EXTRA = "Extra inputs are not permitted"


async def test_a_misspelt_parameter_is_refused_in_a_batch_and_in_direct_calls() -> None:
    for version in (OLD, NEW):
        status, body = await ask(model(), params(systemm="x"), version=version)
        assert (status, body["error"]["type"]) == (400, "invalid_request_error")
        assert body["error"]["message"] == f"systemm: {EXTRA}"
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        fields = params(max_token=7)
        if path.endswith("count_tokens"):
            del fields["max_tokens"]
        status, _, data = await forward(model(), "POST", path, fields)
        assert (status, json.loads(data)["error"]["message"]) == (400, f"max_token: {EXTRA}")


@pytest.mark.parametrize(
    "taken",
    [
        {"stream": True}, {"max_tokens": 0}, {"speed": "fast"}, {"store": True},
        {"previous_thread_event_id": "x"}, {"cache_hint": {}}, {"context_hint": {}},
        {"research_preview_2026_02": "active"}, {"billing_policy": {"bill_to": "user_profile"}},
    ],
)  # fmt: skip
async def test_what_only_batches_refuse_hides_no_misspelt_parameter(taken: dict[str, Any]) -> None:
    fields = params(**taken)
    assert (await forward(model(), "POST", "/v1/messages", fields))[0] == 200
    status, _, data = await forward(model(), "POST", "/v1/messages", fields | {"systemm": "x"})
    assert (status, json.loads(data)["error"]["message"]) == (400, f"systemm: {EXTRA}")


async def test_all_parameters_of_the_api_are_known() -> None:
    keys = {*Params.__annotations__, *BetaParams.__annotations__}
    assert {"model", "system", "thinking", "stream", "fallbacks"} < keys
    refused = set()
    for key in keys:
        usual = params().get(key)
        _, body = await ask(model(), params(**{key: usual}), version=OLD)
        if body.get("error", {}).get("message") == f"{key}: {EXTRA}":
            refused.add(key)
    assert refused == {"betas", "workspace_id"}, "these are headers"


@pytest.mark.parametrize(
    ("name", "betas", "status"),
    [
        ("claude-haiku-4-5", (), 400),
        ("claude-haiku-4-5", ("output-300k-2026-03-24",), 400),
        ("claude-haiku-4-5", ("never-heard-of-2099-01-01",), 200),
        ("other-makers-model", (), 200),
    ],
)
async def test_a_beta_and_models_of_others_may_have_parameters_of_their_own(
    name: str, betas: tuple[str, ...], status: int
) -> None:
    fields = params(model=name, unheard_of=1)
    assert (await ask(model(), fields, betas=betas))[0] == status
    call = Forward("POST", "/v1/messages", NEW, betas, "wrkspc_a", json.dumps(fields).encode())
    async with model().forward(call) as reply:
        assert reply.status == status


async def test_a_stream_carries_the_same_message() -> None:
    whole = await message(model())
    status, headers, data = await forward(
        model(), "POST", "/v1/messages?beta=true", params(stream=True)
    )
    events = read_events(data)
    names = [event["type"] for event in events]
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0]["message"]["id"] == whole["id"]
    assert events[0]["message"]["content"] == []
    text = "".join(each["delta"]["text"] for each in events if "text" in each.get("delta", ()))
    assert text == whole["content"][0]["text"]
    assert events[-2]["delta"]["stop_reason"] == "end_turn"
    assert events[-2]["usage"] == whole["usage"]


async def test_a_streamed_tool_call_carries_its_input_in_parts() -> None:
    fields = params(stream=True, tools=[TOOL], tool_choice={"type": "any"})
    events = read_events((await forward(model(), "POST", "/v1/messages", fields))[2])
    assert events[1]["content_block"]["input"] == {}
    parts = [each["delta"].get("partial_json", "") for each in events if "delta" in each]
    assert 1 <= json.loads("".join(parts))["score"] <= 10


async def test_an_error_is_not_streamed() -> None:
    status, headers, data = await forward(model(), "POST", "/v1/messages", {"stream": True})
    assert (status, headers["content-type"]) == (400, "application/json")
    assert json.loads(data)["request_id"] == headers["request-id"]


async def test_counted_tokens_are_those_of_the_usage() -> None:
    fields = params(system="Be brief.", tools=[TOOL])
    usage = (await ask(model(), fields))[1]["usage"]
    del fields["max_tokens"]
    status, _, data = await forward(model(), "POST", "/v1/messages/count_tokens", fields)
    assert (status, json.loads(data)) == (200, {"input_tokens": usage["input_tokens"]})


async def test_the_models_come_in_pages_both_ways() -> None:
    whole = json.loads((await forward(model(), "GET", "/v1/models?limit=1000"))[2])
    ids = [each["id"] for each in whole["data"]]
    assert not whole["has_more"]
    page = json.loads(
        (await forward(model(), "GET", f"/v1/models?limit=2&after_id={ids[2]}&beta=true"))[2]
    )
    assert [each["id"] for each in page["data"]] == ids[3:5]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[3], ids[4], True)
    page = json.loads((await forward(model(), "GET", f"/v1/models?limit=2&before_id={ids[3]}"))[2])
    assert [each["id"] for each in page["data"]] == ids[1:3]


async def listed(query: str) -> list[str]:
    page = json.loads((await forward(model(), "GET", f"/v1/models?limit=1000&{query}"))[2])
    return [each["id"] for each in page["data"]]


async def test_retired_models_are_listed_only_when_asked_for() -> None:
    usual = await listed("")
    assert "claude-sonnet-4-5" in usual
    assert "claude-3-haiku-20240307" not in usual
    assert "claude-3-haiku-20240307" in await listed("lifecycle[]=retired")
    both = await listed("lifecycle[]=active&lifecycle[]=deprecated")
    assert both == usual
    assert set(await listed("lifecycle=deprecated")) < set(usual)


async def test_a_model_is_described_as_far_as_it_is_known() -> None:
    status, _, data = await forward(model(), "GET", "/v1/models/claude-haiku-4-5-20251001")
    found = json.loads(data)
    assert status == 200
    assert found["display_name"] == "Claude Haiku 4.5"
    assert found["created_at"] == "2025-10-15T00:00:00Z"
    assert (found["line"], found["max_tokens"], found["lifecycle"]) == ("haiku", 64_000, "active")
    assert found["max_input_tokens"] == 200_000
    can = found["capabilities"]
    assert can["batch"] == {"supported": True}
    assert not can["effort"]["supported"]
    assert [kind for kind, each in can["thinking"]["types"].items() if each["supported"]] == [
        "disabled",
        "enabled",
    ]


async def test_an_end_of_life_is_told() -> None:
    found = json.loads((await forward(model(), "GET", "/v1/models/claude-sonnet-4-5"))[2])
    assert (found["lifecycle"], found["retires_at"]) == ("deprecated", "2026-11-30T00:00:00Z")
    found = json.loads((await forward(model(), "GET", "/v1/models/claude-opus-5-5"))[2])
    assert (found["deprecated_at"], found["retires_at"]) == (None, None)
    assert found["created_at"] == "1970-01-01T00:00:00Z"


async def test_every_model_is_one_of_the_official_client() -> None:
    whole = json.loads(
        (await forward(model(), "GET", "/v1/models?limit=1000&lifecycle=retired&lifecycle=active"))[
            2
        ]
    )
    for each in whole["data"]:
        read = ModelInfo.model_validate(each, strict=False)
        assert read.capabilities is not None
        assert each.keys() == ModelInfo.model_fields.keys()
        assert each["capabilities"].keys() == ModelCapabilities.model_fields.keys()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/unknown", 404),
        ("POST", "/", 404),
        ("GET", "/v1/messages", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/models?limit=0", 400),
        ("GET", "/v1/models?limit=1001", 400),
        ("GET", "/v1/models?limit=x", 400),
        ("GET", "/v1/models?after_id=x", 400),
        ("GET", "/v1/models?lifecycle=gone", 400),
    ],
)
async def test_other_paths_get_the_envelope_too(method: str, path: str, status: int) -> None:
    found, headers, data = await forward(model(), method, path)
    assert found == status
    assert json.loads(data)["type"] == "error"
    assert ("allow" in headers) is (status == 405)
