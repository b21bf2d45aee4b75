"""Result lines: the upstream's bytes in, one line out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import result
from batchyard.price import Usage

USAGE = {"input_tokens": 1, "output_tokens": 2, "service_tier": "standard"}
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "1"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": USAGE,
}


def line_of(body: bytes | str | dict[str, Any]) -> bytes:
    if isinstance(body, dict):
        body = json.dumps(body)
    if isinstance(body, str):
        body = body.encode()
    return result.succeeded("id-1", result.read_message(body).body)


def check_line(line: bytes, message: dict[str, Any]) -> None:
    """Check that a line is one line, and the message in it unchanged but for the tier."""
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    assert b"\r" not in line
    expected = message | {"usage": message["usage"] | {"service_tier": "batch"}}
    assert json.loads(line) == {
        "custom_id": "id-1",
        "result": {"type": "succeeded", "message": expected},
    }


@pytest.mark.parametrize(
    "usage",
    [
        USAGE,
        {"input_tokens": 1},
        {},
        {"service_tier": None},
        {"service_tier": "standard"},
        {"service_tier": "priority", "input_tokens": 1},
        {"service_tier": "batch"},
        {"service_tier": 5},
        {"service_tier": "standard", "deep": {"service_tier": "standard"}},
        {"deep": {"service_tier": "standard"}, "service_tier": "priority"},
        {"deep": {"service_tier": "standard"}},
        {"deep": '"service_tier":"standard"'},
        {"x": '"service_tier":"standard"', "service_tier": "standard"},
        {"input_tokens": 1, "huge": 10**30, "tiny": 1e-300},
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_the_tier_becomes_batch_and_nothing_else_changes(
    usage: dict[str, Any], separators: tuple[str, str], indent: int | str | None
) -> None:
    message = MESSAGE | {"usage": usage}
    check_line(line_of(json.dumps(message, separators=separators, indent=indent)), message)


@pytest.mark.parametrize("usage", ["{}", "{ }", "{\n}", '{"input_tokens":1 }', ' { "a" : 1 } '])
def test_white_space_in_usage_does_no_harm(usage: str) -> None:
    body = json.dumps(MESSAGE | {"usage": "HERE"}).replace('"HERE"', usage)
    check_line(line_of(body), MESSAGE | {"usage": json.loads(usage)})


@pytest.mark.parametrize("where", ["before", "after", "both"])
def test_the_same_usage_object_inside_a_tool_input_is_left_alone(where: str) -> None:
    tool = {"type": "tool_use", "id": "t", "name": "n", "input": {"usage": USAGE, "n": 10**25}}
    content: dict[str, Any] = {"content": [tool, {"usage": USAGE}]}
    usage = {"usage": USAGE}
    rest = {"id": "x", "type": "message", "stop_reason": "tool_use"}
    message = {
        "before": content | rest | usage,
        "after": usage | rest | content,
        "both": content | usage | rest | {"more": [USAGE]},
    }[where]
    check_line(line_of(message), message)
    check_line(line_of(json.dumps(message, separators=(",", ":"))), message)


def test_numbers_beside_a_repeated_usage_keep_their_digits() -> None:
    digits = "0.10000000000000000000000001"
    tool = f'{{"input":{{"u":{{"a":1}},"n":{digits},"e":1e400}}}}'
    body = f'{{"type":"message","stop_reason":"x","content":[{tool}],"usage":{{"a":1}}}}'
    assert digits.encode() in line_of(body)
    assert b"1e400" in line_of(body)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
def test_line_ends_between_tokens_become_spaces(end: str) -> None:
    body = json.dumps(MESSAGE, indent=1).replace("\n", end) + end
    check_line(line_of(end + body), MESSAGE)


def test_line_ends_inside_texts_stay_escaped() -> None:
    message = MESSAGE | {"content": [{"type": "text", "text": "a\nb\r\nc\u2028d\x85e\0"}]}
    check_line(line_of(message), message)


def test_other_scripts_stay_as_they_came() -> None:
    message = MESSAGE | {"content": [{"type": "text", "text": "füße 文档 🙂"}]}
    line = line_of(json.dumps(message, ensure_ascii=False))
    assert "文档 🙂".encode() in line
    check_line(line, message)


def test_the_bytes_of_the_content_are_not_encoded_anew() -> None:
    content = '[ {"b":1.0,  "a":"\\u00e9\\/", "n":1E5} ]'
    body = json.dumps(MESSAGE | {"content": "HERE"}).replace('"HERE"', content)
    assert content.encode() in line_of(body)


NOT_MESSAGES = [
    b"",
    b"{}",
    b"null",
    b"[]",
    b"<html>",
    b'{"type":"error","error":{"type":"api_error","message":"x"}}',
    json.dumps(MESSAGE | {"type": "completion"}).encode(),
    json.dumps(MESSAGE | {"stop_reason": None}).encode(),
    json.dumps(MESSAGE | {"content": None}).encode(),
    json.dumps(MESSAGE | {"content": "text"}).encode(),
    json.dumps(MESSAGE | {"content": {}}).encode(),
    json.dumps(MESSAGE | {"usage": None}).encode(),
    json.dumps(MESSAGE | {"usage": []}).encode(),
    json.dumps(MESSAGE | {"usage": {"input_tokens": "many"}}).encode(),
    json.dumps(MESSAGE).encode()[:-1],
    json.dumps(MESSAGE).encode() + b"x",
    json.dumps(MESSAGE).encode() * 2,
    b'\xef\xbb\xbf{"type":"message"}',
    json.dumps(MESSAGE).encode().replace(b'"1"', b'"\xff"'),
    json.dumps(MESSAGE).encode().replace(b'"1"', b'"\xed\xa0\x80"'),  # a coded surrogate
    json.dumps(MESSAGE).encode().replace(b'"1"', b'"\xc0\xaf"'),  # overlong
    json.dumps(MESSAGE).encode().replace(b'"1"', b'"raw\nline"'),
    json.dumps(MESSAGE).encode().replace(b'"1"', b'"raw\ttab"'),
    json.dumps(MESSAGE).encode().replace(b'"1"', b"NaN"),
    json.dumps(MESSAGE).encode().replace(b'"1"', b"[" * 100_000),
    json.dumps(MESSAGE).encode().replace(b'"1"', b"[" * 100_000 + b"]" * 100_000),
    json.dumps(MESSAGE).encode("utf-16"),
]


@pytest.mark.parametrize("body", NOT_MESSAGES)
def test_what_is_no_finished_message_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        result.read_message(body)


def test_a_message_cut_anywhere_is_refused() -> None:
    body = json.dumps(MESSAGE | {"content": [{"type": "text", "text": "füß"}]}, ensure_ascii=False)
    data = body.encode()
    for cut in range(len(data)):
        with pytest.raises(ValueError, match=r"."):
            result.read_message(data[:cut])


def test_usage_is_read_on_the_way() -> None:
    usage = {"input_tokens": 3, "output_tokens": 5, "cache_creation_input_tokens": 7}
    message = result.read_message(json.dumps(MESSAGE | {"usage": usage}).encode())
    assert message.usage == Usage(3, 5, 7)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.just(USAGE)
    | st.just("service_tier"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.sampled_from(["usage", "service_tier"]), inner, max_size=3)
    ),
    max_leaves=8,
)
fields = st.dictionaries(st.text(), json_values, max_size=3)
messages = st.builds(
    lambda first, content, usage, last, order: dict(
        sorted(
            (first | last | MESSAGE | {"content": content, "usage": usage}).items(),
            key=lambda item: hash((item[0], order)),
        )
    ),
    fields,
    st.lists(json_values, max_size=3),
    st.just(USAGE)
    | st.dictionaries(
        st.sampled_from(["service_tier", "x", "y"]) | st.text(max_size=3), json_values, max_size=3
    ),
    fields,
    st.integers(),
)


@given(messages, st.booleans(), st.sampled_from([None, 0, 1, "\t"]), st.booleans())
def test_any_message_comes_back_from_its_line_but_for_the_tier(
    message: dict[str, Any],
    ascii_only: bool,
    indent: int | str | None,
    compact: bool,
) -> None:
    try:
        result.read_usage(json.dumps(message["usage"]).encode())
    except ValueError:
        return
    body = json.dumps(
        message,
        ensure_ascii=ascii_only,
        indent=indent,
        separators=(",", ":") if compact else None,
    )
    line = line_of(body)
    check_line(line, message)
    custom_id, kind, usage = result.read_line(line[:-1])
    assert (custom_id, kind) == ("id-1", "succeeded")
    assert usage == result.read_usage(json.dumps(message["usage"]).encode())


# The other lines -------------------------------------------------------------------------------


def test_the_line_of_an_error_is_nested_twice() -> None:
    line = result.errored("a", "not_found_error", "model: x", request_id="workerreq_1")
    assert json.loads(line) == {
        "custom_id": "a",
        "result": {
            "type": "errored",
            "error": {
                "type": "error",
                "error": {
                    "details": {"error_visibility": "user_facing"},
                    "type": "not_found_error",
                    "message": "model: x",
                },
                "request_id": "workerreq_1",
            },
        },
    }
    assert (
        json.loads(result.errored("a", "api_error", "x"))["result"]["error"]["request_id"] is None
    )


@pytest.mark.parametrize(
    ("named", "written"),
    [
        *((name, name) for name in sorted(result.ERROR_TYPES)),
        ("request_too_large", "invalid_request_error"),
        ("conflict_error", "api_error"),
        ("", "api_error"),
        ("something_new", "api_error"),
    ],
)
def test_an_error_type_is_one_that_clients_know(named: str, written: str) -> None:
    line = json.loads(result.errored("a", named, "x"))
    assert line["result"]["error"]["error"]["type"] == written


@given(st.text(), st.text() | st.none())
def test_no_text_of_an_error_breaks_its_line(text: str, request_id: str | None) -> None:
    line = result.errored("a", "api_error", text, request_id=request_id)
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    parsed = json.loads(line)["result"]["error"]
    assert (parsed["error"]["message"], parsed["request_id"]) == (text, request_id)
    assert result.read_line(line[:-1]) == ("a", "errored", Usage())


@pytest.mark.parametrize("why", ["canceled", "expired"])
def test_the_line_of_what_was_not_sent_holds_nothing_more(why: str) -> None:
    line = result.unsent("a", why)  # type: ignore[arg-type]
    assert line == b'{"custom_id":"a","result":{"type":"%b"}}\n' % why.encode()
    assert result.read_line(line[:-1]) == ("a", why, Usage())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"null",
        b"\0\0\0",
        b'{"custom_id":"a"}',
        b'{"custom_id":"a","result":{"type":"processing"}}',
        b'{"custom_id":5,"result":{"type":"expired"}}',
        b'{"custom_id":"a","result":{"type":"expired"}',
        b'{"custom_id":"a","result":{"type":"succeeded","message":{}}}',
        b'{"custom_id":"a","result":{"type":"succeeded","message":{"t":"\xff","usage":{}}}}',
        b'{"custom_id":"a","result":{"type":"succeeded","message":{"usage":{},"x":%b}}}'
        % (b"[" * 100_000),
    ],
)
def test_a_line_that_is_not_ours_or_torn_is_not_read(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        result.read_line(line)
