"""Tools that the server runs by itself, as often as it likes: what they bring has no bound. Pure.

Source: the API's pages on server tools, the MCP connector and pricing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Whoever sent the request runs these, so that a call of one ends the answer. Of a type that is not
# known, the server may run it.
_CLIENT = re.compile(
    r"custom|(bash|text_editor|computer|memory|(computer|browser)_toolset)_\d{8}", re.ASCII
)
_MCP, _SEARCH = "mcp_servers", "web_search"


def unbounded(params: Mapping[str, Any]) -> list[str]:
    """Return the names of what the server runs for a request without a bound, each once."""
    named = [
        str(tool.get("name") or tool.get("mcp_server_name") or tool["type"])
        for tool in _tools(params)
        if not _is_clients(tool)
    ]
    if params.get(_MCP):
        named.append(_MCP)
    return list(dict.fromkeys(named))


def searches_max(params: Mapping[str, Any]) -> int:
    """Return how many web searches a request may make, as far as its tools say; 0 if they do not.

    Each has a fee of its own, whatever it brings.
    """
    uses = [
        tool.get("max_uses")
        for tool in _tools(params)
        if not _is_clients(tool) and str(tool["type"]).startswith(_SEARCH)
    ]
    return sum(number for number in uses if isinstance(number, int) and number > 0)


def _is_clients(tool: Mapping[str, Any]) -> bool:
    kind = tool.get("type")
    return kind is None or (isinstance(kind, str) and _CLIENT.fullmatch(kind) is not None)


def _tools(params: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    tools = params.get("tools")
    return [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
