"""The request parameters of a run beside model, prompt and output limit: given once, or by row.

Only what would contradict the run itself is refused here; whether a value is allowed is decided by
the same check as at the server, on every rendered request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchyard import wire
from batchyard.client.problems import InputError
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from batchyard.client.inputs.documents import Document

# What has an option of its own, or cannot be in a batch.
_TAKEN = {
    "model": "--model sets it",
    "max_tokens": "--max-tokens sets it",
    "system": "--system is its template",
    "messages": "the template and the documents make them",
    "stream": "a batch has no streams",
}
# What a row may not set; it may have a model, a limit and a system prompt of its own.
_FIXED = {name: _TAKEN[name] for name in ("messages", "stream")}


def parse(
    given: Iterable[str] = (), tools: Path | None = None, thinking: str | None = None
) -> dict[str, Any]:
    """Return the parameters that options name.

    Args:
        given: `NAME=JSON`, each a top-level field of the request.
        tools: a file that holds the JSON list of tools.
        thinking: a number of tokens, `adaptive` or `disabled`.

    Raises:
        InputError: not of this form, given twice, or set by another option.
    """
    params: dict[str, Any] = {}
    for each in given:
        name, separator, text = each.partition("=")
        if not separator or not name:
            raise InputError(f"--param {shown(each)} is not like NAME=JSON: temperature=0.5")
        try:
            value = wire.decode(text)
        except ValueError:
            hint = f"a text has quotes, as in --param '{name}=\"{text}\"'"
            raise InputError(f"--param {shown(each)}: the value is not JSON; {hint}") from None
        _put(params, name, value, "--param")
    if tools is not None:
        _put(params, "tools", _read_tools(tools), "--tools")
    if thinking is not None:
        _put(params, "thinking", _thinking(thinking), "--thinking")
    checked(params)
    return params


def checked(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `params` when a run may set all of them.

    Raises:
        InputError: one is set otherwise.
    """
    for name in params:
        if name in _TAKEN:
            raise InputError(f"--param {shown(name)}: {_TAKEN[name]}")
    return params


def override_of(document: Document, field: str) -> Mapping[str, Any]:
    """Return what a row sets for its own request: an object, or the text of one; empty for none.

    Raises:
        InputError: the row has no such field, it is not an object, or sets what no row may.
    """
    where = f"{document.source}: field {shown(field)}"
    if field not in document.fields:
        raise InputError(f"{document.source}: the document has no field {shown(field)}")
    value = document.fields[field]
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = wire.decode(value)
        except ValueError as error:
            raise InputError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where} is not an object of request parameters: {shown(str(value))}")
    for name in value:
        if name in _FIXED:
            raise InputError(f"{where} sets {name}: {_FIXED[name]}")
    return value


def merged(params: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `params` with those of a row over them; null takes one away."""
    result = {**params, **override}
    return {name: value for name, value in result.items() if value is not None}


def _put(params: dict[str, Any], name: str, value: object, option: str) -> None:
    if name in params:
        raise InputError(f"{option}: {shown(name)} is given twice")
    params[name] = value


def _read_tools(path: Path) -> list[Any]:
    from batchyard.client.inputs.texts import read_text  # noqa: PLC0415 - only with this option

    try:
        value = wire.decode(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, list):
        raise InputError(f"{path}: --tools is a JSON list of tools")
    return value


def _thinking(text: str) -> dict[str, Any]:
    if text in {"adaptive", "disabled"}:
        return {"type": text}
    if text.isascii() and text.isdigit():
        return {"type": "enabled", "budget_tokens": int(text)}
    raise InputError(f"--thinking is {shown(text)}; it is a number of tokens, adaptive or disabled")
