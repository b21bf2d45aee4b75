"""JSON that two readers could read differently is refused, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchyard import limits, strict

DIGITS = strict.INTEGER_DIGITS_MAX

REFUSED = [
    # Keys.
    (b'{"a":1,"a":2}', ': Duplicate key "a"'),
    (b'{"a":1,"a":1}', ': Duplicate key "a"'),
    (b'{"a":1,"\\u0061":2}', ': Duplicate key "a"'),
    (b'{"":1,"":2}', ': Duplicate key ""'),
    (b'{"a" :1, "a"\n:2}', ': Duplicate key "a"'),
    (b'{"x":{"a":"","a":[]}}', '.x: Duplicate key "a"'),
    (b'{"messages":[{"role":"a"},{"role":"b","role":"c"}]}', '.messages.1: Duplicate key "role"'),
    (b'{"a":{"b":1,"b":2},"c":{"d":1,"d":2}}', '.a: Duplicate key "b"'),
    (b'{"a":1,"b":{"c":1,"c":2},"a":2}', ': Duplicate key "a"'),
    (b'{"k\\ney":1,"k\\ney":2}', ': Duplicate key "k\\ney"'),
    # Each tries to hide two equal keys from the count of quotes.
    (b'{"t":"\\u0022","a":1,"a":2}', ': Duplicate key "a"'),
    (b'{"t":"\\u0022\\u0022","a":1,"a":2}', ': Duplicate key "a"'),
    (b'{"t\\u0022\\u0022":1,"a":1,"a":2}', ': Duplicate key "a"'),
    (b'{"a":"\\"\\"","a":"\\"\\"\\"\\""}', ': Duplicate key "a"'),
    (b'{"a":{"\\"":"\\""},"b":"\\\\\\"","a":{}}', ': Duplicate key "a"'),
    (b'{"a":"\\u0022\\u0022\\u0022","a":2,"\\u0022":"\\""}', ': Duplicate key "a"'),
    # Numbers.
    (b'{"x":1e400}', ".x: Number out of range"),
    (b'{"x":[0,-1e400]}', ".x.1: Number out of range"),
    (b'{"x":%b}' % (b"1" * (DIGITS + 1)), f".x: Integer of more than {DIGITS} digits"),
    (b'{"x":-%b}' % (b"1" * (DIGITS + 1)), f".x: Integer of more than {DIGITS} digits"),
    (b'{"x":{"y":%b}}' % (b"9" * 5_000), f".x.y: Integer of more than {DIGITS} digits"),
    # Bytes.
    (b'{"x":"\xff"}', ": not UTF-8 (invalid start byte)"),
    (b'{"\xc0\xaf":1}', ": not UTF-8 (invalid start byte)"),
    (b'{"x":"\xe2\x82"}', ": not UTF-8 (invalid continuation byte)"),
    (b'{"x":"\xed\xa0\x80"}', ": not UTF-8 (invalid continuation byte)"),
]  # fmt: skip

PASSED = [
    b"{}",
    b'{"a":1,"A":2," a":3}',
    b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}',
    b'{"a":"a\\":1,\\"a\\":2"}',
    b'{"a":"\\u0022"}',
    b'{"\\u0022":1,"\\"\\"":2}',
    b'{"a":"C:\\\\","b":"\\\\\\""}',
    b'{"a" : 1 , "b" : " : " }',
    b'{"x":[1.0,1e2,1e-400,-0,18446744073709551616,9223372036854775808,-1e308]}',
    b'{"x":%b}' % (b"1" * DIGITS),
    b'{"x":-%b}' % (b"1" * DIGITS),
    '{"é":"😀\\ud83d\\ude00\\u0000\u2028"}'.encode(),
]


def nested(levels: int, opened: str, closed: str) -> bytes:
    """Return an object of so many levels, itself the first."""
    return ('{"a":' + opened * (levels - 1) + "1" + closed * (levels - 1) + "}").encode()


@pytest.mark.parametrize(("params", "problem"), REFUSED)
def test_what_could_be_read_in_two_ways_is_refused_with_its_place(
    params: bytes, problem: str
) -> None:
    assert strict.problem(params) == problem


@pytest.mark.parametrize("params", PASSED)
def test_what_has_one_reading_passes(params: bytes) -> None:
    assert strict.problem(params) is None


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}")])
def test_100_levels_pass_and_more_are_refused(opened: str, closed: str) -> None:
    most = limits.PARAMS_DEPTH_MAX
    assert strict.problem(nested(most, opened, closed)) is None
    for levels in (most + 1, 900, 5_000, 100_000):
        found = strict.problem(nested(levels, opened, closed))
        assert found == ": nested deeper than 100 levels", levels


def test_a_deep_text_is_not_a_deep_value() -> None:
    text = "[{" * 500
    assert strict.problem(json.dumps({"messages": [{"content": text}]}).encode()) is None


@pytest.mark.parametrize("value", [b"[]", b"{}", b"0", b'""'])
def test_more_values_than_the_bound_are_refused_unbuilt(
    monkeypatch: pytest.MonkeyPatch, value: bytes
) -> None:
    monkeypatch.setattr(limits, "PARAMS_VALUES_MAX", 50)
    many = b'{"x":[%b]}'
    assert strict.problem(many % b",".join([value] * 20)) is None
    assert strict.problem(many % b",".join([value] * 60)) == ": more than 50 values"


def test_commas_and_brackets_of_a_text_are_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PARAMS_VALUES_MAX", 50)
    for text in (",[{" * 100, '\\",[{\\\\' * 100, '"'):
        assert strict.problem(json.dumps({"x": text, "y": text}).encode()) is None


def test_a_long_path_is_cut() -> None:
    found = strict.problem(b'{"%b":{"a":1,"a":2}}' % (b"k" * 10_000))
    assert found is not None
    assert len(found) < 250
    assert found.endswith('Duplicate key "a"')


# Any text of an object with a few keys, so that they often meet; strings that try to confuse.
TEXTS = st.text('a":\\ {}[],é\u2028', max_size=6)
KEYS = st.sampled_from(["a", "b", "", '"', "\\", '":'])


class Pairs(list[tuple[str, Any]]):
    """An object as it is written."""


VALUES = st.recursive(
    st.none() | st.integers(-3, 3) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(st.tuples(KEYS, inner), max_size=4).map(Pairs)
    ),
    max_leaves=12,
)
OBJECTS = st.lists(st.tuples(KEYS, VALUES), max_size=5).map(Pairs)


def written(value: Any, styles: list[int]) -> str:
    """Write JSON; each string takes the next style of escapes and white space."""
    style = styles[0]
    styles.append(styles.pop(0))
    space = ["", " ", "\n\t"][style % 3]
    match value:
        case Pairs():
            members = [f"{written(k, styles)}{space}:{space}{written(v, styles)}" for k, v in value]
            return "{" + f"{space},".join(members) + space + "}"
        case list():
            return f"[{space}{f',{space}'.join(written(item, styles) for item in value)}]"
        case str() if style >= 3:
            return '"' + "".join(f"\\u{ord(char):04x}" for char in value) + '"'
        case _:
            return json.dumps(value, ensure_ascii=style % 2 == 0)


def repeats(value: Any) -> bool:
    """Whether an object has a key twice, at any level."""
    if isinstance(value, Pairs):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(repeats(item) for _, item in value)
    return isinstance(value, list) and any(repeats(item) for item in value)


@given(OBJECTS, st.lists(st.integers(0, 5), min_size=1, max_size=7))
@example(Pairs([("a", '"'), ("a", "")]), [4, 0])
def test_exactly_the_objects_with_a_repeated_key_are_refused(
    value: Pairs, styles: list[int]
) -> None:
    text = written(value, styles)
    found = strict.problem(text.encode())
    assert (found is not None) == repeats(value), (text, found)
