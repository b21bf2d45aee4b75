"""Check the `params` of one request: the part of the contract that is decided at run time.

The same code serves the worker, which turns a problem into an `errored` line without a call, and
the run, which shows it before anything is sent. A request that passes is forwarded byte for byte;
keys that we do not know are the upstream's business.

One typed decode answers "fine" for nearly every request in a few microseconds; only a request that
does not fit is looked at again, to say what is wrong in the words of the hosted API.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from batchyard import limits, models

# Source: api version 2026-10-21 removes the sampling parameters.
VERSION_WITHOUT_SAMPLING = "2026-10-21"
_SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request cannot run: the `error` of its `errored` line."""

    type: str
    message: str


class Block(msgspec.Struct, gc=False):
    """A content block; all but its type is the upstream's business."""

    type: str


class Message(msgspec.Struct, gc=False):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Params(msgspec.Struct, gc=False):
    """The parts of `params` that we check, everything else passed over."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=limits.MODEL_CHARS_MAX)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    messages: Annotated[list[Message], msgspec.Meta(min_length=1, max_length=limits.MESSAGES_MAX)]
    system: str | list[Block] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    speed: str | None = None
    temperature: float | None | msgspec.UnsetType = msgspec.UNSET
    top_p: float | None | msgspec.UnsetType = msgspec.UNSET
    top_k: int | None | msgspec.UnsetType = msgspec.UNSET
    store: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    previous_thread_event_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    cache_hint: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    context_hint: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    research_preview_2026_02: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_params = msgspec.json.Decoder(Params)

# Not supported in batches, whatever the value. Source: the batch processing guide.
_UNSUPPORTED = ("store", "previous_thread_event_id", "cache_hint", "context_hint")


def check(params: bytes | memoryview, *, version: str, betas: tuple[str, ...]) -> Problem | None:
    """Return what is wrong with `params`, or None.

    Args:
        params: the JSON object as the client sent it.
        version: `anthropic-version` of the create call.
        betas: `anthropic-beta` values of the create call.
    """
    try:
        fields = _params.decode(params)
    except msgspec.ValidationError as error:
        return _invalid(_explain(str(error)))
    except msgspec.DecodeError as error:
        return _invalid(f"The request body is not valid JSON: {error}")
    except (RecursionError, UnicodeDecodeError):
        return _invalid("The request body is not valid JSON: too deep, or not UTF-8")
    return (
        _batch_only(fields)
        or (_without_sampling(fields) if version >= VERSION_WITHOUT_SAMPLING else None)
        or _output_cap(fields, betas)
    )


def model_of(params: bytes) -> str:
    """Return the model that valid `params` name."""
    return _params.decode(params).model


def _batch_only(fields: Params) -> Problem | None:
    if fields.stream:
        return _unsupported("stream=True")
    if fields.speed not in {None, "standard"}:
        return _unsupported("speed")
    for name in _UNSUPPORTED:
        if getattr(fields, name) is not msgspec.UNSET:
            return _unsupported(name)
    preview = fields.research_preview_2026_02
    if isinstance(preview, msgspec.Raw) and bytes(preview) == b'"active"':
        return _unsupported("research_preview_2026_02")
    return None


def _without_sampling(fields: Params) -> Problem | None:
    for name in _SAMPLING:
        if getattr(fields, name) is not msgspec.UNSET:
            return _invalid(f"{name}: Extra inputs are not permitted")
    return None


def _output_cap(fields: Params, betas: tuple[str, ...]) -> Problem | None:
    model = models.find(fields.model)
    if model is None:
        return None
    cap = model.output_cap(betas)
    if fields.max_tokens <= cap:
        return None
    return _invalid(
        f"max_tokens: {fields.max_tokens} > {cap}, which is the maximum allowed number of output "
        f"tokens for {model.snapshot}"
    )


def _unsupported(name: str) -> Problem:
    return _invalid(f"`{name}` is not supported in the Message Batches API")


def _invalid(message: str) -> Problem:
    return Problem("invalid_request_error", message)


_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]+)`")
_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_TEXTS = (
    # msgspec's text, and the API's text for the same fault; the first that fits.
    (re.compile(r"Expected `int` >= (?P<n>\d+)"), "must be greater than or equal to {n}"),
    (re.compile(r"Expected `array` of length >= (?P<n>\d+)"), "at least {n} item is required"),
    (re.compile(r"Expected `array` of length <= (?P<n>\d+)"), "at most {n} items are allowed"),
    (re.compile(r"Expected `str` of length >= (?P<n>\d+)"),
     "String should have at least {n} character"),
    (re.compile(r"Expected `str` of length <= (?P<n>\d+)"),
     "String should have at most {n} characters"),
    (re.compile(r"Expected `int"), "Input should be a valid integer"),
    (re.compile(r"Expected `float"), "Input should be a valid number"),
    (re.compile(r"Expected `bool"), "Input should be a valid boolean"),
    (re.compile(r"Expected `str \| array"), "Input should be a valid string or list"),
    (re.compile(r"Expected `str"), "Input should be a valid string"),
    (re.compile(r"Expected `array"), "Input should be a valid list"),
    (re.compile(r"Expected `object"), "Input should be a valid dictionary"),
    (re.compile(r"Invalid enum value"), "Input should be 'user', 'assistant' or 'system'"),
)  # fmt: skip


def _explain(text: str) -> str:
    """Turn a message of the decoder into `<path>: <text>` as the hosted API writes it."""
    at = _AT.search(text)
    path = re.sub(r"\[(\d+)\]", r".\1", at["path"]).lstrip(".") if at else ""
    missing = _MISSING.match(text)
    if missing:
        return ".".join(filter(None, (path, missing["field"]))) + ": Field required"
    for pattern, words in _TEXTS:
        match = pattern.match(text)
        if match:
            return f"{path or 'params'}: {words.format(**match.groupdict())}"
    return f"{path or 'params'}: {text}"
