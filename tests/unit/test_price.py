"""Money, against the check values of the pricing page."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import models, price
from batchyard.price import Usage, cost_micros, read_usage

if TYPE_CHECKING:
    from pathlib import Path

MILLION = 1_000_000


@pytest.mark.parametrize(
    ("model", "usage", "tier", "micros"),
    [
        # The two check values of the cost formula.
        ("claude-opus-4-6", Usage(output_tokens=MILLION), "batch", 12_500_000),
        ("claude-haiku-4-5", Usage(cache_read_tokens=17_508), "batch", 875),  # $0.0008754
        ("claude-haiku-4-5", Usage(cache_read_tokens=17_508), "standard", 1_751),
        ("claude-opus-4-6", Usage(output_tokens=MILLION), "standard", 25_000_000),
        # Every kind of token of one model, at the list price.
        ("claude-sonnet-4-6", Usage(input_tokens=MILLION), "standard", 3_000_000),
        ("claude-sonnet-4-6", Usage(cache_write_5m_tokens=MILLION), "standard", 3_750_000),
        ("claude-sonnet-4-6", Usage(cache_write_1h_tokens=MILLION), "standard", 6_000_000),
        ("claude-sonnet-4-6", Usage(cache_read_tokens=MILLION), "standard", 300_000),
        # The read multiplier differs between models.
        ("claude-fable-5-2", Usage(cache_read_tokens=MILLION), "batch", 100_000),
        ("claude-opus-5-5", Usage(cache_read_tokens=MILLION), "batch", 100_000),
        ("claude-sonnet-5-5", Usage(cache_read_tokens=MILLION), "batch", 50_000),
        # Searches are billed in full.
        ("claude-opus-5-5", Usage(web_searches=3), "batch", 30_000),
        ("claude-opus-5-5", Usage(), "batch", 0),
    ],
)
def test_check_values(model: str, usage: Usage, tier: price.Tier, micros: int) -> None:
    assert cost_micros(model, usage, tier) == micros


def test_the_long_prompt_of_haiku_5_5_costs_more_for_all_its_tokens() -> None:
    short = Usage(100_000, 1_000)
    long = Usage(100_001, 1_000)
    assert cost_micros("claude-haiku-5-5", short, "batch") == 5_000 + 250
    assert cost_micros("claude-haiku-5-5", long, "batch") == 25_000 + 1_250


@pytest.mark.parametrize(
    "usage",
    [
        Usage(50_000, 0, 50_001),
        Usage(50_000, 0, 0, 50_001),
        Usage(50_000, 0, 0, 0, 50_001),
    ],
)
def test_cached_tokens_count_to_the_length_of_the_prompt(usage: Usage) -> None:
    assert usage.prompt_tokens == 100_001
    cheap = Usage(
        50_000,
        0,
        *(50_000 if n else 0 for n in (
            usage.cache_write_5m_tokens, usage.cache_write_1h_tokens, usage.cache_read_tokens
        )),
    )  # fmt: skip
    long, short = (cost_micros("claude-haiku-5-5", each, "standard") for each in (usage, cheap))
    assert long is not None
    assert short is not None
    assert long > 4 * short


def test_the_length_of_the_output_does_not_make_a_prompt_long() -> None:
    assert cost_micros("claude-haiku-5-5", Usage(1, 127_000), "batch") == 31_750  # and not 5 times


@pytest.mark.parametrize(
    ("model", "factor"),
    [("claude-opus-4-6", Fraction(11, 10)), ("claude-haiku-5-5", Fraction(11, 10)),
     ("claude-opus-4-5", Fraction(1)), ("claude-haiku-4-5", Fraction(1))],
)  # fmt: skip
def test_inference_in_the_us_costs_a_tenth_more_from_4_6_on(model: str, factor: Fraction) -> None:
    plain = cost_micros(model, Usage(80_000, 60_000), "batch")
    us = cost_micros(model, Usage(80_000, 60_000, us=True), "batch")
    assert plain is not None
    assert us == plain * factor


def test_searches_have_no_surcharge() -> None:
    assert cost_micros("claude-opus-5-5", Usage(web_searches=1, us=True), "standard") == 10_000


def test_the_cost_of_an_unknown_model_is_unknown_and_not_nothing() -> None:
    assert cost_micros("llama", Usage(5, 5), "standard") is None
    assert cost_micros("claude-opus-5-5-20261109", Usage(5, 5), "standard") is None


tokens = st.integers(0, 10**7)


@given(
    st.sampled_from(sorted(models.table().models)),
    st.builds(Usage, tokens, tokens, tokens, tokens, tokens, st.integers(0, 50), st.booleans()),
    st.sampled_from(["batch", "standard"]),
)
def test_a_cost_is_the_formula_rounded_half_to_even(
    model: str, usage: Usage, tier: price.Tier
) -> None:
    known = models.table().models[model]
    rates = known.rates
    if known.long and usage.prompt_tokens > known.long.over_tokens:
        rates = known.long.rates
    exact = Fraction(
        usage.input_tokens * rates.input
        + usage.output_tokens * rates.output
        + usage.cache_write_5m_tokens * rates.write_5m
        + usage.cache_write_1h_tokens * rates.write_1h
        + usage.cache_read_tokens * rates.read,
        MILLION,
    )
    if tier == "batch":
        exact /= 2
    if usage.us and known.us_surcharge:
        exact *= Fraction(11, 10)
    expected = round(exact) + usage.web_searches * 10_000  # of a fraction: half to even
    assert cost_micros(model, usage, tier) == expected


# Usage on the wire -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        (b"{}", Usage()),
        (b'{"input_tokens":1,"output_tokens":2,"service_tier":"standard"}', Usage(1, 2)),
        (b'{"input_tokens":null,"cache_creation":null,"server_tool_use":null}', Usage()),
        # Only the sum: five minutes are the default lifetime.
        (b'{"cache_creation_input_tokens":7}', Usage(cache_write_5m_tokens=7)),
        (
            b'{"cache_creation_input_tokens":7,"cache_creation":{}}',
            Usage(cache_write_5m_tokens=7),
        ),
        (
            (
                b'{"cache_creation_input_tokens":7,"cache_creation":'
                b'{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0}}'
            ),
            Usage(cache_write_5m_tokens=7),
        ),
        (
            (
                b'{"cache_creation_input_tokens":7,"cache_creation":'
                b'{"ephemeral_5m_input_tokens":3,"ephemeral_1h_input_tokens":4}}'
            ),
            Usage(cache_write_5m_tokens=3, cache_write_1h_tokens=4),
        ),
        (b'{"cache_creation":{"ephemeral_1h_input_tokens":4}}', Usage(cache_write_1h_tokens=4)),
        (b'{"cache_read_input_tokens":9}', Usage(cache_read_tokens=9)),
        (b'{"server_tool_use":{"web_search_requests":2,"x":1}}', Usage(web_searches=2)),
        (b'{"inference_geo":"us"}', Usage(us=True)),
        (b'{"inference_geo":"global"}', Usage()),
        (b'{"inference_geo":"not_available"}', Usage()),
        (b'{"output_tokens":5,"output_tokens_details":{"thinking_tokens":4}}', Usage(0, 5)),
    ],
)
def test_usage_is_read(raw: bytes, usage: Usage) -> None:
    assert read_usage(raw) == usage


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b'{"input_tokens":"1"}', b'{"input_tokens":1.5}']
)
def test_usage_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_usage(raw)


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "$0.00"),
        (1, "$0.000001"),
        (875, "$0.000875"),
        (10_000, "$0.0100"),
        (999_999, "$1.0000"),
        (1_000_000, "$1.00"),
        (12_500_000, "$12.50"),
        (1_234_567_890_000, "$1,234,567.89"),
        (-2_500_000, "-$2.50"),
    ],
)
def test_money_is_shown_so_that_little_is_not_nothing(micros: int, text: str) -> None:
    assert price.dollars(micros) == text


def test_the_version_of_the_prices_changes_with_any_price(tmp_path: Path) -> None:
    before = price.version()
    assert before.startswith(models.table().as_of + "+")
    file = tmp_path / "models.toml"
    entry = '[[model]]\nids = ["{}"]\nmax_output = 9\ncache_min = 0\n{}'
    rates = 'input = "1"\noutput = "{}"\nwrite_5m = "1"\nwrite_1h = "1"\nread = "1"\n'
    versions = {before}
    try:
        for text in (entry.format("a", rates.format("2")), entry.format("a", rates.format("3"))):
            file.write_text(text)
            models.use(file)
            versions.add(price.version())
    finally:
        models.use(None)

    assert len(versions) == 3
    assert price.version() == before
