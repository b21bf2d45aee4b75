"""What all requests of a run begin with, and a cache breakpoint at the end of it.

The order of a prompt is tools, system, messages; only a beginning can be cached. In a batch whose
last block differs, the automatic marker writes with every request and is never read: the breakpoint
has to stand at the end of what is shared. Source: the provider's pages on prompt caching and
batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from batchyard import wire
from batchyard.client.planning import estimate

if TYPE_CHECKING:
    from collections.abc import Mapping

Ttl = Literal["5m", "1h"]
Mode = Literal["off", "auto", "5m", "1h"]
Where = Literal["tools", "system", "prompt"]
MODES: tuple[Mode, ...] = ("off", "auto", "5m", "1h")
# A batch takes longer than five minutes more often than not.
TTL_OF_A_BATCH: Ttl = "1h"
REQUESTS_MIN = 3  # that share a beginning before `auto` has it written to the cache
_LEAD_TOKENS_MIN = 100  # of the prompt, to be worth splitting it after a system prompt
# A change of these loses what is cached of the messages, but not tools and system.
_BEFORE_MESSAGES = ("tool_choice", "thinking", "output_config")


@dataclass(frozen=True, slots=True)
class Prefix:
    """A beginning that requests share: up to where, its texts, and its tokens, an estimate."""

    where: Where
    system: str
    lead: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """Where `cache_control` stands in every request that begins with the prefix."""

    prefix: Prefix
    ttl: Ttl


class Shared:
    """The longest beginning that requests have in common, seen one request at a time."""

    def __init__(self, model: str) -> None:
        """Begin without any.

        Args:
            model: of the run. Caches are by model, so requests for others are left out.
        """
        self.requests = 0
        self.has_own_marker = False
        self.has_same_system = True
        self._model = model
        self._tools: Any = None
        self._has_same_tools = True
        self._system = self._lead = ""
        self._settings: tuple[Any, ...] = ()

    def add(self, params: Mapping[str, Any]) -> None:
        """Take one more request into account."""
        if params["model"] != self._model:
            return
        tools, system = params.get("tools"), params.get("system") or ""
        content = params["messages"][0]["content"]
        lead = content if isinstance(content, str) else ""
        settings = tuple(params.get(name) for name in _BEFORE_MESSAGES)
        system = system if isinstance(system, str) else ""
        self.requests += 1
        if self.requests == 1:
            self._tools, self._system, self._lead = tools, system, lead
            self._settings = settings
            self.has_own_marker = _has_marker(params)
            return
        self._has_same_tools = self._has_same_tools and (
            tools is self._tools or tools == self._tools
        )
        self.has_same_system = self.has_same_system and system == self._system
        self._system = _common(self._system, system)
        self._lead = _common(self._lead, lead) if settings == self._settings else ""

    def prefix(self, weights: estimate.Weights, minimum: int | None) -> Prefix | None:
        """Return the beginning to cache, None when nothing is shared.

        Args:
            weights: of the model.
            minimum: tokens below which the model caches nothing, None when it is not known.
        """
        if not self._has_same_tools or not self.requests:
            return None

        def tokens(*texts: str) -> int:
            plain = estimate.Weights(weights.each)
            return sum(plain.tokens(estimate.count(text)) for text in texts if text)

        tools = wire.encode(self._tools).decode() if self._tools else ""
        system = self._system if self.has_same_system else _cut(self._system)
        system = system if system.strip() else ""
        lead = _cut(self._lead) if self.has_same_system else ""
        before = tokens(tools, system)
        is_short = minimum is not None and before < minimum
        if lead.strip() and (is_short or not before or tokens(lead) >= _LEAD_TOKENS_MIN):
            return Prefix("prompt", system, lead, tokens(tools, system, lead))
        if system:
            return Prefix("system", system, "", before)
        return Prefix("tools", "", "", before) if tools else None


def place(params: Mapping[str, Any], at: Breakpoint) -> dict[str, Any] | None:
    """Return `params` with the breakpoint, None for a request that does not begin like that."""
    marker = {"type": "ephemeral", "ttl": at.ttl}
    prefix, placed = at.prefix, dict(params)
    system = params.get("system") or ""
    if _has_marker(params) or not isinstance(system, str) or not system.startswith(prefix.system):
        return None
    match prefix.where:
        case "tools":
            tools = params.get("tools")
            if not tools:
                return None
            placed["tools"] = [*tools[:-1], {**tools[-1], "cache_control": marker}]
        case "system":
            placed["system"] = _split(system, prefix.system, marker)
        case "prompt":
            first, *rest = params["messages"]
            text = first["content"]
            if not isinstance(text, str) or not text.startswith(prefix.lead):
                return None
            turn = {**first, "content": _split(text, prefix.lead, marker)}
            placed["messages"] = [turn, *rest]
    return placed


def _has_marker(params: Mapping[str, Any]) -> bool:
    """Whether the parameters have breakpoints of their own, of which a request may have four."""
    others = {name: value for name, value in params.items() if name != "messages"}
    return b'"cache_control"' in wire.encode(others)


def _split(text: str, lead: str, marker: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a text as two blocks, the first of them marked; white space alone is no block."""
    rest = text[len(lead) :]
    if not rest.strip():
        return [{"type": "text", "text": text, "cache_control": marker}]
    return [
        {"type": "text", "text": lead, "cache_control": marker},
        {"type": "text", "text": rest},
    ]


def _common(one: str, other: str) -> str:
    """Return the longest beginning of both."""
    if other.startswith(one):
        return one
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return one[:low]


def _cut(text: str) -> str:
    """Return a shared beginning up to the last end of a line or word.

    Documents that begin alike share letters with each other, not only with the template; and a
    text that is cut within a word has other tokens.
    """
    for separator in ("\n", " "):
        end = text.rfind(separator) + 1
        if end > len(text) // 2:
            return text[:end]
    return text
