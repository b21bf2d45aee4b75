"""Whether a JSON value satisfies a JSON Schema: the subset that the sampler can meet.

Knows assertions and local references; `format` is an annotation here, as in the standard. Keywords
that it does not know are the sampler's to refuse.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

Json = Any

_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
    "number": (int, float),
    "integer": (int, float),
}
_DEPTH_MAX = 100


def resolve(root: Json, reference: str) -> Json:
    """Return what a local reference such as `#/$defs/node` points to.

    Raises:
        LookupError: it is not local, or points to nothing.
    """
    if not reference.startswith("#"):
        raise LookupError(reference)
    found = root
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdigit():
            found = found[int(name)]
        elif isinstance(found, dict):
            found = found[name]
        else:
            raise LookupError(reference)
    return found


def is_type(value: Json, name: str) -> bool:
    """Whether `value` is of the JSON type `name`; 1.0 is an integer, true is not."""
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, _KINDS.get(name, ()))


def same(left: Json, right: Json) -> bool:
    """Whether two JSON values are equal; true and 1 are not."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


def matches(schema: Json, value: Json, root: Json, depth: int = 0) -> bool:
    """Whether `value` satisfies `schema`, whose references are into `root`.

    Raises:
        LookupError: a reference points to nothing.
        RecursionError: references go round in a circle.
    """
    if isinstance(schema, bool) or not isinstance(schema, dict):
        return schema is True
    if depth > _DEPTH_MAX:
        raise RecursionError("the schema refers to itself without an end")
    if not (_matches_plain(schema, value) and _matches_parts(schema, value, root, depth + 1)):
        return False
    if isinstance(value, dict):
        return _matches_object(schema, value, root, depth + 1)
    return not isinstance(value, list) or _matches_array(schema, value, root, depth + 1)


def _matches_parts(schema: dict[str, Json], value: Json, root: Json, depth: int) -> bool:
    """Whether what `schema` says of other schemas holds."""

    def holds(part: Json) -> bool:
        return matches(part, value, root, depth)

    return (
        ("$ref" not in schema or holds(resolve(root, schema["$ref"])))
        and all(map(holds, schema.get("allOf", ())))
        and ("anyOf" not in schema or any(map(holds, schema["anyOf"])))
        and ("oneOf" not in schema or sum(map(holds, schema["oneOf"])) == 1)
        and ("not" not in schema or not holds(schema["not"]))
    )


def _matches_plain(schema: dict[str, Json], value: Json) -> bool:
    kinds = schema.get("type")
    if kinds is not None:
        names = kinds if isinstance(kinds, list) else [kinds]
        if not any(is_type(value, name) for name in names):
            return False
    if "const" in schema and not same(schema["const"], value):
        return False
    if "enum" in schema and not any(same(each, value) for each in schema["enum"]):
        return False
    if isinstance(value, str):
        return _matches_string(schema, value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _matches_number(schema, value)
    return True


def _matches_string(schema: dict[str, Json], value: str) -> bool:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return False
    return "pattern" not in schema or re.search(schema["pattern"], value) is not None


def _matches_number(schema: dict[str, Json], value: float) -> bool:
    if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return False
    if "exclusiveMinimum" in schema and not value > schema["exclusiveMinimum"]:
        return False
    if "exclusiveMaximum" in schema and not value < schema["exclusiveMaximum"]:
        return False
    if "multipleOf" not in schema:
        return True
    # By their decimal forms: 0.3 is a multiple of 0.1, whatever the binary fractions say.
    return Fraction(repr(value)) % Fraction(repr(schema["multipleOf"])) == 0


def _matches_object(
    schema: dict[str, Json], value: dict[str, Json], root: Json, depth: int
) -> bool:
    if any(name not in value for name in schema.get("required", ())):
        return False
    count = len(value)
    if not schema.get("minProperties", 0) <= count <= schema.get("maxProperties", count):
        return False
    known = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    return all(matches(known.get(name, others), each, root, depth) for name, each in value.items())


def _matches_array(schema: dict[str, Json], value: list[Json], root: Json, depth: int) -> bool:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return False
    if schema.get("uniqueItems") and any(
        same(left, right) for at, left in enumerate(value) for right in value[:at]
    ):
        return False
    first = schema.get("prefixItems", [])
    rest = schema.get("items", True)
    return all(
        matches(first[at] if at < len(first) else rest, each, root, depth)
        for at, each in enumerate(value)
    )
