"""Merge two JSON Schemas into one that demands what both demand.

Not every pair can be: where a keyword of one contradicts, or cannot be combined with, the same
keyword of the other, that keyword is the conflict.
"""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING, Any

from batchyard.upstream.simulated.schema.check import same

if TYPE_CHECKING:
    from collections.abc import Callable

Json = Any

_WORDS = ("title", "description", "default", "examples", "example", "$comment", "deprecated")


class Conflict(Exception):
    """The keyword that two schemas disagree on."""


def merge(left: Json, right: Json) -> Json:
    """Return the schema of what satisfies both.

    References at the top of either must have been resolved; below, they may stay.

    Raises:
        Conflict: the named keyword cannot be combined.
    """
    if left is True or right is True:
        return right if left is True else left
    if not isinstance(left, dict) or not isinstance(right, dict):
        raise Conflict("allOf")
    merged = dict(left)
    for name, value in right.items():
        if name not in merged:
            merged[name] = value
        elif not same(merged[name], value):
            if name not in _COMBINE:
                raise Conflict(name)
            merged[name] = _COMBINE[name](merged[name], value)
    _close(merged, left, right)
    return merged


def _both(left: Json, right: Json) -> Json:
    """Demand both, later: what is below may hold references."""
    return left if same(left, right) else {"allOf": [left, right]}


def _second(_: Json, right: Json) -> Json:
    return right


def _union(left: list[Json], right: list[Json]) -> list[Json]:
    return [*left, *(each for each in right if each not in left)]


def _concatenation(left: list[Json], right: list[Json]) -> list[Json]:
    return [*left, *right]


def _intersection(left: list[Json], right: list[Json]) -> list[Json]:
    return [each for each in left if any(same(each, other) for other in right)]


def _properties(left: dict[str, Json], right: dict[str, Json]) -> dict[str, Json]:
    shared = {key: _both(left[key], right[key]) for key in left if key in right}
    return {**left, **right, **shared}


def _pairs(left: list[Json], right: list[Json]) -> list[Json]:
    """Return every branch of one side together with every branch of the other."""
    return [_both(one, other) for one in left for other in right]


def _neither(left: Json, right: Json) -> Json:
    return {"anyOf": [left, right]}


def _multiple(left: Json, right: Json) -> Json:
    if isinstance(left, int) and isinstance(right, int):
        return lcm(left, right)
    raise Conflict("multipleOf")


def _others(left: Json, right: Json) -> Json:
    return False if left is False or right is False else _both(left, right)


def _types(left: Json, right: Json) -> Json:
    lefts = left if isinstance(left, list) else [left]
    rights = right if isinstance(right, list) else [right]
    common = [each for each in lefts if each in rights]
    # Every integer is a number.
    if "integer" not in common and (
        ("integer" in lefts and "number" in rights) or ("number" in lefts and "integer" in rights)
    ):
        common.append("integer")
    if not common:
        raise Conflict("type")
    return common[0] if len(common) == 1 else common


_COMBINE: dict[str, Callable[[Json, Json], Json]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
    **dict.fromkeys(_WORDS, _second),
    **dict.fromkeys(("properties", "$defs", "definitions"), _properties),
    **dict.fromkeys(("anyOf", "oneOf"), _pairs),
    "required": _union,
    "type": _types,
    "enum": _intersection,
    "allOf": _concatenation,
    "not": _neither,
    "items": _others,
    "additionalProperties": _others,
    "uniqueItems": max,
    "multipleOf": _multiple,
}


def _close(merged: dict[str, Json], left: dict[str, Json], right: dict[str, Json]) -> None:
    """Take out the properties that a side without room for others does not know."""
    for side in (left, right):
        if side.get("additionalProperties") is False and "properties" in merged:
            known = side.get("properties", {})
            merged["properties"] = {
                key: each for key, each in merged["properties"].items() if key in known
            }
