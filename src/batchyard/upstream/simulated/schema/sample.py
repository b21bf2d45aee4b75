"""Make a JSON value that satisfies a JSON Schema, the same one for the same choices.

Understood: `type` (also a list), `enum`, `const`, `properties`, `required`, `additionalProperties`,
`minProperties`, `maxProperties`, `items`, `prefixItems`, `minItems`, `maxItems`, `uniqueItems`,
`anyOf`, `oneOf`, `allOf`, `not`, local `$ref` with `$defs` or `definitions` (recursive ones end as
soon as the schema lets them), the bounds of strings and numbers, `multipleOf`, simple `pattern`s
(`pattern.py`), `format` for dates, times, ids and addresses. Other formats are
annotations and change nothing.

Refused: `if`, `dependent…`, `patternProperties`, `propertyNames`, `contains`, `unevaluated…`,
`$dynamicRef`, references to other documents, patterns beyond the simple ones. Every value is
checked before it is returned, so it is valid or refused.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from batchyard.upstream.simulated.schema import merge
from batchyard.upstream.simulated.schema.check import matches, resolve, same
from batchyard.upstream.simulated.schema.merge import Conflict
from batchyard.upstream.simulated.schema.pattern import PatternError, make

if TYPE_CHECKING:
    from batchyard.upstream.simulated.draw import Draw

Json = Any

_REFUSED = (
    "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies",
    "patternProperties", "propertyNames", "contains", "unevaluatedProperties", "unevaluatedItems",
    "$dynamicRef", "$recursiveRef",
)  # fmt: skip
_LEAN_DEPTH = 5  # below this only what is required is made
_DEPTH_MAX = 40
_NODES_MAX = 5_000
_LEAN_NODES = 300
_TRIES = 8
_EXTRA_ITEMS = 2
_ITEMS_MAX = 1_000
_CHARS_MAX = 100_000
_WORDS = (
    "simulated", "value", "for", "a", "field", "that", "no", "model", "has", "filled", "in",
)  # fmt: skip
_FORMATS = {
    "date": "2026-0{d}-1{d}",
    "date-time": "2026-0{d}-1{d}T0{d}:30:00Z",
    "time": "0{d}:30:00Z",
    "duration": "PT{d}H",
    "email": "simulated.{d}@example.com",
    "idn-email": "simulated.{d}@example.com",
    "hostname": "host-{d}.example.com",
    "uri": "https://example.com/simulated/{d}",
    "uri-reference": "/simulated/{d}",
    "url": "https://example.com/simulated/{d}",
    "ipv4": "192.0.2.{d}",
    "ipv6": "2001:db8::{d}",
    "uuid": "00000000-0000-4000-8000-00000000000{d}",
}


class SchemaError(Exception):
    """A schema that cannot be honoured, and where."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        super().__init__(f"{path}: {text}")


class _TooDeepError(SchemaError):
    """This branch does not come to an end."""


def sample(schema: Json, draw: Draw, path: str = "schema") -> Json:
    """Return a value that satisfies `schema`.

    Args:
        schema: the schema, also the root of its references.
        draw: decides where the schema leaves a choice.
        path: name of the schema in error messages.

    Raises:
        SchemaError: the schema is not valid, contradicts itself or is beyond what is understood.
    """
    sampler = _Sampler(schema, draw)
    try:
        return sampler.value(schema, path, 0)
    except RecursionError:
        raise SchemaError(path, "refers to itself without an end") from None
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError, re.error) as error:
        # A keyword with a value of the wrong type, met while it was applied.
        raise SchemaError(path, f"is not a valid JSON Schema ({error})") from None


class _Sampler:
    """One walk down one schema."""

    def __init__(self, root: Json, draw: Draw) -> None:
        self._root = root
        self._draw = draw
        self._nodes = 0

    def value(self, schema: Json, path: str, depth: int) -> Json:
        """Return a valid value, after some tries if `not`, `oneOf` or the like get in the way."""
        if schema is True:
            schema = {"type": "string"}
        if schema is False or not isinstance(schema, dict):
            raise SchemaError(path, "allows no value" if schema is False else "is not a schema")
        self._nodes += 1
        if depth > _DEPTH_MAX or self._nodes > _NODES_MAX:
            raise _TooDeepError(path, "refers to itself without an end")
        for _ in range(_TRIES):
            found = self._attempt(schema, path, depth)
            if self._valid(schema, found, path):
                return found
        raise SchemaError(path, "no value was found that satisfies all of it")

    def _valid(self, schema: Json, found: Json, path: str) -> bool:
        try:
            return matches(schema, found, self._root)
        except LookupError as error:
            raise SchemaError(path, f"$ref {error} points to nothing in this schema") from None

    def _attempt(self, schema: dict[str, Json], path: str, depth: int) -> Json:
        schema = self._flat(schema, path, depth)
        for name in _REFUSED:
            if name in schema:
                raise SchemaError(f"{path}.{name}", "is not supported by the simulated model")
        for name in ("oneOf", "anyOf"):
            if name in schema:
                return self._branch(schema, name, path, depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            kept = [each for each in schema["enum"] if self._valid(schema, each, path)]
            if not kept:
                raise SchemaError(f"{path}.enum", "no member satisfies the rest of the schema")
            return self._draw.pick(kept)
        return self._typed(schema, path, depth)

    def _flat(self, schema: dict[str, Json], path: str, depth: int) -> dict[str, Json]:
        """Return `schema` with `$ref` and `allOf` merged into it."""
        if depth > _DEPTH_MAX:
            raise _TooDeepError(path, "refers to itself without an end")
        if "$ref" in schema or "allOf" in schema:
            parts = list(schema.get("allOf", ()))
            if "$ref" in schema:
                parts.append(self._resolved(schema["$ref"], path))
            schema = {name: each for name, each in schema.items() if name not in {"$ref", "allOf"}}
            try:
                for part in parts:
                    flat = self._flat(part, path, depth + 1) if isinstance(part, dict) else part
                    schema = merge.merge(schema, flat)
            except Conflict as conflict:
                raise SchemaError(f"{path}.{conflict}", "contradicts another part") from None
        return schema

    def _resolved(self, reference: str, path: str) -> Json:
        try:
            return resolve(self._root, reference)
        except LookupError:
            raise SchemaError(
                f"{path}.$ref", f"{reference} points to nothing in this schema"
            ) from None

    def _branch(self, schema: dict[str, Json], name: str, path: str, depth: int) -> Json:
        rest = {key: each for key, each in schema.items() if key != name}
        order = list(enumerate(schema[name]))
        start = self._draw.below(len(order)) if order else 0
        order = order[start:] + order[:start]
        if self._lean(depth):
            order.sort(key=self._weight)
        failures: dict[int, SchemaError] = {}
        for index, part in order * _TRIES:  # a value of one branch may satisfy another too
            if index in failures:
                continue
            where = f"{path}.{name}.{index}"
            try:
                found = self._attempt(merge.merge(rest, part), where, depth + 1)
            except Conflict as conflict:
                failures[index] = SchemaError(f"{where}.{conflict}", "contradicts its parent")
            except SchemaError as error:
                failures[index] = error
            else:
                if self._valid(schema, found, path):
                    return found
        if len(failures) < len(order) or not failures:
            raise SchemaError(f"{path}.{name}", "no branch can be satisfied alone")
        raise next(iter(failures.values()))

    def _weight(self, branch: tuple[int, Json]) -> int:
        """Return how far a branch may lead on: scalars before what contains more."""
        part = branch[1]
        for _ in range(_TRIES):
            if not isinstance(part, dict) or "$ref" not in part:
                break
            part = resolve(self._root, part["$ref"])
        if not isinstance(part, dict) or "const" in part or "enum" in part:
            return 0
        if part.get("type") in {"null", "boolean", "number", "integer", "string"}:
            return 0
        return 1 + len(part.get("required", ()))

    def _lean(self, depth: int) -> bool:
        return depth >= _LEAN_DEPTH or self._nodes > _LEAN_NODES

    def _typed(self, schema: dict[str, Json], path: str, depth: int) -> Json:
        kind = schema.get("type") or _implied_type(schema)
        if isinstance(kind, list):
            kind = self._draw.pick(_likely(kind, lean=self._lean(depth)))
        match kind:
            case "object":
                return self._object(schema, path, depth)
            case "array":
                return self._array(schema, path, depth)
            case "string":
                return self._string(schema, path)
            case "integer" | "number":
                return self._number(schema, path, whole=kind == "integer")
            case "boolean":
                return self._draw.below(2) == 0
            case "null":
                return None
            case _:
                raise SchemaError(f"{path}.type", f"{kind!r} is not a type of JSON")

    def _object(self, schema: dict[str, Json], path: str, depth: int) -> dict[str, Json]:
        known = schema.get("properties", {})
        required = schema.get("required", [])
        others = schema.get("additionalProperties", True)
        found: dict[str, Json] = {}
        most = schema.get("maxProperties", len(known) + len(required))
        for name in [*(name for name in known if name in required), *required, *known]:
            spare = name not in required and (self._lean(depth) or len(found) >= most)
            if name in found or spare or (name not in required and known[name] is False):
                continue
            below = known.get(name, others)
            try:
                found[name] = self.value(below, f"{path}.properties.{name}", depth + 1)
            except SchemaError as error:
                if name in required or not isinstance(error, _TooDeepError):
                    raise
        number = 1
        while len(found) < schema.get("minProperties", 0):
            if len(found) >= _ITEMS_MAX:
                raise SchemaError(f"{path}.minProperties", f"more than {_ITEMS_MAX} are not made")
            where = f"{path}.additionalProperties"
            found.setdefault(f"simulated_{number}", self.value(others, where, depth + 1))
            number += 1
        # In the order of the schema, which is the order in which a model would write them.
        return {name: found[name] for name in [*known, *found] if name in found}

    def _array(self, schema: dict[str, Json], path: str, depth: int) -> list[Json]:
        first = schema.get("prefixItems", [])
        low = schema.get("minItems", 0)
        wanted = low
        if not self._lean(depth):
            wanted = max(low, len(first), 1 + self._draw.below(_EXTRA_ITEMS))
        if schema.get("items") is False:
            wanted = min(wanted, max(low, len(first)))
        wanted = min(wanted, schema.get("maxItems", wanted))
        if wanted > _ITEMS_MAX:
            raise SchemaError(f"{path}.minItems", f"more than {_ITEMS_MAX} are not made")
        found: list[Json] = []
        for at in range(wanted):
            below = first[at] if at < len(first) else schema.get("items", True)
            where = f"{path}.prefixItems.{at}" if at < len(first) else f"{path}.items"
            try:
                each = self._item(below, where, depth, found if schema.get("uniqueItems") else [])
            except SchemaError:
                if at < low:
                    raise
                break
            found.append(each)
        return found

    def _item(self, schema: Json, path: str, depth: int, taken: list[Json]) -> Json:
        for _ in range(_TRIES * 4):
            found = self.value(schema, path, depth + 1)
            if not any(same(found, each) for each in taken):
                return found
        raise SchemaError(path, "no further unique item was found")

    def _string(self, schema: dict[str, Json], path: str) -> str:
        low = schema.get("minLength", 0)
        high = schema.get("maxLength", max(low, 60))
        if low > _CHARS_MAX:
            raise SchemaError(f"{path}.minLength", f"more than {_CHARS_MAX} are not made")
        if "pattern" in schema:
            return self._patterned(schema, path)
        template = _FORMATS.get(schema.get("format", ""))
        if template is not None:
            return template.format(d=1 + self._draw.below(9))
        words = _WORDS[: 2 + self._draw.below(len(_WORDS) - 1)]
        text = f"{' '.join(words)} {self._draw.below(1000)}"
        while len(text) < low:
            text += f" {' '.join(_WORDS)}"
        return text[: max(low, high)] if len(text) > high else text

    def _patterned(self, schema: dict[str, Json], path: str) -> str:
        low = schema.get("minLength", 0)
        text = ""
        for more in [0] * _TRIES + [max(0, low)] * _TRIES:
            try:
                text = make(schema["pattern"], self._draw, more=more)
            except PatternError:
                raise SchemaError(
                    f"{path}.pattern", "is more than the simulated model can make strings for"
                ) from None
            if self._valid(schema, text, path):
                break
        return text

    def _number(self, schema: dict[str, Json], path: str, *, whole: bool) -> float:
        above = schema.get("exclusiveMinimum", -math.inf)
        below = schema.get("exclusiveMaximum", math.inf)
        low = max(schema.get("minimum", -math.inf), above)
        high = min(schema.get("maximum", math.inf), below)
        if low > high:
            raise SchemaError(path, "its smallest value is larger than its largest")
        if not whole and "multipleOf" not in schema:
            return self._fraction(low, high)
        step = Fraction(repr(schema.get("multipleOf", 1)))
        if whole:
            step *= step.denominator
        low, high = _finite(low, high, float(100 * step))
        first, last = math.ceil(Fraction(low) / step), math.floor(Fraction(high) / step)
        first += first * step <= above
        last -= last * step >= below
        if first > last:
            raise SchemaError(path, "no number lies between its bounds")
        found = (first + self._draw.below(last - first + 1)) * step
        return int(found) if found.denominator == 1 else float(found)

    def _fraction(self, low: float, high: float) -> float:
        low, high = _finite(low, high, 100.0)
        middle = low + (high - low) * (1 + self._draw.below(98)) / 99
        rounded = round(middle, 2)
        return rounded if low < rounded < high else middle


def _likely(kinds: list[str], *, lean: bool) -> list[str]:
    """Return the types to choose from: what says most, or when lean what ends soonest."""
    if lean:
        kinds = [kind for kind in kinds if kind not in {"object", "array"}] or kinds
    return [kind for kind in kinds if kind != "null"] or kinds


def _finite(low: float, high: float, span: float) -> tuple[float, float]:
    """Return bounds at most `span` apart, from 0 up where nothing else is said."""
    if low == -math.inf:
        low = 0 if high > 0 else high - span
    return low, min(high, low + span)


def _implied_type(schema: dict[str, Json]) -> str:
    """Return the type that the other keywords speak of, where none is given."""
    for kind, names in (
        ("object", ("properties", "required", "additionalProperties", "minProperties")),
        ("array", ("items", "prefixItems", "minItems", "maxItems", "uniqueItems")),
        ("number", ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    ):
        if any(name in schema for name in names):
            return kind
    return "string"
