"""The table of known models."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, get_args

import pytest

from batchyard import models, price
from batchyard.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLE = models.packaged()

# The list prices: in, out, 5-minute write, 1-hour write, read, in dollars per million tokens.
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
    "claude-mythos-preview": "25 125 31.25 50 2.50",
    "claude-3-7-sonnet-20250219": "3 15 3.75 6 0.30",
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
    checked = {TABLE.models[model].snapshot for model in PRICES}
    assert {m.snapshot for m in TABLE.models.values()} == checked


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


# The names that the official client knows.
NAMED = [
    "claude-fable-5-2",
    "claude-mythos-5-2",
    "claude-haiku-5-5",
    "claude-sonnet-5-5",
    "claude-fable-5-1",
    "claude-opus-5-5",
    "claude-mythos-5-1",
    "claude-sonnet-5",
    "claude-fable-5",
    "claude-mythos-5",
    "claude-opus-5",
    "claude-opus-4-8",
    "claude-opus-4-7",
    "claude-mythos-preview",
    "claude-opus-4-6",
    "claude-sonnet-4-6",
    "claude-haiku-4-5",
    "claude-haiku-4-5-20251001",
    "claude-opus-4-5",
    "claude-opus-4-5-20251101",
    "claude-sonnet-4-5",
    "claude-sonnet-4-5-20250929",
]


def test_the_models_that_the_official_client_names_are_known() -> None:
    assert set(NAMED) <= set(TABLE.models)


# End of life, as the official client warns of it.
ENDS = {
    "claude-sonnet-4-5": datetime.date(2026, 11, 30),
    "claude-opus-4-20250514": datetime.date(2026, 6, 15),
    "claude-sonnet-4-0": datetime.date(2026, 6, 15),
    "claude-mythos-preview": datetime.date(2026, 6, 30),
    "claude-3-5-haiku-latest": datetime.date(2026, 2, 19),
    "claude-3-7-sonnet-20250219": datetime.date(2026, 2, 19),
}


@pytest.mark.parametrize("model", sorted(ENDS))
def test_the_end_of_life_is_known(model: str) -> None:
    found = TABLE.models[model]
    assert found.retires == ENDS[model]
    gone = ENDS[model].isoformat() <= TABLE.as_of
    assert found.lifecycle == ("retired" if gone else "deprecated")


# Least tokens of a cached prefix; the page on prompt caching.
CACHE_MIN = {
    512: "fable-5 fable-5-1 mythos-5 mythos-5-1 opus-5 opus-5-5 sonnet-5-5 haiku-5-5",
    1_024: "opus-4-8 sonnet-5 sonnet-4-6 sonnet-4-5 opus-4-1",
    2_048: "opus-4-7 mythos-preview haiku-3-5",
    4_096: "opus-4-6 opus-4-5 haiku-4-5",
}


@pytest.mark.parametrize("tokens", sorted(CACHE_MIN))
def test_the_least_cached_prefix_is_known(tokens: int) -> None:
    for name in CACHE_MIN[tokens].split():
        assert TABLE.models[f"claude-{name}"].cache_min == tokens, name


EXTENDED = [
    "haiku-5-5", "sonnet-5-5", "opus-5-5", "opus-5", "sonnet-5", "opus-4-8", "opus-4-7",
    "opus-4-6", "sonnet-4-6",
]  # fmt: skip


def test_extended_output_is_for_the_listed_models_only() -> None:
    found = {model.id for model in TABLE.models.values() if model.extended}
    assert found == {f"claude-{name}" for name in EXTENDED}


def test_only_models_that_can_think_have_efforts_without_thinking() -> None:
    for model in TABLE.models.values():
        assert set(model.effort or ()) <= set(get_args(models.Effort))
        if model.effort_without_thinking is not None:
            assert set(model.effort_without_thinking) < set(model.effort or ())
            assert model.thinking & {"disabled", "between_tools"}


def test_a_table_is_read() -> None:
    table = models.parse(MINIMAL)
    assert table.as_of == "2026-01-01"
    found = table.models["b"]
    assert found.rates is not None
    assert found.rates.read == 1
    assert not found.us_surcharge
    assert found.display_name == "b"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["a", "b"]', '["a", "a"]', "t: model a: ids: a stands twice in the table"),
        ('ids = ["a", "b"]', "", "t: model number 1: Object missing required field `ids`"),
        ('["a", "b"]', "[]", "t: model number 1: ids: Expected `array` of length >= 1"),
        ('"0.000001"', '"0.0000001"', "t: model a: read: 0.0000001 is not a price in dollars, a"),
        ('"0.000001"', '"-1"', "t: model a: read: -1 is not a price in dollars, a whole number"),
        ('"0.000001"', '"free"', "t: model a: read: free is not a price in dollars, a whole"),
        ('"0.000001"', "1", "t: model a: read: Expected `str | null`, got `int`"),
        ('read = "0.000001"', "", ("t: model a: read: the prices come all five together, or not at "
         "all")),
        ("max_output = 10", "", "t: model a: Object missing required field `max_output`"),
        ("max_output = 10", "max_output = 0", "t: model a: max_output: Expected `int` >= 1"),
        ("cache_min = 1", "cache_min = 1\nprefil = true",
         "t: model a: Object contains unknown field `prefil`"),
        ("cache_min = 1", 'cache_min = 1\nthinking = ["deep"]',
         "t: model a: thinking[0]: Invalid enum value 'deep'"),
        ("cache_min = 1", 'cache_min = 1\nthinking = ["enabled"]\nthinking_refused = ["enabled"]',
         "t: model a: thinking_refused: enabled is in thinking too"),
        ("batch_divisor = 2", "", "t: rules: Object missing required field `batch_divisor`"),
        ("batch_divisor = 2", "batch_divisor = 0", "t: rules: batch_divisor: Expected `int` >= 1"),
        ("[rules]", "[rules", "t: not TOML: "),
        ("[rules]", "[rule]", "t: rule is not a key; there are as_of, rules and model"),
        ("[[model]]", "[model]", "t: a model is a table, [[model]]"),
        ('as_of = "2026-01-01"', "", "t: as_of is the date of the prices"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_with_model_and_field(old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        models.parse(MINIMAL.replace(old, new), "t")
    assert caught.value.message.startswith(message)


def test_prices_of_long_prompts_need_prices() -> None:
    long = "[model.long]\nover_tokens = 5\n"
    with pytest.raises(ConfigError, match="t: model a: long: input: the prices are missing"):
        models.parse(MINIMAL + long, "t")
    bare = MINIMAL[: MINIMAL.index("input =")] + long + MINIMAL[MINIMAL.index("input =") :]
    with pytest.raises(ConfigError, match="t: model a: long: there are no other prices"):
        models.parse(bare, "t")


# A table of the operator -----------------------------------------------------------------------

OWN = """
[[model]]
ids = ["qwen3-8b"]
max_output = 8192
cache_min = 0
generic = true

[[model]]
ids = ["claude-haiku-4-5"]
max_output = 10
cache_min = 0
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "own.toml"
    models.use(None)


def test_a_table_of_the_operator_replaces_and_adds_models(own: Path) -> None:
    own.write_text(OWN)
    models.use(own)
    assert [found.max_output for found in map(models.find, ("qwen3-8b", "claude-haiku-4-5"))
            if found] == [8_192, 10]  # fmt: skip
    assert models.find("claude-opus-5-5") == TABLE.models["claude-opus-5-5"]
    table = models.table()
    assert (table.as_of, table.batch_divisor) == (TABLE.as_of, TABLE.batch_divisor)
    models.use(None)
    assert models.table() is TABLE


def test_rules_of_the_operator_replace_the_rules(own: Path) -> None:
    own.write_text(MINIMAL + "generic = true\n")
    models.use(own)
    table = models.table()
    assert (table.as_of, table.web_search_micros) == ("2026-01-01", 1)
    assert "claude-opus-5-5" in table.models


def test_a_model_without_prices_has_an_unknown_price(own: Path) -> None:
    own.write_text(OWN)
    models.use(own)
    usage = price.Usage(input_tokens=1_000, output_tokens=1_000)
    assert price.cost_micros("qwen3-8b", usage, "batch") is None


def test_a_table_that_cannot_be_used_changes_nothing(own: Path) -> None:
    with pytest.raises(ConfigError, match=r"own\.toml: the table of models cannot be read: No "):
        models.use(own)
    own.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        models.use(own)
    own.write_text(OWN.replace("8192", '"many"'))
    with pytest.raises(ConfigError, match=r"own\.toml: model qwen3-8b: max_output: Expected `int`"):
        models.use(own)
    assert models.table() is TABLE
