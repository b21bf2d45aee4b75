"""What is known of a model by its name: caps, caching, list prices.

Reads `models.toml`, which is data with sources, once. A model that is not in it is not an error:
`find` returns None and the caller follows the generic rules.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import Any

EXTENDED_OUTPUT_BETA = "output-300k-2026-03-24"
EXTENDED_OUTPUT_TOKENS = 300_000


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
    """One known model."""

    id: str
    snapshot: str
    max_output: int
    extended: bool
    cache_min: int
    us_surcharge: bool
    rates: Rates
    long: LongRates | None

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


@cache
def table() -> Table:
    """Return the packaged table."""
    text = resources.files("batchyard").joinpath("models.toml").read_text(encoding="utf-8")
    return parse(text)


def parse(text: str) -> Table:
    """Read a table from TOML text.

    Raises:
        KeyError, ValueError: a field is missing or not of its type.
    """
    data = tomllib.loads(text)
    rules = data["rules"]
    models: dict[str, Model] = {}
    for entry in data["model"]:
        for model_id in entry["ids"]:
            if model_id in models:
                raise ValueError(f"model {model_id} stands twice in the table")
            models[model_id] = _model(model_id, entry)
    return Table(
        as_of=data["as_of"],
        models=models,
        batch_divisor=rules["batch_divisor"],
        us_numerator=rules["us_numerator"],
        us_denominator=rules["us_denominator"],
        web_search_micros=rules["web_search_micros"],
    )


def find(model_id: str) -> Model | None:
    """Return what is known of `model_id`, or None."""
    return table().models.get(model_id)


def _model(model_id: str, entry: dict[str, Any]) -> Model:
    long = entry.get("long")
    return Model(
        id=model_id,
        snapshot=entry.get("snapshot", model_id),
        max_output=entry["max_output"],
        extended=entry.get("extended", False),
        cache_min=entry["cache_min"],
        us_surcharge=entry.get("us", False),
        rates=_rates(entry),
        long=LongRates(long["over_tokens"], _rates(long)) if long else None,
    )


def _rates(entry: dict[str, Any]) -> Rates:
    return Rates(
        input=_micros(entry["input"]),
        output=_micros(entry["output"]),
        write_5m=_micros(entry["write_5m"]),
        write_1h=_micros(entry["write_1h"]),
        read=_micros(entry["read"]),
    )


def _micros(dollars: str) -> int:
    micros = Decimal(dollars) * 1_000_000
    if micros != int(micros) or micros < 0:
        raise ValueError(f"price {dollars} is not a whole number of micro-dollars")
    return int(micros)
