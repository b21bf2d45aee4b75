"""Tools and the choice among them.

Source: the request schema of the Messages API and its errors page. The types of tools are those of
the official client, read November 2026; the table of models can name further ones.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from batchyard.errors import shown
from batchyard.validate import caching, shapes
from batchyard.validate.problem import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchyard.validate.context import Context


class Kind(NamedTuple):
    """A built-in tool: its name, None when it has none, and the keys that it takes."""

    name: str | None
    keys: frozenset[str]


_ALL = frozenset({"allowed_callers", "cache_control", "defer_loading", "name", "strict", "type"})
_CLIENT = _ALL | {"input_examples"}
_SET = frozenset({"cache_control", "configs", "type"})
_DOMAINS = _ALL | {"allowed_domains", "blocked_domains", "max_uses"}
_SEARCH = _DOMAINS | {"user_location"}
_FETCH = _DOMAINS | {"citations", "max_content_tokens", "url_sources"}
_EDIT = "str_replace_based_edit_tool"
_BM25, _REGEX = "tool_search_tool_bm25", "tool_search_tool_regex"

BUILT_IN: Mapping[str, Kind] = {
    "bash_20250124": Kind("bash", _CLIENT),
    "browser_toolset_20260801": Kind(None, _SET),
    "code_execution_20250522": Kind("code_execution", _ALL),
    "code_execution_20250825": Kind("code_execution", _ALL),
    "code_execution_20260120": Kind("code_execution", _ALL),
    "code_execution_20260521": Kind("code_execution", _ALL),
    "computer_toolset_20260801": Kind(None, _SET),
    "memory_20250818": Kind("memory", _CLIENT),
    "text_editor_20250124": Kind("str_replace_editor", _CLIENT),
    "text_editor_20250429": Kind(_EDIT, _CLIENT),
    "text_editor_20250728": Kind(_EDIT, _CLIENT | {"max_characters"}),
    "tool_search_tool_bm25": Kind(_BM25, _ALL),
    "tool_search_tool_bm25_20251119": Kind(_BM25, _ALL),
    "tool_search_tool_regex": Kind(_REGEX, _ALL),
    "tool_search_tool_regex_20251119": Kind(_REGEX, _ALL),
    "web_fetch_20250910": Kind("web_fetch", _FETCH),
    "web_fetch_20260209": Kind("web_fetch", _FETCH),
    "web_fetch_20260309": Kind("web_fetch", _FETCH | {"use_cache"}),
    "web_fetch_20260318": Kind("web_fetch", _FETCH | {"use_cache", "response_inclusion"}),
    "web_search_20250305": Kind("web_search", _SEARCH),
    "web_search_20260209": Kind("web_search", _SEARCH),
    "web_search_20260318": Kind("web_search", _SEARCH | {"response_inclusion"}),
}
CUSTOM_KEYS = _CLIENT | {"description", "eager_input_streaming", "input_schema"}

_NAME_PATTERN = "^[a-zA-Z0-9_-]{1,128}$"
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_CHOICES = ("auto", "any", "tool", "none")
FORCED = ("any", "tool")


def check(tools: Sequence[object], context: Context) -> None:
    """Check the tools of a request; each is an object already."""
    refused = context.model.tools_refused
    too_old = (
        [kind for kind in map(_type, tools) if isinstance(kind, str) and kind in refused]
        if refused
        else []
    )
    if too_old:
        raise Refused(
            f"'{context.model.snapshot}' does not support tool types: {', '.join(too_old)}"
        )
    names: set[str] = set()
    for index, each in enumerate(tools):
        assert isinstance(each, dict), "checked by the caller"
        name = _tool(each, f"tools.{index}", context)
        if name is None:
            continue
        if name in names:
            raise Refused("tools: Tool names must be unique.")
        names.add(name)


def choose(fields: Mapping[str, Any], tools: Sequence[object], context: Context) -> str:
    """Check `tool_choice` and return its type."""
    kind = shapes.required(fields, "type", "tool_choice")
    shapes.choice(kind, "tool_choice.type", _CHOICES)
    parallel = fields.get("disable_parallel_tool_use")
    if parallel is not None:
        shapes.boolean(parallel, f"tool_choice.{kind}.disable_parallel_tool_use")
    if kind == "tool":
        name = shapes.required(fields, "name", "tool_choice.tool")
        shapes.text(name, "tool_choice.tool.name")
    if kind not in FORCED:
        return str(kind)
    if not context.model.forced_tool:
        shapes.refuse("tool_choice", 'type "tool" and "any" are not supported for this model.')
    if context.lenient:  # tools may come from elsewhere, as those of MCP servers do
        return str(kind)
    if not tools:
        shapes.refuse("tool_choice", f"`{kind}` may only be specified while providing tools")
    named = [each.get("name") for each in tools if isinstance(each, dict)]
    if kind == "tool" and None not in named and fields["name"] not in named:
        shapes.refuse("tool_choice", f"Tool '{shown(fields['name'])}' not found in provided tools")
    return str(kind)


def _type(tool: object) -> object:
    return tool.get("type") if isinstance(tool, dict) else None


def _tool(fields: dict[str, Any], path: str, context: Context) -> str | None:
    """Check one tool and return its name."""
    kind = fields.get("type")
    if kind is None or kind == "custom":
        tagged, keys = f"{path}.custom", CUSTOM_KEYS
        _custom(fields, tagged)
    elif isinstance(kind, str) and kind in BUILT_IN:
        tagged, keys = f"{path}.{kind}", BUILT_IN[kind].keys
        name = BUILT_IN[kind].name
        if name is not None:
            shapes.choice(shapes.required(fields, "name", tagged), f"{tagged}.name", (name,))
    else:
        if not (isinstance(kind, str) and (context.lenient or kind in context.tool_types)):
            shapes.tag(kind, path, ("custom", *BUILT_IN))
        tagged, keys = f"{path}.{kind}", frozenset(fields)
    if not context.lenient:
        shapes.no_extras(fields, tagged, keys)
    control = fields.get("cache_control")
    if control is not None:
        context.breakpoints.append(caching.read(control, path, tagged, lenient=context.lenient))
    name = fields.get("name")
    return name if isinstance(name, str) else None


def _custom(fields: dict[str, Any], tagged: str) -> None:
    name = shapes.text(shapes.required(fields, "name", tagged), f"{tagged}.name", least=1)
    if _NAME.fullmatch(name) is None:
        shapes.refuse(f"{tagged}.name", f"String should match pattern '{_NAME_PATTERN}'")
    path = f"{tagged}.input_schema"
    schema = shapes.mapping(shapes.required(fields, "input_schema", tagged), path)
    shapes.choice(shapes.required(schema, "type", path), f"{path}.type", ("object",))
    if fields.get("description") is not None:
        shapes.text(fields["description"], f"{tagged}.description")
