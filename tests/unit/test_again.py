"""What is sent for a document whose answer is not good yet."""

import json

import pytest

from batchyard.client.results.again import Again, Settings, Stop, again, earlier_text
from batchyard.client.results.collect import Outcome

PARAMS = (
    b'{"model":"claude-opus-4-6","max_tokens":1000,"messages":[{"role":"user","content":"hi"}]}'
)


def outcome(kind: str, reason: str | None = None, stop: str = "end_turn") -> Outcome:
    return Outcome(key="a.md", custom_id="a_Dmd", class_=kind, type=stop, reason=reason)


def message(content: bytes, more: bytes = b"") -> bytes:
    return b'{"id":"msg_1","type":"message","role":"assistant","content":%b%b}' % (content, more)


def sent(result: Again | Stop) -> dict:
    assert isinstance(result, Again), result
    return json.loads(result.params)


@pytest.mark.parametrize("kind", ["retryable", "expired", "missing"])
def test_what_was_not_answered_is_sent_again_byte_for_byte(kind: str):
    odd = b'{ "model": "m", "max_tokens":1e3,\n"messages":[] }'

    assert again(outcome(kind), odd, None) == Again(odd)


@pytest.mark.parametrize(
    "kind", ["succeeded", "needs_fix", "billing", "canceled", "refused", "empty"]
)
def test_what_another_request_cannot_help_stops_with_a_reason(kind: str):
    result = again(outcome(kind), PARAMS, None)

    assert isinstance(result, Stop)
    assert result.reason


def test_a_cut_answer_gets_twice_the_tokens():
    assert sent(again(outcome("truncated"), PARAMS, None))["max_tokens"] == 2_000


def test_a_cut_answer_gets_no_more_than_the_cap_of_the_model_and_then_is_flagged():
    near = PARAMS.replace(b"1000", b"127000")
    capped = again(outcome("truncated"), near, None)

    assert sent(capped)["max_tokens"] == 128_000
    assert again(outcome("truncated"), capped.params, None) == Stop(
        "at the model's cap of 128,000 output tokens"
    )


def test_a_beta_raises_the_cap():
    near = PARAMS.replace(b"1000", b"128000")
    betas = Settings(betas=("output-300k-2026-03-24",))

    assert sent(again(outcome("truncated"), near, None, betas))["max_tokens"] == 256_000


def test_an_unknown_model_has_no_cap_that_we_know():
    other = PARAMS.replace(b"claude-opus-4-6", b"llama").replace(b"1000", b"900000")

    assert sent(again(outcome("truncated"), other, None))["max_tokens"] == 1_800_000


def test_a_full_context_window_is_not_helped_by_more_tokens():
    full = outcome("truncated", stop="model_context_window_exceeded")

    assert isinstance(again(full, PARAMS, None), Stop)


def test_a_paused_turn_goes_on_from_its_own_bytes():
    thought = b'{"type":"thinking","signature":"a\\/b","thinking":"\\u00e9"}'
    content = b"[ " + thought + b', {"type":"text","text":"one "} ]'
    first = again(outcome("paused"), PARAMS, message(content))

    assert isinstance(first, Again)
    assert b'{"role":"assistant","content":' + content + b"}" in first.params
    second = again(outcome("paused"), first.params, message(b'[{"type":"text","text":"two "}]'))
    roles = [turn["role"] for turn in sent(second)["messages"]]
    assert roles == ["user", "assistant", "assistant"]
    assert earlier_text(second.params) == "one two "


def test_a_paused_turn_is_continued_only_so_often():
    answer = message(b'[{"type":"text","text":"x"}]')
    params = PARAMS
    for _ in range(3):
        result = again(outcome("paused"), params, answer, Settings(turns_max=3))
        assert isinstance(result, Again)
        params = result.params

    assert again(outcome("paused"), params, answer, Settings(turns_max=3)) == Stop(
        "still paused after 3 continuations"
    )


def test_a_prefill_of_the_template_is_not_a_paused_turn():
    prefilled = PARAMS.replace(b'"hi"}', b'"hi"},{"role":"assistant","content":"Report:"}')

    assert earlier_text(prefilled) == ""


@pytest.mark.parametrize(
    ("asked", "sent_on"),
    [
        (b"", "container_1"),
        (b',"container":"container_0"', "container_1"),
        (b',"container":{"skills":[{"type":"anthropic"}]}',
         {"skills": [{"type": "anthropic"}], "id": "container_1"}),
    ],
)  # fmt: skip
def test_a_paused_turn_goes_on_in_its_container(asked: bytes, sent_on: object):
    params = PARAMS[:-1] + asked + b"}"
    answer = message(b'[{"type":"text","text":"x"}]', b',"container":{"id":"container_1"}')

    assert sent(again(outcome("paused"), params, answer))["container"] == sent_on


def test_an_empty_pause_cannot_be_continued():
    assert isinstance(again(outcome("paused"), PARAMS, message(b"[]")), Stop)


def test_an_invalid_answer_is_asked_again_with_what_is_wrong():
    answer = message(b'[{"type":"text","text":"{}"}]')
    result = again(outcome("invalid", "$ must contain ['title'] properties"), PARAMS, answer)

    turns = sent(result)["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"] == [{"type": "text", "text": "{}"}]
    assert "$ must contain ['title'] properties" in turns[2]["content"]


def test_an_invalid_answer_is_asked_again_only_so_often():
    answer = message(b'[{"type":"text","text":"{}"}]')
    once = again(outcome("invalid", "no"), PARAMS, answer)
    assert isinstance(once, Again)
    twice = again(outcome("invalid", "no"), once.params, answer)
    assert isinstance(twice, Again)

    assert again(outcome("invalid", "no"), twice.params, answer) == Stop(
        "still invalid after it was asked again 2 times"
    )


def test_a_user_who_writes_like_us_in_the_prompt_is_counted_only_if_word_for_word():
    quoting = PARAMS.replace(b'"hi"', b'"They wrote: Your answer was not accepted: no."')

    answer = message(b'[{"type":"text","text":"1"}]')
    result = again(outcome("invalid", "x"), quoting, answer, Settings(asks_max=1))

    assert isinstance(result, Again)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b'[{"type":"text","text":""}]',
        b'[{"type":"tool_use","id":"t","name":"n","input":{}}]',
    ],
)
def test_an_answer_that_the_api_would_not_take_back_is_not_asked_again(content: bytes):
    assert isinstance(again(outcome("invalid", "no"), PARAMS, message(content)), Stop)


@pytest.mark.parametrize("kind", ["paused", "invalid"])
def test_going_on_needs_the_answer(kind: str):
    with pytest.raises(ValueError, match="no answer"):
        again(outcome(kind), PARAMS, None)
