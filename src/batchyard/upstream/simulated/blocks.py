"""The blocks that stand before the text of a simulated answer: thinking, and searches of the web.

Knows the shapes and when a request asks for them. Nothing is thought and nothing is searched, and
every block says so.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from batchyard import ids, models
from batchyard.upstream.simulated.request import text_of
from batchyard.upstream.simulated.tokens import estimate

if TYPE_CHECKING:
    from batchyard.upstream.simulated.draw import Draw
    from batchyard.upstream.simulated.request import Block, Request

_THOUGHTS = (
    "A model would first restate the question here.",
    "A model would list what the document says on it.",
    "A model would weigh two readings against each other.",
    "A model would check the form that the answer is to have.",
    "A model would look for a passage that contradicts it.",
)
_THINKING_NOTICE = "[Simulated thinking: no model was called.]"
_HIDDEN_FACTOR = 3  # the reasoning is longer than its summary; only its tokens are seen
_SIGNATURE_BYTES = 48
_QUERY_CHARS = 60
_SEARCH_TOKENS = 40  # the call of a search: name, frame and query
_RESULT_TOKENS = 120  # what one result adds to the prompt of the next step
RESULTS = 2

# Models that show a summary of adaptive thinking unless told otherwise; all later ones omit it.
# Source: the guide on thinking, display.
_SHOWN_BY_DEFAULT = ("claude-opus-4-6", "claude-sonnet-4-6")


def thinking(request: Request, draw: Draw, number: int) -> tuple[Block, int] | None:
    """Return the thinking block and the tokens of the reasoning; None when it was not asked for.

    Both count as output, whatever part of the text is shown.
    """
    asked = request.thinking
    if asked is None or asked.get("type") not in {"enabled", "adaptive"}:
        return None
    text = f"{_THINKING_NOTICE} {draw.pick(_THOUGHTS)} {draw.pick(_THOUGHTS)}"
    tokens = _HIDDEN_FACTOR * estimate(text)  # a fraction of the smallest budget, 1,024
    shown = asked.get("display") or _default_display(request.model, str(asked["type"]))
    block = {
        "type": "thinking",
        "thinking": "" if shown == "omitted" else text,
        "signature": _opaque("signature", number),
    }
    return block, tokens


def _default_display(model: str, kind: str) -> str:
    shows = kind == "enabled" or model in _SHOWN_BY_DEFAULT or models.find(model) is None
    return "summarized" if shows else "omitted"


def searches_web(request: Request) -> bool:
    """Whether the request has a tool for searching the web, and may use it."""
    choice = request.tool_choice
    if choice is not None and choice.type != "auto":
        return False
    return any(str(tool.get("type")).startswith("web_search_") for tool in request.tools or ())


def search(request: Request, number: int) -> tuple[list[Block], int, int]:
    """Return one search with its result, its output tokens, and the input tokens that it adds."""
    users = (turn.content for turn in reversed(request.messages) if turn.role == "user")
    query = " ".join(text_of(next(users, ""))[: 2 * _QUERY_CHARS].split())[:_QUERY_CHARS].strip()
    use_id = ids.from_number("srvtoolu", number)
    blocks: list[Block] = [
        {
            "type": "server_tool_use",
            "id": use_id,
            "name": "web_search",
            "input": {"query": query or "simulated"},
        },
        {
            "type": "web_search_tool_result",
            "tool_use_id": use_id,
            "content": [_result(index, number) for index in range(1, RESULTS + 1)],
        },
    ]
    return blocks, _SEARCH_TOKENS, RESULTS * _RESULT_TOKENS


def _result(index: int, number: int) -> Block:
    return {
        "type": "web_search_result",
        "title": f"Simulated search result {index}: nothing was searched",
        "url": f"https://example.com/simulated/{index}",
        "encrypted_content": _opaque(f"result {index}", number),
        "page_age": None,
    }


def _opaque(what: str, number: int) -> str:
    """Return text that looks like what only the API can read, and depends on the request."""
    data = hashlib.blake2b(f"{what} {number}".encode(), digest_size=_SIGNATURE_BYTES).digest()
    return base64.b64encode(data).decode()
