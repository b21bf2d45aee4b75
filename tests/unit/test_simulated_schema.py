"""The sampler makes values that satisfy the schema, or says where it cannot."""

from __future__ import annotations

import json
import re
from datetime import date, datetime
from typing import Any
from uuid import UUID

import pytest

from batchyard.upstream.simulated.draw import Draw
from batchyard.upstream.simulated.schema.check import matches
from batchyard.upstream.simulated.schema.pattern import PatternError, make
from batchyard.upstream.simulated.schema.sample import SchemaError, sample

SEEDS = range(30)
NODE = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
    },
    "required": ["name", "next", "children"],
    "additionalProperties": False,
}

CASES: dict[str, tuple[Any, Any]] = {
    "string": ({"type": "string"}, lambda v: isinstance(v, str)),
    "type list": ({"type": ["null", "integer"]}, lambda v: v is None or isinstance(v, int)),
    "only null": ({"type": "null"}, lambda v: v is None),
    "boolean": ({"type": "boolean"}, lambda v: isinstance(v, bool)),
    "enum": ({"enum": ["a", 2, None]}, lambda v: v in ["a", 2, None]),
    "enum cut by type": ({"type": "string", "enum": ["a", 2]}, lambda v: v == "a"),
    "const": ({"const": {"a": [1]}}, lambda v: v == {"a": [1]}),
    "integer range": ({"type": "integer", "minimum": 3, "maximum": 4}, lambda v: v in (3, 4)),
    "exclusive": (
        {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5}, lambda v: v == 4),
    "negative": ({"type": "number", "maximum": -7}, lambda v: v <= -7),
    "narrow": ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e-6},
               lambda v: 0 < v < 1e-6),
    "multiple": ({"type": "integer", "multipleOf": 7, "minimum": 50},
                 lambda v: v % 7 == 0 < v - 49),
    "decimal multiple": ({"type": "number", "multipleOf": 0.1, "maximum": 1, "minimum": 0},
                         lambda v: abs(v * 10 - round(v * 10)) < 1e-9),
    "whole multiple of a half": ({"type": "integer", "multipleOf": 0.5},
                                 lambda v: isinstance(v, int)),
    "length": ({"type": "string", "minLength": 200, "maxLength": 210},
               lambda v: 200 <= len(v) <= 210),
    "short": ({"type": "string", "maxLength": 3}, lambda v: len(v) <= 3),
    "date": ({"type": "string", "format": "date"}, lambda v: date.fromisoformat(v)),
    "date-time": ({"type": "string", "format": "date-time"},
                  lambda v: datetime.fromisoformat(v).tzinfo),
    "uuid": ({"type": "string", "format": "uuid"}, lambda v: UUID(v)),
    "email": ({"type": "string", "format": "email"}, lambda v: re.fullmatch(r"\S+@\S+\.com", v)),
    "uri": ({"type": "string", "format": "uri"}, lambda v: v.startswith("https://")),
    "pattern": ({"type": "string", "pattern": "^[A-Z]{2}-\\d{3,5}$"},
                lambda v: re.fullmatch(r"[A-Z]{2}-\d{3,5}", v)),
    "pattern with length": ({"type": "string", "pattern": "^a+$", "minLength": 9},
                            lambda v: set(v) == {"a"} and len(v) >= 9),
    "items": ({"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4},
              lambda v: len(v) == 4 and all(isinstance(each, int) for each in v)),
    "tuple": ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False},
              lambda v: v == [1, 2]),
    "unique": ({"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 3},
               lambda v: sorted(v) == [1, 2, 3]),
    "required without properties": ({"type": "object", "required": ["x"]}, lambda v: "x" in v),
    "closed": ({"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": False},
               lambda v: v == {"a": 1}),
    "typed others": (
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2},
        lambda v: len(v) >= 2 and all(isinstance(each, int) for each in v.values())),
    "forbidden optional": ({"properties": {"a": False, "b": {"const": 1}}},
                           lambda v: v == {"b": 1}),
    "anyOf": ({"anyOf": [{"const": 1}, {"const": 2}]}, lambda v: v in (1, 2)),
    "anyOf beside properties": (
        {"type": "object", "properties": {"a": {"type": "integer"}},
         "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, lambda v: "a" in v or "b" in v),
    "oneOf": ({"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9},
                         {"type": "integer", "minimum": 5, "maximum": 30}]},
              lambda v: (0 <= v <= 9) != (5 <= v <= 30)),
    "allOf": ({"allOf": [{"type": "integer", "minimum": 5}, {"type": "number", "maximum": 6}]},
              lambda v: v in (5, 6)),
    "allOf of objects": (
        {"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]},
                   {"properties": {"a": {"minimum": 50}, "b": {"const": 0}}, "required": ["b"]}]},
        lambda v: v["a"] >= 50 and v["b"] == 0),
    "allOf of two anyOf": (
        {"allOf": [{"anyOf": [{"const": 1}, {"const": 2}]},
                   {"anyOf": [{"const": 2}, {"const": 3}]}]},
        lambda v: v == 2),
    "allOf of two refs": (
        {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
         "$defs": {"a": {"required": ["x"]}, "b": {"required": ["y"]}}},
        lambda v: {"x", "y"} <= set(v)),
    "not": ({"type": "boolean", "not": {"const": True}}, lambda v: v is False),
    "ref": ({"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"const": 5}}}, lambda v: v == 5),
    "ref with sibling": (
        {"$ref": "#/$defs/n", "maximum": 3, "$defs": {"n": {"type": "integer", "minimum": 3}}},
        lambda v: v == 3),
    "recursive": ({"$ref": "#/$defs/node", "$defs": {"node": NODE}},
                  lambda v: set(v) == {"name", "next", "children"}),
    "recursive root": ({"type": "object", "properties": {"again": {"$ref": "#"}}},
                       lambda v: isinstance(v, dict)),
    "anything": ({}, lambda v: isinstance(v, str)),
    "implied object": ({"properties": {"a": {"const": 1}}}, lambda v: v == {"a": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_value_satisfies_its_schema(name: str) -> None:
    schema, holds = CASES[name]
    for seed in SEEDS:
        value = sample(schema, Draw(seed))
        assert holds(value), (seed, value)
        assert matches(schema, json.loads(json.dumps(value)), schema)


@pytest.mark.parametrize("name", CASES)
def test_the_same_choices_make_the_same_value(name: str) -> None:
    schema = CASES[name][0]
    assert sample(schema, Draw(5)) == sample(schema, Draw(5))


REFUSED = {
    "false": (False, "schema"),
    "conditional": ({"if": {}, "then": {}}, "schema.if"),
    "nested": ({"properties": {"a": {"patternProperties": {}}}},
               "schema.properties.a.patternProperties"),
    "dangling": ({"$ref": "#/$defs/none"}, "schema.$ref"),
    "foreign": ({"$ref": "https://example.com/s.json"}, "schema.$ref"),
    "endless": ({"$ref": "#"}, "schema"),
    "endless object": ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
                       "schema"),
    "contradiction": ({"type": "integer", "minimum": 5, "maximum": 4}, "schema"),
    "types": ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "schema.type"),
    "no integer": ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "schema"),
    "look-ahead": ({"type": "string", "pattern": "(?=a)b"}, "schema.pattern"),
    "unknown type": ({"type": "float"}, "schema.type"),
    "enum": ({"type": "string", "enum": [1]}, "schema.enum"),
    "not a schema": ({"items": 5, "minItems": 1}, "schema.items"),
    "bad keyword": ({"type": "string", "minLength": "x"}, "schema"),
    "bad properties": ({"type": "object", "properties": [1]}, "schema"),
    "bad anyOf": ({"anyOf": 3}, "schema"),
    "bad pattern": ({"type": "string", "pattern": "a("}, "schema.pattern"),
    "huge": ({"type": "array", "minItems": 10**9}, "schema.minItems"),
    "unique": ({"type": "array", "items": {"const": 1}, "uniqueItems": True, "minItems": 2},
               "schema.items"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_with_its_path(name: str) -> None:
    schema, path = REFUSED[name]
    with pytest.raises(SchemaError) as caught:
        sample(schema, Draw(1))
    assert caught.value.path.startswith(path)


@pytest.mark.parametrize(
    "pattern",
    [
        "abc", "a?b*c+", "^(foo|bar)-[0-9a-f]{4}$", r"\d\D\w\W\s\S", "[^a]x", "(?:ab){2,3}",
        r"^\+?[1-9]\d{1,14}$", r"^#[0-9A-Fa-f]{6}$", "[-a]", "[]a]", "a{2,}?", r"\.\$\^", "", ".",
        r"^[\w.-]+@[\w-]+\.[a-z]{2,}$", "^(a|b|)c$",
    ],
)  # fmt: skip
def test_a_made_string_matches_its_pattern(pattern: str) -> None:
    for seed in SEEDS:
        assert re.search(pattern, make(pattern, Draw(seed)))


@pytest.mark.parametrize(
    "pattern", ["(?!a)", r"\bword", "a**", "(a", "a)", "[a", r"(a)\1", "a$b", "[z-a]", "a{x}", "\\"]
)
def test_a_pattern_beyond_the_simple_ones_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        make(pattern, Draw(1))


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ({"type": "integer"}, True, False),
        ({"type": "integer"}, 2.0, True),
        ({"const": 1}, True, False),
        ({"multipleOf": 0.1}, 0.3, True),
        ({"multipleOf": 0.1}, 0.35, False),
        ({"uniqueItems": True}, [1, 1], False),
        ({"uniqueItems": True}, [1, True], True),
        ({"additionalProperties": False, "properties": {"a": {}}}, {"b": 1}, False),
        ({"oneOf": [{"type": "integer"}, {"minimum": 0}]}, 3, False),
        ({"not": {"type": "null"}}, None, False),
        ({"pattern": "b"}, "abc", True),
        ({"prefixItems": [{"const": 1}], "items": {"const": 2}}, [1, 2, 3], False),
        ({"required": ["a"]}, {}, False),
        ({"maxProperties": 1}, {"a": 1, "b": 2}, False),
        ({"minimum": 0}, "text", True),
        (False, 1, False),
    ],
)
def test_the_check_agrees_with_the_standard(schema: Any, value: Any, expected: bool) -> None:
    assert matches(schema, value, schema) is expected
