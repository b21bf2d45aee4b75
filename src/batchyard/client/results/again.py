"""What is sent for a document whose answer is not good yet, or why nothing is. Pure.

The next try is derived from the bytes of the last one, so nothing has to be remembered: how often
a paused turn was continued, or an invalid answer asked again, stands in the request itself. Parts
that do not change keep their bytes: an assistant turn holds signatures that only the API can read.

Source: the API's pages on stop reasons, server tools and structured outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from batchyard import models, wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.client.results.collect import Outcome

T = TypeVar("T")

# How the user turn begins that asks for another answer; it is counted by this.
ASKING = "Your answer was not accepted: "
_ASKED = " Answer once more, with nothing but the corrected JSON."
_REASON_CHARS_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What bounds the further tries of a document.

    `turns_max` is how often a paused turn is continued, `asks_max` how often an answer is asked
    for again because it did not match the schema. `betas` are those of the batch: one of them
    raises the output cap of some models.
    """

    turns_max: int = 10
    asks_max: int = 2
    betas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Again:
    """The document is worth another request, with these `params`."""

    params: bytes


@dataclass(frozen=True, slots=True)
class Stop:
    """Another request would not help, or only after a person did something; `reason` says why."""

    reason: str


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None


class _Container(msgspec.Struct, gc=False):
    id: str


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw
    container: _Container | None = None


class _Turn(msgspec.Struct, gc=False):
    role: str
    content: msgspec.Raw


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raws = msgspec.json.Decoder(list[msgspec.Raw])
_message = msgspec.json.Decoder(_Message)
_turn = msgspec.json.Decoder(_Turn)
_blocks = msgspec.json.Decoder(list[_Block])

_STOPPED = {
    "succeeded": "it is answered",
    "needs_fix": "the request is not valid as it is; change the template or the options",
    "billing": "the account has to be paid first",
    "canceled": "it was canceled on request",
    "refused": "the model refused; the same request would be refused again",
    "empty": "the model had nothing to say",
}


def again(
    outcome: Outcome, params: bytes, message: bytes | None, settings: Settings | None = None
) -> Again | Stop:
    """Return the params of the next try of a document, or why there is none.

    Args:
        outcome: of the last try.
        params: of the last try, as they were sent: one JSON object.
        message: the answer of the last try as received, None when there was none.
        settings: the bounds.

    Raises:
        ValueError: `params` or `message` is not what it is said to be.
    """
    settings = settings or Settings()
    match outcome.class_:
        case "retryable" | "expired" | "missing":
            return Again(params)
        case "truncated":
            return _longer(outcome, _decoded(params), settings)
        case "paused":
            return _continued(_decoded(params), message, settings)
        case "invalid":
            return _asked(outcome, _decoded(params), message, settings)
        case _:
            return Stop(_STOPPED[outcome.class_])


def earlier_text(params: bytes) -> str:
    """Return what the model had said in the paused turns that a request continues.

    The answer to such a request holds only what is new; both together are the report.

    Raises:
        ValueError: `params` is not a request.
    """
    texts = []
    for turn in _paused_turns(_messages(_decoded(params))):
        texts += [block.text or "" for block in _content(turn.content) if block.type == "text"]
    return "".join(texts)


def _longer(outcome: Outcome, fields: dict[str, msgspec.Raw], settings: Settings) -> Again | Stop:
    """Allow twice the output, or what the model can at most."""
    if outcome.type == "model_context_window_exceeded":
        return Stop("the context window of the model is full; a larger max_tokens cannot help")
    limit = _value(fields, "max_tokens", int)
    model = models.find(_value(fields, "model", str))
    doubled = 2 * limit
    if model is not None:
        cap = model.output_cap(settings.betas)
        if limit >= cap:
            return Stop(f"at the model's cap of {cap:,} output tokens")
        doubled = min(doubled, cap)
    return _with(fields, max_tokens=doubled)


def _continued(
    fields: dict[str, msgspec.Raw], message: bytes | None, settings: Settings
) -> Again | Stop:
    """Append the assistant's content unchanged, so that the model goes on where it paused."""
    answer = _answer(message)
    messages = _messages(fields)
    turns = len(_paused_turns(messages))
    if turns >= settings.turns_max:
        return Stop(f"still paused after {turns} continuations")
    if not _content(answer.content):
        return Stop("the model paused without having begun; there is nothing to continue")
    more: dict[str, Any] = {"messages": [*messages, _assistant(answer)]}
    if answer.container is not None:
        more["container"] = _container(fields, answer.container.id)
    return _with(fields, **more)


def _container(fields: dict[str, msgspec.Raw], container_id: str) -> object:
    """Return the container in which the turn has worked so far, with the skills that it had."""
    asked = msgspec.json.decode(fields.get("container", b"null"))
    return {**asked, "id": container_id} if isinstance(asked, dict) else container_id


def _asked(
    outcome: Outcome, fields: dict[str, msgspec.Raw], message: bytes | None, settings: Settings
) -> Again | Stop:
    """Show the model its answer and what is wrong with it."""
    answer = _answer(message)
    messages = _messages(fields)
    asks = sum(1 for turn in map(_turn.decode, messages) if _is_asking(turn))
    if asks >= settings.asks_max:
        return Stop(f"still invalid after it was asked again {asks} times")
    blocks = _content(answer.content)
    if any(block.type == "tool_use" for block in blocks):
        return Stop("the answer calls a tool, and nobody here runs it")
    if any(block.type == "text" and not block.text for block in blocks) or not blocks:
        return Stop("the answer holds an empty text, which cannot be sent back")
    text = ASKING + (outcome.reason or "it does not match the schema")[:_REASON_CHARS_MAX]
    text += ("" if text.endswith(".") else ".") + _ASKED
    return _with(
        fields, messages=[*messages, _assistant(answer), {"role": "user", "content": text}]
    )


def _with(fields: dict[str, msgspec.Raw], **changed: object) -> Again:
    return Again(wire.encode({**fields, **changed}))


def _assistant(answer: _Message) -> dict[str, object]:
    return {"role": "assistant", "content": answer.content}


def _paused_turns(messages: Sequence[msgspec.Raw]) -> list[_Turn]:
    """Return the assistant turns at the end; a prefill of the template is text, not blocks."""
    turns: list[_Turn] = []
    for raw in reversed(messages):
        turn = _turn.decode(raw)
        if turn.role != "assistant" or not bytes(turn.content).startswith(b"["):
            break
        turns.insert(0, turn)
    return turns


def _is_asking(turn: _Turn) -> bool:
    return turn.role == "user" and bytes(turn.content).startswith(wire.encode(ASKING)[:-1])


def _content(raw: msgspec.Raw) -> list[_Block]:
    return _blocks.decode(raw) if bytes(raw).startswith(b"[") else []


def _answer(message: bytes | None) -> _Message:
    if message is None:
        raise ValueError("there is no answer to go on from")
    return _message.decode(message)


def _decoded(params: bytes) -> dict[str, msgspec.Raw]:
    return _fields.decode(params)


def _messages(fields: dict[str, msgspec.Raw]) -> list[msgspec.Raw]:
    if "messages" not in fields:
        raise ValueError("the request has no messages")
    return _raws.decode(fields["messages"])


def _value(fields: dict[str, msgspec.Raw], name: str, kind: type[T]) -> T:
    if name not in fields:
        raise ValueError(f"the request has no {name}")
    return msgspec.json.decode(fields[name], type=kind)
