"""What is known of a model by its name: caps, rules, caching, list prices, dates.

Reads `models.toml`, which is data with sources, once; `use` lays a file of the operator over it.
A model that is in neither is not an error: `find` returns None and the caller follows the generic
rules.
"""

from __future__ import annotations

import datetime
import tomllib
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec

from batchyard.errors import ConfigError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

EXTENDED_OUTPUT_BETA = "output-300k-2026-03-24"
EXTENDED_OUTPUT_TOKENS = 300_000

Lifecycle = Literal["active", "deprecated", "retired"]
Line = Literal["haiku", "sonnet", "opus", "fable", "mythos"]
Thinking = Literal["adaptive", "between_tools", "disabled", "enabled"]
Effort = Literal["low", "medium", "high", "xhigh", "max"]
Capability = Literal[
    "citations", "code_execution", "compaction", "context_management", "image_input", "pdf_input",
    "structured_outputs", "web_search",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rates:
    """Standard list prices in micro-dollars per million tokens (5_000_000 is $5 per million)."""

    input: int
    output: int
    write_5m: int
    write_1h: int
    read: int


@dataclass(frozen=True, slots=True)
class LongRates:
    """Other rates, which hold for all tokens of a request with a prompt over `over_tokens`."""

    over_tokens: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class Model:
    """One known model. A rule that is not known allows: the upstream has the last word."""

    id: str
    snapshot: str
    max_output: int
    extended: bool
    cache_min: int
    us_surcharge: bool
    rates: Rates | None
    """None when the price is not known, which is not the same as free."""
    long: LongRates | None
    display_name: str
    line: Line | None
    lifecycle: Lifecycle
    created: datetime.date | None
    deprecated: datetime.date | None
    retires: datetime.date | None
    max_input: int | None
    generic: bool
    """Only what every Messages endpoint refuses is refused here; and the output cap holds."""
    thinking: frozenset[Thinking]
    thinking_refused: frozenset[Thinking]
    effort: tuple[Effort, ...] | None
    """The levels that it takes; none when it has no such parameter, None when not known."""
    effort_without_thinking: tuple[Effort, ...] | None
    sampling: bool
    prefill: bool
    forced_tool: bool
    system_turns: bool
    tools_refused: frozenset[str]
    capabilities: frozenset[Capability]

    def output_cap(self, betas: tuple[str, ...]) -> int:
        """Return the largest `max_tokens` that a batch with these betas may ask for."""
        if self.extended and EXTENDED_OUTPUT_BETA in betas:
            return EXTENDED_OUTPUT_TOKENS
        return self.max_output


@dataclass(frozen=True, slots=True)
class Table:
    """All known models by id, with the date of the prices."""

    as_of: str
    models: dict[str, Model]
    batch_divisor: int
    us_numerator: int
    us_denominator: int
    web_search_micros: int
    block_types: frozenset[str] = field(default=frozenset())
    tool_types: frozenset[str] = field(default=frozenset())
    """Types of content blocks and of tools that are let through beside the ones of the code."""


_PRICES = ("input", "output", "write_5m", "write_1h", "read")
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class _Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All five or none of them."""

    input: str | None = None
    output: str | None = None
    write_5m: str | None = None
    write_1h: str | None = None
    read: str | None = None


class _Long(_Prices, frozen=True, forbid_unknown_fields=True, kw_only=True):
    over_tokens: _Count


class _Entry(_Prices, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[model]]`. What `models.toml` says of a field is its documentation."""

    ids: Annotated[list[_Name], msgspec.Meta(min_length=1)]
    max_output: _Count
    cache_min: Annotated[int, msgspec.Meta(ge=0)]
    snapshot: _Name | None = None
    extended: bool = False
    us: bool = False
    long: _Long | None = None
    name: str | None = None
    line: Line | None = None
    lifecycle: Lifecycle = "active"
    created: datetime.date | None = None
    deprecated: datetime.date | None = None
    retires: datetime.date | None = None
    max_input: _Count | None = None
    generic: bool = False
    thinking: frozenset[Thinking] = frozenset()
    thinking_refused: frozenset[Thinking] = frozenset()
    effort: tuple[Effort, ...] | None = None
    effort_without_thinking: tuple[Effort, ...] | None = None
    sampling: bool = True
    prefill: bool = True
    forced_tool: bool = True
    system_turns: bool = True
    tools_refused: frozenset[str] = frozenset()
    capabilities: frozenset[Capability] = frozenset()


class _Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    batch_divisor: _Count
    us_numerator: _Count
    us_denominator: _Count
    web_search_micros: Annotated[int, msgspec.Meta(ge=0)]
    block_types: frozenset[str] = frozenset()
    tool_types: frozenset[str] = frozenset()


_T = TypeVar("_T")


class _Used:
    """The file of the operator, laid over the packaged table; set once, at start."""

    table: Table | None = None


@cache
def packaged() -> Table:
    """Return the table of the package, read at the first call.

    Raises:
        ConfigError: it cannot be read.
    """
    file = resources.files("batchyard").joinpath("models.toml")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: the table of models cannot be read: {error.strerror}") from None
    return parse(text, "models.toml")


def table() -> Table:
    """Return the table in force."""
    return _Used.table or packaged()


def find(model_id: str) -> Model | None:
    """Return what is known of `model_id`, or None."""
    return table().models.get(model_id)


def use(path: Path | None) -> None:
    """Lay a table of the operator over the packaged one, for the whole process.

    Its `[[model]]` entries replace or add models by id; its `[rules]`, when there, replace the
    rules; its `as_of`, when there, the date. None takes an earlier file away.

    Raises:
        ConfigError: the file cannot be read or is wrong; the message has file, model and field.
    """
    if path is None:
        _Used.table = None
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{path}: the table of models cannot be read: {reason}") from None
    _Used.table = parse(text, str(path), over=packaged())


def parse(text: str, name: str = "table of models", *, over: Table | None = None) -> Table:
    """Read a table from TOML text.

    Args:
        text: the TOML.
        name: of the file, for messages.
        over: what holds for everything that the text leaves out; without it nothing may be.

    Raises:
        ConfigError: not TOML, or a field is missing, unknown or wrong.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not TOML: {error}") from None
    for key in data.keys() - {"as_of", "rules", "model"}:
        raise ConfigError(f"{name}: {shown(key)} is not a key; there are as_of, rules and model")
    models = _models(data.get("model", []), name)
    if over is None:
        rules = _rules(data.get("rules", {}), name)
        return replace(rules, as_of=_as_of(data, name), models=models)
    rules = _rules(data["rules"], name) if "rules" in data else over
    as_of = _as_of(data, name) if "as_of" in data else over.as_of
    return replace(rules, as_of=as_of, models=over.models | models)


def _as_of(data: Mapping[str, Any], name: str) -> str:
    found = data.get("as_of")
    if not isinstance(found, str | datetime.date) or not str(found):
        raise ConfigError(f'{name}: as_of is the date of the prices, as in as_of = "2026-11-09"')
    return str(found)


def _rules(data: object, name: str) -> Table:
    rules = _convert(data, _Rules, f"{name}: rules")
    return Table(
        as_of="",
        models={},
        batch_divisor=rules.batch_divisor,
        us_numerator=rules.us_numerator,
        us_denominator=rules.us_denominator,
        web_search_micros=rules.web_search_micros,
        block_types=rules.block_types,
        tool_types=rules.tool_types,
    )


def _models(entries: object, name: str) -> dict[str, Model]:
    if not isinstance(entries, list):
        raise ConfigError(f"{name}: a model is a table, [[model]]")
    models: dict[str, Model] = {}
    for number, data in enumerate(entries, 1):
        where = f"{name}: model {_title(data, number)}"
        entry = _convert(data, _Entry, where)
        for model_id in entry.ids:
            if model_id in models:
                raise ConfigError(f"{where}: ids: {shown(model_id)} stands twice in the table")
            models[model_id] = _model(model_id, entry, where)
    return models


def _title(data: object, number: int) -> str:
    """Return how messages call an entry: by its first id when it has one."""
    ids = data.get("ids") if isinstance(data, dict) else None
    return shown(ids[0]) if isinstance(ids, list) and ids else f"number {number}"


def _convert(data: object, kind: type[_T], where: str) -> _T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at `$")
        path = at.rstrip("`").lstrip(".")
        raise ConfigError(": ".join(filter(None, (where, path, what)))) from None


def _model(model_id: str, entry: _Entry, where: str) -> Model:
    if entry.long is not None and entry.input is None:
        raise ConfigError(f"{where}: long: there are no other prices")
    for each in sorted(entry.thinking & entry.thinking_refused):
        raise ConfigError(f"{where}: thinking_refused: {each} is in thinking too")
    return Model(
        id=model_id,
        snapshot=entry.snapshot or model_id,
        max_output=entry.max_output,
        extended=entry.extended,
        cache_min=entry.cache_min,
        us_surcharge=entry.us,
        rates=_rates(entry, where),
        long=_long(entry.long, where),
        display_name=entry.name or model_id,
        line=entry.line,
        lifecycle=entry.lifecycle,
        created=entry.created,
        deprecated=entry.deprecated,
        retires=entry.retires,
        max_input=entry.max_input,
        generic=entry.generic,
        thinking=entry.thinking,
        thinking_refused=entry.thinking_refused,
        effort=entry.effort,
        effort_without_thinking=entry.effort_without_thinking,
        sampling=entry.sampling,
        prefill=entry.prefill,
        forced_tool=entry.forced_tool,
        system_turns=entry.system_turns,
        tools_refused=entry.tools_refused,
        capabilities=entry.capabilities,
    )


def _long(entry: _Long | None, where: str) -> LongRates | None:
    if entry is None:
        return None
    rates = _rates(entry, f"{where}: long")
    if rates is None:
        raise ConfigError(f"{where}: long: input: the prices are missing")
    return LongRates(entry.over_tokens, rates)


def _rates(prices: _Prices, where: str) -> Rates | None:
    given = {name: getattr(prices, name) for name in _PRICES}
    if all(each is None for each in given.values()):
        return None
    for name, each in given.items():
        if each is None:
            raise ConfigError(f"{where}: {name}: the prices come all five together, or not at all")
    return Rates(**{name: _micros(each, f"{where}: {name}") for name, each in given.items()})


def _micros(dollars: str, where: str) -> int:
    try:
        micros = Decimal(dollars) * 1_000_000
        if micros == int(micros) and micros >= 0:
            return int(micros)
    except (InvalidOperation, ValueError, OverflowError):
        pass
    raise ConfigError(
        f"{where}: {shown(dollars)} is not a price in dollars, a whole number of millionths"
    )
