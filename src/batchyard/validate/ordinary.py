"""Know an ordinary request at once: a model, text, perhaps a system prompt and cache breakpoints.

Knows less than the rules and is stricter: what it calls fine, they would too. What it does not know
it passes on to them, any other key included.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Raw, UnsetType

from batchyard import limits, models
from batchyard.validate.caching import BREAKPOINTS_MAX, longer_first
from batchyard.validate.version import removes_sampling


class Ordinary(NamedTuple):
    """What is known of an ordinary request."""

    max_tokens: int
    has_blocks: bool
    """Whether it has blocks, which alone can carry cache breakpoints."""


class _Cache(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"


class _Text(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    type: Literal["text"]
    text: Raw
    cache_control: _Cache | None = None


class _Turn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["user", "assistant"]
    content: Raw


# Texts stay raw: to make strings of them took longer than all the rest, and nobody reads them here.
class _Request(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=limits.MODEL_CHARS_MAX)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    messages: Annotated[list[_Turn], msgspec.Meta(min_length=1, max_length=limits.MESSAGES_MAX)]
    system: Raw = Raw(b"null")
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | UnsetType = UNSET
    stream: bool = False


class _Named(msgspec.Struct, gc=False):
    model: str


_request = msgspec.json.Decoder(_Request)
_texts = msgspec.json.Decoder(list[_Text])
_named = msgspec.json.Decoder(_Named)
_QUOTE, _BRACKET, _N = b'"[n'
_EMPTY_CHARS = len('""')


def is_fine(params: bytes | memoryview, version: str) -> bool:
    """Whether nothing is wrong with the request; False when that is not known."""
    try:
        str(params, "utf-8")
    except UnicodeDecodeError:
        return False
    return read(params, version) is not None


def read(params: bytes | memoryview, version: str) -> Ordinary | None:
    """Return what is known of a request with which nothing is wrong; None when that is not known.

    Args:
        params: UTF-8; of an accepted request they are.
        version: `anthropic-version` of the create call.
    """
    try:
        fields = _request.decode(params)
        model = models.find(fields.model)
        if model is not None and fields.max_tokens > model.max_output:
            return None
        if fields.temperature is not UNSET and (
            removes_sampling(version) or (model is not None and not model.sampling)
        ):
            return None
        if fields.stream or fields.messages[-1].role != "user":
            return None
        blocks = _blocks(fields)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if blocks and not (all(_is_text(block.text) for block in blocks) and _marks_are_fine(blocks)):
        return None
    return None if blocks is None else Ordinary(fields.max_tokens, bool(blocks))


def _blocks(fields: _Request) -> list[_Text] | None:
    """Return all blocks; None when a text is empty or is no text.

    Raises:
        DecodeError: they are not blocks of text.
    """
    system = memoryview(fields.system)
    blocks = _texts.decode(system) if system[0] == _BRACKET else []
    if not (blocks or system[0] in (_QUOTE, _N, _BRACKET)):
        return None
    for turn in fields.messages:
        content = memoryview(turn.content)
        if content[0] == _BRACKET:
            found = _texts.decode(content)
            if not found:
                return None
            blocks = blocks + found if blocks else found
        elif content[0] != _QUOTE or len(content) == _EMPTY_CHARS:
            return None
    return blocks


def _is_text(raw: Raw) -> bool:
    text = memoryview(raw)
    return text[0] == _QUOTE and len(text) > _EMPTY_CHARS


def _marks_are_fine(blocks: list[_Text]) -> bool:
    found = [block.cache_control.ttl for block in blocks if block.cache_control is not None]
    return len(found) < 2 or (len(found) <= BREAKPOINTS_MAX and longer_first(found))


def model_of(params: bytes | memoryview) -> str:
    """Return the model that valid `params` name."""
    return _named.decode(params).model
