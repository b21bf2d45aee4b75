"""Content blocks and their sources.

Source: the request schema of the Messages API and its error messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchyard.validate import caching, shapes
from batchyard.validate.problem import Refused
from batchyard.validate.version import forbids_user_citations

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchyard.validate.context import Context

_KINDS: Mapping[type, str] = {str: "string", dict: "dictionary", list: "list"}
_RESULT = {"tool_use_id": (str,), "content": (list, dict)}
_USE = {"id": (str,), "name": (str,), "input": (dict,)}

# Fields that a block must have, and what they may be.
_FIELDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "text": {"text": (str,)},
    "image": {"source": (dict,)},
    "document": {"source": (dict,)},
    "search_result": {"content": (list,), "source": (str,), "title": (str,)},
    "thinking": {"signature": (str,), "thinking": (str,)},
    "redacted_thinking": {"data": (str,)},
    "tool_use": _USE,
    "tool_result": {"tool_use_id": (str,)},
    "server_tool_use": _USE,
    "web_search_tool_result": _RESULT,
    "web_fetch_tool_result": _RESULT,
    "code_execution_tool_result": _RESULT,
    "bash_code_execution_tool_result": _RESULT,
    "text_editor_code_execution_tool_result": _RESULT,
    "tool_search_tool_result": _RESULT,
    "container_upload": {"file_id": (str,)},
    "tool_reference": {"tool_name": (str,)},
    "browser_state": {},
}
_IN_TOOL_RESULT = frozenset(
    {"text", "image", "search_result", "document", "tool_reference", "browser_state"}
)
_IN_DOCUMENT = frozenset({"text", "image"})
BLOCKS = frozenset(_FIELDS) - {"tool_reference", "browser_state"}
TEXT_ONLY = frozenset({"text"})

_IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_SOURCES: Mapping[str, frozenset[str]] = {
    "image": frozenset({"base64", "url", "file"}),
    "document": frozenset({"base64", "url", "file", "text", "content"}),
}
_MEDIA_TYPES = {
    ("image", "base64"): _IMAGE_TYPES,
    ("document", "base64"): ("application/pdf",),
    ("document", "text"): ("text/plain",),
}
_ONE_FIELD = {"url": "url", "file": "file_id"}


def block(
    fields: Mapping[str, Any], path: str, role: str, allowed: frozenset[str], context: Context
) -> None:
    """Check one block.

    Args:
        fields: an object with a `type` that is a string.
        path: of the block.
        role: of the message that it is in, `system` for the system prompt.
        allowed: the types that may stand here.
        context: of the request.
    """
    kind = fields["type"]
    # Messages name the type after the block, but where only text can stand.
    tagged = path if role == "system" else f"{path}.{kind}"
    if kind not in allowed:
        is_new = kind not in _FIELDS and (context.lenient or kind in context.block_types)
        if not is_new:
            shapes.tag(kind, path, allowed)
    for name, types in _FIELDS.get(kind, {}).items():
        if not isinstance(shapes.required(fields, name, tagged), types):
            words = " or ".join(_KINDS[each] for each in types)
            shapes.refuse(f"{tagged}.{name}", f"Input should be a valid {words}")
    match kind:
        case "text":
            _text(fields, tagged, role, context)
        case "image" | "document":
            _source(fields["source"], kind, f"{tagged}.source", role, context)
        case "search_result":
            _inner(fields["content"], f"{tagged}.content", role, TEXT_ONLY, context)
        case "tool_result":
            content = fields.get("content")
            if content is not None and not isinstance(content, str):
                _inner(content, f"{tagged}.content", role, _IN_TOOL_RESULT, context)
        case _:
            pass
    control = fields.get("cache_control")
    if control is not None:
        context.breakpoints.append(caching.read(control, path, tagged, lenient=context.lenient))


def typed(value: object, path: str) -> dict[str, Any]:
    """Check that a block is an object with a `type`: what every Messages endpoint asks for."""
    fields = shapes.mapping(value, path)
    shapes.text(shapes.required(fields, "type", path), f"{path}.type")
    return fields


def asks_for_citations(blocks: object) -> bool:
    """Whether a document or search result among checked blocks has its citations turned on."""
    if not isinstance(blocks, list):
        return False
    for each in blocks:
        citations = each.get("citations")
        if isinstance(citations, dict) and citations.get("enabled") is True:
            return True
        if each.get("type") == "tool_result" and asks_for_citations(each.get("content")):
            return True
    return False


def _inner(value: object, path: str, role: str, allowed: frozenset[str], context: Context) -> None:
    for index, each in enumerate(shapes.sequence(value, path)):
        where = f"{path}.{index}"
        block(typed(each, where), where, role, allowed, context)


def _text(fields: Mapping[str, Any], tagged: str, role: str, context: Context) -> None:
    if not fields["text"]:
        section = "system" if tagged.startswith("system") else "messages"
        raise Refused(f"{section}: text content blocks must be non-empty")
    if role == "user" and fields.get("citations") and forbids_user_citations(context.version):
        shapes.refuse(
            f"{tagged}.citations", "Citations are not permitted on text blocks in user messages"
        )


def _source(fields: Mapping[str, Any], kind: str, path: str, role: str, context: Context) -> None:
    tag = shapes.required(fields, "type", path)
    if not isinstance(tag, str) or tag not in _SOURCES[kind]:
        if context.lenient and isinstance(tag, str):
            return
        shapes.tag(tag, path, _SOURCES[kind])
    tagged = f"{path}.{tag}"
    if tag in _ONE_FIELD:
        name = _ONE_FIELD[tag]
        shapes.text(shapes.required(fields, name, tagged), f"{tagged}.{name}", least=1)
    elif tag == "content":
        content = shapes.text_or_list(
            shapes.required(fields, "content", tagged), f"{tagged}.content"
        )
        if isinstance(content, list):
            _inner(content, f"{tagged}.content", role, _IN_DOCUMENT, context)
    else:
        media_type = shapes.required(fields, "media_type", tagged)
        shapes.choice(media_type, f"{tagged}.media_type", _MEDIA_TYPES[kind, tag])
        least = 1 if tag == "base64" else 0
        shapes.text(shapes.required(fields, "data", tagged), f"{tagged}.data", least=least)
