"""Tokens from characters, without a tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.client.planning import estimate
from batchyard.client.planning.estimate import Counts, Sizes, Weights


@given(st.text())
def test_every_character_is_of_one_kind(text: str):
    encodable = text.encode("utf-8", "ignore").decode()

    assert sum(estimate.count(encodable)) == len(encodable)


@given(st.lists(st.tuples(*[st.integers(0, 10**9)] * len(Counts._fields))))
def test_sizes_keep_what_they_are_given(rows: list[tuple[int, ...]]):
    sizes = Sizes()
    for row in rows:
        sizes.append(row)

    assert len(sizes) == len(rows)
    assert [tuple(each) for each in sizes] == rows


def test_newer_tokenizers_give_more_tokens_for_prose_and_not_for_cjk():
    old, new = "claude-opus-4-6", "claude-opus-4-8"

    assert estimate.tokens("word " * 1_000, new) > 1.25 * estimate.tokens("word " * 1_000, old)
    assert estimate.tokens("文" * 1_000, new) == estimate.tokens("文" * 1_000, old)


def test_weights_that_were_fitted_are_carried_over_to_another_tokenizer_and_back():
    fitted = Weights((0.3, 1.1, 0.5, 0.6, 0.07, 0.5, 0.9), 12.0)

    there = estimate.rescaled(fitted, "claude-opus-4-8", "claude-haiku-4-5")
    back = estimate.rescaled(there, "claude-haiku-4-5", "claude-opus-4-8")

    assert there.each[0] < fitted.each[0]
    assert there.each[1] == fitted.each[1]
    assert back.each == pytest.approx(fitted.each)
