"""What of `params` is refused, and in which words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import models, validate

OLD, NEW = "2023-06-01", "2026-10-21"
USER = {"role": "user", "content": "hi"}
BASE: dict[str, object] = {"model": "claude-opus-5-5", "max_tokens": 5, "messages": [USER]}


def check(params: object, *, version: str = OLD, betas: tuple[str, ...] = ()) -> str | None:
    raw = params if isinstance(params, bytes) else json.dumps(params).encode()
    problem = validate.check(raw, version=version, betas=betas)
    if problem is None:
        return None
    assert problem.type == "invalid_request_error"
    return problem.message


def without(name: str) -> dict[str, object]:
    return {key: value for key, value in BASE.items() if key != name}


FINE: list[dict[str, object]] = [
    {},
    {"stream": False},
    {"stream": None},
    {"speed": "standard"},
    {"speed": None},
    {"system": "be brief"},
    {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
    {"stop_sequences": ["a"]},
    {"temperature": 0, "top_p": 0.5, "top_k": 3},
    {"temperature": None},
    {"unknown_key_of_tomorrow": {"x": 1}},
    {"model": "a/model:of-somebody else"},
    {"model": "m" * 256},
    {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]},
    {"messages": [{"role": "system", "content": "x"}, USER]},
    {"messages": [{"role": "user", "content": []}]},
    {"research_preview_2026_02": "inactive"},
    {"research_preview_2026_02": None},
    {"max_tokens": 1},
    {"fallback_credit_token": "x"},
]


@pytest.mark.parametrize("extra", FINE)
def test_what_batches_allow_passes(extra: dict[str, object]) -> None:
    assert check(BASE | extra) is None


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
]


@pytest.mark.parametrize(("extra", "message"), NOT_IN_BATCHES)
@pytest.mark.parametrize("version", [OLD, NEW])
def test_what_batches_do_not_support_is_refused(
    extra: dict[str, object], message: str, version: str
) -> None:
    assert check(BASE | extra, version=version) == message


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
    (BASE | {"messages": []}, "messages: at least 1 item is required"),
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
        BASE | {"messages": [USER, {"role": "user", "content": [{"type": "text"}, {}]}]},
        "messages.1.content.1.type: Field required",
    ),
    (BASE | {"system": 5}, "system: Input should be a valid string or list"),
    (BASE | {"stop_sequences": [1]}, "stop_sequences.0: Input should be a valid string"),
    (BASE | {"stop_sequences": "a"}, "stop_sequences: Input should be a valid list"),
    (BASE | {"stream": "yes"}, "stream: Input should be a valid boolean"),
    (BASE | {"temperature": "warm"}, "temperature: Input should be a valid number"),
    (BASE | {"top_k": 1.5}, "top_k: Input should be a valid integer"),
    ([], "params: Input should be a valid dictionary"),
]


@pytest.mark.parametrize(("params", "message"), WRONG)
def test_a_misfit_is_named_with_its_path(params: object, message: str) -> None:
    assert check(params) == message


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"\xff"}]}',
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_cannot_be_read_is_an_error_of_the_request(raw: bytes) -> None:
    assert (check(raw) or "").startswith("The request body is not valid JSON: ")


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
def test_sampling_parameters_went_with_the_new_version(name: str) -> None:
    assert check(BASE | {name: 1}, version=OLD) is None
    assert check(BASE | {name: 1}, version=NEW) == f"{name}: Extra inputs are not permitted"
    assert check(BASE | {name: None}, version=NEW) == f"{name}: Extra inputs are not permitted"


def test_the_output_cap_names_the_snapshot() -> None:
    """The text of api-contract 3.5, recorded."""
    params = BASE | {"model": "claude-haiku-4-5", "max_tokens": 9_999_999}
    assert check(params) == (
        "max_tokens: 9999999 > 64000, which is the maximum allowed number of output tokens for "
        "claude-haiku-4-5-20251001"
    )


@pytest.mark.parametrize("model", sorted(models.table().models))
def test_the_output_cap_of_each_model_is_a_bound_that_is_included(model: str) -> None:
    known = models.table().models[model]
    for betas in ((), (models.EXTENDED_OUTPUT_BETA,), ("other",)):
        cap = known.output_cap(betas)
        assert check(BASE | {"model": model, "max_tokens": cap}, betas=betas) is None
        assert f"> {cap}, which" in (
            check(BASE | {"model": model, "max_tokens": cap + 1}, betas=betas) or ""
        )


def test_a_model_that_nobody_knows_has_no_cap_here() -> None:
    assert check(BASE | {"model": "llama", "max_tokens": 10**12}) is None


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_any_bytes_get_an_answer(raw: bytes) -> None:
    problem = validate.check(raw, version=OLD, betas=())
    assert problem is None or problem.message


def test_the_model_of_valid_params_is_read() -> None:
    assert validate.model_of(json.dumps(BASE).encode()) == "claude-opus-5-5"
