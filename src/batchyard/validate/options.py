"""The settings of a request beside its prompt: sampling, thinking, effort, format and the rest.

Source: the request schema of the Messages API and its errors page; which model takes what is in the
table of models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchyard.validate import shapes
from batchyard.validate.problem import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchyard.validate.context import Context

USER_ID_CHARS_MAX = 512
MESSAGE_ID_CHARS_MAX = 256
SKILLS_MAX = 20
SKILL_CHARS_MAX = 64
THINKING_BUDGET_MIN = 1_024
# With it a budget spans all thinking of a turn with tools, and may be above `max_tokens`.
_INTERLEAVED = "interleaved-thinking"

_THINKING = ("enabled", "adaptive", "between_tools", "disabled")
_DISPLAYS = ("summarized", "omitted")
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_TOP_P_DEFAULT = 0.99  # and above


def sampling(name: str, value: float, context: Context) -> None:
    """Check `temperature`, `top_p` or `top_k`, a number, where the version has them."""
    if name == "top_k":
        if value < 0:
            shapes.refuse(name, "Input should be greater than or equal to 0")
    elif not 0 <= value <= 1:
        shapes.refuse(name, "range: 0..1")
    is_default = (name == "temperature" and value == 1) or (
        name == "top_p" and value >= _TOP_P_DEFAULT
    )
    if not context.model.sampling and not is_default:
        raise Refused(f"`{name}` is deprecated for this model.")


def thinking(present: Mapping[str, Any], context: Context) -> None:
    """Check `thinking` by itself, then with `max_tokens` and the effort."""
    if "thinking" not in present:
        return
    fields = present["thinking"]
    kind = shapes.required(fields, "type", "thinking")
    if isinstance(kind, str) and kind not in _THINKING and context.lenient:
        return
    kind = shapes.tag(kind, "thinking", _THINKING)
    model = context.model
    if kind in model.thinking_refused:
        raise Refused(_refused_thinking(kind, context))
    display = fields.get("display")
    if display is not None and kind in {"enabled", "adaptive"} and not context.lenient:
        shapes.choice(display, f"thinking.{kind}.display", _DISPLAYS)
    if kind == "enabled":
        _budget(fields, present["max_tokens"], context)
    effort = present.get("output_config", {}).get("effort")
    allowed = model.effort_without_thinking
    is_off = kind in {"disabled", "between_tools"}
    if is_off and effort is not None and allowed is not None and effort not in allowed:
        raise Refused(
            f"output_config.effort '{effort}' is not supported when thinking is disabled on this "
            f"model. Use effort '{allowed[-1]}' or below, or enable thinking."
        )


def _refused_thinking(kind: str, context: Context) -> str:
    takes = context.model.thinking
    if kind == "adaptive":
        return "adaptive thinking is not supported on this model"
    begins = f'"thinking.type.{kind}" is not supported for this model.'
    if kind == "disabled" and "between_tools" in takes:
        return f'{begins} Use "thinking.type.between_tools" to turn off thinking before the answer.'
    if "adaptive" in takes:
        return (
            f'{begins} Use "thinking.type.adaptive" and "output_config.effort" to control thinking '
            "behavior."
        )
    return begins


def _budget(fields: Mapping[str, Any], max_tokens: int, context: Context) -> None:
    path = "thinking.enabled.budget_tokens"
    budget = shapes.integer(shapes.required(fields, "budget_tokens", "thinking.enabled"), path)
    if budget < THINKING_BUDGET_MIN:
        shapes.refuse(path, f"Input should be greater than or equal to {THINKING_BUDGET_MIN}")
    if budget >= max_tokens and not any(beta.startswith(_INTERLEAVED) for beta in context.betas):
        raise Refused("`max_tokens` must be greater than `thinking.budget_tokens`.")


def _output_config(fields: dict[str, Any], context: Context) -> None:
    effort = fields.get("effort")
    if effort is not None:
        takes = context.model.effort
        if takes is not None and not takes:
            raise Refused("This model does not support the effort parameter.")
        shapes.choice(effort, "output_config.effort", _EFFORTS)
        if takes is not None and effort not in takes:
            raise Refused(
                f"This model does not support effort level '{effort}'. Supported levels: "
                f"{', '.join(takes)}."
            )
    form = fields.get("format")
    if form is not None:
        path = "output_config.format"
        form = shapes.mapping(form, path)
        shapes.choice(shapes.required(form, "type", path), f"{path}.type", ("json_schema",))
        shapes.mapping(shapes.required(form, "schema", path), f"{path}.schema")


def _metadata(fields: dict[str, Any], _: Context) -> None:
    user = fields.get("user_id")
    if user is not None:
        shapes.text(user, "metadata.user_id", most=USER_ID_CHARS_MAX)


def _service_tier(value: object, _: Context) -> None:
    shapes.choice(value, "service_tier", ("auto", "standard_only"))


def _inference_geo(value: object, _: Context) -> None:
    shapes.text(value, "inference_geo")


def _diagnostics(value: object, _: Context) -> None:
    previous = shapes.mapping(value, "diagnostics").get("previous_message_id")
    if previous is not None:
        shapes.text(previous, "diagnostics.previous_message_id", most=MESSAGE_ID_CHARS_MAX)


def _container(value: object, _: Context) -> None:
    if isinstance(value, str):
        return
    fields = shapes.mapping(value, "container")
    if fields.get("id") is not None:
        shapes.text(fields["id"], "container.id")
    path = "container.skills"
    for index, each in enumerate(
        shapes.sequence(fields.get("skills") or [], path, most=SKILLS_MAX)
    ):
        where = f"{path}.{index}"
        skill = shapes.mapping(each, where)
        kind = shapes.required(skill, "type", where)
        shapes.choice(kind, f"{where}.type", ("anthropic", "custom"))
        skill_id = shapes.required(skill, "skill_id", where)
        shapes.text(skill_id, f"{where}.skill_id", least=1, most=SKILL_CHARS_MAX)
        if skill.get("version") is not None:
            shapes.text(skill["version"], f"{where}.version", least=1, most=SKILL_CHARS_MAX)


def _stop_sequences(value: list[str], _: Context) -> None:
    if not all(text.strip() for text in value):
        shapes.refuse("stop_sequences", "each stop sequence must contain non-whitespace")


RULES: Mapping[str, Callable[[Any, Context], None]] = {
    "output_config": _output_config,
    "metadata": _metadata,
    "service_tier": _service_tier,
    "inference_geo": _inference_geo,
    "diagnostics": _diagnostics,
    "container": _container,
    "stop_sequences": _stop_sequences,
}
