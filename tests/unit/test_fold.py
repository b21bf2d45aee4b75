"""A streamed answer, folded: the message that the endpoint would have sent, or none."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits
from batchyard.upstream.cut_json import closed
from batchyard.upstream.events import StreamTooLarge
from batchyard.upstream.fold import Fold, StreamBroken, UnknownDelta, status_of
from batchyard.upstream.simulated.stream import events
from helpers_upstream import sse

USAGE = {"input_tokens": 9, "cache_read_input_tokens": 0, "output_tokens": 1, "service_tier": "std"}
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [],
    "container": None,
    "stop_reason": None,
    "stop_sequence": None,
    "stop_details": None,
    "usage": USAGE,
}
STOP = sse({"type": "message_stop"})
ENDED = {"stop_reason": "end_turn", "stop_sequence": None}


def start(**fields: Any) -> bytes:
    return sse({"type": "message_start", "message": MESSAGE | fields})


def block(value: dict[str, Any] | bytes, *deltas: dict[str, Any] | bytes, index: int = 0) -> bytes:
    """Return all events of one block; bytes stand as they are."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    found = [b'{"type":"content_block_start","index":%d,"content_block":%b}' % (index, raw)]
    for delta in deltas:
        text = delta if isinstance(delta, bytes) else json.dumps(delta).encode()
        found.append(b'{"type":"content_block_delta","index":%d,"delta":%b}' % (index, text))
    found.append(b'{"type":"content_block_stop","index":%d}' % index)
    return b"".join(map(sse, found))


def text(piece: str) -> dict[str, Any]:
    return {"type": "text_delta", "text": piece}


def json_delta(piece: str) -> dict[str, Any]:
    return {"type": "input_json_delta", "partial_json": piece}


def end(
    delta: dict[str, Any] | None = None, usage: dict[str, Any] | None = None, **fields: Any
) -> bytes:
    event = {"type": "message_delta", "delta": ENDED | (delta or {}), "usage": usage or {}}
    return sse(event | fields) + STOP


def fold(*chunks: bytes) -> bytes:
    folded = Fold()
    assert [folded.feed(chunk) for chunk in chunks][-1]
    assert folded.message is not None
    return folded.message


def content(*blocks: bytes, **delta: Any) -> list[Any]:
    """Return what becomes of the events of some blocks."""
    found: list[Any] = json.loads(fold(start(), *blocks, end(delta)))["content"]
    return found


def broken(*chunks: bytes) -> str:
    folded = Fold()
    with pytest.raises(StreamBroken) as caught:
        list(map(folded.feed, chunks))
    assert folded.message is None
    return str(caught.value)


TEXT = {"type": "text", "text": ""}
TOOL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}


# The message ------------------------------------------------------------------------------------


def test_keys_keep_their_order_and_values_their_bytes() -> None:
    begun = (
        b'{"type":"message_start","message":{"id":"m", "x":1.50, "content":[],"stop_reason":null,'
        b'"usage":{"a":1e2,"output_tokens":1},"type":"message"}}'
    )
    ended = (
        b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}'
    )
    assert fold(sse(begun), block(TEXT, text("a"), text("b")), sse(ended), STOP) == (
        b'{"id":"m","x":1.50,"content":[{"type":"text","text":"ab"}],"stop_reason":"end_turn",'
        b'"usage":{"a":1e2,"output_tokens":7},"type":"message"}'
    )


def test_text_is_joined_as_it_was_written() -> None:
    pieces = [rb"\u00e9", "é".encode(), rb"\ud83d\ude00", "😀".encode(), rb"\"\\\n", b""]
    deltas = [b'{"type":"text_delta","text":"%b"}' % piece for piece in pieces]
    assert b'"text":"%b"' % b"".join(pieces) in fold(start(), block(TEXT, *deltas), end())


def test_text_goes_on_from_what_the_block_began_with() -> None:
    assert content(block({"type": "text", "text": "a"}, text("b")))[0]["text"] == "ab"
    assert content(block({"type": "text", "text": None}, text("b")))[0]["text"] == "b"
    assert content(block({"type": "text"}, text("b")))[0]["text"] == "b"


def test_a_character_cut_in_two_is_one_again() -> None:
    """Servers that count in UTF-16 units cut so."""
    halves = [
        b'{"type":"text_delta","text":"a\\uD83D"}',
        b'{"text":"\\ude00b","type":"text_delta"}',
    ]
    assert content(block(TEXT, *halves)) == [{"type": "text", "text": "a😀b"}]
    halves = [
        b'{"type":"input_json_delta","partial_json":"{\\"a\\":\\"\\ud83d"}',
        b'{"type":"input_json_delta","partial_json":"\\ude00\\"}"}',
    ]
    assert content(block(TOOL, *halves))[0]["input"] == {"a": "😀"}


def test_a_half_that_stays_alone_is_no_message() -> None:
    half = b'{"type":"input_json_delta","partial_json":"{\\"a\\":\\"\\ud83d\\"}"}'
    assert "cannot be read" in broken(start(), block(TOOL, half))


@pytest.mark.parametrize(
    "raw",
    [
        '{"a": 1e2, "b": 0.10,\n\t"c": [ ], "d": -0, "e": 1E+400, "f": 12345678901234567890123}',
        '{"twice": 1, "twice": 2, "s": "\\u00e9\\/\\"é"}',
        "[1,2]",
        "{}",
        '"text"',
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1_000])
def test_the_input_of_a_tool_keeps_its_bytes(raw: str, step: int) -> None:
    deltas = [json_delta(raw[at : at + step]) for at in range(0, len(raw), step)]
    for kind in ("tool_use", "server_tool_use", "mcp_tool_use"):
        message = fold(start(), block(TOOL | {"type": kind}, json_delta(""), *deltas), end())
        assert b'"name":"look","input":%b}' % raw.encode() in message


def test_a_tool_without_input_has_an_empty_one() -> None:
    bare = {"type": "tool_use", "id": "t", "name": "n"}
    assert content(block(TOOL)) == [TOOL]
    assert content(block(TOOL, json_delta(""), json_delta(" "))) == [TOOL]
    assert content(block(bare)) == [bare | {"input": {}}]
    assert content(block(bare, json_delta("{"), json_delta("}"))) == [bare | {"input": {}}]
    assert content(block(bare | {"input": {"whole": 1}})) == [bare | {"input": {"whole": 1}}]


def test_thinking_keeps_its_text_and_its_signature() -> None:
    begun = {"type": "thinking", "thinking": "", "signature": ""}
    deltas = [
        {"type": "thinking_delta", "thinking": "Well, ", "estimated_tokens": 50},
        {"type": "thinking_delta", "thinking": "yes."},
        {"type": "signature_delta", "signature": "EqQB/+=="},
    ]
    expected = {"type": "thinking", "thinking": "Well, yes.", "signature": "EqQB/+=="}
    assert content(block(begun, *deltas)) == [expected]
    assert content(block({"type": "thinking", "thinking": ""}, *deltas)) == [expected]
    assert content(block(begun, deltas[2])) == [expected | {"thinking": ""}]


def test_citations_come_in_their_order() -> None:
    cited = [{"type": "char_location", "cited_text": f"{n}", "n": n} for n in range(3)]
    deltas = [{"type": "citations_delta", "citation": citation} for citation in cited]
    for begun in (TEXT, TEXT | {"citations": None}, TEXT | {"citations": []}):
        (found,) = content(block(begun, text("a"), deltas[0], text("b"), *deltas[1:]))
        assert found == {"type": "text", "text": "ab", "citations": cited}
    (found,) = content(block(TEXT | {"citations": [cited[2]]}, *deltas[:2]))
    assert found["citations"] == [cited[2], *cited[:2]]


WHOLE = [
    b'{"type":"redacted_thinking","data":"Eq=="}',
    b'{"type": "web_search_tool_result", "content": [{"a": 1.0}], "tool_use_id": "x"}',
    b'{"type":"container_upload","file_id":"f"}',
    b'{"type":"not_known_yet","deep":[{"x":[1e2]}] }',
    b'{"type":"text","text":"at once"}',
]


@pytest.mark.parametrize("raw", WHOLE)
def test_a_block_that_comes_whole_is_kept_byte_for_byte(raw: bytes) -> None:
    assert b'"content":[%b]' % raw in fold(start(), block(raw), end())


def test_a_block_of_a_new_type_goes_on_where_a_known_delta_fits_its_keys() -> None:
    begun = {"type": "connector_text", "text": "", "id": 1}
    assert content(block(begun, text("a"), text("b"))) == [begun | {"text": "ab"}]


def test_a_compaction_is_what_its_delta_says() -> None:
    begun = {"type": "compaction", "content": None}
    delta = {"type": "compaction_delta", "content": "sum", "encrypted_content": "E=="}
    (found,) = content(block(begun, delta), stop_reason="compaction")
    assert found == begun | {"content": "sum", "encrypted_content": "E=="}
    (found,) = content(block(begun, {"type": "compaction_delta", "content": None}))
    assert found == begun


def test_a_fallback_names_the_model_that_answered() -> None:
    hop = {"type": "fallback", "from": {"model": "a"}, "to": {"model": "claude-y"}}
    message = json.loads(fold(start(), block(hop), end()))
    assert (message["model"], message["content"]) == ("claude-y", [hop])


def test_the_end_of_a_message_says_how_it_ended() -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": None}
    container = {"id": "container_1", "expires_at": "2026-01-01T00:00:00Z"}
    management = {"applied_edits": []}
    delta = {
        "stop_reason": "refusal",
        "stop_sequence": "x",
        "stop_details": details,
        "container": container,
    }
    message = json.loads(fold(start(), end(delta, context_management=management, other=None)))
    assert message == MESSAGE | delta | {"context_management": management}


def test_null_at_the_end_erases_nothing() -> None:
    begun = start(container={"id": "c"}, input_transformations=[])
    ended = end({"container": None, "stop_details": None, "new": None}, input_transformations=None)
    message = json.loads(fold(begun, ended))
    assert message["container"] == {"id": "c"}
    assert message["input_transformations"] == []
    assert message["stop_details"] is None
    assert message["new"] is None  # it says so, and nothing said otherwise


def test_counts_of_the_end_are_totals_and_the_others_stay() -> None:
    details = {"thinking_tokens": 3}
    ended = end(
        usage={"output_tokens": 7, "input_tokens": 11, "output_tokens_details": details, "x": None}
        | {"cache_read_input_tokens": None}
    )
    usage = json.loads(fold(start(), ended))["usage"]
    expected = USAGE | {"input_tokens": 11, "output_tokens": 7, "output_tokens_details": details}
    assert usage == expected | {"x": None}
    assert list(usage)[: len(USAGE)] == list(USAGE)


def test_the_end_may_come_in_several_parts() -> None:
    first = sse({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 4}})
    message = json.loads(fold(start(), first, end(usage={"output_tokens": 9})))
    assert (message["usage"]["output_tokens"], message["stop_reason"]) == (9, "end_turn")


def test_blocks_that_are_open_at_once_are_kept_apart() -> None:
    one, two = block(TEXT, text("a"), text("b")), block(TOOL, json_delta("{}"), index=1)
    mixed = [
        event + b"\n\n"
        for pair in itertools.zip_longest(one.split(b"\n\n"), two.split(b"\n\n"))
        for event in pair
        if event
    ]
    assert content(*mixed) == [{"type": "text", "text": "ab"}, TOOL]


def test_what_means_nothing_is_passed_over() -> None:
    between = [
        b"event: ping\ndata: {}\n\n",
        b'data: {"type":"ping"}\n\n',
        b": comment\n\n",
        b'event: new\ndata: {"type":"new_event","delta":"text","index":null}\n\n',
        b'data: {"other":[]}\n\n',
        b"event: empty\ndata:\n\n",
    ]
    parts = [start(), block(TEXT, text("a")), sse({"type": "message_delta", "delta": ENDED})]
    assert fold(
        *between, *[b"".join([part, *between]) for part in parts], STOP, b"data: [DONE]\n\n"
    )


def test_events_need_no_names() -> None:
    named = start() + block(TEXT, text("a")) + end()
    bare = b"".join(line + b"\n" for line in named.split(b"\n") if not line.startswith(b"event"))
    assert fold(bare) == fold(named)


# Against other ways to make the same message ------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text()
VALUES = st.recursive(LEAVES, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=4)
BLOCKS = st.one_of(
    st.builds(lambda t: {"type": "text", "text": t}, st.text()),
    st.builds(
        lambda t, s: {"type": "thinking", "thinking": t, "signature": s},
        st.text(),
        st.text("aZ+/=", min_size=1),
    ),
    st.builds(lambda v: {"type": "tool_use", "id": "t", "name": "n", "input": v}, OBJECTS),
    st.builds(lambda v: {"type": "web_search_tool_result", "content": v}, VALUES),
    st.builds(lambda t: {"type": "redacted_thinking", "data": t}, st.text()),
)


@given(
    blocks=st.lists(BLOCKS, max_size=5),
    usage=OBJECTS,
    cuts=st.lists(st.integers(0, 10_000), max_size=30),
    line_end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_a_message_streamed_and_folded_is_the_message(
    blocks: list[dict[str, Any]], usage: dict[str, Any], cuts: list[int], line_end: bytes
) -> None:
    whole = MESSAGE | {"content": blocks, "stop_reason": "end_turn", "usage": usage | USAGE}
    stream = b"".join(events(whole)).replace(b"\n", line_end)
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    assert json.loads(fold(*(stream[a:b] for a, b in itertools.pairwise(places)))) == whole


# What is no message ----------------------------------------------------------------------------


def test_no_part_of_a_stream_is_taken_for_the_whole() -> None:
    stream = start() + block(TEXT, text("a"), text("b")) + block(TOOL, index=1) + end()
    assert fold(stream)
    for length in range(len(stream)):
        folded = Fold()
        assert not folded.feed(stream[:length])
        assert folded.message is None
        assert folded.error is None


def test_without_any_one_event_there_is_no_message_but_for_pieces_of_text() -> None:
    stream = start() + block(TEXT, text("a")) + block(TOOL, index=1) + end()
    every = [event + b"\n\n" for event in stream.split(b"\n\n")[:-1]]
    for left_out in range(len(every)):
        rest = b"".join(event for at, event in enumerate(every) if at != left_out)
        folded = Fold()
        if b"text_delta" in every[left_out]:  # nothing can tell
            assert folded.feed(rest)
            continue
        try:
            assert not folded.feed(rest)
        except StreamBroken:
            assert folded.message is None


OPEN = block(TEXT, text("a")).rpartition(b"event: content_block_stop")[0]
DELTA = {"type": "message_delta", "delta": ENDED, "usage": {}}
TWO_LINES = (  # a line end inside a string, which JSON does not allow
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a\n'
    b'data: b"}}\n\n'
)


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([start(), start()], "a second message_start"),
        ([block(TEXT)], "content_block_start before message_start"),
        ([sse({"type": "content_block_delta", "index": 0})], "delta before message_start"),
        ([sse({"type": "content_block_stop", "index": 0})], "stop before message_start"),
        ([end()], "message_delta before message_start"),
        ([STOP], "message_stop before message_start"),
        ([start(), STOP], "message_stop without a stop reason"),
        ([start(), end({"stop_reason": None})], "message_stop without a stop reason"),
        ([start(), OPEN, end()], "message_stop while block 0 is open"),
        ([start(), block(TEXT, index=1)], "block 1 where 0 comes next"),
        ([start(), block(TEXT), block(TEXT)], "block 0 where 1 comes next"),
        ([start(), block(TEXT, index=-1)], "block -1 where 0 comes next"),
        ([start(), sse(DELTA), block(TEXT)], "content_block_start after the stop reason"),
        ([start(content=[TEXT])], "a message_start that has content"),
        ([start(content="x")], "where a string or list was to go on"),
        ([start(usage=[])], "cannot be read"),
        ([b'event: message_start\ndata: {"type":"message_start"}\n\n'], "cannot be read"),
        ([start(), b"data: [DONE]\n\n"], "cannot be read"),
        ([start(), b"data: {\n\n"], "cannot be read"),
        ([start(), b'data: {"type":"content_block_stop","index":"0"}\n\n'], "cannot be read"),
        ([start(), b"data: " + b"[" * 100_000 + b"\n\n"], "cannot be read"),
        ([start(), block(b"[]")], "cannot be read"),
        ([start(), block({"type": "text", "text": 5}, text("a"))], "where a string or list"),
        ([start(), block(TEXT, {"type": "text_delta"})], "a text_delta without its text"),
        ([start(), block(TEXT, b'{"type":"text_delta","text":7}')], "without its text"),
        ([start(), OPEN, TWO_LINES], "cannot be read"),
        ([start(), block(TOOL, json_delta("{")), end()], "input of block 0 is not JSON"),
        ([start(), block(TOOL, json_delta('{"a":"\n"}')), end()], "block 0 is not JSON"),
        ([start(), block(TOOL, json_delta('{"a":NaN}')), end()], "block 0 is not JSON"),
    ],
)
def test_what_is_out_of_order_is_no_message(chunks: list[bytes], words: str) -> None:
    assert words in broken(*chunks)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (block(TEXT, {"type": "new_delta", "x": 1}), "'new_delta' in a block of type 'text'"),
        (block(TEXT, {}), "'' in a block of type 'text'"),
        (block(TOOL, text("a")), "text_delta in a block of type 'tool_use'"),
        (block(TEXT, json_delta("{}")), "input_json_delta in a block of type 'text'"),
        (block({"type": "new", "x": ""}, text("a")), "text_delta in a block of type 'new'"),
        (block(TEXT, {"type": "signature_delta", "signature": "x"}), "signature_delta"),
    ],
)
def test_a_change_that_is_not_known_is_told_apart(event: bytes, words: str) -> None:
    """It would come again at every try; so the call is made in another way."""
    folded = Fold()
    folded.feed(start())
    with pytest.raises(UnknownDelta) as caught:
        folded.feed(event)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("error_type", "status"),
    [
        ("overloaded_error", 529),
        ("rate_limit_error", 429),
        ("api_error", 500),
        ("timeout_error", 504),
        ("invalid_request_error", 400),
        ("authentication_error", 401),
        ("request_too_large", 413),
        ("a_new_error", 500),
        (None, 500),
        ({}, 500),
    ],
)
def test_an_error_ends_the_stream_as_the_status_that_it_stands_for(
    error_type: object, status: int
) -> None:
    body = json.dumps({"type": "error", "error": {"type": error_type, "message": "m"}}).encode()
    for event in (b"event: error\ndata: %b\n\n", b"data: %b\n\n"):
        folded = Fold()
        assert folded.feed(start() + OPEN + event % body)
        assert folded.message is None
        assert folded.error == body
        assert status_of(body) == status
    for nonsense in (b"", b"x", b"[]", b"{}", b'{"error":"text"}', b"[" * 100_000):
        assert status_of(nonsense) == 500


# Input that was cut off ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("{", "{}"),
        ('{"a', "{}"),
        ('{"a"', "{}"),
        ('{"a": ', "{}"),
        ('{"a": 1', "{}"),  # it may have been 12
        ('{"a": 1.50,', '{"a": 1.50}'),
        ('{"a": tru', "{}"),
        ('{"a": "b"', '{"a": "b"}'),
        ('{"a": "b\\', "{}"),
        ('{"a": "b\\"', "{}"),
        ('{"a": "b, c: [1], {', "{}"),
        ('{"a": "b", "c": "d', '{"a": "b"}'),
        ('{"a": ["b", "c', '{"a": ["b"]}'),
        ('{"a": ["b", ', '{"a": ["b"]}'),
        ('{"a": 1, "b": "fo, [}', '{"a": 1}'),
        ('{"a": {', '{"a": {}}'),
        ('{"a": [', '{"a": []}'),
        ('{"a": [1, 2', '{"a": [1]}'),
        ('{"a": [{"b": 1}, {"c": [true, nul', '{"a": [{"b": 1}, {"c": [true]}]}'),
        ('{"a": {"b": 1}, "c', '{"a": {"b": 1}}'),
        ('{"é\\u00e9": "😀", "x": "', '{"é\\u00e9": "😀"}'),
    ],
)
def test_input_that_was_cut_off_keeps_what_is_certain(cut: str, expected: str) -> None:
    assert closed(cut.encode()) == expected.encode()
    for reason in ("max_tokens", "model_context_window_exceeded", "refusal"):
        message = fold(
            start(),
            block(TEXT),
            block(TOOL, json_delta(cut), index=1),
            end({"stop_reason": reason}),
        )
        assert json.loads(message)["content"][1]["input"] == json.loads(expected)
        assert expected.encode() in message


@given(value=OBJECTS, data=st.data())
def test_what_is_kept_of_an_input_is_the_beginning_of_it(
    value: dict[str, Any], data: st.DataObject
) -> None:
    whole = json.dumps(value).encode()
    cut = whole[: data.draw(st.integers(1, len(whole)))]
    kept = closed(cut)
    assert isinstance(json.loads(kept), dict)
    assert whole.startswith(kept.rstrip(b"]}"))
    assert closed(whole) == whole


@pytest.mark.parametrize(
    "garbage",
    ['{"a": [1}', "]]", "{" * 200, '{"a" 1 2', "null null", '{"a": 1 "b": 2', '{"a": nil,'],
)
def test_input_that_cannot_be_closed_is_no_message(garbage: str) -> None:
    tool = block(TOOL, json_delta(garbage))
    ended = end({"stop_reason": "max_tokens"})
    assert "input of block 0 is not JSON" in broken(start(), tool, ended)


def test_only_the_last_block_can_have_been_cut_off() -> None:
    ended = end({"stop_reason": "max_tokens"})
    cut = block(TOOL, json_delta('{"a": '))
    assert "input of block 0" in broken(start(), cut, block(TEXT, index=1), ended)


# Bounds ------------------------------------------------------------------------------------------


def test_a_long_answer_takes_a_small_multiple_of_its_size() -> None:
    """About 300,000 tokens: 1.5 MB of text, three tokens in each event."""
    number = 100_000
    event = block(TEXT, text("three more words ")).split(b"\n\n")[1] + b"\n\n"
    opening, closing = block(TEXT).split(b"\n\n")[0] + b"\n\n", block(TEXT).split(b"\n\n")[1]
    chunk = event * 500
    tracemalloc.start()
    try:
        folded = Fold()
        folded.feed(start() + opening)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(number // 500):
            assert not folded.feed(chunk)
        assert folded.feed(closing + b"\n\n" + end())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert folded.message is not None
    assert len(folded.message) > 15 * number
    assert folded.received > 100 * number
    assert peak - before < 5 * len(folded.message)


@pytest.mark.parametrize(
    "more",
    [
        block(TEXT, *[text("x" * 50)] * 30),
        block(TEXT, *[{"type": "citations_delta", "citation": {"a": "x" * 50}}] * 30),
        block({"type": "thinking", "thinking": "x" * 1_000}),
        b"".join(block(TEXT, index=index) for index in range(50)),
        block({"type": "thinking"}, *[{"type": "signature_delta", "signature": "x" * 50}] * 30),
        sse({"type": "message_delta", "delta": {}, "usage": {"x": 1}}) * 50,
    ],
)
def test_a_message_over_the_bound_is_given_up(more: bytes) -> None:
    folded = Fold(message_bytes_max=1_000)
    assert not folded.feed(start())
    with pytest.raises(StreamTooLarge, match="over 1000 bytes"):
        folded.feed(more)


def test_a_stream_over_the_bound_is_given_up_though_nothing_of_it_is_kept() -> None:
    folded = Fold(stream_bytes_max=1_000)
    ping = sse({"type": "ping"})
    with pytest.raises(StreamTooLarge, match="a stream over 1000 bytes"):
        list(map(folded.feed, itertools.repeat(ping, 1_000)))
    assert folded.received <= 1_000 + len(ping)


def test_more_blocks_than_a_message_has_are_given_up() -> None:
    folded = Fold()
    folded.feed(start())
    for index in range(limits.UPSTREAM_BLOCKS_MAX):
        assert not folded.feed(block(b'{"type":"x"}', index=index))
    with pytest.raises(StreamTooLarge, match=f"over {limits.UPSTREAM_BLOCKS_MAX} blocks"):
        folded.feed(block(b'{"type":"x"}', index=limits.UPSTREAM_BLOCKS_MAX))
