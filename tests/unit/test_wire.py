"""The envelope of a create call and the times of the wire."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits, wire
from batchyard.errors import InvalidRequest

OK = {"custom_id": "a", "params": {}}
PATTERN = "String should match pattern '^[a-zA-Z0-9_-]{1,64}$'"


def body(*requests: object) -> bytes:
    return json.dumps({"requests": list(requests)}).encode()


def entry(custom_id: object) -> dict[str, object]:
    return {"custom_id": custom_id, "params": {}}


# Every text of a refused create, with the path of the first fault.
DOCUMENTED = [
    (body(), "requests: List should have at least 1 item after validation, not 0"),
    (b"{}", "requests: Field required"),
    (body({"params": {}}), "requests.0.custom_id: Field required"),
    (body(OK, {"params": {}}), "requests.1.custom_id: Field required"),
    (body(entry("x" * 65)), "requests.0.custom_id: String should have at most 64 characters"),
    (body(entry("")), "requests.0.custom_id: String should have at least 1 character"),
    (
        body(entry("dup"), OK, entry("dup")),
        "requests: custom_id's must be unique within a batch. Duplicate custom_id found: dup",
    ),
    (body({"custom_id": "a"}), "requests.0.params: Field required"),
]
BAD_IDS = [" ", "a b", "a.b", "a/b", "é", "٣", "a\n", "\n", "a\nb", "a\0", "=cmd", "😀", "a\u2028"]
NOT_A_DICTIONARY = "requests.0.params: Input should be a valid dictionary"
SHAPES = [
    (b"[]", "Input should be a valid dictionary or object"),
    (b"null", "Input should be a valid dictionary or object"),
    (b'"x"', "Input should be a valid dictionary or object"),
    (b'{"requests":null}', "requests: Input should be a valid list"),
    (b'{"requests":{}}', "requests: Input should be a valid list"),
    (b'{"requests":[],"extra":1}', "extra: Extra inputs are not permitted"),
    (b'{"extra":1,"requests":[]}', "extra: Extra inputs are not permitted"),
    (body(None), "requests.0: Input should be a valid dictionary"),
    (body(OK, []), "requests.1: Input should be a valid dictionary"),
    (body(entry(5)), "requests.0.custom_id: Input should be a valid string"),
    (body(entry(None)), "requests.0.custom_id: Input should be a valid string"),
    (body(entry(["a"])), "requests.0.custom_id: Input should be a valid string"),
    (body({"custom_id": "a", "params": None}), NOT_A_DICTIONARY),
    (body({"custom_id": "a", "params": []}), NOT_A_DICTIONARY),
    (body({"custom_id": "a", "params": "x"}), NOT_A_DICTIONARY),
    (body(OK | {"x": 1}), "requests.0.x: Extra inputs are not permitted"),
    (body(OK, entry("b") | {"a\nb": {}}), "requests.1.a\\nb: Extra inputs are not permitted"),
    (body({"custom_id": "a", "x": 1}), "requests.0.params: Field required"),
]
TWICE = "requests.1: Duplicate key; custom_id and params are allowed once each"
# With the second request of a body, compact and not.
REPEATED = [
    b'{"custom_id":"b","params":{},"params":{}}',
    b'{"custom_id":"b","params":{},"params":{"a":1}}',
    b'{"params":1,"custom_id":"b","params":{}}',
    b'{"params":"","custom_id":"b","params":{"long":"enough to reach over the rest"}}',
    b'{"params":{"a":1},"params":{},"custom_id":"b"}',
    b'{"custom_id":"a","custom_id":"b","params":{}}',
    b'{"custom_id":"b","params":{},"custom_id":"b"}',
    b'{"custom_id":"b","params":{},"custom\\u005fid":"c"}',
]
NOT_JSON = [
    b"",
    b" ",
    b"{",
    b"{}x",
    body(OK) + b"x",
    body(OK) + body(OK),
    body(OK)[:-1],
    body(OK)[:-2] + b",]}",
    b"// c\n" + body(OK),
    b"\xef\xbb\xbf" + body(OK),
    body(OK).decode().encode("utf-16"),
    b'{"requests":[{"custom_id":"a","params":{"x":NaN}}]}',
    b'{"requests":[{"custom_id":"a","params":{"x":Infinity}}]}',
    b'{"requests":[{"custom_id":"a","params":{"x":-Infinity}}]}',
    b'{"requests":[{"custom_id":"a","params":{"x":01}}]}',
    b'{"requests":[{"custom_id":"a","params":{"x":"raw\ttab"}}]}',
    b'{"requests":[{"custom_id":"a","params":{"x":"raw\nline"}}]}',
    b'{"requests":[{"custom_id":"a","params":{"x":"\\ud800"}}]}',
    b"{'requests':[]}",
    # A misfit before what is not JSON: the typed decode never gets there.
    b'{"requests":[{"custom_id":1,"params":{}}], garbage',
    b'{"requests":5',
    b'{"x":1,"requests":[',
]


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        wire.split(data)
    assert (caught.value.status, caught.value.type) == (400, "invalid_request_error")
    return caught.value.message


@pytest.mark.parametrize(("data", "message"), [*DOCUMENTED, *SHAPES])
def test_a_wrong_envelope_is_refused_in_the_words_of_the_hosted_api(
    data: bytes, message: str
) -> None:
    assert refusal(data) == message


@pytest.mark.parametrize("repeated", REPEATED)
@pytest.mark.parametrize("space", [b"", b" ", b" " * 40])
def test_a_key_of_a_request_that_is_there_twice_is_refused(repeated: bytes, space: bytes) -> None:
    assert (
        refusal(b'{"requests":[{"custom_id":"a","params":{}},%b%b]}' % (space, repeated)) == TWICE
    )
    spaced = repeated.replace(b",", b"%b,%b" % (space, space))
    assert refusal(b'{"requests":[{"custom_id":"a","params":{}},%b]}' % spaced) == TWICE


@pytest.mark.parametrize("space", ["", " ", " " * 100_000])
@pytest.mark.parametrize("first", ["[]", '[{"custom_id":"b","params":{}}]'])
def test_requests_twice_are_refused(first: str, space: str) -> None:
    second = body(OK).decode()[1:]
    data = f'{space}{{{space}"requests"{space}:{first}{space},{second}{space}'
    assert refusal(data.encode()) == 'Duplicate key "requests"'


@pytest.mark.parametrize("space", [b"", b" ", b"\r\n\t", b" " * 100_000])
def test_white_space_and_escaped_keys_are_no_second_keys(space: bytes) -> None:
    one = b'{ "params" : {"x":"\\"params\\":0,"} ,S"custom\\u005fid" : "a"S}'
    other = b'{S"custom_id":S"b"S,S"params":S{S}S}'
    data = b'S{S"request\\u0073"S:S[%b,S%bS]S}S' % (one, other)
    assert [e.custom_id for e in wire.split(data.replace(b"S", space))] == ["a", "b"]


@pytest.mark.parametrize(
    "data",
    [
        b'{"requests":[{"custom_id":"\xff","params":{}}]}',
        b'{"requests":[{"custom_id":"a","params":{},"\xff":1}]}',
        b'{"\xff":1}',
    ],
)
def test_bytes_that_are_no_utf8_are_refused_outside_of_params(data: bytes) -> None:
    assert refusal(data).startswith("The request body is not valid JSON: ")


@pytest.mark.parametrize("custom_id", BAD_IDS)
def test_other_characters_in_a_custom_id_are_refused(custom_id: str) -> None:
    assert refusal(body(OK, entry(custom_id))) == f"requests.1.custom_id: {PATTERN}"


@pytest.mark.parametrize("data", NOT_JSON)
def test_what_is_not_json_is_refused_as_such(data: bytes) -> None:
    assert refusal(data).startswith("The request body is not valid JSON: ")


@pytest.mark.parametrize("opened", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [1_000, 2_000, 100_000, 500_000])
def test_deep_nesting_is_refused_and_crashes_nothing(opened: str, depth: int) -> None:
    closed = "]" if opened == "[" else "}"
    deep = f"{opened * depth}1{closed * depth}"
    message = "The request body is not valid JSON: nested too deeply"
    assert refusal(f'{{"requests":[{{"custom_id":"a","params":{deep}}}]}}'.encode()) == message
    # Also behind a misfit, where only the second look comes along.
    assert refusal(f'{{"requests":[{{"custom_id":1}}],"x":{deep}}}'.encode()) == message


def test_over_100000_requests_are_refused_with_their_number() -> None:
    most = limits.BATCH_REQUESTS_MAX
    requests = ",".join(f'{{"custom_id":"{n}","params":{{}}}}' for n in range(most + 1))
    assert refusal(f'{{"requests":[{requests}]}}'.encode()) == (
        "requests: List should have at most 100000 items after validation, not 100001"
    )
    fewer = requests.rpartition(",{")[0]
    assert len(wire.split(f'{{"requests":[{fewer}]}}'.encode())) == most


@pytest.mark.parametrize("custom_id", ["a", "A-_9", "x" * 64, "-", "_", "0"])
def test_a_legal_custom_id_is_accepted(custom_id: str) -> None:
    assert [e.custom_id for e in wire.split(body(entry(custom_id)))] == [custom_id]
    assert wire.is_custom_id(custom_id)


def test_ids_that_differ_in_case_are_two() -> None:
    assert len(wire.split(body(entry("a"), entry("A")))) == 2


@given(st.lists(st.text(max_size=70), min_size=1, max_size=5))
def test_split_accepts_exactly_lists_of_different_legal_ids(custom_ids: list[str]) -> None:
    legal = all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", c, re.ASCII) for c in custom_ids)
    data = body(*map(entry, custom_ids))
    if legal and len(set(custom_ids)) == len(custom_ids):
        assert [e.custom_id for e in wire.split(data)] == custom_ids
    else:
        assert refusal(data).startswith("requests")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4), st.sampled_from([None, 1, "\t"]))
def test_params_come_out_byte_for_byte_as_they_were_sent(
    params: dict[str, object], indent: int | str | None
) -> None:
    raw = json.dumps(params, indent=indent).encode()
    data = b'{ "requests" : [\r\n{"params": %b ,"custom_id":"a"} ] }\n' % raw
    (found,) = wire.split(memoryview(data))
    assert bytes(memoryview(found.params)) == raw


@given(st.binary(max_size=200))
def test_no_bytes_bring_out_anything_but_a_refusal(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        wire.split(data)


# Times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_795_286_244_100_435, "2026-11-21T18:37:24.100435Z"),
        (1_795_286_244_000_000, "2026-11-21T18:37:24.000000Z"),
        (1, "1970-01-01T00:00:00.000001Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
    ],
)
def test_times_are_written_with_six_digits_and_z(us: int, text: str) -> None:
    assert wire.rfc3339(us) == text
    assert wire.parse_rfc3339(text) == us


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21T18:37:24Z",
        "2026-11-21T18:37:24.000000Z",
        "2026-11-21T18:37:24.000+00:00",
        "2026-11-21T20:07:24+01:30",
        "2026-11-21T13:37:24-05:00",
    ],
)
def test_every_form_of_a_moment_is_read(text: str) -> None:
    assert wire.parse_rfc3339(text) == 1_795_286_244_000_000


@pytest.mark.parametrize(
    "text", ["", "x", "2026-11-21", "2026-11-21T18:37:24", "2026-13-01T00:00:00Z"]
)
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        wire.parse_rfc3339(text)


@given(st.integers(-(10**15), 10**17))
def test_a_time_survives_the_wire(us: int) -> None:
    text = wire.rfc3339(us)
    assert wire.parse_rfc3339(text) == us
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    assert datetime.fromisoformat(text) == moment


@given(st.integers(0, 10**17), st.integers(0, 10**17))
def test_times_sort_as_their_texts(one: int, other: int) -> None:
    assert (one < other) == (wire.rfc3339(one) < wire.rfc3339(other))


# JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'"\xff"', b"NaN", b"[" * 100_000, "{"])
def test_decode_raises_only_value_error(data: bytes | str) -> None:
    with pytest.raises(ValueError, match=r"."):
        wire.decode(data)


def test_decode_and_encode_are_inverse() -> None:
    value = {"a": [1, 2.5, None, True, "é"]}
    assert wire.decode(wire.encode(value)) == value
    assert wire.encode(msgspec.Raw(b"1e5")) == b"1e5"
