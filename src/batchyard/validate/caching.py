"""Cache breakpoints: their form, how many there may be, and in which order.

Source: the guide on prompt caching.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batchyard.validate import shapes
from batchyard.validate.problem import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

BREAKPOINTS_MAX = 4
LIFETIMES = ("5m", "1h")
_KEYS = frozenset({"type", "ttl"})
_UNCACHEABLE = ("thinking", "redacted_thinking")


class Breakpoint(NamedTuple):
    """One `cache_control`."""

    path: str
    """Of the block that has it; empty for the one at top level."""
    ttl: str


def read(control: object, block: str, tagged: str, *, lenient: bool) -> Breakpoint:
    """Check one `cache_control`.

    Args:
        control: its value, not null.
        block: path of the block that has it.
        tagged: that path with the type of the block, as messages about fields have it.
        lenient: whether keys that are not known may be those of a beta.
    """
    path = f"{tagged}.cache_control" if tagged else "cache_control"
    fields = shapes.mapping(control, path)
    shapes.choice(shapes.required(fields, "type", path), f"{path}.type", ("ephemeral",))
    if not lenient:
        shapes.no_extras(fields, f"{path}.ephemeral", _KEYS)
    ttl = fields.get("ttl")
    if ttl is None:
        return Breakpoint(block, "5m")
    return Breakpoint(block, shapes.choice(ttl, f"{path}.ephemeral.ttl", LIFETIMES))


def automatic(top: Breakpoint, found: list[Breakpoint], messages: Sequence[object]) -> None:
    """Add the breakpoint that a top-level `cache_control` puts on the last block.

    Args:
        top: the top-level one.
        found: those of the blocks, in the order of the prompt; the new one is added.
        messages: of the request, checked.
    """
    last = _last_block(messages)
    if last is None:
        return
    own = next((each for each in found if each.path == last), None)
    if own is None:
        found.append(Breakpoint(last, top.ttl))
    elif own.ttl != top.ttl:
        raise Refused(
            "cache_control: the last block already has a cache_control with a different ttl"
        )


def _last_block(messages: Sequence[object]) -> str | None:
    """Return the path of the last block that can have a breakpoint."""
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        content = message["content"] if isinstance(message, dict) else None
        if isinstance(content, list):
            for position in range(len(content) - 1, -1, -1):
                if content[position].get("type") not in _UNCACHEABLE:
                    return f"messages.{index}.content.{position}"
        elif content:
            return f"messages.{index}.content"
    return None


def together(found: Sequence[Breakpoint]) -> None:
    """Check the number and order of all breakpoints, given in the order of the prompt."""
    if len(found) > BREAKPOINTS_MAX:
        raise Refused(
            f"A maximum of {BREAKPOINTS_MAX} blocks with cache_control may be provided. "
            f"Found {len(found)}."
        )
    shorter = False
    for path, ttl in found:
        if shorter and ttl == "1h":
            raise Refused(
                f"{path}.cache_control.ttl: a ttl='1h' cache_control block must not come after a "
                "ttl='5m' cache_control block. Note that blocks are processed in the following "
                "order: `tools`, `system`, `messages`."
            )
        shorter = shorter or ttl == "5m"


def longer_first(ttls: Sequence[str]) -> bool:
    """Whether no longer lifetime comes after a shorter one."""
    return "1h" not in ttls or "5m" not in ttls[: len(ttls) - ttls[::-1].index("1h")]
