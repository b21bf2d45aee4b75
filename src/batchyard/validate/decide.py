"""From the bytes of a request to a problem or none: the quick way, and the thorough one."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from batchyard.validate import ordinary
from batchyard.validate.problem import Problem, Refused
from batchyard.validate.rules import apply

# Longer numbers are not read exactly. They are never ours to act on; the bytes go on as they are.
_DIGITS_MAX = 4_000


def check(
    params: bytes | memoryview, *, version: str, betas: tuple[str, ...], strict: bool = False
) -> Problem | None:
    """Return what is wrong with `params`, or None.

    Args:
        params: the JSON object as the client sent it.
        version: `anthropic-version` of the create call.
        betas: `anthropic-beta` values of the create call.
        strict: also refuse top-level keys that are not known.
    """
    if ordinary.is_fine(params, version):
        return None
    return examine(params, version=version, betas=betas, strict=strict)


def examine(
    params: bytes | memoryview, *, version: str, betas: tuple[str, ...], strict: bool = False
) -> Problem | None:
    """Do what `check` does, without the short cut for ordinary requests."""
    try:
        fields = decode(params)
    except RecursionError:
        return _invalid("The request body is not valid JSON: nested too deeply")
    except ValueError as error:
        return _invalid(f"The request body is not valid JSON: {error}")
    try:
        apply(fields, version=version, betas=betas, strict=strict)
    except Refused as refused:
        return _invalid(refused.message)
    return None


def decode(params: bytes | memoryview) -> Any:
    """Parse JSON with numbers of any size.

    Raises:
        ValueError: not JSON, or not UTF-8.
        RecursionError: nested too deeply.
    """
    try:
        return msgspec.json.decode(params)
    except msgspec.ValidationError:  # a number that does not fit: nothing else is typed here
        return json.loads(bytes(params), parse_int=_integer, parse_constant=_constant)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


def model_of(params: bytes | memoryview) -> str:
    """Return the model that valid `params` name."""
    return ordinary.model_of(params)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _DIGITS_MAX else float("inf")


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _invalid(message: str) -> Problem:
    return Problem("invalid_request_error", message)
