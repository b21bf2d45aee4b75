"""The list of models that the simulated model answers for: the table of known models.

What the table does not tell is null, or the epoch for the release date, as the hosted API has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from batchyard import models, wire
from batchyard.errors import InvalidRequest, NotFound, shown

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterable

_UNKNOWN_DATE = "1970-01-01T00:00:00Z"
_SHOWN_UNASKED = ("active", "deprecated")
# A list in a query: repeated, or with brackets as the official clients write it.
_LIFECYCLE = ("lifecycle", "lifecycle[]")


def page(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return one page of the list.

    Args:
        pairs: of the query: `limit`, `after_id`, `before_id`, and `lifecycle`, which may come
            several times. Without it retired models are left out.

    Raises:
        InvalidRequest: a limit out of range, a cursor that is no model, or no such lifecycle.
    """
    given = list(pairs)
    query = dict(given)
    wanted = [value for name, value in given if name in _LIFECYCLE]
    for index, each in enumerate(wanted):
        if each not in get_args(models.Lifecycle):
            raise InvalidRequest(
                f"lifecycle.{index}: Input should be 'active', 'deprecated' or 'retired'"
            )
    known = [
        model.id
        for model in models.table().models.values()
        if model.lifecycle in (wanted or _SHOWN_UNASKED)
    ]
    limit = wire.list_limit(query.get("limit"))
    if "after_id" in query:
        start = _position(known, "after_id", query["after_id"]) + 1
        ids, more = known[start : start + limit], start + limit < len(known)
    elif "before_id" in query:
        end = _position(known, "before_id", query["before_id"])
        ids, more = known[max(0, end - limit) : end], end > limit
    else:
        ids, more = known[:limit], limit < len(known)
    return {
        "data": [info(model_id) for model_id in ids],
        "has_more": more,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }


def info(model_id: str) -> dict[str, Any]:
    """Return what is known of one model.

    Raises:
        NotFound: no such model.
    """
    model = models.find(model_id)
    if model is None:
        raise NotFound(f"model: {shown(model_id, 256)}")
    return {
        "type": "model",
        "id": model_id,
        "display_name": model.display_name,
        "created_at": _time(model.created) or _UNKNOWN_DATE,
        "lifecycle": model.lifecycle,
        "line": model.line,
        "deprecated_at": _time(model.deprecated),
        "retires_at": _time(model.retires),
        "max_input_tokens": model.max_input,
        "max_tokens": model.max_output,
        "capabilities": _capabilities(model),
    }


def _capabilities(model: models.Model) -> dict[str, Any]:
    has = model.capabilities
    manages, searches, runs = (
        each in has for each in ("context_management", "web_search", "code_execution")
    )
    thinks = bool(model.thinking - {"disabled"})
    return {
        "batch": _is(model.lifecycle != "retired"),
        "citations": _is("citations" in has),
        "code_execution": _is(runs),
        "context_management": _is(manages)
        | {
            "clear_thinking_20251015": _is(manages and thinks),
            "clear_tool_uses_20250919": _is(manages),
            "compact_20260112": _is("compaction" in has),
        },
        "effort": _is(bool(model.effort))
        | {level: _is(level in (model.effort or ())) for level in get_args(models.Effort)},
        "image_input": _is("image_input" in has),
        "pdf_input": _is("pdf_input" in has),
        "server_tools": _is(searches or runs)
        | {"code_execution": _is(runs), "web_search": _is(searches)},
        "structured_outputs": _is("structured_outputs" in has),
        "thinking": _is(thinks)
        | {"types": {each: _is(each in model.thinking) for each in get_args(models.Thinking)}},
    }


def _is(supported: bool) -> dict[str, Any]:  # noqa: FBT001 - the one thing that it says
    return {"supported": supported}


def _time(day: datetime.date | None) -> str | None:
    return f"{day.isoformat()}T00:00:00Z" if day is not None else None


def _position(known: list[str], name: str, model_id: str) -> int:
    try:
        return known.index(model_id)
    except ValueError:
        raise InvalidRequest(f"{name}: {shown(model_id)} is not a known model") from None
