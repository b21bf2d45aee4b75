"""Thinking, effort, sampling, tools and the other settings: what the hosted API refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import anthropic
import pytest
from anthropic.types.tool_union_param import ToolUnionParam

from batchyard.validate.tools import BUILT_IN, CUSTOM_KEYS
from helpers_validate import (
    BASE,
    HAIKU_4_5,
    NEW,
    OLD,
    OPUS_4_6,
    OPUS_4_8,
    OPUS_5,
    OPUS_5_5,
    SONNET_5_5,
    changed,
    problem,
    said,
    text,
)

BETA = ("some-feature-2026-11-01",)
TOOL = {"name": "save", "input_schema": {"type": "object", "properties": {"a": "any"}}}

# Sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0}, None),
        ({"temperature": 1.0}, None),
        ({"temperature": 1.1}, "temperature: range: 0..1"),
        ({"temperature": -0.1}, "temperature: range: 0..1"),
        ({"top_p": 0}, None),
        ({"top_p": 2}, "top_p: range: 0..1"),
        ({"top_k": 0}, None),
        ({"top_k": -1}, "top_k: Input should be greater than or equal to 0"),
    ],
)
def test_sampling_has_bounds_under_the_old_version(
    fields: dict[str, Any], message: str | None
) -> None:
    assert changed(**fields) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 1}, None),
        ({"temperature": 0.5}, "`temperature` is deprecated for this model."),
        ({"top_p": 0.99}, None),
        ({"top_p": 1}, None),
        ({"top_p": 0.98}, "`top_p` is deprecated for this model."),
        ({"top_k": 5}, "`top_k` is deprecated for this model."),
        ({"top_k": 0}, "`top_k` is deprecated for this model."),
        ({"temperature": None, "top_p": None, "top_k": None}, None),
    ],
)
@pytest.mark.parametrize("model", [OPUS_4_8, OPUS_5_5, SONNET_5_5, "claude-haiku-5-5"])
def test_models_after_opus_4_6_take_defaults_only(
    model: str, fields: dict[str, Any], message: str | None
) -> None:
    assert changed(model=model, **fields) == message
    assert changed(model=OPUS_4_6, **fields) is None


# Thinking and effort --------------------------------------------------------------------------

MANUAL = {"type": "enabled", "budget_tokens": 1_024}
USE_ADAPTIVE = (
    ' Use "thinking.type.adaptive" and "output_config.effort" to control thinking behavior.'
)
NO_ENABLED = f'"thinking.type.enabled" is not supported for this model.{USE_ADAPTIVE}'
NO_DISABLED = f'"thinking.type.disabled" is not supported for this model.{USE_ADAPTIVE}'
NO_ADAPTIVE = "adaptive thinking is not supported on this model"

THINKING = [
    (HAIKU_4_5, "enabled", None),
    (HAIKU_4_5, "disabled", None),
    (HAIKU_4_5, "adaptive", NO_ADAPTIVE),
    ("claude-opus-4-5", "adaptive", NO_ADAPTIVE),
    ("claude-sonnet-4-5", "adaptive", NO_ADAPTIVE),
    (OPUS_4_6, "enabled", None),
    (OPUS_4_6, "adaptive", None),
    ("claude-opus-4-7", "enabled", NO_ENABLED),
    (OPUS_4_8, "enabled", NO_ENABLED),
    (OPUS_4_8, "disabled", None),
    (OPUS_5, "enabled", NO_ENABLED),
    (OPUS_5, "disabled", None),
    (OPUS_5_5, "enabled", NO_ENABLED),
    (OPUS_5_5, "disabled", NO_DISABLED),
    (OPUS_5_5, "adaptive", None),
    (
        OPUS_5_5,
        "between_tools",
        f'"thinking.type.between_tools" is not supported for this model.{USE_ADAPTIVE}',
    ),
    ("claude-fable-5-1", "disabled", NO_DISABLED),
    ("claude-fable-5-1", "adaptive", None),
    ("claude-sonnet-5", "enabled", NO_ENABLED),
    (SONNET_5_5, "enabled", NO_ENABLED),
    (SONNET_5_5, "between_tools", None),
    (
        SONNET_5_5,
        "disabled",
        (
            '"thinking.type.disabled" is not supported for this model. Use '
            '"thinking.type.between_tools" to turn off thinking before the answer.'
        ),
    ),
    ("claude-haiku-5-5", "enabled", NO_ENABLED),
    ("claude-haiku-5-5", "adaptive", None),
]


@pytest.mark.parametrize(("model", "kind", "message"), THINKING)
def test_each_model_takes_its_kinds_of_thinking(model: str, kind: str, message: str | None) -> None:
    thinking = MANUAL if kind == "enabled" else {"type": kind}
    assert changed(model=model, thinking=thinking) == message
    assert changed(NEW, BETA, model=model, thinking=thinking) == message


@pytest.mark.parametrize(
    ("thinking", "message"),
    [
        ({}, "thinking.type: Field required"),
        ({"type": 1}, "thinking.type: Input should be a valid string"),
        (
            {"type": "deep"},
            (
                "thinking: Input tag 'deep' found using 'type' does not match any of the expected "
                "tags: 'adaptive', 'between_tools', 'disabled', 'enabled'"
            ),
        ),
        ({"type": "enabled"}, "thinking.enabled.budget_tokens: Field required"),
        (
            MANUAL | {"budget_tokens": "2000"},
            "thinking.enabled.budget_tokens: Input should be a valid integer",
        ),
        (
            MANUAL | {"budget_tokens": 1_023},
            "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024",
        ),
        (MANUAL | {"budget_tokens": 4_999}, None),
        (
            MANUAL | {"budget_tokens": 5_000},
            "`max_tokens` must be greater than `thinking.budget_tokens`.",
        ),
        (MANUAL | {"display": "summarized"}, None),
        (MANUAL | {"display": None}, None),
        (
            MANUAL | {"display": "all"},
            "thinking.enabled.display: Input should be 'summarized' or 'omitted'",
        ),
    ],
)
def test_thinking_has_a_form(thinking: dict[str, object], message: str | None) -> None:
    assert changed(thinking=thinking) == message


def test_a_beta_may_bring_its_own_thinking() -> None:
    assert changed(OLD, BETA, thinking={"type": "deep"}) is None
    over = MANUAL | {"budget_tokens": 20_000}
    assert changed(OLD, ("interleaved-thinking-2025-05-14",), thinking=over) is None
    assert changed(OLD, BETA, thinking=over) is not None


EFFORT = [
    (HAIKU_4_5, "low", "This model does not support the effort parameter."),
    ("claude-sonnet-4-5", "high", "This model does not support the effort parameter."),
    ("claude-opus-4-5", "high", None),
    (
        "claude-opus-4-5",
        "max",
        "This model does not support effort level 'max'. Supported levels: low, medium, high.",
    ),
    (OPUS_4_6, "max", None),
    (
        OPUS_4_6,
        "xhigh",
        (
            "This model does not support effort level 'xhigh'. Supported levels: low, medium, "
            "high, max."
        ),
    ),
    (OPUS_5_5, "xhigh", None),
    (
        OPUS_5_5,
        "huge",
        "output_config.effort: Input should be 'low', 'medium', 'high', 'xhigh' or 'max'",
    ),
    (OPUS_5_5, None, None),
]


@pytest.mark.parametrize(("model", "effort", "message"), EFFORT)
def test_each_model_takes_its_levels_of_effort(
    model: str, effort: str | None, message: str | None
) -> None:
    assert changed(model=model, output_config={"effort": effort}) == message


@pytest.mark.parametrize(("model", "kind"), [(OPUS_5, "disabled"), (SONNET_5_5, "between_tools")])
def test_the_highest_effort_needs_thinking(model: str, kind: str) -> None:
    thinking = {"type": kind}
    assert changed(model=model, thinking=thinking, output_config={"effort": "high"}) is None
    assert changed(model=model, output_config={"effort": "xhigh"}) is None
    assert changed(model=model, thinking=thinking, output_config={"effort": "xhigh"}) == (
        "output_config.effort 'xhigh' is not supported when thinking is disabled on this model. "
        "Use effort 'high' or below, or enable thinking."
    )


# Tools ----------------------------------------------------------------------------------------

WRONG_TOOLS: list[tuple[dict[str, object], str]] = [
    ({}, "tools.0.custom.name: Field required"),
    ({"name": 5}, "tools.0.custom.name: Input should be a valid string"),
    ({"name": ""}, "tools.0.custom.name: String should have at least 1 character"),
    (
        {"name": "a b"},
        "tools.0.custom.name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'",
    ),
    (
        {"name": "a\n"},
        "tools.0.custom.name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'",
    ),
    ({"name": "t"}, "tools.0.custom.input_schema: Field required"),
    (
        {"name": "t", "type": "custom", "input_schema": []},
        "tools.0.custom.input_schema: Input should be a valid dictionary",
    ),
    ({"name": "t", "input_schema": {}}, "tools.0.custom.input_schema.type: Field required"),
    (
        {"name": "t", "input_schema": {"type": "string"}},
        "tools.0.custom.input_schema.type: Input should be 'object'",
    ),
    (TOOL | {"description": 5}, "tools.0.custom.description: Input should be a valid string"),
    (TOOL | {"color": 1}, "tools.0.custom.color: Extra inputs are not permitted"),
    (
        {"type": "web_fetch_20250910", "name": "web_fetch", "_requestedType": "x"},
        "tools.0.web_fetch_20250910._requestedType: Extra inputs are not permitted",
    ),
    (
        {"type": "web_search_20250305", "name": "search"},
        "tools.0.web_search_20250305.name: Input should be 'web_search'",
    ),
    ({"type": "bash_20250124"}, "tools.0.bash_20250124.name: Field required"),
    (
        TOOL | {"cache_control": {"type": "x"}},
        "tools.0.custom.cache_control.type: Input should be 'ephemeral'",
    ),
    ({"type": 5}, "tools.0.type: Input should be a valid string"),
]


@pytest.mark.parametrize(("tool", "message"), WRONG_TOOLS)
def test_a_tool_that_does_not_fit_is_named_with_its_path(
    tool: dict[str, object], message: str
) -> None:
    assert changed(tools=[tool]) == message
    if not message.endswith("Extra inputs are not permitted"):
        assert changed(OLD, BETA, tools=[tool]) == message


def test_what_is_not_known_of_tools_may_be_that_of_a_beta() -> None:
    new = {"type": "mcp_toolset", "mcp_server_name": "m"}
    found = changed(tools=[new]) or ""
    assert found.startswith(
        "tools.0: Input tag 'mcp_toolset' found using 'type' does not match any of the expected "
        "tags: 'bash_20250124', 'browser_toolset_20260801', "
    )
    assert changed(OLD, BETA, tools=[new, TOOL | {"color": 1}]) is None


def _keys(kind: type) -> set[str]:
    return set(get_type_hints(kind))


def test_the_tools_of_the_official_client_are_known_with_their_keys() -> None:
    """A differential test: a new client with a new tool fails here, not at a user's."""
    found: dict[str, set[str]] = {}
    for kind in get_args(ToolUnionParam):
        tags = get_args(get_type_hints(kind)["type"])
        if type(None) in tags:
            assert _keys(kind) == CUSTOM_KEYS
        else:
            found |= dict.fromkeys(tags, _keys(kind))
    assert found == {kind: set(each.keys) for kind, each in BUILT_IN.items()}


def test_the_names_of_built_in_tools_are_those_of_the_official_client() -> None:
    for path in (Path(anthropic.__file__).parent / "types").glob("*_param.py"):
        source = path.read_text(encoding="utf-8")
        tags = re.search(r'^    type: Required\[Literal\["(\w+)"', source, re.MULTILINE)
        name = re.search(r'^    name: Required\[Literal\["(\w+)"', source, re.MULTILINE)
        is_tool = "    cache_control: " in source
        if is_tool and tags and tags[1] in BUILT_IN:
            assert BUILT_IN[tags[1]].name == (name[1] if name else None)


def test_each_built_in_tool_passes() -> None:
    for kind, each in BUILT_IN.items():
        tool = {"type": kind} | ({"name": each.name} if each.name else {})
        assert changed(tools=[TOOL, tool]) is None, kind


def test_tools_have_different_names() -> None:
    assert changed(tools=[TOOL, TOOL]) == "tools: Tool names must be unique."


def test_a_tool_that_is_too_old_for_the_model_is_refused() -> None:
    old = {"type": "computer_20251124", "name": "computer"}
    found = changed(OLD, ("computer-use-2025-11-24",), model=OPUS_5_5, tools=[old])
    assert found == "'claude-opus-5-5' does not support tool types: computer_20251124"
    assert changed(OLD, ("computer-use-2025-11-24",), model=OPUS_5, tools=[old]) is None


CHOICES: list[tuple[dict[str, object], list[object], str | None]] = [
    ({"type": "auto"}, [], None),
    ({"type": "none"}, [TOOL], None),
    ({"type": "any", "disable_parallel_tool_use": True}, [TOOL], None),
    ({"type": "tool", "name": "save"}, [TOOL], None),
    ({}, [TOOL], "tool_choice.type: Field required"),
    (
        {"type": "required"},
        [TOOL],
        "tool_choice.type: Input should be 'auto', 'any', 'tool' or 'none'",
    ),
    ({"type": "tool"}, [TOOL], "tool_choice.tool.name: Field required"),
    (
        {"type": "auto", "disable_parallel_tool_use": 1},
        [TOOL],
        "tool_choice.auto.disable_parallel_tool_use: Input should be a valid boolean",
    ),
    (
        {"type": "tool", "name": "x"},
        [TOOL],
        "tool_choice: Tool 'x' not found in provided tools",
    ),
    ({"type": "any"}, [], "tool_choice: `any` may only be specified while providing tools"),
]


@pytest.mark.parametrize(("choice", "tools", "message"), CHOICES)
def test_the_choice_is_one_among_the_tools(
    choice: dict[str, object], tools: list[object], message: str | None
) -> None:
    assert changed(tools=tools, tool_choice=choice) == message


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "save"}])
def test_tools_of_a_beta_may_be_chosen_unseen(choice: dict[str, object]) -> None:
    assert changed(tool_choice=choice) is not None
    assert changed(OLD, BETA, tool_choice=choice) is None


@pytest.mark.parametrize("model", [OPUS_5_5, SONNET_5_5, "claude-fable-5-1", "claude-mythos-5-1"])
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "save"}])
def test_some_models_cannot_be_forced(model: str, choice: dict[str, object]) -> None:
    refused = 'tool_choice: type "tool" and "any" are not supported for this model.'
    assert changed(model=model, tools=[TOOL], tool_choice=choice) == refused
    assert changed(model="claude-haiku-5-5", tools=[TOOL], tool_choice=choice) is None
    assert changed(model=model, tools=[TOOL], tool_choice={"type": "auto"}) is None


def test_forced_tools_and_manual_thinking_exclude_each_other() -> None:
    found = changed(tools=[TOOL], tool_choice={"type": "any"}, thinking=MANUAL)
    assert found == "Thinking may not be enabled when tool_choice forces tool use."


# The rest -------------------------------------------------------------------------------------

SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}
REST: list[tuple[dict[str, Any], str | None]] = [
    ({"metadata": {"user_id": "u" * 512}}, None),
    ({"metadata": {"user_id": None}}, None),
    ({"metadata": {"user_id": 5}}, "metadata.user_id: Input should be a valid string"),
    (
        {"metadata": {"user_id": "u" * 513}},
        "metadata.user_id: String should have at most 512 characters",
    ),
    ({"service_tier": "auto"}, None),
    ({"service_tier": "standard_only"}, None),
    ({"service_tier": "batch"}, "service_tier: Input should be 'auto' or 'standard_only'"),
    ({"inference_geo": "us"}, None),
    ({"inference_geo": None}, None),
    ({"inference_geo": 5}, "inference_geo: Input should be a valid string"),
    ({"diagnostics": {"previous_message_id": None}}, None),
    (
        {"diagnostics": {"previous_message_id": "m" * 257}},
        "diagnostics.previous_message_id: String should have at most 256 characters",
    ),
    ({"diagnostics": 5}, "diagnostics: Input should be a valid dictionary"),
    ({"container": "container_1"}, None),
    ({"container": {"id": "c", "skills": None}}, None),
    (
        {
            "container": {
                "skills": [{"type": "anthropic", "skill_id": "pdf", "version": "latest"}] * 20
            }
        },
        None,
    ),
    (
        {"container": {"skills": [{"type": "custom", "skill_id": "s"}] * 21}},
        "container.skills: List should have at most 20 items after validation, not 21",
    ),
    (
        {"container": {"skills": [{"type": "own", "skill_id": "s"}]}},
        "container.skills.0.type: Input should be 'anthropic' or 'custom'",
    ),
    (
        {"container": {"skills": [{"type": "custom", "skill_id": "s" * 65}]}},
        "container.skills.0.skill_id: String should have at most 64 characters",
    ),
    (
        {"container": {"skills": [{"type": "custom", "skill_id": "s", "version": ""}]}},
        "container.skills.0.version: String should have at least 1 character",
    ),
    ({"container": 5}, "container: Input should be a valid dictionary"),
    ({"stop_sequences": ["a", "b"]}, None),
    (
        {"stop_sequences": ["a", " \n"]},
        "stop_sequences: each stop sequence must contain non-whitespace",
    ),
    ({"output_config": {"format": SCHEMA}}, None),
    (
        {"output_config": {"format": {"type": "xml"}}},
        "output_config.format.type: Input should be 'json_schema'",
    ),
    (
        {"output_config": {"format": {"type": "json_schema"}}},
        "output_config.format.schema: Field required",
    ),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": []}}},
        "output_config.format.schema: Input should be a valid dictionary",
    ),
]


@pytest.mark.parametrize(("fields", "message"), REST)
def test_the_other_settings_have_their_form(fields: dict[str, Any], message: str | None) -> None:
    assert changed(**fields) == message
    assert changed(NEW, **fields) == message


def test_citations_and_an_output_format_exclude_each_other() -> None:
    cited = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "x"},
        "citations": {"enabled": True},
    }
    call = {"type": "tool_use", "id": "a", "name": "t", "input": {}}
    answered = {"type": "tool_result", "tool_use_id": "a", "content": [text(), cited]}
    for messages in (
        [said("user", cited, text())],
        [said("user", text()), said("assistant", call), said("user", answered)],
    ):
        fields = BASE | {"messages": messages}
        assert problem(fields) is None
        assert problem(fields | {"output_config": {"format": SCHEMA}}) == (
            "output_config.format: Citations cannot be used with an output format"
        )
        quiet = json.loads(json.dumps(fields).replace("true", "false"))
        assert problem(quiet | {"output_config": {"format": SCHEMA}}) is None


# The create bodies of the official suites, as the client sends them --------------------------

SUITE: dict[str, Any] = {
    "model": "claude-opus-5-5",
    "max_tokens": 1024,
    "messages": [{"role": "user", "content": "Hello, world"}],
    "cache_control": {"type": "ephemeral", "ttl": "5m"},
    "container": {"id": "id", "skills": [{"skill_id": "pdf", "type": "anthropic",
                                          "version": "latest"}]},
    "diagnostics": {"previous_message_id": "previous_message_id"},
    "inference_geo": "inference_geo",
    "metadata": {"user_id": "13803d75-b4b5-4c3e-b2a2-6f21399b021b"},
    "output_config": {"effort": "low",
                      "format": {"schema": {"foo": "bar"}, "type": "json_schema"}},
    "service_tier": "auto",
    "speed": "standard",
    "stop_sequences": ["string"],
    "stream": False,
    "system": [{"text": "Today's date is 2024-06-01.", "type": "text",
                "cache_control": {"type": "ephemeral", "ttl": "5m"},
                "citations": [{"cited_text": "cited_text", "document_index": 0,
                               "document_title": "x", "end_char_index": 0, "start_char_index": 0,
                               "type": "char_location"}]}],
    "thinking": {"type": "adaptive", "display": "summarized"},
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "tools": [{"input_schema": {"type": "object",
                                "properties": {"location": "bar", "unit": "bar"},
                                "required": ["location"]},
               "name": "name", "allowed_callers": ["direct"],
               "cache_control": {"type": "ephemeral", "ttl": "5m"}, "defer_loading": True,
               "description": "Get the current weather in a given location",
               "eager_input_streaming": True, "input_examples": [{"foo": "bar"}],
               "strict": True, "type": "custom"}],
}  # fmt: skip


def test_the_create_body_of_the_official_suite_passes() -> None:
    assert problem(SUITE, version=NEW) is None
    assert problem(SUITE | {"thread": {"type": "create"}}, version=NEW, betas=("string",)) is None


def test_the_create_body_of_an_older_official_suite_is_errored_where_the_model_is_newer() -> None:
    sampling = {"temperature": 1, "top_k": 5, "top_p": 0.7}
    found = problem(SUITE | {"model": "claude-opus-5"} | sampling)
    assert found == "`top_p` is deprecated for this model."
    assert problem(SUITE | {"model": "claude-opus-5"}) is None
