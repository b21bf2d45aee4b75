"""What the requests of a plan would cost: three prices from sizes, weights and a view of output.

Pure. Nothing here is what was paid: that comes from `usage` alone (`receipt`).
"""

from __future__ import annotations

from array import array
from collections import Counter
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard import models, price
from batchyard.client.planning import estimate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from batchyard.client.planning.caching import Ttl

OUTPUT_TOKENS_GUESS = 2_000
GUESSED = "a guess"
# Of the tokens that could be read from the cache, in percent. Requests of a batch run at the same
# time and in any order. Source: the provider's batch page, "30 % to 98 %".
HITS_LOW_PRICE, HITS_LIKELY, HITS_CEILING = 98, 60, 0


@dataclass(frozen=True, slots=True)
class Price:
    """Three prices in micro-dollars.

    `low` and `likely` take a view of the output; `ceiling` takes as much of it as is allowed, the
    input with its spread, and no hit of the cache. It bounds the cost of the output; an input that
    was estimated far too low can exceed it.
    """

    low: int
    likely: int
    ceiling: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a run: the input is an estimate, `output_ceiling` is a bound.

    `spread_percent` is half the interval around `input`; `sampled` is how many requests were
    counted by the server for it; `output_source` is where the likely output comes from.
    """

    input: int
    output_low: int
    output_likely: int
    output_ceiling: int
    spread_percent: float = estimate.SPREAD_PERCENT
    sampled: int = 0
    output_source: str = GUESSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What is known beyond the characters of the requests.

    `weights` hold for `model`; `output_tokens` are those of one answer, low and likely, None for a
    guess. `cached_tokens` is the length of the part that every request shares and `ttl` how long it
    is kept, None when nothing is cached. `is_us` for inference in the United States, which costs
    more. `searches` is how many web searches a request may make, as far as its tools say.
    """

    model: str
    weights: estimate.Weights
    spread_percent: float = estimate.SPREAD_PERCENT
    sampled: int = 0
    output_tokens: tuple[float, float] | None = None
    output_source: str = GUESSED
    cached_tokens: int = 0
    ttl: Ttl | None = None
    is_us: bool = False
    searches: int = 0


class Measures:
    """What prices rest on: the characters of each request, its model and its output limit.

    Of requests that the server counted one by one, also their tokens, which are taken as they are.
    """

    def __init__(self) -> None:
        self.sizes = estimate.Sizes()
        self._kinds: dict[tuple[str, int], int] = {}
        self._kind = array("I")
        self.counted: Mapping[int, int] = {}

    def append(self, counts: Iterable[int], model: str, max_tokens: int) -> None:
        """Add those of one more request."""
        self.sizes.append(counts)
        self._kind.append(self._kinds.setdefault((model, max_tokens), len(self._kinds)))

    def __len__(self) -> int:
        return len(self._kind)

    def __iter__(self) -> Iterator[tuple[estimate.Counts, str, int]]:
        kinds = list(self._kinds)
        for counts, kind in zip(self.sizes, self._kind, strict=True):
            yield (counts, *kinds[kind])

    @property
    def models(self) -> list[str]:
        """Return the models of the requests, each once."""
        return list(dict.fromkeys(model for model, _ in self._kinds))

    def chosen(self, indexes: Iterable[int], model: str | None = None) -> Measures:
        """Return those of some requests, in this order; with a model as if it were theirs."""
        some, kinds = Measures(), list(self._kinds)
        counted: dict[int, int] = {}
        for index in indexes:
            own, max_tokens = kinds[self._kind[index]]
            # Another model may have another tokenizer.
            if index in self.counted and model in {None, own}:
                counted[len(some)] = self.counted[index]
            some.append(self.sizes[index], model or own, max_tokens)
        return some.with_counted(counted)

    def with_counted(self, counted: Mapping[int, int]) -> Measures:
        """Return the same, with the true input tokens of some requests by their index."""
        known = copy(self)
        known.counted = counted
        return known

    def groups(self, basis: Basis) -> Counter[tuple[str, int, int]]:
        """Count the requests by model, output limit and input tokens."""
        weights = {
            model: estimate.rescaled(basis.weights, basis.model, model) for model, _ in self._kinds
        }
        known = self.counted
        return Counter(
            (model, limit, known.get(index) or weights[model].tokens(counts))
            for index, (counts, model, limit) in enumerate(self)
        )


def tokens(groups: Mapping[tuple[str, int, int], int], basis: Basis) -> Tokens:
    """Return the tokens of all requests together."""
    low = likely = ceiling = 0.0
    for (_, limit, _), count in groups.items():
        few, some = _outputs(limit, basis)
        low += few * count
        likely += some * count
        ceiling += limit * count
    return Tokens(
        input=sum(size * count for (_, _, size), count in groups.items()),
        output_low=round(low),
        output_likely=round(likely),
        output_ceiling=int(ceiling),
        spread_percent=basis.spread_percent,
        sampled=basis.sampled,
        output_source=basis.output_source,
    )


def cost(
    groups: Mapping[tuple[str, int, int], int], basis: Basis, tier: price.Tier
) -> Price | None:
    """Price each request by itself, because a long prompt may have a price of its own.

    None when the price of a model is not known. What tools of the server bring is in no price; the
    fees of the searches that are allowed are in the ceiling.
    """
    spread = basis.spread_percent
    low = likely = ceiling = 0
    fees = basis.searches * models.table().web_search_micros
    for (model, limit, size), count in groups.items():
        few, some = _outputs(limit, basis)
        micros = (
            _one(model, size, 100 - spread, few, HITS_LOW_PRICE, basis, tier),
            _one(model, size, 100, some, HITS_LIKELY, basis, tier),
            _one(model, size, 100 + spread, limit, HITS_CEILING, basis, tier),
        )
        if micros[0] is None or micros[1] is None or micros[2] is None:
            return None
        low += micros[0] * count
        likely += micros[1] * count
        ceiling += (micros[2] + fees) * count
    return Price(low, likely, ceiling)


def _one(
    model: str,
    size: int,
    percent: float,
    output: float,
    hits_percent: int,
    basis: Basis,
    tier: price.Tier,
) -> int | None:
    """Return the price of one request in micro-dollars."""
    total = max(1, round(size * percent / 100))
    cached = 0
    if basis.ttl is not None and model == basis.model:
        cached = min(total, round(basis.cached_tokens * percent / 100))
    read = cached * hits_percent // 100
    written = cached - read
    usage = price.Usage(
        input_tokens=total - cached,
        output_tokens=round(output),
        cache_write_5m_tokens=written if basis.ttl == "5m" else 0,
        cache_write_1h_tokens=written if basis.ttl == "1h" else 0,
        cache_read_tokens=read,
        us=basis.is_us,
    )
    return price.cost_micros(model, usage, tier)


def _outputs(limit: int, basis: Basis) -> tuple[float, float]:
    """Return the output tokens of one request: few, and likely."""
    if basis.output_tokens is not None:
        low, likely = basis.output_tokens
        return min(limit, low), min(limit, likely)
    guess = min(limit, OUTPUT_TOKENS_GUESS)
    return (guess + 1) // 2, guess
