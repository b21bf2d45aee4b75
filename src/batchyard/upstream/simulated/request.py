"""Read one Messages request for the simulated model: check it, and cut it into counted pieces.

Knows the shape of requests and how many tokens each part is. Knows nothing of answers or caches.
What batches refuse and the Messages endpoint takes (`stream`, `max_tokens` 0) is taken here. Keys
that the hosted API does not know are refused here, and not by the yard.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

from batchyard import models, validate, wire
from batchyard.errors import InvalidRequest, NotFound
from batchyard.upstream.simulated.tokens import estimate, estimate_bytes

Block = dict[str, Any]
Section = Literal["tools", "system", "messages"]

# Tokens that no text accounts for; the order of magnitude of the hosted API.
_REQUEST_TOKENS = 4
_MESSAGE_TOKENS = 3
_TOOLS_TOKENS = 300  # instructions for tool use, once there are any tools
_IMAGE_TOKENS = 1_500  # an image of about a megapixel; the data is not decoded
_PDF_BYTES_PER_TOKEN = 40
_UNSEEN_TOKENS = 1_500  # a document behind a URL or a file id

# What the Messages endpoint takes and batches refuse.
_SYNC_ONLY = (
    "stream", "speed", "store", "previous_thread_event_id", "cache_hint", "context_hint",
    "research_preview_2026_02", "billing_policy",
)  # fmt: skip

# Betas that add no parameter. Of others that is not known.
_PLAIN_BETAS = frozenset({models.EXTENDED_OUTPUT_BETA})


class Turn(msgspec.Struct, gc=False):
    """One message."""

    role: str
    content: str | list[Block]


class ToolChoice(msgspec.Struct, gc=False):
    """Which tool the answer must use, if any."""

    type: str
    name: str | None = None


class Format(msgspec.Struct, gc=False):
    """The form that the answer must have."""

    type: str
    schema: Any = None


class OutputConfig(msgspec.Struct, gc=False):
    """Settings of the answer."""

    format: Format | None = None
    effort: str | None = None


class Request(msgspec.Struct, gc=False):
    """The parts of `params` that the simulated model acts on."""

    model: str
    messages: list[Turn]
    max_tokens: int = 1
    system: str | list[Block] | None = None
    tools: list[Block] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    stop_sequences: list[str] | None = None
    cache_control: Block | None = None
    thinking: Block | None = None
    speed: str | None = None
    stream: bool | None = None


class Piece(NamedTuple):
    """One block of the prompt, in the order in which caches see it."""

    section: Section
    path: str
    role: str
    block: Block | str
    tokens: int


_request = msgspec.json.Decoder(Request)


def read(params: bytes, *, version: str, betas: tuple[str, ...], counting: bool = False) -> Request:
    """Check `params` and return what the model acts on.

    Args:
        params: the JSON object as the client sent it.
        version: `anthropic-version` of the call.
        betas: `anthropic-beta` values of the call.
        counting: only tokens are asked for, so `max_tokens` may be missing.

    Raises:
        InvalidRequest: the first thing that is wrong, in the words of the hosted API.
        NotFound: no such model.
    """
    strict = _is_strict(params, betas)
    problem = validate.check(params, version=version, betas=betas, strict=strict)
    if problem is not None:
        relaxed = _as_batches_want_it(params, counting=counting)
        if relaxed:
            problem = validate.check(relaxed, version=version, betas=betas, strict=strict)
        if problem is not None:
            raise InvalidRequest(problem.message)
    try:
        request = _request.decode(params)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_explain(str(error))) from None
    _check_model(request.model)
    _check_tools(request)
    return request


def _is_strict(params: bytes, betas: tuple[str, ...]) -> bool:
    """Whether top-level keys that we do not know are refused.

    Other makers' models may take more than the hosted API does, and so may a beta.
    """
    if not _PLAIN_BETAS.issuperset(betas):
        return False
    try:
        model = models.find(validate.model_of(params))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # refused for its shape
    return model is not None and not model.generic


def _check_model(name: str) -> None:
    """Refuse what the hosted API does not have, or has no longer; other makers' models are fine."""
    model = models.find(name)
    is_gone = model.lifecycle == "retired" if model else name.startswith("claude-")
    if is_gone:
        raise NotFound(f"model: {name}")


def _as_batches_want_it(params: bytes, *, counting: bool) -> bytes | None:
    """Return `params` without what only batches refuse; None when there was no such thing."""
    try:
        fields = wire.decode(params)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    relaxed = {key: value for key, value in fields.items() if key not in _SYNC_ONLY}
    if type(fields.get("max_tokens")) is int and fields["max_tokens"] == 0:
        relaxed["max_tokens"] = 1
    if counting:  # a thinking budget may be as large as an answer can be
        model = models.find(str(fields.get("model")))
        relaxed["max_tokens"] = model.max_output if model else 1
    return None if relaxed == fields else wire.encode(relaxed)


def _check_tools(request: Request) -> None:
    """Check what the answer rests on and the generic rules leave to the upstream."""
    choice = request.tool_choice
    if choice is None or choice.type not in validate.FORCED_CHOICES:
        return
    if not request.tools:
        raise InvalidRequest(
            f"tool_choice: `{choice.type}` may only be specified while providing tools"
        )
    if choice.type == "tool" and all(tool.get("name") != choice.name for tool in request.tools):
        raise InvalidRequest(f"tool_choice: Tool '{choice.name}' not found in provided tools")


def _explain(text: str) -> str:
    """Turn a message of the decoder into `<path>: <text>`."""
    what, at, path = text.partition(" - at `$")
    if not at:
        return f"params: {what}"
    return f"{path.rstrip('`').lstrip('.').replace('[', '.').replace(']', '')}: {what}"


def pieces(request: Request) -> list[Piece]:
    """Return the blocks of the prompt in cache order: tools, system, messages.

    The sum of their tokens is the size of the prompt.
    """
    found: list[Piece] = []
    extra = _REQUEST_TOKENS
    if request.tools:
        extra += _TOOLS_TOKENS
        for index, tool in enumerate(request.tools):
            tokens = extra + estimate_bytes(wire.encode(tool))
            found.append(Piece("tools", f"tools.{index}", "", tool, tokens))
            extra = 0
    if request.system:
        _add(found, "system", "system", "", request.system, extra)
        extra = 0
    for index, turn in enumerate(request.messages):
        path = f"messages.{index}.content"
        _add(found, "messages", path, turn.role, turn.content, extra + _MESSAGE_TOKENS)
        extra = 0
    return found


def _add(
    found: list[Piece],
    section: Section,
    path: str,
    role: str,
    content: str | list[Block],
    extra: int,
) -> None:
    if isinstance(content, str):
        found.append(Piece(section, path, role, content, extra + estimate(content)))
        return
    for index, block in enumerate(content):
        tokens = extra + _block_tokens(block)
        found.append(Piece(section, f"{path}.{index}", role, block, tokens))
        extra = 0


def _block_tokens(block: Block) -> int:
    text = block.get("text")
    if isinstance(text, str):
        return estimate(text)
    kind = block.get("type")
    if kind == "image":
        return _IMAGE_TOKENS
    if kind == "document":
        return _document_tokens(block)
    content = block.get("content")
    if kind in {"tool_result", "search_result"} and isinstance(content, list):
        inner = (_block_tokens(part) for part in content if isinstance(part, dict))
        return _MESSAGE_TOKENS + sum(inner)
    return estimate_bytes(wire.encode(block))


def _document_tokens(block: Block) -> int:
    source = block.get("source")
    if not isinstance(source, dict):
        return _UNSEEN_TOKENS
    match source.get("type"), source.get("data", source.get("content")):
        case "base64", str(data):
            return max(_UNSEEN_TOKENS, len(data) * 3 // 4 // _PDF_BYTES_PER_TOKEN)
        case "text" | "content", str(data):
            return _MESSAGE_TOKENS + estimate(data)
        case "content", list(parts):
            return sum(_block_tokens(part) for part in parts if isinstance(part, dict))
        case _:
            return _UNSEEN_TOKENS


def text_of(content: str | list[Block] | None) -> str:
    """Return the text of a message or system prompt, plain-text documents included."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n\n".join(filter(None, map(_block_text, content)))


def _block_text(block: Block) -> str:
    text = block.get("text")
    if isinstance(text, str):
        return text
    source = block.get("source")
    if isinstance(source, dict) and source.get("type") == "text":
        data = source.get("data")
        return data if isinstance(data, str) else ""
    return ""
