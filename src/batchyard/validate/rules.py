"""Examine a request thoroughly: first what every endpoint asks, then what batches and models do.

Source: the request schema of the Messages API, the batch processing guide, the errors page and the
pages of the models. What a model takes is in the table of models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from batchyard import limits, models
from batchyard.validate import caching, content, options, shapes, tools, turns
from batchyard.validate.context import Context
from batchyard.validate.problem import Refused
from batchyard.validate.version import removes_sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SAMPLING = ("temperature", "top_p", "top_k")

# Not supported in batches, whatever the value. Source: the batch processing guide.
_UNSUPPORTED = ("store", "previous_thread_event_id", "cache_hint", "context_hint")

# Types that no endpoint reads otherwise; null counts as left out.
_TYPES: Mapping[str, Callable[[object, str], object]] = {
    "system": shapes.text_or_list,
    "stop_sequences": shapes.sequence,
    "stream": shapes.boolean,
    "temperature": shapes.number,
    "top_p": shapes.number,
    "top_k": shapes.integer,
    "metadata": shapes.mapping,
    "thinking": shapes.mapping,
    "tool_choice": shapes.mapping,
    "tools": shapes.sequence,
    "output_config": shapes.mapping,
}

# All top-level keys of the Messages API, for strict checks and for what people are told.
KNOWN = frozenset({*_TYPES, *_UNSUPPORTED}) | {
    "model", "max_tokens", "messages", "billing_policy", "cache_control", "compaction",
    "container", "context_management", "diagnostics", "fallback_credit_token", "fallbacks",
    "inference_geo", "mcp_servers", "research_preview_2026_02", "service_tier", "speed", "thread",
    "user_profile_id",
}  # fmt: skip


def apply(fields: object, *, version: str, betas: tuple[str, ...], strict: bool) -> None:
    """Check a decoded request.

    Raises:
        Refused: the first thing that is wrong.
    """
    request = shapes.mapping(fields, "params")
    name, max_tokens = _shape(request)
    _batch_only(request)
    if removes_sampling(version):
        for key in _SAMPLING:
            if key in request:
                shapes.refuse(key, "Extra inputs are not permitted")
    if strict:
        shapes.no_extras(request, "", KNOWN)
    model = models.find(name)
    if model is None:
        return
    cap = model.output_cap(betas)
    if max_tokens > cap:
        shapes.refuse(
            "max_tokens",
            f"{max_tokens} > {cap}, which is the maximum allowed number of output tokens for "
            f"{model.snapshot}",
        )
    if model.generic:
        return
    table = models.table()
    _hosted(request, Context(model, version, betas, table.block_types, table.tool_types))


def _shape(request: dict[str, Any]) -> tuple[str, int]:
    """Check what every Messages endpoint asks for; return model and `max_tokens`."""
    name = shapes.text(
        shapes.required(request, "model"), "model", least=1, most=limits.MODEL_CHARS_MAX
    )
    max_tokens = shapes.integer(shapes.required(request, "max_tokens"), "max_tokens")
    if max_tokens < 1:
        shapes.refuse("max_tokens", "must be greater than or equal to 1")
    turns.shape(shapes.required(request, "messages"))
    for key, value in request.items():
        if key in _TYPES and value is not None:
            _TYPES[key](value, key)
    system = request.get("system")
    if isinstance(system, list):
        for index, block in enumerate(system):
            content.typed(block, f"system.{index}")
    for index, text in enumerate(request.get("stop_sequences") or ()):
        shapes.text(text, f"stop_sequences.{index}")
    for index, tool in enumerate(request.get("tools") or ()):
        shapes.mapping(tool, f"tools.{index}")
    return name, max_tokens


def _batch_only(request: dict[str, Any]) -> None:
    if request.get("stream"):
        _unsupported("stream=True")
    speed = request.get("speed")
    if speed is not None and speed != "standard":
        _unsupported("speed")
    for name in _UNSUPPORTED:
        if name in request:
            _unsupported(name)
    if request.get("research_preview_2026_02") == "active":
        _unsupported("research_preview_2026_02")
    policy = request.get("billing_policy")
    if isinstance(policy, dict) and policy.get("bill_to") == "user_profile":
        _unsupported('billing_policy.bill_to="user_profile"')


def _unsupported(name: str) -> NoReturn:
    raise Refused(f"`{name}` is not supported in the Message Batches API")


def _hosted(request: dict[str, Any], context: Context) -> None:
    """Check by the rules of the hosted API, the parts of the prompt in the order of caches."""
    present = {key: value for key, value in request.items() if value is not None}
    for name in _SAMPLING:
        if name in present:
            options.sampling(name, present[name], context)
    for key, rule in options.RULES.items():
        if key in present:
            rule(present[key], context)
    options.thinking(present, context)
    found = present.get("tools", [])
    tools.check(found, context)
    if "tool_choice" in present:
        kind = tools.choose(present["tool_choice"], found, context)
        if kind in tools.FORCED and present.get("thinking", {}).get("type") == "enabled":
            raise Refused("Thinking may not be enabled when tool_choice forces tool use.")
    _prompt(present, context)


def _prompt(present: dict[str, Any], context: Context) -> None:
    system, messages = present.get("system"), present["messages"]
    if isinstance(system, list):
        for index, block in enumerate(system):
            path = f"system.{index}"
            if block["type"] != "text" and not context.lenient:
                shapes.refuse(f"{path}.type", "Input should be 'text'")
            content.block(block, path, "system", content.TEXT_ONLY, context)
    turns.check(messages, context)
    if "cache_control" in present:
        top = caching.read(present["cache_control"], "", "", lenient=context.lenient)
        caching.automatic(top, context.breakpoints, messages)
    caching.together(context.breakpoints)
    form = present.get("output_config", {}).get("format")
    if form is not None and any(
        content.asks_for_citations(message["content"]) for message in messages
    ):
        raise Refused("output_config.format: Citations cannot be used with an output format")
