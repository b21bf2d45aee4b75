"""What every endpoint refuses, what batches refuse, and the output cap; in which words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from batchyard import models, validate
from helpers_validate import BASE, NEW, OLD, OPUS_5_5, USER, changed, problem, said, text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SELF_HOSTED = {"model": "qwen3-8b"}


def without(name: str) -> dict[str, object]:
    return {key: value for key, value in BASE.items() if key != name}


FINE: list[dict[str, object]] = [
    {},
    {"stream": False},
    {"stream": None},
    {"speed": "standard"},
    {"speed": None},
    {"system": "be brief"},
    {"system": ""},
    {"system": [text(cache_control={"type": "ephemeral"})]},
    {"stop_sequences": ["a"]},
    {"temperature": 0, "top_p": 0.5, "top_k": 3},
    {"temperature": None},
    {"unknown_key_of_tomorrow": {"x": 1}},
    {"model": "a/model:of-somebody else"},
    {"model": "m" * 256},
    {"messages": [USER, said("assistant", text())]},
    {"messages": [USER, USER]},
    {"research_preview_2026_02": "inactive"},
    {"research_preview_2026_02": None},
    {"max_tokens": 1},
    {"fallback_credit_token": "x"},
    {"billing_policy": {"type": "x", "bill_to": "self"}},
]


@pytest.mark.parametrize("extra", FINE)
def test_what_batches_allow_passes(extra: dict[str, object]) -> None:
    assert problem(BASE | extra) is None


def unsupported(name: str) -> str:
    return f"`{name}` is not supported in the Message Batches API"


# The six rows of the guide; the text of the first and of max_tokens are recorded.
NOT_IN_BATCHES = [
    ({"stream": True}, unsupported("stream=True")),
    ({"speed": "fast"}, unsupported("speed")),
    ({"store": True}, unsupported("store")),
    ({"store": None}, unsupported("store")),
    ({"previous_thread_event_id": "x"}, unsupported("previous_thread_event_id")),
    ({"cache_hint": {}}, unsupported("cache_hint")),
    ({"context_hint": {}}, unsupported("context_hint")),
    ({"research_preview_2026_02": "active"}, unsupported("research_preview_2026_02")),
    ({"max_tokens": 0}, "max_tokens: must be greater than or equal to 1"),
    ({"max_tokens": -1}, "max_tokens: must be greater than or equal to 1"),
    (
        {"billing_policy": {"bill_to": "user_profile"}},
        unsupported('billing_policy.bill_to="user_profile"'),
    ),
]


@pytest.mark.parametrize(("extra", "message"), NOT_IN_BATCHES)
@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize("model", [{}, SELF_HOSTED], ids=["hosted", "self-hosted"])
def test_what_batches_do_not_support_is_refused(
    extra: dict[str, object], message: str, version: str, model: dict[str, object]
) -> None:
    assert problem(BASE | extra | model, version=version) == message


WRONG = [
    (without("model"), "model: Field required"),
    (without("max_tokens"), "max_tokens: Field required"),
    (without("messages"), "messages: Field required"),
    (BASE | {"model": ""}, "model: String should have at least 1 character"),
    (BASE | {"model": "m" * 257}, "model: String should have at most 256 characters"),
    (BASE | {"model": None}, "model: Input should be a valid string"),
    (BASE | {"model": 5}, "model: Input should be a valid string"),
    (BASE | {"max_tokens": True}, "max_tokens: Input should be a valid integer"),
    (BASE | {"max_tokens": "5"}, "max_tokens: Input should be a valid integer"),
    (BASE | {"max_tokens": 5.0}, "max_tokens: Input should be a valid integer"),
    (BASE | {"max_tokens": None}, "max_tokens: Input should be a valid integer"),
    (BASE | {"messages": []}, "messages: at least one message is required"),
    (BASE | {"messages": "hi"}, "messages: Input should be a valid list"),
    (BASE | {"messages": [5]}, "messages.0: Input should be a valid dictionary"),
    (BASE | {"messages": [USER, {"content": ""}]}, "messages.1.role: Field required"),
    (BASE | {"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
    (
        BASE | {"messages": [USER, {"role": "tool", "content": ""}]},
        "messages.1.role: Input should be 'user', 'assistant' or 'system'",
    ),
    (
        BASE | {"messages": [{"role": "user", "content": 5}]},
        "messages.0.content: Input should be a valid string or list",
    ),
    (
        BASE | {"messages": [USER, said("user", {"type": "text"}, {})]},
        "messages.1.content.1.type: Field required",
    ),
    (
        BASE | {"messages": [said("user", {"type": 5})]},
        "messages.0.content.0.type: Input should be a valid string",
    ),
    (BASE | {"system": 5}, "system: Input should be a valid string or list"),
    (BASE | {"system": ["x"]}, "system.0: Input should be a valid dictionary"),
    (BASE | {"stop_sequences": [1]}, "stop_sequences.0: Input should be a valid string"),
    (BASE | {"stop_sequences": "a"}, "stop_sequences: Input should be a valid list"),
    (BASE | {"stream": "yes"}, "stream: Input should be a valid boolean"),
    (BASE | {"temperature": "warm"}, "temperature: Input should be a valid number"),
    (BASE | {"temperature": True}, "temperature: Input should be a valid number"),
    (BASE | {"top_k": 1.5}, "top_k: Input should be a valid integer"),
    (BASE | {"tools": {}}, "tools: Input should be a valid list"),
    (BASE | {"tools": [1]}, "tools.0: Input should be a valid dictionary"),
    (BASE | {"tool_choice": "auto"}, "tool_choice: Input should be a valid dictionary"),
    (BASE | {"thinking": True}, "thinking: Input should be a valid dictionary"),
    (BASE | {"metadata": "me"}, "metadata: Input should be a valid dictionary"),
    (BASE | {"output_config": "low"}, "output_config: Input should be a valid dictionary"),
]


@pytest.mark.parametrize(("params", "message"), WRONG)
def test_a_misfit_is_named_with_its_path(params: dict[str, object], message: str) -> None:
    assert problem(params) == message
    if isinstance(params.get("model"), str) and params["model"] == BASE["model"]:
        assert problem(params | SELF_HOSTED) == message


@pytest.mark.parametrize("params", [[], 5, None, "x"])
def test_params_are_an_object(params: object) -> None:
    assert problem(params) == "params: Input should be a valid dictionary"


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"",
        b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"m","max_tokens":NaN}',
        b'{"x":1e400,"y":NaN}',
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_cannot_be_read_is_an_error_of_the_request(raw: bytes) -> None:
    assert (problem(raw) or "").startswith("The request body is not valid JSON: ")


@pytest.mark.parametrize("number", [b"9" * 30, b"9" * 5_000, b"-" + b"9" * 5_000, b"1e400"])
def test_a_number_that_is_not_ours_may_be_of_any_size(number: bytes) -> None:
    """The bytes go on to the upstream as they are."""
    raw = json.dumps(BASE | {"seed": "?"}).encode().replace(b'"?"', number)
    assert problem(raw) is None


def test_a_huge_number_of_tokens_is_over_the_cap_or_no_integer() -> None:
    raw = json.dumps(BASE | {"max_tokens": "?"}).encode()
    assert (problem(raw.replace(b'"?"', b"9" * 30)) or "").startswith("max_tokens: 9999")
    assert (
        problem(raw.replace(b'"?"', b"9" * 5_000)) == "max_tokens: Input should be a valid integer"
    )


# What the hosted API refuses and a server of another maker may well take.
UPSTREAM_DECIDES: list[dict[str, object]] = [
    {"max_tokens": 10**12},
    {"thinking": {"type": "of our own"}},
    {"messages": [said("user", {"type": "video", "source": {}})]},
    {"messages": [{"role": "system", "content": "x"}, USER]},
    {"messages": [{"role": "user", "content": ""}]},
    {"messages": [USER, {"role": "assistant", "content": "{"}]},
    {"tools": [{"type": "function", "function": {}}]},
    {"tool_choice": {"type": "required"}},
    {"service_tier": "flex"},
    {"stop_sequences": [" "]},
    {"metadata": {"user_id": "u" * 600}},
]


@pytest.mark.parametrize("extra", UPSTREAM_DECIDES)
@pytest.mark.parametrize("version", [OLD, NEW])
def test_a_model_that_is_not_in_the_table_follows_the_generic_rules(
    extra: dict[str, object], version: str
) -> None:
    assert problem(BASE | SELF_HOSTED | extra, version=version) is None
    assert problem(BASE | {"model": OPUS_5_5} | extra, version=version) is not None


def test_models_of_other_makers_have_their_own_ranges() -> None:
    assert problem(BASE | SELF_HOSTED | {"temperature": 1.7, "top_k": -1}) is None


OWN = """
[[model]]
ids = ["own"]
max_output = 100
cache_min = 0
generic = true

[[model]]
ids = ["thinker"]
max_output = 10000
cache_min = 0
thinking = ["enabled"]
thinking_refused = ["disabled"]

[rules]
batch_divisor = 2
us_numerator = 11
us_denominator = 10
web_search_micros = 10000
block_types = ["video"]
tool_types = ["radio_20270101"]
"""


@pytest.fixture
def own_table(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "own.toml").write_text(OWN)
    models.use(tmp_path / "own.toml")
    yield
    models.use(None)


@pytest.mark.usefixtures("own_table")
def test_a_generic_model_of_the_table_has_its_cap_and_the_generic_rules() -> None:
    own = BASE | {"model": "own", "max_tokens": 100, "thinking": {"type": "of our own"}}
    assert problem(own) is None
    assert (problem(own | {"max_tokens": 101}) or "").startswith("max_tokens: 101 > 100, which")


@pytest.mark.usefixtures("own_table")
def test_a_model_of_the_operator_has_the_rules_of_its_entry() -> None:
    own = BASE | {"model": "thinker", "thinking": {"type": "disabled"}}
    assert problem(own) == '"thinking.type.disabled" is not supported for this model.'


@pytest.mark.usefixtures("own_table")
def test_types_of_blocks_and_tools_can_be_added() -> None:
    later = {
        "messages": [said("user", {"type": "video"})],
        "tools": [{"type": "radio_20270101", "station": 1}],
    }
    assert problem(BASE | later) is None
    models.use(None)
    assert problem(BASE | later) is not None


def test_unknown_keys_are_refused_only_when_asked() -> None:
    params = BASE | {"unknown": 1}
    assert problem(params) is None
    assert problem(params, strict=True) == "unknown: Extra inputs are not permitted"
    assert problem(BASE | {"temperature": 0.3, "container": "c"}, strict=True) is None


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
def test_sampling_parameters_went_with_the_new_version(name: str) -> None:
    assert changed(**{name: 1}) is None
    refused = f"{name}: Extra inputs are not permitted"
    assert changed(NEW, **{name: 1}) == refused
    assert changed(NEW, **{name: None}) == refused
    assert problem(BASE | SELF_HOSTED | {name: 1}, version=NEW) == refused


def test_the_output_cap_names_the_snapshot() -> None:
    """The text of a recorded errored line."""
    assert changed(max_tokens=9_999_999) == (
        "max_tokens: 9999999 > 64000, which is the maximum allowed number of output tokens for "
        "claude-haiku-4-5-20251001"
    )


@pytest.mark.parametrize("model", sorted(models.table().models))
def test_the_output_cap_of_each_model_is_a_bound_that_is_included(model: str) -> None:
    known = models.table().models[model]
    for betas in ((), (models.EXTENDED_OUTPUT_BETA,), ("other",)):
        cap = known.output_cap(betas)
        assert changed(betas=betas, model=model, max_tokens=cap) is None
        over = changed(betas=betas, model=model, max_tokens=cap + 1) or ""
        assert f"> {cap}, which" in over


def test_the_model_of_valid_params_is_read() -> None:
    raw = json.dumps(BASE).encode()
    assert validate.model_of(raw) == BASE["model"]
    assert validate.model_of(memoryview(raw)) == BASE["model"]


def test_params_may_be_a_view_into_the_body() -> None:
    raw = memoryview(b"[" + json.dumps(BASE | {"store": 1}).encode() + b"]")[1:-1]
    found = validate.check(raw, version=OLD, betas=())
    assert found == validate.Problem("invalid_request_error", unsupported("store"))
