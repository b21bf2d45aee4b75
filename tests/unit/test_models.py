"""The table of known models."""

from __future__ import annotations

from decimal import Decimal

import pytest

from batchyard import models

TABLE = models.table()

# api-contract 7.1: in, out, 5-minute write, 1-hour write, read, in dollars per million tokens.
PRICES = {
    "claude-fable-5-2": "8 40 10 16 0.20",
    "claude-mythos-5-2": "8 40 10 16 0.20",
    "claude-fable-5-1": "10 50 12.50 20 0.25",
    "claude-mythos-5-1": "10 50 12.50 20 0.25",
    "claude-fable-5": "10 50 12.50 20 1.00",
    "claude-mythos-5": "10 50 12.50 20 1.00",
    "claude-opus-5-5": "4 20 5 8 0.20",
    "claude-opus-5": "5 25 6.25 10 0.50",
    "claude-opus-4-8": "5 25 6.25 10 0.50",
    "claude-opus-4-7": "5 25 6.25 10 0.50",
    "claude-opus-4-6": "5 25 6.25 10 0.50",
    "claude-opus-4-5": "5 25 6.25 10 0.50",
    "claude-opus-4-1": "15 75 18.75 30 1.50",
    "claude-opus-4": "15 75 18.75 30 1.50",
    "claude-sonnet-5-5": "2 10 2.50 4 0.10",
    "claude-sonnet-5": "2 10 2.50 4 0.20",
    "claude-sonnet-4-6": "3 15 3.75 6 0.30",
    "claude-sonnet-4-5": "3 15 3.75 6 0.30",
    "claude-sonnet-4": "3 15 3.75 6 0.30",
    "claude-haiku-5-5": "0.10 0.50 0.125 0.20 0.01",
    "claude-haiku-4-5": "1 5 1.25 2 0.10",
    "claude-haiku-3-5": "0.80 4 1 1.60 0.08",
    "claude-haiku-3": "0.25 1.25 0.30 0.50 0.03",
}
LONG = "0.50 2.50 0.625 1.00 0.05"

MINIMAL = """
as_of = "2026-01-01"
[rules]
batch_divisor = 2
us_numerator = 11
us_denominator = 10
web_search_micros = 1
[[model]]
ids = ["a", "b"]
max_output = 10
cache_min = 1
input = "1"
output = "1"
write_5m = "1"
write_1h = "1"
read = "0.000001"
"""


def rates(text: str) -> models.Rates:
    return models.Rates(*(int(Decimal(part) * 1_000_000) for part in text.split()))


@pytest.mark.parametrize("model", sorted(PRICES))
def test_list_prices_are_those_of_the_pricing_page(model: str) -> None:
    assert TABLE.models[model].rates == rates(PRICES[model])


def test_only_haiku_5_5_has_prices_for_long_prompts() -> None:
    assert {m.id for m in TABLE.models.values() if m.long} == {"claude-haiku-5-5"}
    long = TABLE.models["claude-haiku-5-5"].long
    assert long == models.LongRates(100_000, rates(LONG))


def test_every_model_of_the_table_has_a_check_value() -> None:
    aliases = {m.snapshot for m in TABLE.models.values()} - set(PRICES)
    assert set(TABLE.models) == set(PRICES) | aliases


def test_an_alias_and_its_snapshot_are_priced_alike() -> None:
    for model in TABLE.models.values():
        snapshot = TABLE.models[model.snapshot]
        assert snapshot.rates == model.rates
        assert snapshot.snapshot == model.snapshot


def test_300k_output_needs_the_beta_and_a_model_that_has_it() -> None:
    opus = TABLE.models["claude-opus-5-5"]
    assert opus.output_cap(()) == 128_000
    assert opus.output_cap(("x", models.EXTENDED_OUTPUT_BETA)) == 300_000
    haiku = TABLE.models["claude-haiku-4-5"]
    assert haiku.output_cap((models.EXTENDED_OUTPUT_BETA,)) == 64_000


@pytest.mark.parametrize("model", ["", "claude", "claude-opus-5-5 ", "CLAUDE-OPUS-5-5", "gpt"])
def test_other_names_are_not_known(model: str) -> None:
    assert models.find(model) is None


def test_a_table_is_read() -> None:
    table = models.parse(MINIMAL)
    assert table.as_of == "2026-01-01"
    assert table.models["b"].rates.read == 1
    assert not table.models["b"].us_surcharge


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('["a", "b"]', '["a", "a"]', ValueError),
        ('"0.000001"', '"0.0000001"', ValueError),
        ('"0.000001"', '"-1"', ValueError),
        ("max_output = 10", "", KeyError),
        ("batch_divisor = 2", "", KeyError),
        ("[rules]", "[rules", ValueError),
    ],
)
def test_a_wrong_table_is_refused(old: str, new: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        models.parse(MINIMAL.replace(old, new))
