"""The messages of a request: roles, their order, tool calls and their results, prefill.

Source: the request schema of the Messages API, its errors page, and the pages on tool use and
mid-conversation system messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchyard import limits
from batchyard.errors import shown
from batchyard.validate import content, shapes
from batchyard.validate.problem import Refused
from batchyard.validate.version import forbids_assistant_documents

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batchyard.validate.context import Context

_ROLES = ("user", "assistant", "system")
# What an answer that was not paused may end with; anything else is a turn of a server tool, which
# goes on when the turn is sent back.
_OWN_WORDS = frozenset({"text", "thinking", "redacted_thinking", "tool_use"})
_CALLS = frozenset({"tool_use", "tool_result", "server_tool_use"})
# Server tools whose call and result always stand together once the turn has gone on.
_ANSWERED_AT_ONCE = ("web_fetch", "web_search")


@dataclass(slots=True)
class _Run:
    """Neighbouring messages of one role, which count as one turn."""

    role: str
    uses: dict[str, int] = field(default_factory=dict)
    """Id of each tool call and the message that it is in."""
    results: list[tuple[str, str]] = field(default_factory=list)
    """Id and path of each result."""


def shape(value: object) -> list[dict[str, Any]]:
    """Check what every Messages endpoint asks for, and return the messages."""
    messages = shapes.sequence(value, "messages", most=limits.MESSAGES_MAX)
    if not messages:
        shapes.refuse("messages", "at least one message is required")
    for index, each in enumerate(messages):
        path = f"messages.{index}"
        message = shapes.mapping(each, path)
        role = shapes.required(message, "role", path)
        shapes.choice(role, f"{path}.role", _ROLES)
        inside = shapes.text_or_list(shapes.required(message, "content", path), f"{path}.content")
        if isinstance(inside, list):
            for position, part in enumerate(inside):
                content.typed(part, f"{path}.content.{position}")
    return messages


def check(messages: Sequence[dict[str, Any]], context: Context) -> None:
    """Check messages of the right shape by the rules of the hosted API."""
    last = len(messages) - 1
    kinds: set[str] = set()
    for index, message in enumerate(messages):
        role, inside = message["role"], message["content"]
        if role == "system" and not context.model.system_turns:
            raise Refused("role 'system' is not supported on this model")
        if not inside and not (index == last and role == "assistant"):
            shapes.refuse(
                f"messages.{index}",
                "all messages must have non-empty content except for the optional final "
                "assistant message",
            )
        if isinstance(inside, list):
            allowed = _allowed(role, context)
            for position, block in enumerate(inside):
                path = f"messages.{index}.content.{position}"
                content.block(block, path, role, allowed, context)
                kinds.add(block["type"])
    if not context.lenient:
        _system_turns(messages)
    if not kinds.isdisjoint(_CALLS):
        _tool_calls(messages)
        _server_tools(messages)
    final = messages[-1]
    if final["role"] == "assistant" and not context.model.prefill and not _is_paused(final):
        raise Refused(
            "This model does not support assistant message prefill. The conversation must end "
            "with a user message."
        )


def _allowed(role: str, context: Context) -> frozenset[str]:
    if role == "system":
        return content.TEXT_ONLY
    if role == "assistant" and forbids_assistant_documents(context.version):
        return content.BLOCKS - {"document"}
    return content.BLOCKS


def _is_paused(message: dict[str, Any]) -> bool:
    """Whether an assistant message ends in the work of a server tool, as after `pause_turn`."""
    return any(block["type"] not in _OWN_WORDS for block in _blocks(message))


def _system_turns(messages: Sequence[dict[str, Any]]) -> None:
    for index, message in enumerate(messages):
        if message["role"] != "system":
            continue
        before = messages[index - 1] if index else None
        after = messages[index + 1] if index + 1 < len(messages) else None
        follows = before is not None and (
            before["role"] == "user" or (before["role"] == "assistant" and _is_paused(before))
        )
        if not follows or (after is not None and after["role"] != "assistant"):
            shapes.refuse(
                f"messages.{index}",
                "role 'system' must follow a user message, and be the last message or be followed "
                "by an assistant message",
            )


def _tool_calls(messages: Sequence[dict[str, Any]]) -> None:
    """Check that each client tool call has its result in the next turn, and the other way."""
    runs = _runs(messages)
    for number, run in enumerate(runs):
        answers = {use for use, _ in runs[number + 1].results} if number + 1 < len(runs) else set()
        missing = [use for use in run.uses if use not in answers]
        if missing:
            shapes.refuse(
                f"messages.{run.uses[missing[0]]}",
                "`tool_use` ids were found without `tool_result` blocks immediately after: "
                f"{', '.join(map(shown, missing))}. Each `tool_use` block must have a "
                "corresponding `tool_result` block in the next message.",
            )
        asked = runs[number - 1].uses if number else {}
        for use, path in run.results:
            if use not in asked:
                shapes.refuse(
                    path,
                    f"unexpected `tool_use_id` found in `tool_result` blocks: {shown(use)}. Each "
                    "`tool_result` block must have a corresponding `tool_use` block in the "
                    "previous message.",
                )


def _runs(messages: Sequence[dict[str, Any]]) -> list[_Run]:
    runs: list[_Run] = []
    for index, message in enumerate(messages):
        if message["role"] == "system":  # stands between turns, and is none
            continue
        if not runs or runs[-1].role != message["role"]:
            runs.append(_Run(message["role"]))
        for position, block in enumerate(_blocks(message)):
            if block["type"] == "tool_use":
                _only_in("assistant", message, index, "tool_use")
                runs[-1].uses[block["id"]] = index
            elif block["type"] == "tool_result":
                _only_in("user", message, index, "tool_result")
                path = f"messages.{index}.content.{position}"
                runs[-1].results.append((block["tool_use_id"], path))
    return runs


def _only_in(role: str, message: dict[str, Any], index: int, kind: str) -> None:
    if message["role"] != role:
        shapes.refuse(f"messages.{index}", f"`{kind}` blocks can only be in `{role}` messages")


def _server_tools(messages: Sequence[dict[str, Any]]) -> None:
    """Check that server tool calls were answered, but for those of a turn that is to go on."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    calls = [
        (block["name"], block["id"])
        for message in messages[: users[-1] if users else 0]
        for block in _blocks(message)
        if block["type"] == "server_tool_use" and block["name"] in _ANSWERED_AT_ONCE
    ]
    if not calls:
        return
    answered = {
        str(block.get("tool_use_id"))  # unchecked in blocks that are not known
        for message in messages
        for block in _blocks(message)
        if block["type"].endswith("_tool_result")
    }
    for name, use in calls:
        if use not in answered:
            raise Refused(
                f"`{name}` tool use with id `{shown(use)}` was found without a corresponding "
                f"`{name}_tool_result` block"
            )


def _blocks(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if isinstance(message["content"], list):
        yield from message["content"]
