"""A create body that is split while it arrives gives the same requests as one that is split whole.

Or it gives none: whatever is unusual or wrong is left to the slow look at the whole.
"""

from __future__ import annotations

import json
import os
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard import limits, strict, wire
from batchyard.dispatch.prefix import are_in_order, order_keys
from batchyard.dispatch.routes import Route, Routes
from batchyard.errors import InvalidRequest
from batchyard.segments.requests import read_records
from batchyard.server.arriving import Arriving, OddBodyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.segments.requests import Record

BODIES = int(os.environ.get("BATCHYARD_ARRIVING_BODIES", "400"))

FIVE = {"type": "ephemeral"}


def entry(number: int, content: Any = "x", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    params = {"model": "m", "max_tokens": 1, "messages": messages, **fields}
    return {"custom_id": f"id-{number}", "params": params}


def compact(requests: Sequence[Any]) -> bytes:
    return wire.encode({"requests": requests})


def pieces_of(body: bytes, size: int) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def arrived(pieces: Sequence[bytes]) -> tuple[Arriving, bytes]:
    """Feed a body.

    Raises:
        OddBodyError: it must be looked at whole.
    """
    arriving = Arriving()
    records = b"".join([arriving.feed([piece]) for piece in pieces])
    return arriving, records + arriving.finish()


def slowly(body: bytes) -> list[Record] | None:
    """Return what the look at the whole body finds, None when it refuses it."""
    try:
        entries = wire.split(body)
    except InvalidRequest:
        return None
    records = [(each.custom_id, bytes(each.params)) for each in entries]
    return None if any(strict.problem(params) for _, params in records) else records


texts = st.text(max_size=8) | st.sampled_from(
    ['{"custom_id":"id-0"', '},{"custom_id":', "]}", '\\"']
)
contents = st.recursive(
    texts | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
requests = st.lists(contents, min_size=1, max_size=8)
writers = st.sampled_from(
    [
        compact,
        lambda made: json.dumps({"requests": made}).encode(),
        lambda made: json.dumps({"requests": made}, indent=2, ensure_ascii=False).encode(),
        lambda made: json.dumps({"requests": made}, sort_keys=True).encode() + b"\n",
        lambda made: compact([{"params": m["params"], "custom_id": m["custom_id"]} for m in made]),
    ]
)


@given(requests, writers, st.integers(1, 200))
def test_however_it_is_cut_the_requests_are_the_same(
    contents: list[Any], write: Any, size: int
) -> None:
    made = [entry(n, content, model=f"m{n % 2}") for n, content in enumerate(contents)]
    body = write(made)
    try:
        arriving, records = arrived(pieces_of(body, size))
    except OddBodyError:
        # Only what looks like a request inside of one may stand in the way, and an escape.
        assert b'{"custom_id"' in body[20:] or b"\\u" in body or b'\\"' in body
        return
    assert list(read_records(records)) == slowly(body)
    entries = wire.split(body)
    assert arriving.models == [f"m{n % 2}" for n in range(len(made))]
    routes = Routes([Route("up")])
    assert routes.pools_of(arriving.models) == routes.pools(entries)
    assert arriving.keys == order_keys(entries)
    assert arriving.size == len(records)
    for stored, (custom_id, params) in zip(arriving.stored, read_records(records), strict=True):
        assert (stored.custom_id, stored.size) == (custom_id, len(params))
        assert records[stored.offset :].startswith(custom_id.encode() + b" ")


@pytest.mark.parametrize("write", range(5))
@pytest.mark.parametrize("size", [1, 7, 100, 1_000, 100_000])
def test_an_ordinary_body_never_needs_the_slow_look(write: int, size: int) -> None:
    made = [entry(n, f"Größe {n}: 他说 “ja” \n\t and 'no'") for n in range(200)]
    body = [
        compact(made),
        json.dumps({"requests": made}).encode(),
        json.dumps({"requests": made}, indent=4, ensure_ascii=False).encode(),
        b' \n{ "requests" :\t[' + compact(made)[len('{"requests":[') :] + b"\n",
        compact([{"params": m["params"], "custom_id": m["custom_id"]} for m in made]),
    ][write]
    _, records = arrived(pieces_of(body, size))
    assert list(read_records(records)) == slowly(body)


def test_quotes_in_texts_are_proven_too() -> None:
    body = compact([entry(n, 'he said "yes" and {"left": 1}' * n) for n in range(50)])
    _, records = arrived(pieces_of(body, 300))
    assert list(read_records(records)) == slowly(body)


GOOD = b'{"custom_id":"b","params":{"x":1}}'


@pytest.mark.parametrize(
    "second",
    [
        b'{"custom_id":"c","params":{"x":1,"x":1}}',
        b'{"custom_id":"c","params":{"y":[{"x":1,"x":"a"}]}}',
        b'{"custom_id":"c","params":{"x":"\\u0022","y":{"a":"","a":""}}}',
        b'{"custom_id":"c","params":{"x":1},"params":{"x":1}}',
        b'{"custom_id":"c","custom_id":"c","params":{"x":1}}',
        b'{"custom_id":"b","params":{"x":1}}',
        b'{"custom_id":"c d","params":{"x":1}}',
        b'{"custom_id":"","params":{"x":1}}',
        b'{"custom_id":"c\\n","params":{"x":1}}',
        b'{"custom_id":"c","params":{"x":1e999}}',
        b'{"custom_id":"c","params":{"x":"\xff"}}',
        b'{"custom_id":"c","params":{"\xff":1}}',
        b'{"custom_id":"\xff","params":{"x":1}}',
        b'{"custom_id":"c","params":{"x":' + b"[" * 100 + b"]" * 100 + b"}}",
        b'{"custom_id":"c","params":[]}',
        b'{"custom_id":"c","params":7}',
        b'{"custom_id":"c","params":null}',
        b'{"custom_id":"c"}',
        b'{"custom_id":"c","params":{},"more":1}',
        b'{"custom_id":7,"params":{}}',
        b'{"custom_id":"c","params":{}',
        b'{"custom_id":"c","params":{}}}',
        b'{"custom_id":"c","params":{}}]',
        b'{"custom_id":"c","params":{}}],"requests":[' + GOOD,
        b"[]",
        b"",
        b",",
    ],
)
def test_what_is_wrong_is_left_to_the_slow_look(second: bytes) -> None:
    first = b'{"custom_id":"a","params":{"x":1}}'
    whole = b'{"requests":[' + b",".join((first, GOOD, second)) + b"]}"
    assert slowly(whole) is None
    for body in (whole, b'{"requests":[' + b",".join((first, second, GOOD)) + b"]}"):
        for size in (1, 20, 50, 1_000):
            with pytest.raises(OddBodyError):
                arrived(pieces_of(body, size))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"requests":[]}',
        b'{"requests":[' + GOOD,
        b'{"requests":[' + GOOD + b"]",
        b'{"requests":[' + GOOD + b"]}x",
        b'{"requests":[' + GOOD + b",]}",
        b'{"requests":[' + GOOD + b'],"more":1}',
        b'{"requests":[' + GOOD + b'],"requests":[]}',
        b'{"more":1,"requests":[' + GOOD + b"]}",
        b"[" + GOOD + b"]",
        b" " * 2_000 + b'{"requests":[' + GOOD + b"]}",
    ],
)
def test_a_body_of_another_form_is_left_to_the_slow_look(body: bytes) -> None:
    for size in (1, 9, 1_000):
        with pytest.raises(OddBodyError):
            arrived(pieces_of(body, size))


@pytest.mark.parametrize("white", [b"\x0b", b"\x0c"])
@pytest.mark.parametrize(
    "form",
    [b'%b{"requests":[', b'{%b"requests":[', b'{"requests"%b:[', b'{"requests":%b[',
     b'{"requests":[%b'],
)  # fmt: skip
def test_white_space_that_json_has_not_is_refused_by_both(form: bytes, white: bytes) -> None:
    body = form % white + GOOD + b"]}"
    assert slowly(body) is None
    assert slowly(form % b" " + GOOD + b"]}") is not None
    for size in (1, 9, 1_000):
        with pytest.raises(OddBodyError):
            arrived(pieces_of(body, size))


@settings(max_examples=400)
@given(
    st.integers(1, 6),
    st.lists(
        st.tuples(st.integers(0, 10**6), st.binary(max_size=3), st.integers(0, 4)), max_size=3
    ),
    st.integers(1, 400),
)
def test_nothing_is_taken_that_the_slow_look_refuses(
    count: int, changes: list[tuple[int, bytes, int]], size: int
) -> None:
    """Bytes are replaced anywhere: what still passes is what the slow look finds."""
    body = compact([entry(n, [{"type": "text", "text": 'a "b"', "id": n}]) for n in range(count)])
    for at, new, length in changes:
        begin = at % len(body)
        body = body[:begin] + new + body[begin + length :]
    try:
        _, records = arrived(pieces_of(body, size))
    except OddBodyError:
        return
    assert list(read_records(records)) == slowly(body)


VALUES = (
    b"1", b"-0", b"1.5", b"true", b"null", b"1e5", b'""', b'"a"', b'"\\""', b'"\\u0022"',
    b'"{\\"custom_id\\""', b'"\\\\"', b'"\xc3\xa9"',
)  # fmt: skip
KEYS = (
    b'"a"', b'"b"', b'"custom_id"', b'"params"', b'"c\\""', b'"\\u0061"', b'"model"',
    b'"cache_control"',
)  # fmt: skip
WHITES = (b"", b" ", b"\n", b"\t")
ODD_WHITES = (b"\x0b", b"\x0c", b"\xc2\xa0")
ENDS = (b"]}", b"]}\n", b" ]\t} ")
ODD_ENDS = (b",]}", b"]", b"]}}", b'],"requests":[]}', b"]}\x0c")


def some_value(random: Random, depth: int = 0) -> bytes:
    kind = random.random()
    if kind < 0.25 or depth == 4:
        return random.choice(VALUES)
    values = [some_value(random, depth + 1) for _ in range(random.randint(0, 3))]
    if kind < 0.5:
        return b"[" + b",".join(values) + b"]"
    return b"{" + b",".join(random.choice(KEYS) + b":" + value for value in values) + b"}"


def some_request(random: Random, number: int) -> bytes:
    keys = (b'"a"', b'"b%d"' % number, b'"x"', b'"model"')
    members = [random.choice(keys) + b":" + some_value(random) for _ in range(random.randint(0, 2))]
    name = b'"r%d"' % number
    if random.random() < 0.05:
        name = random.choice((b'"r\\u0031"', b'"r 1"', b'"r0"'))
    fields = [b'"custom_id":' + name, b'"params":{' + b",".join(members) + b"}"]
    if random.random() < 0.05:
        fields.reverse()
    if random.random() < 0.02:
        fields.append(random.choice(fields))
    white = random.choice((b"", b"", b" ", b"\n"))
    return b"{" + white + (b"," + white).join(fields) + white + b"}"


def some_body(random: Random) -> bytes:
    """Return a create body, or what nearly is one."""
    made = [some_request(random, number) for number in range(random.randint(1, 4))]
    begin = [b"", b"{", b'"requests"', b":", b"["]
    begin[random.randrange(5)] += random.choice(WHITES if random.random() < 0.8 else ODD_WHITES)
    between = random.choice((b",", b" , ", b",\n"))
    end = random.choice(ENDS if random.random() < 0.8 else ODD_ENDS)
    body = b"".join(begin) + between.join(made) + end
    if random.random() < 0.2:
        at = random.randrange(len(body))
        wrong = random.choice((b"", b'"', b",", b"}", b"\xff", b"\\"))
        body = body[:at] + wrong + body[at + 1 :]
    return body


def test_odd_bodies_get_the_same_verdict_ids_and_params_from_both() -> None:
    """More of them by BATCHYARD_ARRIVING_BODIES; each number is a seed."""
    taken = 0
    for number in range(BODIES):
        random = Random(number)
        body = some_body(random)
        cuts = sorted(random.sample(range(len(body)), 3))
        pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        try:
            _, records = arrived(pieces)
        except OddBodyError:
            continue
        taken += 1
        assert list(read_records(records)) == slowly(body), (number, cuts, body)
    assert taken > BODIES // 10


@given(st.integers(0, 3), st.sampled_from(['"', "'", '\\"', "\\u0022", "\\\\"]), st.integers(1, 99))
def test_keys_that_are_there_twice_never_pass_for_quotes(times: int, quote: str, size: int) -> None:
    text = (quote * times).replace("'", "")
    twice = f'{{"custom_id":"t","params":{{"a":"{text}","b":1,"b":1}}}}'
    plain = '{"custom_id":"p%d","params":{"a":"%s"}}'
    others = [plain % (n, "" if quote == '"' else quote * 3) for n in range(4)]
    body = ('{"requests":[' + ",".join([*others[:2], twice, *others[2:]]) + "]}").encode()
    with pytest.raises(OddBodyError):
        arrived(pieces_of(body, size))


def test_more_requests_than_a_batch_may_have_are_left_to_the_slow_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "BATCH_REQUESTS_MAX", 5)
    arrived([compact([entry(n) for n in range(5)])])
    with pytest.raises(OddBodyError):
        arrived(pieces_of(compact([entry(n) for n in range(6)]), 100))


def test_a_request_that_is_too_large_to_hold_is_left_to_the_slow_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "ARRIVING_BYTES_MAX", 10_000)
    arrived(pieces_of(compact([entry(0), entry(1, "x" * 9_000), entry(2)]), 1_000))
    with pytest.raises(OddBodyError):
        arrived(pieces_of(compact([entry(0), entry(1, "x" * 12_000), entry(2)]), 1_000))


def own_block(number: int) -> list[dict[str, Any]]:
    return [{"type": "text", "text": f"doc {number}", "cache_control": FIVE}]


def test_requests_that_share_no_more_than_all_do_stay_in_their_order() -> None:
    shared = [{"type": "text", "text": "instructions", "cache_control": FIVE}]
    for system in ({}, {"system": shared}):
        own = compact([entry(n, own_block(n), **system) for n in range(9)])
        assert are_in_order(arrived([own])[0].keys)
        groups = compact([entry(n, own_block(n % 3), **system) for n in range(9)])
        assert not are_in_order(arrived([groups])[0].keys)
    assert are_in_order(arrived([compact([entry(n, system=shared) for n in range(9)])])[0].keys)
    two = [{"system": [{**shared[0], "text": text}]} for text in "ab"]
    mixed = compact([entry(n, own_block(n), **two[n % 2]) for n in range(9)])
    assert not are_in_order(arrived([mixed])[0].keys)
    some = compact([entry(n, own_block(n) if n % 2 else "x") for n in range(9)])
    assert not are_in_order(arrived([some])[0].keys)
