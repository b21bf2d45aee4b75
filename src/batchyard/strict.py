"""What JSON leaves open in the `params` of a request, closed at creation.

The check of a request and its upstream must see the same values. Parsers differ on repeated keys,
on numbers beyond their range, and on how deep they go; a request that has any of these is refused.
Nothing is changed: what passes stays the bytes that the client sent.

An integer of any length up to 4,300 digits passes, as bytes: only its reader can say whether it
fits. A longer one is refused, because parsers refuse to read it.

Pure; knows nothing of what the values mean.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

from batchyard import limits
from batchyard.errors import shown

INTEGER_DIGITS_MAX = 4_300  # Python and msgspec read no more
_PATH_CHARS_MAX = 200

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_decode = msgspec.json.Decoder().decode


def problem(params: bytes) -> str | None:
    """Return what is wrong with `params`, as `path: reason` without the path of the request.

    The path begins with a dot, or is empty for `params` itself: `.x.0: Duplicate key "role"`.

    Args:
        params: one JSON object whose syntax has been checked; UTF-8 need not have been.
    """
    proof = Proof()
    if proof.add(params) is not None and proof.holds(params, len(params)):
        return None
    if _are_too_many(params):
        return f": more than {limits.PARAMS_VALUES_MAX} values"
    return _slow(params)


class Proof:
    """That many `params` are all in order: quicker than to look at each alone.

    What it cannot prove is not wrong for that: `problem` says.
    """

    def __init__(self, name: str = "") -> None:
        """Begin with none.

        Args:
            name: a key to look out for.
        """
        self.has_name = False
        """Whether some object has the key."""
        self._name = name
        self._keys = 0
        self._strings: list[str] = []

    def add(self, params: bytes | msgspec.Raw) -> dict[str, Any] | None:
        """Return decoded params, or None when they are not in order, or no object."""
        try:
            if len(memoryview(params)) > limits.PARAMS_VALUES_MAX and _are_too_many(bytes(params)):
                return None
            value = _decode(params)
            if type(value) is not dict:
                return None
            self._collect(value, limits.PARAMS_DEPTH_MAX)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return value

    def _collect(self, value: Any, levels: int) -> None:
        """Count the keys of a decoded object or list, and keep all other strings.

        Raises:
            RecursionError: there are more than `levels` levels.
        """
        if not levels:
            raise RecursionError
        if type(value) is dict:
            self._keys += len(value)
            if self._name in value:
                self.has_name = True
            value = value.values()
        for item in value:
            kind = type(item)
            if kind is str:
                self._strings.append(item)
            elif kind is dict or kind is list:
                self._collect(item, levels - 1)

    def holds(self, text: bytes | bytearray, end: int, others: int = 0) -> bool:
        """Whether no key was dropped in any of the params.

        Args:
            text: up to `end`, all that was added and what stands around it, in valid JSON.
            end: of the text.
            others: how many keys and strings stand around; none of them holds a quote.
        """
        # Every key and string that the decoder kept has two quotes in the text. Those that it
        # dropped, as it does the first of two equal keys, have two more: without more there are
        # none. For many params at once as for one: no summand can make up for another.
        strings = self._strings
        more = text.count(b'"', 0, end) - 2 * (self._keys + len(strings) + others)
        if not more:
            return True
        # Unless they are quotes inside strings: in the text those are all there, but as `\u0022`.
        return (
            more == sum(string.count('"') for string in strings)
            and text.find(b"\\u0022", 0, end) < 0
        )


def _are_too_many(params: bytes) -> bool:
    return _may_be_many(params) and _values(params) > limits.PARAMS_VALUES_MAX


def _may_be_many(params: bytes) -> bool:
    # Every value but the first of a list or object follows a comma, the first its opening.
    return (
        len(params) > limits.PARAMS_VALUES_MAX
        and params.count(b",") + params.count(b"[") + params.count(b"{") > limits.PARAMS_VALUES_MAX
    )


def _values(params: bytes) -> int:
    """Return at least how many values there are, without holding any."""
    marks = 0
    end = 0
    for string in _STRING.finditer(params):
        start = string.start()
        marks += sum(params.count(mark, end, start) for mark in (b",", b"[", b"{"))
        end = string.end()
    return marks + sum(params.count(mark, end) for mark in (b",", b"[", b"{"))


# The slow look, at what the fast one could not prove: it finds the place and the reason -----------


class _Fault:
    """Stands in a decoded value where something is wrong."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _slow(params: bytes) -> str | None:
    try:
        value = _faulty.decode(params.decode())
    except UnicodeDecodeError as error:
        return f": not UTF-8 ({error.reason})"
    except RecursionError:
        return _too_deep()
    except ValueError as error:
        return f": not valid JSON ({error})"
    return _first_fault(value, "", limits.PARAMS_DEPTH_MAX)


def _first_fault(value: Any, path: str, levels: int) -> str | None:
    if isinstance(value, _Fault):
        return f"{_cut(path)}: {value.reason}"
    if isinstance(value, dict):
        items = ((shown(key), item) for key, item in value.items())
    elif isinstance(value, list):
        items = ((str(index), item) for index, item in enumerate(value))
    else:
        return None
    if not levels:
        return _too_deep()
    for name, item in items:
        if isinstance(item, _Fault | dict | list):
            found = _first_fault(item, f"{path}.{name}", levels - 1)
            if found is not None:
                return found
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Fault:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    seen = set()
    for key, _ in pairs:
        if key in seen:
            return _Fault(f'Duplicate key "{shown(key)}"')
        seen.add(key)
    raise AssertionError("fewer keys than pairs, and none twice")


def _float(text: str) -> float | _Fault:
    number = float(text)
    return number if math.isfinite(number) else _Fault("Number out of range")


def _integer(text: str) -> int | _Fault:
    if len(text.lstrip("-")) > INTEGER_DIGITS_MAX:
        return _Fault(f"Integer of more than {INTEGER_DIGITS_MAX} digits")
    return 0  # its value is nobody's business here


_faulty = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=_float,
    parse_int=_integer,
    parse_constant=lambda name: _Fault(f"{name} is not JSON"),
)


def _too_deep() -> str:
    return f": nested deeper than {limits.PARAMS_DEPTH_MAX} levels"


def _cut(path: str) -> str:
    return path if len(path) <= _PATH_CHARS_MAX else f"{path[: _PATH_CHARS_MAX - 1]}…"
