"""What a plan looks like on the screen: what would be sent, to whom, and at what price."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batchyard import price
from batchyard.cli import render
from batchyard.client.inputs.documents import ROW_SUFFIXES
from batchyard.client.planning.advice import explain
from batchyard.client.planning.plan import closest_model
from batchyard.client.running.local import is_hosted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchyard.client.planning.compare import Row
    from batchyard.client.planning.plan import Plan, Price, Tokens
    from batchyard.client.running.journal import Config
    from batchyard.client.running.session import Standing
    from batchyard.model import Billing

_TWICE = "what would be paid twice, such as cut answers"
_BOUND = ("sent again", f"{_TWICE}: only within the ceiling")
_UNKNOWN = ("sent again", f"also {_TWICE}: no ceiling is known to keep; --retries 0 sends nothing")
_NAMED = 4
_PRICED = 5  # columns of the first table: name, three prices, tokens


def show(
    name: str,
    plan: Plan,
    config: Config,
    standing: Standing | None = None,
) -> None:
    """Print what would be sent and what it would cost.

    Args:
        name: of the run.
        plan: what would be sent.
        config: where to.
        standing: how this is to the run that is in the folder.
    """
    tokens, settings = plan.tokens, plan.settings
    shards = render.count(len(plan.shards), "shard")
    rows = [
        (f"plan {name}", f"{_documents(plan)}, {shards}, {_bytes(plan.size)}"),
        ("model", f"{settings.model}, at most {settings.max_tokens:,} output tokens each"),
        ("input tokens", f"{_tokens(tokens.input)} {_interval(tokens)}"),
        ("output tokens", _output_tokens(tokens)),
    ]
    if len(f"plan {name}") >= render.LABEL_CHARS:
        rows[0:1] = [("plan", name), ("documents", rows[0][1])]
    closest = closest_model(settings.model)
    if closest:
        rows.append(("warning", f"{settings.model} is not a known model; the closest is {closest}"))
    if plan.empty:
        named = ", ".join(plan.empty[:_NAMED]) + (", …" if len(plan.empty) > _NAMED else "")
        are = "it is" if len(plan.empty) == 1 else "they are"
        text = (
            f"{render.count(len(plan.empty), 'document')} without any text ({named}), sent as {are}"
        )
        rows.append(("empty", text))
    if plan.skipped:
        rows.append(("skipped", _skipped(plan.skipped)))
    rows += [("change", note) for note in (standing.notes if standing is not None else ())]
    if standing is not None and standing.kind != "new" and standing.changes.same:
        same = render.count(standing.changes.same, "document")
        more = "" if standing.kind == "more" else ": nothing would be sent"
        rows.append(("kept", f"{same} as before, not sent and not paid again{more}"))
    cache = explain(plan.advice)
    rows += [("cache" if number == 0 else "", line) for number, line in enumerate(cache)]
    rows += [("note", notice) for notice in plan.notices]
    render.table([*rows, *_price_rows(plan, config)])
    if config.local:
        render.table([("server", f"local, upstream {', '.join(config.upstreams)}")])
    else:
        render.table([("server", config.base_url or "")])


def comparison(
    rows: Sequence[Row], *, has_ceiling: bool = True, billing: Billing | None = None
) -> None:
    """Print what the same requests would be for several models, in two tables if too wide.

    Args:
        rows: one for each model.
        has_ceiling: whether what the requests can cost has a bound.
        billing: how the server of the plan charges, None when that is not known.
    """
    titles: tuple[str, ...] = (
        "model",
        "low",
        "likely",
        "ceiling",
        "input",
        "output cap",
        "cache from",
    )
    cells: list[tuple[str, ...]] = [titles]
    for row in rows:
        prices, cost = ("unknown",) * 3, row.batch if billing != "standard" else row.synchronous
        if cost is not None:
            each = (cost.low, cost.likely, cost.ceiling)
            prices = tuple(map(price.dollars, each))  # type: ignore[assignment] # three of three
            prices = prices if has_ceiling else (*prices[:2], "unknown")
        cap, minimum = (
            "unknown" if number is None else f"{number:,}"
            for number in (row.output_cap, row.cache_minimum)
        )
        cells.append((render.safe(row.model), *prices, _tokens(row.input_tokens), cap, minimum))
    if render.is_terminal() and _width(cells) > render.columns():
        _columns_of([line[:_PRICED] for line in cells])
        render.say()
        cells = [(line[0], *line[_PRICED:]) for line in cells]
    _columns_of(cells)
    for row in rows:
        if row.refused:
            render.say(f"{row.model} refuses {render.count(row.refused, 'request')}: {row.why}")


def _widths(cells: Sequence[tuple[str, ...]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*cells, strict=True)]


def _width(cells: Sequence[tuple[str, ...]]) -> int:
    widths = _widths(cells)
    return sum(widths) + 2 * (len(widths) - 1)


def _columns_of(cells: Sequence[tuple[str, ...]]) -> None:
    """Print a table whose first column is of names and the others of numbers."""
    widths = _widths(cells)
    for line in cells:
        name, *rest = zip(line, widths, strict=True)
        numbers = "  ".join(f"{cell:>{width}}" for cell, width in rest)
        render.say(f"{name[0]:<{name[1]}}  {numbers}".rstrip())


def _skipped(by_ending: Mapping[str, int]) -> str:
    named = ", ".join(f"{ending} {count:,}" for ending, count in list(by_ending.items())[:_NAMED])
    more = ", …" if len(by_ending) > _NAMED else ""
    total = render.count(sum(by_ending.values()), "file")
    how = " or name a file to take its rows" if ROW_SUFFIXES & by_ending.keys() else ""
    return f"{total} ({named}{more}): a folder gives its text files; use a glob for others{how}"


def _price_rows(plan: Plan, config: Config) -> list[tuple[str, str]]:
    batch, synchronous = plan.batch, plan.synchronous
    if batch is None or synchronous is None:
        unknown = [("price", f"unknown for {plan.settings.model}")]
        return unknown if plan.billing == "simulated" else [*unknown, _UNKNOWN]

    def three(cost: Price) -> str:
        ceiling = "ceiling unknown" if plan.unbounded else f"{price.dollars(cost.ceiling)} ceiling"
        return f"{price.dollars(cost.low)} low · {price.dollars(cost.likely)} likely · {ceiling}"

    bounds = _bounds(plan, synchronous if plan.billing == "standard" else batch)
    as_batch, as_calls = ("price, batch", three(batch)), ("synchronous", three(synchronous))
    match plan.billing:
        case "simulated":
            text = "nothing: the model is simulated, these are list prices"
            return [as_batch, as_calls, ("charged", text)]
        case "standard" if config.local:
            rows = [("price", three(synchronous))]
            if is_hosted(config.upstreams):
                rows.append(("as a batch", f"{three(batch)}: without --local, at the hosted API"))
            return [*rows, *bounds]
        case "standard":
            text = "this server says that it pays the synchronous price: no batch discount"
            return [("price", three(synchronous)), ("charged", text), *bounds]
        case "batch":
            return [as_batch, as_calls, *bounds]
        case None:
            doubt = "   if this server gives the half price"
            return [(as_batch[0], as_batch[1] + doubt), as_calls, *bounds]


def _bounds(plan: Plan, cost: Price) -> list[tuple[str, str]]:
    """Return how much is paid once more, and what the ceiling is without where it is none."""
    if not plan.unbounded:
        return [_BOUND]
    known, searches = price.dollars(cost.ceiling), plan.basis.searches
    fees = f", with the fee of {searches} searches each" if searches else ""
    are = "is" if len(plan.unbounded) == 1 else "are"
    what = f"{', '.join(plan.unbounded)} {are} not bounded; {known} without what the server brings"
    return [
        ("ceiling", f"unknown: {what}{fees}"),
        ("sent again", f"{_TWICE}: only while less than {known} is spent"),
    ]


def _interval(tokens: Tokens) -> str:
    spread = tokens.spread_percent
    if not tokens.sampled:
        return f"±{spread:.0f} % (estimate)"
    if spread == 0:
        return f"(all {tokens.sampled:,} counted)"
    return f"±{math.ceil(spread)} % (sampled {tokens.sampled:,})"


def _documents(plan: Plan) -> str:
    requests = len(plan.requests)
    text = render.count(plan.documents, "document")
    return text if requests == plan.documents else f"{text} in {render.count(requests, 'request')}"


def _output_tokens(tokens: Tokens) -> str:
    low, likely = _tokens(tokens.output_low), _tokens(tokens.output_likely)
    source, ceiling = tokens.output_source, _tokens(tokens.output_ceiling)
    return f"{low} low · {likely} likely ({source}) · {ceiling} ceiling"


def _tokens(number: int) -> str:
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, size in (("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number} bytes"
