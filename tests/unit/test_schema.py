"""What answers have to look like: what is sent, what is refused, what is found wrong."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pydantic
import pytest

from batchyard import validate, wire
from batchyard.client.problems import InputError
from batchyard.client.results import schema

if TYPE_CHECKING:
    from pathlib import Path

REPORT: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 3},
        "score": {"type": "integer", "minimum": 0, "maximum": 10, "description": "of ten"},
        "kind": {"enum": ["bug", "wish", None]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/Tag"}, "minItems": 1},
        "when": {"type": "string", "format": "date"},
    },
    "required": ["title", "score"],
    "$defs": {"Tag": {"type": "string", "maxLength": 5}},
}
GOOD = '{"title":"one","score":3,"tags":["a"]}'


def object_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def test_what_the_api_cannot_hold_an_answer_to_is_told_to_the_model_instead():
    sent = schema.of(REPORT).sent

    assert sent["additionalProperties"] is False
    assert sent["properties"]["score"] == {
        "type": "integer", "description": "of ten\n\n(minimum: 0, maximum: 10)",
    }  # fmt: skip
    assert sent["properties"]["title"] == {"type": "string", "description": "(minLength: 3)"}
    assert sent["properties"]["tags"] == {
        "type": "array", "items": {"$ref": "#/$defs/Tag"}, "minItems": 1,
    }  # fmt: skip
    assert sent["properties"]["when"] == {"type": "string", "format": "date"}
    assert "$schema" not in sent


def test_what_is_sent_is_taken_by_the_checks_of_the_api():
    params = {
        "model": "claude-opus-4-8", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}],
        "output_config": {"format": schema.of(REPORT).format},
    }  # fmt: skip

    assert validate.check(wire.encode(params), version="2023-06-01", betas=()) is None


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (GOOD, None),
        ('{"title":"one","score":11}', "$.score: 11 is greater than the maximum of 10"),
        ('{"score":1}', '$: "title" is a required property'),
        ('{"title":"one","score":1,"tags":["a","toolong"]}', "$.tags[1]"),
        ('{"title":"one","score":1,"when":"today"}', "$.when"),
        ('{"title":"one"', "the answer is not JSON"),
        ("Here you are: {}", "the answer is not JSON"),
        ("", "the answer is not JSON"),
        ("[" * 100_000, "the answer is not JSON"),
    ],
)
def test_an_answer_is_checked_against_the_schema_that_was_given(answer: str, problem: str | None):
    found = schema.of(REPORT).problem(answer)

    assert found == problem or (problem is not None and found is not None and problem in found)


def test_a_long_problem_is_cut():
    answer = json.dumps({"title": "x" * 100_000, "score": "y" * 100_000})

    assert len(schema.of(REPORT).problem(answer) or "") < 1_000


def test_the_value_of_a_mapping_is_plain_data():
    assert schema.of(REPORT).value(GOOD) == json.loads(GOOD)


class Tag(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=5)


class Report(pydantic.BaseModel):
    """A report."""

    title: str
    score: int = pydantic.Field(ge=0, le=10)
    tags: list[Tag] = []
    note: str | None = None
    kind: Literal["bug", "wish"] = "bug"


def test_a_pydantic_model_is_sent_and_gives_its_objects_back():
    wanted = schema.of(Report)

    assert wanted.sent["properties"]["score"]["description"] == "(maximum: 10, minimum: 0)"
    assert wanted.value('{"title":"t","score":1,"tags":[{"name":"a"}]}') == Report(
        title="t", score=1, tags=[Tag(name="a")]
    )
    assert wanted.problem('{"title":"t","score":11,"tags":[{"name":"toolong"}]}') == (
        "$.score: Input should be less than or equal to 10; "
        "$.tags[0].name: String should have at most 5 characters"
    )


class LikeAModel:
    """Has the two methods and nothing else of pydantic."""

    @staticmethod
    def model_json_schema() -> dict[str, Any]:
        return object_of(a={"type": "integer"})

    @staticmethod
    def model_validate_json(text: str) -> int:
        return int(json.loads(text)["a"])


def test_anything_with_the_two_methods_of_a_model_is_one():
    wanted = schema.of(LikeAModel)

    assert wanted.value('{"a": 4}') == 4
    assert wanted.problem('{"a": "four"}') == "invalid literal for int() with base 10: 'four'"


class Struct(msgspec.Struct):
    title: str
    score: int = 0


@dataclasses.dataclass
class Data:
    title: str
    score: int = 0


@pytest.mark.parametrize("kind", [Struct, Data])
def test_structs_and_dataclasses_are_sent_and_come_back(kind: type):
    wanted = schema.of(kind)

    assert wanted.sent["$defs"][kind.__name__]["additionalProperties"] is False
    assert wanted.value('{"title":"t"}') == kind("t")
    assert "Expected `int`" in (wanted.problem('{"title":"t","score":"x"}') or "")


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ({"type": "object", "additionalProperties": True}, "#/additionalProperties"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "#/additionalProperties"),
        (object_of(a={}), "#/properties/a"),
        (object_of(a=True), "#/properties/a"),
        (object_of(a={"type": "array"}), "#/properties/a"),
        (object_of(a={"type": "text"}), "#/properties/a/type"),
        (object_of(a={"type": []}), "#/properties/a/type"),
        (object_of(a={"enum": [{"b": 1}]}), "#/properties/a/enum"),
        (object_of(a={"enum": []}), "#/properties/a/enum"),
        (object_of(a={"const": []}), "#/properties/a/const"),
        (object_of(a={"not": {"type": "string"}}), "#/properties/a/not"),
        (object_of(a={"type": "object", "patternProperties": {}}), "#/properties/a/pattern"),
        (object_of(a={"$ref": "https://example.com/a"}), "#/properties/a/$ref"),
        (object_of(a={"$ref": "#/$defs/None"}), "#/properties/a/$ref"),
        (object_of(a={"allOf": []}), "#/properties/a/allOf"),
        (object_of(a={"anyOf": "x"}), "#/properties/a/anyOf"),
        ({"type": "object", "properties": []}, "#/properties"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "#/required"),
        ({"$ref": "#/$defs/A", "$defs": {"A": object_of(b={"$ref": "#/$defs/A"})}}, "recursive"),
        (
            {"allOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": {"type": "string"}}},
            "no $ref in allOf",
        ),
        (
            {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(25)}},
            "25 properties that are not required; the API takes 24",
        ),
        (
            object_of(**{f"p{i}": {"type": ["null", "string"]} for i in range(17)}),
            "17 values of more than one type",
        ),
    ],
)
def test_what_the_api_would_not_take_is_refused_with_its_place(source: dict, place: str):
    with pytest.raises(InputError) as caught:
        schema.of(source)

    assert caught.value.message.startswith("returns: ")
    assert place in caught.value.message


def test_many_references_to_one_definition_take_no_time():
    chain = {f"D{i}": object_of(a={"$ref": f"#/$defs/D{i + 1}"}, b={"$ref": f"#/$defs/D{i + 1}"})
             for i in range(40)}  # fmt: skip
    source = {"$ref": "#/$defs/D0", "$defs": {**chain, "D40": {"type": "string"}}}

    assert len(schema.of(source).sent["$defs"]) == 41


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"type":"x"}', "#/type"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_schema_is_named(tmp_path: Path, text: str | None, says: str):
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)

    with pytest.raises(InputError) as caught:
        schema.read(path)

    assert str(path) in caught.value.message
    assert says in caught.value.message


def test_a_file_is_read(tmp_path: Path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(REPORT))

    assert schema.read(path).sha256 == schema.of(REPORT).sha256


@pytest.mark.parametrize("returns", [int, 5, None, "no such file.json"])
def test_what_is_no_schema_is_refused(returns: object):
    with pytest.raises(InputError):
        schema.of(returns)


def test_without_the_validator_a_json_schema_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)

    with pytest.raises(InputError, match=r"pip install 'batchyard\[schema\]'"):
        schema.of(REPORT)
    assert schema.of(Report).problem("{}") is not None  # a class checks by itself
