"""Types and bounds of single values, in the words of the hosted API.

Each function returns the value that it checked, or raises `Refused` with `<path>: <text>`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from batchyard.errors import shown
from batchyard.validate.problem import Refused

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


def refuse(path: str, text: str) -> NoReturn:
    """Refuse the request for what stands at `path`."""
    raise Refused(f"{path}: {text}")


def required(fields: Mapping[str, Any], name: str, path: str = "") -> Any:
    """Return `fields[name]`, which must be there."""
    if name not in fields:
        refuse(f"{path}.{name}" if path else name, "Field required")
    return fields[name]


def text(value: object, path: str, *, least: int = 0, most: int | None = None) -> str:
    """Check a string and its length in characters."""
    if not isinstance(value, str):
        refuse(path, "Input should be a valid string")
    if len(value) < least:
        refuse(path, f"String should have at least {_counted(least, 'character')}")
    if most is not None and len(value) > most:
        refuse(path, f"String should have at most {_counted(most, 'character')}")
    return value


def integer(value: object, path: str) -> int:
    """Check a whole number; a boolean is none, nor is 5.0."""
    if type(value) is not int:
        refuse(path, "Input should be a valid integer")
    return value


def number(value: object, path: str) -> float:
    """Check a number; a boolean is none."""
    if type(value) is not int and type(value) is not float:
        refuse(path, "Input should be a valid number")
    return value


def boolean(value: object, path: str) -> bool:
    """Check true or false."""
    if not isinstance(value, bool):
        refuse(path, "Input should be a valid boolean")
    return value


def mapping(value: object, path: str) -> dict[str, Any]:
    """Check a JSON object."""
    if not isinstance(value, dict):
        refuse(path, "Input should be a valid dictionary")
    return value


def sequence(value: object, path: str, *, most: int | None = None) -> list[Any]:
    """Check a JSON array and its length."""
    if not isinstance(value, list):
        refuse(path, "Input should be a valid list")
    if most is not None and len(value) > most:
        refuse(
            path,
            f"List should have at most {_counted(most, 'item')} after validation, not {len(value)}",
        )
    return value


def text_or_list(value: object, path: str) -> str | list[Any]:
    """Check what may be text or blocks."""
    if not isinstance(value, str | list):
        refuse(path, "Input should be a valid string or list")
    return value


def choice(value: object, path: str, options: Sequence[str]) -> str:
    """Check one of a few words."""
    if not isinstance(value, str) or value not in options:
        refuse(path, f"Input should be {alternatives(options)}")
    return value


def tag(value: object, path: str, options: Collection[str]) -> str:
    """Check the `type` that says which kind of object stands at `path`."""
    if not isinstance(value, str):
        refuse(f"{path}.type", "Input should be a valid string")
    if value not in options:
        refuse(
            path,
            f"Input tag '{shown(value)}' found using 'type' does not match any of the expected "
            f"tags: {', '.join(map(repr, sorted(options)))}",
        )
    return value


def no_extras(fields: Mapping[str, Any], path: str, known: frozenset[str]) -> None:
    """Check that no other key is there."""
    for key in sorted(fields.keys() - known):
        refuse(f"{path}.{shown(key)}" if path else shown(key), "Extra inputs are not permitted")


def alternatives(options: Sequence[str]) -> str:
    """Return `'a', 'b' or 'c'`."""
    quoted = [f"'{each}'" for each in options]
    return " or ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
