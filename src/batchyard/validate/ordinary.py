"""Know an ordinary request at once: a model, text, perhaps a system prompt and cache breakpoints.

Knows less than the rules and is stricter: what it calls fine, they would too. What it does not know
it passes on to them, any other key included.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from batchyard import limits, models
from batchyard.validate.caching import BREAKPOINTS_MAX, longer_first
from batchyard.validate.version import removes_sampling


class _Cache(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"


class _Text(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    type: Literal["text"]
    text: Annotated[str, msgspec.Meta(min_length=1)]
    cache_control: _Cache | None = None


_Content = (
    Annotated[str, msgspec.Meta(min_length=1)] | Annotated[list[_Text], msgspec.Meta(min_length=1)]
)


class _Turn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["user", "assistant"]
    content: _Content


class _Ordinary(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=limits.MODEL_CHARS_MAX)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    messages: Annotated[list[_Turn], msgspec.Meta(min_length=1, max_length=limits.MESSAGES_MAX)]
    system: str | list[_Text] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | UnsetType = UNSET
    stream: bool = False


class _Named(msgspec.Struct, gc=False):
    model: str


_ordinary = msgspec.json.Decoder(_Ordinary)
_named = msgspec.json.Decoder(_Named)


def is_fine(params: bytes | memoryview, version: str) -> bool:
    """Whether nothing is wrong with the request; False when that is not known."""
    try:
        fields = _ordinary.decode(params)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    model = models.find(fields.model)
    if model is not None and fields.max_tokens > model.max_output:
        return False
    if fields.temperature is not UNSET and (
        removes_sampling(version) or (model is not None and not model.sampling)
    ):
        return False
    if fields.stream or fields.messages[-1].role != "user":
        return False
    return _marks_are_fine(fields)


def _marks_are_fine(fields: _Ordinary) -> bool:
    blocks = fields.system if type(fields.system) is list else []
    for turn in fields.messages:
        if type(turn.content) is list:
            blocks = blocks + turn.content if blocks else turn.content
    if not blocks:
        return True
    found = [block.cache_control.ttl for block in blocks if block.cache_control is not None]
    return len(found) < 2 or (len(found) <= BREAKPOINTS_MAX and longer_first(found))


def model_of(params: bytes | memoryview) -> str:
    """Return the model that valid `params` name."""
    return _named.decode(params).model
