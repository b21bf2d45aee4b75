"""Answer one request with no model: from its fields, a seed and the cache to a whole message.

Pure but for the cache it is given. The same request and seed make the same content, ids and output
tokens; only the split of the input tokens depends on what was asked before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchyard import ids, models, wire
from batchyard.errors import InvalidRequest
from batchyard.upstream.simulated.cache import NOTHING, PromptCache, Use, prefix_of
from batchyard.upstream.simulated.draw import Draw
from batchyard.upstream.simulated.request import pieces, text_of
from batchyard.upstream.simulated.schema.sample import SchemaError, sample
from batchyard.upstream.simulated.text import compose
from batchyard.upstream.simulated.tokens import estimate, estimate_bytes, fit

if TYPE_CHECKING:
    from batchyard.upstream.simulated.request import Block, Request

_TOOL_USE_TOKENS = 30  # name and frame of a tool call


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished message and what it does to the cache once it begins."""

    message: dict[str, Any]
    use: Use
    luck: float
    """A share from 0 to 1 that follows from the request: how long this answer takes."""


@dataclass(frozen=True, slots=True)
class _Content:
    blocks: list[Block]
    tokens: int
    stop_reason: str
    stop_sequence: str | None = None


def answer(
    request: Request, *, seed: int, words: int, workspace: str, cache: PromptCache, now_s: float
) -> Answer:
    """Return the answer to a checked request.

    Args:
        request: from `simulated_request.read`.
        seed: of the simulated model.
        words: typical length of prose.
        workspace: whose cache entries may be read.
        cache: what the request reads is renewed; what it writes is not readable yet.
        now_s: start of the request on the clock of the cache.

    Raises:
        InvalidRequest: a schema or a breakpoint that cannot be honoured.
    """
    number = _number(request, seed)
    draw = Draw(number)
    blocks = pieces(request)
    prefix = prefix_of(request, blocks, workspace)
    content = _content(request, draw, words, number)
    use = NOTHING if prefix is None else cache.use(prefix, now_s)
    whole = sum(piece.tokens for piece in blocks)
    model = models.find(request.model)
    message = {
        "model": request.model if model is None else model.snapshot,
        "id": ids.from_number("msg", number),
        "type": "message",
        "role": "assistant",
        "content": content.blocks,
        "container": None,
        "stop_reason": content.stop_reason,
        "stop_sequence": content.stop_sequence,
        "stop_details": None,
        "usage": _usage(whole, use, content.tokens),
        "diagnostics": None,
    }
    return Answer(message, use, Draw(number >> 3).share())


def count(request: Request) -> int:
    """Return the tokens of the prompt, cached or not."""
    return sum(piece.tokens for piece in pieces(request))


def _number(request: Request, seed: int) -> int:
    """Return 128 bits that stand for everything that the content depends on."""
    config = request.output_config
    parts = (
        seed,
        request.model,
        request.system,
        request.messages,
        request.tools,
        request.tool_choice,
        config and config.format,
    )
    return int.from_bytes(hashlib.blake2b(wire.encode(parts), digest_size=16).digest(), "big")


def _content(request: Request, draw: Draw, words: int, number: int) -> _Content:
    if request.max_tokens == 0:  # only fills the cache
        return _Content([], 0, "max_tokens")
    choice = request.tool_choice
    if choice is not None and choice.type in {"any", "tool"}:
        return _tool_use(request, draw, number)
    config = request.output_config
    if config is not None and config.format is not None:
        text = _structured(config.format.type, config.format.schema, draw)
    else:
        users = (turn.content for turn in reversed(request.messages) if turn.role == "user")
        text = compose(text_of(next(users, "")), text_of(request.system), draw, words)
    return _cut(text, request)


def _structured(kind: str, schema: object, draw: Draw) -> str:
    path = "output_config.format"
    if kind != "json_schema":
        raise InvalidRequest(f"{path}.type: Input should be 'json_schema'")
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{path}.schema: Input should be a valid dictionary")
    return wire.encode(_sampled(schema, draw, f"{path}.schema")).decode()


def _tool_use(request: Request, draw: Draw, number: int) -> _Content:
    assert request.tools is not None, "checked when the request was read"
    assert request.tool_choice is not None, "asked by the caller"
    index = draw.below(len(request.tools))
    if request.tool_choice.type == "tool":
        names = [tool.get("name") for tool in request.tools]
        index = names.index(request.tool_choice.name)
    tool = request.tools[index]
    schema = tool.get("input_schema", {"type": "object"})
    value = _sampled(schema, draw, f"tools.{index}.input_schema")
    if not isinstance(value, dict):
        raise InvalidRequest(f"tools.{index}.input_schema.type: Input should be 'object'")
    tokens = _TOOL_USE_TOKENS + estimate_bytes(wire.encode(value))
    if tokens > request.max_tokens:
        return _Content([], request.max_tokens, "max_tokens")
    block = {
        "type": "tool_use",
        "id": ids.from_number("toolu", number),
        "name": tool.get("name", tool.get("type")),
        "input": value,
    }
    return _Content([block], tokens, "tool_use")


def _sampled(schema: object, draw: Draw, path: str) -> Any:
    try:
        return sample(schema, draw, path)
    except SchemaError as error:
        raise InvalidRequest(f"{error.path}: {error.text}") from None


def _cut(text: str, request: Request) -> _Content:
    """End the text where a stop sequence or `max_tokens` ends it, whichever comes first."""
    tokens = estimate(text)
    cut = tokens > request.max_tokens
    kept = fit(text, request.max_tokens) if cut else text
    stops = [(at, stop) for stop in request.stop_sequences or () if (at := kept.find(stop)) >= 0]
    if stops:
        at, stop = min(stops)
        kept = kept[:at]
        return _Content(_text_blocks(kept), estimate(kept), "stop_sequence", stop)
    if cut:
        return _Content(_text_blocks(kept), request.max_tokens, "max_tokens")
    return _Content(_text_blocks(kept), tokens, "end_turn")


def _text_blocks(text: str) -> list[Block]:
    return [{"type": "text", "text": text}] if text else []


def _usage(whole: int, use: Use, output: int) -> dict[str, Any]:
    written = use.write_5m + use.write_1h
    return {
        "input_tokens": whole - use.read - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": use.read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": use.write_5m,
            "ephemeral_1h_input_tokens": use.write_1h,
        },
        "output_tokens": output,
        "service_tier": "standard",
        "inference_geo": "not_available",
    }
