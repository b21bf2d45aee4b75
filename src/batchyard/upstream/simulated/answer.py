"""Answer one request with no model: from its fields, a seed and the cache to a whole message.

Pure but for the cache it is given. The same request, `custom_id` and seed make the same content,
ids and output tokens; only the split of the input tokens depends on what was asked before, and only
where the request has a cache breakpoint.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from batchyard import ids, models, wire
from batchyard.errors import InvalidRequest
from batchyard.upstream.simulated import blocks as lead_blocks
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
class Wish:
    """What an answer is to be like, whatever the request would bring by itself."""

    stop_reason: (
        Literal["refusal", "max_tokens", "pause_turn", "model_context_window_exceeded"] | None
    ) = None
    """None ends the answer as usual."""
    text: str | None = None
    """The text, word for word; None writes the usual one."""
    category: str | None = None
    """Of a refusal, as is `explanation`."""
    explanation: str | None = None
    input_tokens: int | None = None
    """What `usage` says, as does `output_tokens`; None counts."""
    output_tokens: int | None = None


USUAL = Wish()


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
    lead: _Lead | None = None


@dataclass(frozen=True, slots=True)
class _Lead:
    """What stands before the text or the call of a tool."""

    blocks: list[Block]
    tokens: int
    thinking_tokens: int | None
    searches: int
    prompt_tokens: int
    """Of search results, which the model reads."""


def answer(
    request: Request,
    *,
    seed: int,
    words: int,
    workspace: str,
    cache: PromptCache,
    now_s: float,
    custom_id: str = "",
    wish: Wish = USUAL,
) -> Answer:
    """Return the answer to a checked request.

    Args:
        request: from `simulated_request.read`.
        seed: of the simulated model.
        words: typical length of prose.
        workspace: whose cache entries may be read.
        cache: what the request reads is renewed; what it writes is not readable yet.
        now_s: start of the request on the clock of the cache.
        custom_id: makes the ids of equal requests of a batch differ.
        wish: what the answer is to be like.

    Raises:
        InvalidRequest: a schema or a breakpoint that cannot be honoured.
    """
    number = _number(request, seed)
    named = _named(number, custom_id)
    blocks = pieces(request)
    prefix = prefix_of(request, blocks, workspace)
    content = _content(request, Draw(number), words, named, wish)
    use = NOTHING if prefix is None else cache.use(prefix, now_s)
    whole = sum(piece.tokens for piece in blocks)
    model = models.find(request.model)
    message = {
        "model": request.model if model is None else model.snapshot,
        "id": ids.from_number("msg", named),
        "type": "message",
        "role": "assistant",
        "content": content.blocks,
        "container": None,
        "stop_reason": content.stop_reason,
        "stop_sequence": content.stop_sequence,
        "stop_details": _stop_details(wish),
        "usage": _usage(whole, use, content, wish),
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


def _named(number: int, custom_id: str) -> int:
    """Return the number that ids are made from: equal requests of a batch have ids of their own."""
    if not custom_id:
        return number
    key = number.to_bytes(16, "big")
    return int.from_bytes(
        hashlib.blake2b(custom_id.encode(), digest_size=16, key=key).digest(), "big"
    )


def _stop_details(wish: Wish) -> dict[str, Any] | None:
    if wish.stop_reason != "refusal":
        return None
    return {"type": "refusal", "category": wish.category, "explanation": wish.explanation}


def _content(request: Request, draw: Draw, words: int, number: int, wish: Wish) -> _Content:
    if request.max_tokens == 0:  # only fills the cache
        return _Content([], 0, "max_tokens")
    if wish.stop_reason == "refusal":
        # It comes before the first word, or in the middle; what was written is billed.
        text = wish.text or ""
        return _Content(_text_blocks(text), max(1, estimate(text)), "refusal")
    lead = _lead(request, number, wish)
    room = request.max_tokens - lead.tokens
    if wish.stop_reason == "pause_turn":
        text = wish.text or ""
        body = _Content(_text_blocks(text), estimate(text), "pause_turn")
    elif wish.text is not None:
        body = _Content(_text_blocks(wish.text), estimate(wish.text), "end_turn")
    elif room <= 0:
        body = _Content([], room, "max_tokens")
    else:
        body = _body(request, draw, words, number, room)
    if wish.stop_reason in {"max_tokens", "model_context_window_exceeded"}:
        body = _broken_off(body, wish, room)
    return replace(
        body, blocks=lead.blocks + body.blocks, tokens=lead.tokens + body.tokens, lead=lead
    )


def _lead(request: Request, number: int, wish: Wish) -> _Lead:
    blocks: list[Block] = []
    tokens = prompt_tokens = searches = 0
    thinking_tokens = None
    thought = lead_blocks.thinking(request, Draw(number >> 5), number)
    if thought is not None:
        block, thinking_tokens = thought
        blocks.append(block)
        tokens += thinking_tokens
    # A turn that is resumed has its searches behind it.
    resumed = bool(request.messages) and request.messages[-1].role == "assistant"
    if wish.stop_reason == "pause_turn" or (lead_blocks.searches_web(request) and not resumed):
        found, search_tokens, prompt_tokens = lead_blocks.search(request, number)
        blocks += found
        tokens += search_tokens
        searches = 1
    return _Lead(blocks, tokens, thinking_tokens, searches, prompt_tokens)


def _body(request: Request, draw: Draw, words: int, number: int, room: int) -> _Content:
    choice = request.tool_choice
    if choice is not None and choice.type in {"any", "tool"}:
        return _tool_use(request, draw, number, room)
    config = request.output_config
    if config is not None and config.format is not None:
        text = _structured(config.format.type, config.format.schema, draw)
    else:
        users = (turn.content for turn in reversed(request.messages) if turn.role == "user")
        text = compose(text_of(next(users, "")), text_of(request.system), draw, words)
    return _cut(text, request, room)


def _broken_off(body: _Content, wish: Wish, room: int) -> _Content:
    """Return `body` as if there had been no room for more.

    The text ends half way, and with `max_tokens` all of them count as used up: writing as much text
    as that would take megabytes.
    """
    assert wish.stop_reason is not None, "asked by the caller"
    last = body.blocks[-1] if body.blocks else {}
    text = last.get("text", "")
    if wish.text is None and body.stop_reason != "max_tokens":
        text = text[: max(1, len(text) // 2)].rstrip()
    tokens = room if wish.stop_reason == "max_tokens" else estimate(text)
    return _Content(_text_blocks(text), tokens, wish.stop_reason)


def _structured(kind: str, schema: object, draw: Draw) -> str:
    path = "output_config.format"
    if kind != "json_schema":
        raise InvalidRequest(f"{path}.type: Input should be 'json_schema'")
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{path}.schema: Input should be a valid dictionary")
    return wire.encode(_sampled(schema, draw, f"{path}.schema")).decode()


def _tool_use(request: Request, draw: Draw, number: int, room: int) -> _Content:
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
    if tokens > room:
        return _Content([], room, "max_tokens")
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


def _cut(text: str, request: Request, room: int) -> _Content:
    """End the text where a stop sequence or `max_tokens` ends it, whichever comes first.

    Args:
        text: the whole.
        request: for its stop sequences.
        room: what is left of `max_tokens`, at least 1.
    """
    tokens = estimate(text)
    cut = tokens > room
    kept = fit(text, room) if cut else text
    stops = [(at, stop) for stop in request.stop_sequences or () if (at := kept.find(stop)) >= 0]
    if stops:
        at, stop = min(stops)
        kept = kept[:at]
        return _Content(_text_blocks(kept), estimate(kept), "stop_sequence", stop)
    if cut:
        return _Content(_text_blocks(kept), room, "max_tokens")
    return _Content(_text_blocks(kept), tokens, "end_turn")


def _text_blocks(text: str) -> list[Block]:
    return [{"type": "text", "text": text}] if text else []


def _usage(whole: int, use: Use, content: _Content, wish: Wish) -> dict[str, Any]:
    written = use.write_5m + use.write_1h
    lead = content.lead
    fresh = whole - use.read - written + (0 if lead is None else lead.prompt_tokens)
    output = content.tokens if wish.output_tokens is None else wish.output_tokens
    usage: dict[str, Any] = {
        "input_tokens": fresh if wish.input_tokens is None else wish.input_tokens,
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
    if lead is not None and lead.thinking_tokens is not None:
        usage["output_tokens_details"] = {"thinking_tokens": min(lead.thinking_tokens, output)}
    if lead is not None and lead.searches:
        usage["server_tool_use"] = {"web_search_requests": lead.searches, "web_fetch_requests": 0}
    return usage
