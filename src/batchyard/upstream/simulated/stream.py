"""A whole message as the server-sent events in which the Messages endpoint streams it.

Order: `message_start`, then for each block `content_block_start`, deltas and `content_block_stop`,
with one `ping` after the first start; `message_delta`, `message_stop`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchyard import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

_DELTA_CHARS = 40


def events(message: dict[str, Any]) -> Iterator[bytes]:
    """Yield each event of `message`, blank line included."""
    usage = message["usage"]
    start = message | {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage | {"output_tokens": min(1, usage["output_tokens"])},
    }
    yield _event("message_start", {"message": start})
    for index, block in enumerate(message["content"]):
        kind, key, empty, text = _in_pieces(block)
        yield _event("content_block_start", {"index": index, "content_block": block | empty})
        if index == 0:
            yield _event("ping", {})
        for at in range(0, len(text), _DELTA_CHARS):
            delta = {"type": kind, key: text[at : at + _DELTA_CHARS]}
            yield _event("content_block_delta", {"index": index, "delta": delta})
        yield _event("content_block_stop", {"index": index})
    names = ("container", "stop_reason", "stop_sequence", "stop_details")
    delta = {name: message[name] for name in names}
    yield _event("message_delta", {"delta": delta, "usage": usage})
    yield _event("message_stop", {})


def _in_pieces(block: dict[str, Any]) -> tuple[str, str, dict[str, Any], str]:
    """Return type and key of the deltas of a block, what it starts with, and the text to come."""
    if block["type"] == "tool_use":
        text = wire.encode(block["input"]).decode()
        return "input_json_delta", "partial_json", {"input": {}}, text
    return "text_delta", "text", {"text": ""}, block["text"]


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), wire.encode({"type": name} | fields))
