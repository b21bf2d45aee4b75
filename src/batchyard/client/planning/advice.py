"""What prompt caching would do for a run, in words and money. Pure.

Requests of a batch run at the same time and in any order, so nobody can promise hits: the saving is
told for three shares of them. Below the minimum of a model a marker is silently ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchyard import models, price
from batchyard.client.planning import caching, estimate
from batchyard.client.planning.pricing import HITS_LIKELY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchyard.client.inputs.template import Outline
    from batchyard.client.planning.caching import Prefix, Shared, Ttl

LIKELY = HITS_LIKELY
HITS_PERCENT = (30, LIKELY, 98)  # what is typical of a batch, and its middle
_WORTH_MOVING = 1.3
_ENDS = {
    "tools": "after the tools",
    "system": "after the system prompt",
    "prompt": "after the part of the prompt that comes before the document",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What is known before anything is sent.

    `minimum` is None for a model that nothing is known of. `saved` maps a share of hits in percent
    to micro-dollars of a batch, negative where caching costs more; empty when the price is not
    known or nothing can be cached. `placed` is how long the prefix is kept, None without a
    breakpoint. `too_early` is what keeps more from being shared, and `possible` how many tokens
    could be.
    """

    prefix: Prefix | None
    minimum: int | None
    requests: int
    placed: Ttl | None = None
    has_own_marker: bool = False
    saved: Mapping[int, int] = field(default_factory=dict)
    too_early: Outline | None = None
    possible: int = 0

    @property
    def is_long_enough(self) -> bool:
        """Whether the model would cache the prefix."""
        return self.prefix is not None and self.prefix.tokens >= (self.minimum or 0)

    @property
    def is_sensible(self) -> bool:
        """Whether `auto` places a breakpoint."""
        return (
            self.is_long_enough
            and self.minimum is not None
            and self.requests >= caching.REQUESTS_MIN
            and not self.has_own_marker
        )


def advise(
    shared: Shared,
    requests: int,
    model: str,
    weights: estimate.Weights,
    outlines: Sequence[Outline] = (),
    placed: Ttl | None = None,
) -> Advice:
    """Return what caching could do.

    Args:
        shared: what the requests begin with.
        requests: how many of them there are.
        model: of the run.
        weights: of the model.
        outlines: of the templates, the system prompt first.
        placed: how long the prefix is kept, when there is a breakpoint.
    """
    known = models.find(model)
    minimum = None if known is None else known.cache_min
    prefix = shared.prefix(weights, minimum)
    is_cached = prefix is not None and prefix.tokens >= (minimum or 0)
    possible, too_early = _possible(prefix, weights, outlines)
    if possible < (minimum or 0):
        possible, too_early = 0, None
    saved: dict[int, int] = {}
    if prefix is not None and is_cached:
        ttl = placed or caching.TTL_OF_A_BATCH
        for hits in HITS_PERCENT:
            amount = _saved(prefix.tokens, requests, model, ttl, hits)
            if amount is not None:
                saved[hits] = amount
    return Advice(
        prefix=prefix,
        minimum=minimum,
        requests=requests,
        placed=placed,
        has_own_marker=shared.has_own_marker,
        saved=saved,
        too_early=too_early,
        possible=possible,
    )


def explain(advice: Advice) -> list[str]:
    """Return sentences for a person; none when there is nothing to say."""
    prefix = advice.prefix
    if advice.requests < 2:
        return []
    if advice.has_own_marker:
        text = "cache_control is among the parameters, and is sent as it is; where the last block "
        return [text + "differs, an automatic marker writes each time and is never read"]
    lines = []
    if prefix is None:
        lines.append("nothing is shared by all requests: no caching")
    else:
        lines.append(_first_line(advice, prefix))
        if advice.saved:
            lines.append(_money_line(advice))
    if advice.too_early is not None:
        early = advice.too_early
        lines.append(
            f"{early.where}: {{{{ {early.name} }}}} comes before text that is always the same; "
            f"moved to the end, {advice.possible:,} tokens would be shared"
        )
    return lines


def _first_line(advice: Advice, prefix: Prefix) -> str:
    noun = "token" if prefix.tokens == 1 else "tokens"
    text = f"{advice.requests:,} requests share {prefix.tokens:,} {noun}"
    if advice.placed is not None:
        text += f", kept for {advice.placed}, breakpoint {_ENDS[prefix.where]}"
        if not advice.is_long_enough:
            text += f"; below the minimum of {advice.minimum:,}, so likely ignored"
        return text
    if advice.minimum is None:
        return f"{text}; whether this model caches is not known"
    if not advice.is_long_enough:
        return f"{text}, below the minimum of {advice.minimum:,}: no caching"
    return f"{text}, minimum {advice.minimum:,}; --cache 1h keeps them, {_ENDS[prefix.where]}"


def _money_line(advice: Advice) -> str:
    parts = []
    for hits, micros in advice.saved.items():
        what = "save" if micros >= 0 else "cost"
        more = "" if micros >= 0 else " more"
        parts.append(f"{hits} % hits {what} {price.dollars(abs(micros))}{more}")
    line = " · ".join(parts)
    return line if advice.placed is None else f"{line}; the likely price has {LIKELY} %"


def _saved(
    prefix_tokens: int, requests: int, model: str, ttl: Ttl, hits_percent: int
) -> int | None:
    """Return micro-dollars saved in a batch, negative when it costs more."""
    known = models.find(model)
    if known is None or known.rates is None:
        return None
    rates = known.rates
    write = rates.write_1h if ttl == "1h" else rates.write_5m
    each = rates.input * 100 - hits_percent * rates.read - (100 - hits_percent) * write
    return each * prefix_tokens * requests // (100_000_000 * models.table().batch_divisor)


def _possible(
    prefix: Prefix | None, weights: estimate.Weights, outlines: Sequence[Outline]
) -> tuple[int, Outline | None]:
    """Return the tokens that could be shared, and the first thing that stands in the way."""
    plain = estimate.Weights(weights.each)
    have = prefix.tokens if prefix is not None else 0
    total = 0
    early: Outline | None = None
    for outline in outlines:
        constant = outline.before + outline.after
        total += plain.tokens(estimate.count(constant)) if constant else 0
        if outline.name and outline.after.strip() and early is None:
            early = outline
    if early is None or total < _WORTH_MOVING * have:
        return 0, None
    return total, early
