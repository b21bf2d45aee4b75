"""What an engine is asked, and what is refused by name instead of being left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchyard.errors import ConfigError, InvalidRequest
from batchyard.upstream.engine import Prompt, Sampling, Turn
from batchyard.upstream.engine.reading import Asked, read
from batchyard.upstream.engine.settings import Settings


def asked(**fields: Any) -> Asked:
    usual = {
        "model": "tiny",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Say it."}],
    }
    return read(json.dumps(usual | fields).encode())


def test_a_conversation_and_how_to_sample_are_read() -> None:
    found = asked(
        system=[{"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "short."}],
        messages=[
            {"role": "user", "content": "One"},
            {"role": "user", "content": [{"type": "text", "text": "Two"}]},
            {"role": "assistant", "content": "Three"},
        ],
        temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["END", ""],
        metadata={"user_id": "u"}, service_tier="auto", tools=[], thinking={"type": "disabled"},
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
    )  # fmt: skip
    turns = (Turn("system", "Be\nshort."), Turn("user", "One\nTwo"), Turn("assistant", "Three"))
    assert found.prompt == Prompt(turns)
    assert found.prompt.continues
    assert found.sampling == Sampling(9, 0.5, 0.9, 40, ("END",), {"type": "object"})
    assert (found.model, found.streams) == ("tiny", False)


def test_what_is_left_out_has_the_values_of_the_api() -> None:
    found = asked()
    assert found.sampling == Sampling(9, 1.0, None, None, (), None)
    assert not found.prompt.continues


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aa"}}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"name": "t", "input_schema": {}}]}, "tools:"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking:"),
        ({"output_config": {"effort": "high"}}, "output_config.effort:"),
        ({"container": "c"}, "container:"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0: a block"),
        ({"system": [{"type": "document"}]}, "system.0: a block of type document"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role:"),
    ],
)
def test_what_an_engine_does_not_do_is_refused_by_name(fields: Any, named: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        asked(**fields)
    assert error.value.message.startswith(named)
    assert "not supported by an in-process engine" in error.value.message


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": "9"}, "max_tokens:"),
        ({"max_tokens": 0}, "max_tokens:"),
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"messages": []}, "messages: at least one"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role: Input should be"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"temperature": 1.5}, "temperature:"),
        ({"top_p": 0.0}, "top_p:"),
        ({"top_k": -1}, "top_k:"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format:"),
    ],
)
def test_a_request_that_is_none_is_told_where(fields: Any, named: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        asked(**fields)
    assert error.value.message.startswith(named), error.value.message


@pytest.mark.parametrize(
    "member",
    [
        b'"foo":1e999',
        b'"foo":"\xff"',
        b'"foo":[{"\xff":1}]',
        b'"\xff":1',
        b'"system":"\xff"',
        b'"foo":' + b"[" * 100_000 + b"]" * 100_000,
        b'"output_config":{"format":{"type":"json_schema","schema":{"a":"\xff"}}}',
        b'"output_config":{"format":{"type":"json_schema","schema":{"\xff":1}}}',
    ],
)
def test_what_is_not_json_in_any_part_is_refused(member: bytes) -> None:
    usual = b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}],'
    with pytest.raises(InvalidRequest, match="The request is not valid JSON: "):
        read(usual + member + b"}")


@pytest.mark.parametrize("name", ["top_k", "max_tokens"])
def test_a_number_that_no_engine_can_hold_is_refused_by_name(name: str) -> None:
    most = 2**63 - 1
    assert most in asked(**{name: most}).sampling
    for value in (most + 1, 10**30):
        with pytest.raises(InvalidRequest) as error:
            asked(**{name: value})
        assert error.value.message == f"{name}: Input should be less than or equal to {most}"


def test_counting_needs_no_max_tokens() -> None:
    found = read(b'{"model":"m","messages":[{"role":"user","content":"x"}]}', counting=True)
    assert found.prompt == Prompt((Turn("user", "x"),))


# Settings -----------------------------------------------------------------------------------------


def test_settings_are_read_from_the_url() -> None:
    url = "vllm:/models/a%20b?max_num_seqs=8&max_model_len=512&tensor_parallel_size=2&dtype=float16"
    found = Settings.parse(f"{url}&gpu_memory_utilization=0.8&quantization=awq&seed=7", 64)
    assert found == Settings(
        model="/models/a b", max_num_seqs=8, max_model_len=512, tensor_parallel_size=2,
        dtype="float16", gpu_memory_utilization=0.8, quantization="awq", seed=7,
    )  # fmt: skip
    assert Settings.parse("vllm:org/name", 64) == Settings(model="org/name", max_num_seqs=64)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("vllm:", "does not name a model"),
        ("vllm:../x", "does not name a model"),
        ("vllm:/m?temperature=1", "temperature is not a setting"),
        ("vllm:/m?max_num_seqs=0", "max_num_seqs of the engine: 0"),
        ("vllm:/m?seed=1&seed=2", "seed of the engine is given twice"),
        ("vllm:/m?gpu_memory_utilization=nan", "above 0 and up to 1"),
        ("vllm:/m?dtype=int8", "bfloat16"),
        ("vllm:/m?quantization=a b", "a name such as awq"),
    ],
)
def test_settings_that_cannot_be_are_told(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Settings.parse(url, 64)
