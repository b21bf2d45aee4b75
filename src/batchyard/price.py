"""Money: what a message cost, from its `usage`, in integer micro-dollars.

`usage` is the only source for what was paid; estimates are the business of the caller. An unknown
model has an unknown cost (None), never zero.

Source: the provider's pricing page; formula and check values in `tests/unit/test_price.py`.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Literal

import msgspec

from batchyard import models

Tier = Literal["batch", "standard"]

_MILLION = 1_000_000


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one message."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0
    web_searches: int = 0
    us: bool = False

    @property
    def cache_write_tokens(self) -> int:
        """Return the tokens written to the cache, whatever their lifetime."""
        return self.cache_write_5m_tokens + self.cache_write_1h_tokens

    @property
    def prompt_tokens(self) -> int:
        """Return the tokens of the whole prompt, cached or not."""
        return self.input_tokens + self.cache_write_tokens + self.cache_read_tokens


class _Creation(msgspec.Struct, gc=False):
    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class _Tools(msgspec.Struct, gc=False):
    web_search_requests: int | None = None


class _Wire(msgspec.Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: _Creation | None = None
    server_tool_use: _Tools | None = None
    inference_geo: str | None = None


_wire = msgspec.json.Decoder(_Wire)


def read_usage(raw: bytes | msgspec.Raw) -> Usage:
    """Read the `usage` object of a message; absent or null parts count as 0.

    Raises:
        ValueError: not an object, or a count that is not a number.
    """
    try:
        usage = _wire.decode(raw)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    write_5m = write_1h = 0
    if usage.cache_creation is not None:
        write_5m = usage.cache_creation.ephemeral_5m_input_tokens or 0
        write_1h = usage.cache_creation.ephemeral_1h_input_tokens or 0
    if not write_5m and not write_1h:
        # Only the sum is given: 5 minutes is the default lifetime.
        write_5m = usage.cache_creation_input_tokens or 0
    tools = usage.server_tool_use
    return Usage(
        usage.input_tokens or 0,
        usage.output_tokens or 0,
        write_5m,
        write_1h,
        usage.cache_read_input_tokens or 0,
        (tools.web_search_requests or 0) if tools is not None else 0,
        usage.inference_geo == "us",
    )


def cost_micros(model_id: str, usage: Usage, tier: Tier) -> int | None:
    """Return the price of one message in micro-dollars; None when unknown.

    Rounded half to even: half the odd token counts of a batch end in half a micro-dollar, and
    rounding those up would let the sum over many messages drift.
    """
    model = models.find(model_id)
    if model is None or model.rates is None:
        return None
    table = models.table()
    rates = model.rates
    if model.long is not None and usage.prompt_tokens > model.long.over_tokens:
        rates = model.long.rates
    numerator = (
        usage.input_tokens * rates.input
        + usage.output_tokens * rates.output
        + usage.cache_write_5m_tokens * rates.write_5m
        + usage.cache_write_1h_tokens * rates.write_1h
        + usage.cache_read_tokens * rates.read
    )
    denominator = _MILLION
    if tier == "batch":
        denominator *= table.batch_divisor
    if usage.us and model.us_surcharge:
        numerator *= table.us_numerator
        denominator *= table.us_denominator
    tokens, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and tokens % 2 == 1):
        tokens += 1
    return tokens + usage.web_searches * table.web_search_micros


def dollars(micros: int) -> str:
    """Return `micros` for people: cents from a dollar up, finer below, so that little is not $0."""
    places = 2 if micros == 0 or abs(micros) >= _MILLION else 4 if abs(micros) >= 10_000 else 6
    value = Decimal(micros) / _MILLION
    text = f"{abs(value):,.{places}f}"
    return f"-${text}" if micros < 0 else f"${text}"


def version() -> str:
    """Return what names the prices in force: their date, and a digest of every price and rule."""
    table = models.table()
    prices = sorted(
        (name, model.rates, model.long, model.us_surcharge) for name, model in table.models.items()
    )
    rules = (
        table.batch_divisor, table.us_numerator, table.us_denominator, table.web_search_micros,
    )  # fmt: skip
    digest = hashlib.sha256(repr((prices, rules)).encode()).hexdigest()
    return f"{table.as_of}+{digest[:8]}"
