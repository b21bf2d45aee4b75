"""What answers have to look like: a JSON Schema, or a class that knows one. No I/O but reading it.

Two schemas belong to a run. The one that was given decides whether an answer is valid. The one that
is sent is made of it: it keeps what the API can hold a model to, and says the rest in descriptions,
so that the model may follow it; what was left out is still checked when the answer comes.

Source: the API's page on structured outputs, and what its official client does to a schema.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from batchyard import wire
from batchyard.client.problems import InputError
from batchyard.errors import shown

if TYPE_CHECKING:
    from batchyard.client.running.journal import Config

OPTIONAL_MAX = 24
UNIONS_MAX = 16
_DEPTH_MAX = 100
_PROBLEMS_SHOWN = 3
_PROBLEM_CHARS_MAX = 300

_KINDS = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
_FORMATS = frozenset(
    {
        "date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6",
        "uuid",
    }
)  # fmt: skip
# Says nothing about values.
_SILENT = frozenset(
    {
        "$schema", "$id", "$comment", "examples", "deprecated", "readOnly", "writeOnly",
        "discriminator", "default",
    }
)  # fmt: skip
_KEPT = frozenset({"title", "description", "required"})
_DEFINITIONS = ("$defs", "definitions")
# Said in the description and checked here.
_TOLD = frozenset(
    {
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength",
        "maxLength", "pattern", "format", "minItems", "maxItems", "uniqueItems", "minProperties",
        "maxProperties", "contentEncoding", "contentMediaType",
    }
)  # fmt: skip
_CHOICES = ("anyOf", "oneOf", "allOf")

Check = Callable[[str], Any]
"""Returns the value of a text, or raises ValueError."""


class Schema:
    """What every answer of a run has to look like."""

    def __init__(self, source: Mapping[str, Any], check: Check, *, name: str) -> None:
        """Keep a schema and how to check it.

        Args:
            source: the JSON Schema as it was given.
            check: returns the value of an answer.
            name: for messages.

        Raises:
            InputError: the API would not take it; the message has the place.
        """
        self.source = source
        self.sent = _Sending(source, name).schema()
        self._check = check

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the schema as it was given."""
        return hashlib.sha256(self.encoded()).hexdigest()

    def encoded(self) -> bytes:
        """Return the schema as it was given, as JSON."""
        return wire.encode(self.source)

    @property
    def format(self) -> dict[str, Any]:
        """Return the value of `output_config.format`."""
        return {"type": "json_schema", "schema": self.sent}

    def value(self, text: str) -> Any:
        """Return what an answer says: of the class that was given, or plain data.

        Raises:
            ValueError: it does not match; the message says where and why.
        """
        return self._check(text)

    def problem(self, text: str) -> str | None:
        """Return what is wrong with an answer, None when it matches."""
        try:
            self._check(text)
        except ValueError as error:
            return str(error)[: _PROBLEM_CHARS_MAX * _PROBLEMS_SHOWN] or "it does not match"
        return None


def read(path: Path) -> Schema:
    """Return the schema of a JSON file.

    Raises:
        InputError: it cannot be read, is no schema, or one that the API would not take.
    """
    try:
        data = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"the schema {path} cannot be read: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the schema {path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"the schema {path} is not a JSON object")
    return of_mapping(data, str(path))


def of(returns: object) -> Schema:
    """Return the schema of what a Python program wants back.

    Args:
        returns: a class of pydantic (known by `model_json_schema` and `model_validate_json`), a
            dataclass, a `msgspec.Struct`, a mapping that is a JSON Schema, or the path of one.

    Raises:
        InputError: it is none of these, or the API would not take its schema.
    """
    if isinstance(returns, Mapping):
        return of_mapping(returns, "returns")
    if isinstance(returns, str | Path):
        return read(Path(returns))
    name = getattr(returns, "__name__", type(returns).__name__)
    if callable(getattr(returns, "model_json_schema", None)):
        model: Any = returns
        return Schema(model.model_json_schema(), _by_model(model), name=name)
    if isinstance(returns, type) and (
        issubclass(returns, msgspec.Struct) or dataclasses.is_dataclass(returns)
    ):
        try:
            source = msgspec.json.schema(returns)
        except TypeError as error:
            raise InputError(f"{name}: {error}") from None
        return Schema(source, _by_class(returns), name=name)
    raise InputError(
        f"returns is {shown(repr(returns))}; it is a pydantic model, a dataclass, a msgspec "
        "Struct, a JSON Schema as a mapping, or the path of one"
    )


def stored(config: Config | None) -> Schema | None:
    """Return the schema that a journal keeps of a run; None when it has none.

    Raises:
        InputError: the extra that checks answers against it is missing.
    """
    if config is None or config.schema is None:
        return None
    return of_mapping(config.schema, "the schema of the run")


def added(params: Mapping[str, Any], schema: Schema | None) -> dict[str, Any]:
    """Return request parameters that ask for answers of a schema, beside what they ask already.

    Raises:
        InputError: they ask for another format.
    """
    if schema is None:
        return dict(params)
    config = params.get("output_config", {})
    if not isinstance(config, Mapping) or "format" in config:
        raise InputError("output_config: the schema sets its format")
    return {**params, "output_config": {**config, "format": schema.format}}


def of_mapping(source: Mapping[str, Any], name: str) -> Schema:
    """Return a schema that is given as data.

    Raises:
        InputError: it is no JSON Schema, the API would not take it, or the extra is missing.
    """
    try:
        wire.encode(source)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name}: not JSON: {error}") from None
    _Sending(source, name).schema()  # says more than the validator does, and refuses addresses
    return Schema(source, _by_validator(source, name), name=name)


def _by_validator(source: Mapping[str, Any], name: str) -> Check:
    try:
        import jsonschema_rs  # noqa: PLC0415 - an extra
    except ImportError:
        raise InputError(
            f"{name}: answers are checked against a JSON Schema with an extra: "
            "pip install 'batchyard[schema]'"
        ) from None
    try:
        validator = jsonschema_rs.validator_for(dict(source), validate_formats=True, offline=True)
    except ValueError as error:
        raise InputError(f"{name}: no JSON Schema: {_first_line(str(error))}") from None

    def check(text: str) -> Any:
        value = _decoded(text)
        problems = []
        for error in validator.iter_errors(value):
            problems.append(f"{_place(error.instance_path)}: {error.message}"[:_PROBLEM_CHARS_MAX])
            if len(problems) == _PROBLEMS_SHOWN:
                break
        if problems:
            raise ValueError("; ".join(problems))
        return value

    return check


def _by_model(model: Any) -> Check:
    def check(text: str) -> Any:
        try:
            return model.model_validate_json(text)
        except ValueError as error:
            raise ValueError(_of_pydantic(error)) from None

    return check


def _of_pydantic(error: ValueError) -> str:
    """Return the errors of pydantic in one line; any other error as it is."""
    try:
        found = [
            f"{_place(each['loc'])}: {each['msg']}"
            for each in error.errors()  # type: ignore[attr-defined]
        ]
    except (AttributeError, TypeError, KeyError):
        return " ".join(str(error).split())
    return "; ".join(text[:_PROBLEM_CHARS_MAX] for text in found[:_PROBLEMS_SHOWN])


def _by_class(kind: type) -> Check:
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)

    def check(text: str) -> Any:
        try:
            return decoder.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(str(error)) from None

    return check


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"the answer is not JSON: {error}") from None


def _place(path: Any) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0][:_PROBLEM_CHARS_MAX]


class _Sending:
    """Makes the schema that is sent; refuses what has no equivalent there."""

    def __init__(self, source: Mapping[str, Any], name: str) -> None:
        self._source = source
        self._name = name
        self._optional = self._unions = 0
        self._open: list[str] = []
        self._followed: set[str] = set()

    def schema(self) -> dict[str, Any]:
        """Return it.

        Raises:
            InputError: with the place of what the API would not take.
        """
        self._optional = self._unions = 0
        made = self._node(self._source, "#", 0)
        for count, most, what in (
            (self._optional, OPTIONAL_MAX, "properties that are not required"),
            (self._unions, UNIONS_MAX, "values of more than one type (anyOf, or a list of types)"),
        ):
            if count > most:
                self._refuse("#", f"it has {count} {what}; the API takes {most}")
        return made

    def _refuse(self, place: str, why: str) -> NoReturn:
        raise InputError(f"{self._name}: {shown(place, 200)}: {why}")

    def _node(self, node: object, place: str, depth: int) -> dict[str, Any]:
        if not isinstance(node, Mapping):
            self._refuse(place, "not a schema: it has to be an object")
        if depth > _DEPTH_MAX:
            self._refuse(place, f"nested more than {_DEPTH_MAX} deep")
        made: dict[str, Any] = {}
        for name in _DEFINITIONS:
            if name in node:
                made[name] = self._named(node[name], f"{place}/{name}", depth)
        if "$ref" in node:
            self._follow(node["$ref"], f"{place}/$ref", depth)
            return made | {"$ref": node["$ref"]}
        self._refuse_unknown(node, place)
        made |= {key: node[key] for key in ("title", "description") if key in node}
        self._type(node, made, place)
        self._choices(node, made, place, depth)
        if not made.keys() & {"type", "enum", "const", *_CHOICES}:
            self._refuse(place, "it has no type, enum, const, anyOf or $ref: it allows anything")
        kinds = made.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if "object" in kinds:
            self._object(node, made, place, depth)
        if "array" in kinds:
            self._array(node, made, place, depth)
        if node.get("format") in _FORMATS:
            made["format"] = node["format"]
        self._tell(node, made)
        return made

    def _refuse_unknown(self, node: Mapping[str, Any], place: str) -> None:
        known = _SILENT | _KEPT | _TOLD | {*_DEFINITIONS, *_CHOICES} | {
            "type", "enum", "const", "properties", "additionalProperties", "items",
        }  # fmt: skip
        for key in node:
            if key not in known:
                self._refuse(f"{place}/{key}", "the API cannot hold an answer to this keyword")

    def _named(self, schemas: object, place: str, depth: int) -> dict[str, Any]:
        if not isinstance(schemas, Mapping):
            self._refuse(place, "not an object of schemas by name")
        return {
            name: self._node(schema, f"{place}/{name}", depth + 1)
            for name, schema in schemas.items()
        }

    def _follow(self, ref: object, place: str, depth: int) -> None:
        """Check that a reference ends inside the schema and does not come back to itself."""
        if not isinstance(ref, str) or not ref.startswith("#/"):
            self._refuse(place, f"{shown(repr(ref))} is not inside the schema, as #/$defs/… is")
        if ref in self._open:
            self._refuse(place, f"{ref} refers to itself; the API takes no recursive schema")
        if ref in self._followed:
            return
        target: Any = self._source
        for part in ref[2:].split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, Mapping) else None
        if target is None:
            self._refuse(place, f"there is no {shown(ref)}")
        self._open.append(ref)
        counts = self._optional, self._unions  # of a definition, counted where it stands
        self._node(target, ref, depth + 1)
        self._optional, self._unions = counts
        self._open.pop()
        self._followed.add(ref)

    def _type(self, node: Mapping[str, Any], made: dict[str, Any], place: str) -> None:
        if "enum" in node:
            values = node["enum"]
            if not isinstance(values, list) or not values or not all(map(_is_plain, values)):
                self._refuse(f"{place}/enum", "a list of texts, numbers, booleans or null")
            made["enum"] = values
        if "const" in node:
            if not _is_plain(node["const"]):
                self._refuse(f"{place}/const", "a text, number, boolean or null")
            made["const"] = node["const"]
        if "type" not in node:
            return
        kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
        if not kinds or not all(isinstance(kind, str) and kind in _KINDS for kind in kinds):
            self._refuse(f"{place}/type", f"one or more of {', '.join(sorted(_KINDS))}")
        self._unions += len(kinds) > 1
        made["type"] = node["type"]

    def _choices(
        self, node: Mapping[str, Any], made: dict[str, Any], place: str, depth: int
    ) -> None:
        for key in _CHOICES:
            if key not in node:
                continue
            each = node[key]
            if not isinstance(each, list) or not each:
                self._refuse(f"{place}/{key}", "a list of schemas")
            schemas = [
                self._node(schema, f"{place}/{key}/{number}", depth + 1)
                for number, schema in enumerate(each)
            ]
            if key == "allOf" and any("$ref" in schema for schema in schemas):
                self._refuse(f"{place}/{key}", "the API takes no $ref in allOf")
            # Which one of several it is, and that it is one only, is checked here.
            name = "allOf" if key == "allOf" else "anyOf"
            if name in made:
                self._refuse(f"{place}/{key}", "anyOf and oneOf side by side")
            made[name] = schemas
            self._unions += name == "anyOf"

    def _object(
        self, node: Mapping[str, Any], made: dict[str, Any], place: str, depth: int
    ) -> None:
        if node.get("additionalProperties", False) is not False:
            self._refuse(
                f"{place}/additionalProperties",
                "the API takes only false: every property has to be named",
            )
        properties = self._named(node.get("properties", {}), f"{place}/properties", depth)
        required = node.get("required", [])
        if not isinstance(required, list) or not properties.keys() >= set(required):
            self._refuse(f"{place}/required", "a list of names that are in properties")
        self._optional += len(properties) - len(set(required))
        made |= {"properties": properties, "required": required, "additionalProperties": False}

    def _array(self, node: Mapping[str, Any], made: dict[str, Any], place: str, depth: int) -> None:
        if "items" not in node:
            self._refuse(place, "an array without items: it allows anything")
        made["items"] = self._node(node["items"], f"{place}/items", depth + 1)
        if node.get("minItems") in {0, 1}:
            made["minItems"] = node["minItems"]

    def _tell(self, node: Mapping[str, Any], made: dict[str, Any]) -> None:
        """Say in the description what cannot be sent otherwise."""
        told = [
            f"{key}: {node[key]}"
            for key in node
            if key in _TOLD and not (key in made and made[key] == node[key])
        ]
        if told:
            before = [made["description"]] if made.get("description") else []
            made["description"] = "\n\n".join([*before, f"({', '.join(told)})"])


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
