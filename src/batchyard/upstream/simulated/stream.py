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
_KNOWN_AT_THE_END = frozenset({"output_tokens_details", "server_tool_use"})
_Part = tuple[str, str, str, int]


def events(message: dict[str, Any]) -> Iterator[bytes]:
    """Yield each event of `message`, blank line included."""
    usage = message["usage"]
    begun = {key: value for key, value in usage.items() if key not in _KNOWN_AT_THE_END}
    start = message | {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": begun | {"output_tokens": min(1, usage["output_tokens"])},
    }
    yield _event("message_start", {"message": start})
    for index, block in enumerate(message["content"]):
        empty, parts = _in_pieces(block)
        yield _event("content_block_start", {"index": index, "content_block": block | empty})
        if index == 0:
            yield _event("ping", {})
        for kind, key, text, chars in parts:
            for at in range(0, len(text), chars):
                delta = {"type": kind, key: text[at : at + chars]}
                yield _event("content_block_delta", {"index": index, "delta": delta})
        yield _event("content_block_stop", {"index": index})
    names = ("container", "stop_reason", "stop_sequence", "stop_details")
    delta = {name: message[name] for name in names}
    yield _event("message_delta", {"delta": delta, "usage": usage})
    yield _event("message_stop", {})


def _in_pieces(block: dict[str, Any]) -> tuple[dict[str, Any], list[_Part]]:
    """Return what a block starts with, and type, key, text and length of the deltas to come."""
    match block["type"]:
        case "tool_use" | "server_tool_use":
            text = wire.encode(block["input"]).decode()
            return {"input": {}}, [("input_json_delta", "partial_json", text, _DELTA_CHARS)]
        case "thinking":
            signature = block["signature"]
            return {"thinking": "", "signature": ""}, [
                ("thinking_delta", "thinking", block["thinking"], _DELTA_CHARS),
                ("signature_delta", "signature", signature, len(signature)),
            ]
        case "text":
            return {"text": ""}, [("text_delta", "text", block["text"], _DELTA_CHARS)]
        case _:  # results of server tools come whole
            return {}, []


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), wire.encode({"type": name} | fields))
