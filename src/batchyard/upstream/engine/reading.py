"""Read the params of a request for an engine: the conversation, and how to sample. Pure.

An engine takes text and gives text. What it cannot do is refused by name, never left out: an answer
that ignores half of what was asked is worse than none. What only tells of the request (`metadata`,
`cache_control`, `service_tier`) changes no answer and is passed over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from batchyard import wire
from batchyard.errors import InvalidRequest, shown
from batchyard.upstream.engine import Prompt, Role, Sampling, Turn

_INTEGER_MAX = 2**63 - 1  # what an engine is written in has no larger ones

_PARTS = "\n"
"""Between text blocks that stand side by side, and turns of one role, which are one turn."""

_ACTED_ON = frozenset(
    {
        "model", "messages", "max_tokens", "system", "temperature", "top_p", "top_k",
        "stop_sequences", "output_config", "thinking", "stream",
    }
)  # fmt: skip
_OF_NO_EFFECT = frozenset({"metadata", "cache_control", "service_tier", "user_profile_id"})
_EMPTY: tuple[object, ...] = (None, [], {})


class _Block(msgspec.Struct, gc=False):
    type: str
    text: str = ""


class _Turn(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Block]


class _Format(msgspec.Struct, gc=False):
    type: str
    schema: dict[str, Any] | None = None


class _Thinking(msgspec.Struct, gc=False):
    type: str


class _Params(msgspec.Struct, gc=False):
    model: str
    messages: list[_Turn]
    max_tokens: int | None = None
    system: str | list[_Block] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    output_config: dict[str, msgspec.Raw] | None = None
    thinking: _Thinking | None = None
    stream: bool | None = None


class Asked(NamedTuple):
    """A request, as an engine is asked it."""

    model: str
    prompt: Prompt
    sampling: Sampling
    streams: bool
    """Whether the client wants events; never in a batch."""


_params = msgspec.json.Decoder(_Params)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_format = msgspec.json.Decoder(_Format)


def read(params: bytes, *, counting: bool = False) -> Asked:
    """Return what an engine is asked.

    Args:
        params: the JSON object as the client sent it.
        counting: only tokens are asked for, so `max_tokens` may be missing.

    Raises:
        InvalidRequest: it is no request, or asks for what an in-process engine does not do.
    """
    try:
        return _read(params, counting=counting)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_explain(str(error))) from None
    # Parts are decoded late, or not at all: what is no UTF-8 or no number shows anywhere.
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"The request is not valid JSON: {error}") from None


def _read(params: bytes, *, counting: bool) -> Asked:
    """Do what `read` does; errors of the decoder get out as they are."""
    fields, asked = _fields.decode(params), _params.decode(params)
    for name in sorted(fields.keys() - _ACTED_ON - _OF_NO_EFFECT):
        if wire.decode(bytes(fields[name])) not in _EMPTY:
            raise _refusal(shown(name))
    if asked.thinking is not None and asked.thinking.type != "disabled":
        raise _refusal("thinking")
    if asked.max_tokens is None and not counting:
        raise InvalidRequest("max_tokens: Field required")
    if asked.max_tokens is not None and asked.max_tokens < 1:
        raise InvalidRequest("max_tokens: must be greater than or equal to 1")
    _check_size("max_tokens", asked.max_tokens)
    return Asked(asked.model, _prompt(asked), _sampling(asked), bool(asked.stream))


def _explain(text: str) -> str:
    """Turn a message of the decoder into `<path>: <text>`."""
    what, at, path = text.partition(" - at `$")
    if not at:
        return f"params: {what}"
    return f"{path.rstrip('`').lstrip('.').replace('[', '.').replace(']', '')}: {what}"


def _refusal(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{what}: not supported by an in-process engine, which takes text and gives text"
    )


def _prompt(asked: _Params) -> Prompt:
    turns: list[Turn] = []
    system = _text(asked.system, "system")
    if system:
        turns.append(Turn("system", system))
    if not asked.messages:
        raise InvalidRequest("messages: at least one message is required")
    for index, message in enumerate(asked.messages):
        role = _role(message.role, index)
        text = _text(message.content, f"messages.{index}.content")
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, turns[-1].text + _PARTS + text)
        else:
            turns.append(Turn(role, text))
    return Prompt(tuple(turns))


def _role(role: str, index: int) -> Role:
    match role:
        case "user" | "assistant":
            return role
        case "system":
            raise _refusal(f'messages.{index}.role: "system" among the messages')
        case _:
            raise InvalidRequest(f"messages.{index}.role: Input should be 'user' or 'assistant'")


def _text(content: str | list[_Block] | None, path: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for index, block in enumerate(content):
        if block.type != "text":
            raise _refusal(f"{path}.{index}: a block of type {shown(block.type)}")
    return _PARTS.join(block.text for block in content)


def _sampling(asked: _Params) -> Sampling:
    temperature = 1.0 if asked.temperature is None else asked.temperature
    if not 0.0 <= temperature <= 1.0:
        raise InvalidRequest("temperature: range: 0..1")
    if asked.top_p is not None and not 0.0 < asked.top_p <= 1.0:
        raise InvalidRequest("top_p: range: above 0, up to 1")
    if asked.top_k is not None and asked.top_k < 0:
        raise InvalidRequest("top_k: Input should be greater than or equal to 0")
    _check_size("top_k", asked.top_k)
    return Sampling(
        asked.max_tokens or 1,
        temperature,
        asked.top_p,
        asked.top_k or None,
        tuple(filter(None, asked.stop_sequences or ())),
        _schema(asked.output_config or {}),
    )


def _check_size(name: str, value: int | None) -> None:
    if value is not None and value > _INTEGER_MAX:
        raise InvalidRequest(f"{name}: Input should be less than or equal to {_INTEGER_MAX}")


def _schema(config: dict[str, msgspec.Raw]) -> dict[str, Any] | None:
    schema = None
    for name, value in config.items():
        if bytes(value) == b"null":
            continue
        if name != "format":
            raise _refusal(f"output_config.{shown(name)}")
        try:
            form = _format.decode(value)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"output_config.format: {error}") from None
        if form.type != "json_schema" or form.schema is None:
            raise InvalidRequest("output_config.format: a json_schema with its schema is allowed")
        schema = form.schema
    return schema
