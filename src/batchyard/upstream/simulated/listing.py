"""The list of models that the simulated model answers for: the table of known models.

What the table does not tell is null, or the epoch for the release date, as the hosted API has it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from batchyard import models, wire
from batchyard.errors import InvalidRequest, NotFound, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

_DATE = re.compile(r"-(\d{4})(\d\d)(\d\d)$")
_LINES = ("haiku", "sonnet", "opus", "fable", "mythos")
_UNKNOWN_DATE = "1970-01-01T00:00:00Z"
_YES = {"supported": True}
_NO = {"supported": False}
_CAPABILITIES = {
    "batch": _YES,
    "citations": _NO,
    "code_execution": _NO,
    "context_management": _NO,
    "effort": _NO | dict.fromkeys(("low", "medium", "high", "xhigh", "max"), _NO),
    "image_input": _YES,
    "pdf_input": _YES,
    "server_tools": _NO | {"code_execution": _NO, "web_search": _NO},
    "structured_outputs": _YES,
    "thinking": _NO
    | {"types": dict.fromkeys(("adaptive", "between_tools", "disabled", "enabled"), _NO)},
}  # of the simulated model: what it takes and acts on


def page(query: Mapping[str, str]) -> dict[str, Any]:
    """Return one page of the list for `limit`, `after_id` and `before_id`.

    Raises:
        InvalidRequest: a limit out of range or a cursor that is no model.
    """
    known = list(models.table().models)
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


@cache
def info(model_id: str) -> dict[str, Any]:
    """Return what is known of one model.

    Raises:
        NotFound: no such model.
    """
    model = models.find(model_id)
    if model is None:
        raise NotFound(f"model: {shown(model_id, 256)}")
    date = _DATE.search(model_id)
    words = _DATE.sub("", model_id).split("-")
    digits = [word for word in words if word.isdigit()]
    names = [word.capitalize() for word in words if not word.isdigit()]
    return {
        "type": "model",
        "id": model_id,
        "display_name": " ".join([*names, ".".join(digits)]).strip(),
        "created_at": f"{date[1]}-{date[2]}-{date[3]}T00:00:00Z" if date else _UNKNOWN_DATE,
        "lifecycle": "active",
        "line": next((line for line in _LINES if line in words), None),
        "deprecated_at": None,
        "retires_at": None,
        "max_input_tokens": None,
        "max_tokens": model.max_output,
        "capabilities": _CAPABILITIES,
    }


def _position(known: list[str], name: str, model_id: str) -> int:
    try:
        return known.index(model_id)
    except ValueError:
        raise InvalidRequest(f"{name}: {shown(model_id)} is not a known model") from None
