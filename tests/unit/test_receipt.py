"""Receipts: money from usage, honestly named."""

import pytest

from batchyard import price
from batchyard.client.results import receipt
from batchyard.client.results.collect import Outcome
from batchyard.client.running.journal import Config, Phase, Shard, State

CONFIG = Config(
    model="claude-opus-4-6", max_tokens=1, prompt="p", prompt_sha256="0", shard_requests=1
)
MILLION = price.Usage(output_tokens=1_000_000)


def state(*billing: str | None) -> State:
    shards = tuple(
        Shard(index=i, requests=1, bytes=1, sha256="", phase=Phase.COLLECTED, batch=f"b{i}",
              billing=kind)
        for i, kind in enumerate(billing)
    )  # fmt: skip
    return State("r", CONFIG, shards, 1)


def outcome(usage: price.Usage | None = MILLION, model: str | None = None, kind="succeeded"):
    return Outcome(key="k", custom_id="k", class_=kind, type="end_turn", usage=usage, model=model)


def made(*billing: str | None, model: str | None = None) -> receipt.Receipt:
    outcomes = [(index, outcome(model=model)) for index in range(len(billing))]
    return receipt.make(state(*billing), outcomes, 2)


def test_a_batch_costs_half():
    # One million output tokens of this model: $25, in a batch $12.50.
    line = receipt.money_line(made("batch"))

    assert line == "paid $12.50    synchronous would have been $25.00    saved $12.50 (50.0 %)"


def test_a_receipt_prints_as_counts_and_money():
    assert str(made("batch")) == (
        "1 document: 1 succeeded\n"
        "paid $12.50    synchronous would have been $25.00    saved $12.50 (50.0 %)"
    )


def test_a_yard_in_front_of_a_synchronous_api_saves_nothing_and_says_so():
    line = receipt.money_line(made("standard"))

    assert line.startswith("paid $25.00    synchronous would have been $25.00    saved $0.00")
    assert "no batch discount" in line


def test_a_simulated_run_paid_nothing_and_keeps_the_list_prices_apart():
    done = made("simulated")

    assert (done.paid_micros, done.synchronous_micros, done.saved_micros) == (0, 0, 0)
    assert (done.list_batch_micros, done.list_synchronous_micros) == (12_500_000, 25_000_000)


def test_what_was_simulated_adds_nothing_to_what_was_paid():
    done = made("simulated", "batch")

    assert (done.paid_micros, done.saved_micros) == (12_500_000, 12_500_000)
    assert done.list_batch_micros == 25_000_000


def test_one_answer_without_usage_makes_the_sum_unknown():
    outcomes = [(0, outcome()), (0, outcome(usage=None)), (0, outcome(usage=None, kind="empty"))]
    done = receipt.make(state("batch"), outcomes, 2)

    assert (done.paid_micros, done.list_synchronous_micros) == (None, None)
    assert receipt.money_line(done) == (
        "cost unknown: 2 answers do not tell their usage    input 0 tokens    "
        "output 1,000,000 tokens"
    )


def test_a_simulated_run_says_first_that_nothing_was_charged():
    line = receipt.money_line(made("simulated"))

    assert line.startswith("simulated, nothing was charged; at list prices: would have paid $12.50")
    assert "    would have saved $12.50 (50.0 %)" in line


def test_an_unknown_basis_is_the_dearer_one():
    assert made(None).paid_micros == 25_000_000


def test_an_unknown_model_makes_the_sum_unknown():
    sums = receipt.make(
        state("batch", "batch"),
        [(0, outcome()), (1, outcome(model="other"))],
        2,
    )

    # The answer's name is unknown, so the model that was asked for decides.
    assert sums.paid_micros == 25_000_000
    unknown = State("r", Config(model="x", max_tokens=1, prompt="p", prompt_sha256="0",
                                shard_requests=1), state("batch").shards, 1)  # fmt: skip
    nothing = receipt.make(unknown, [(0, outcome(model="x"))], 2)
    assert nothing.paid_micros is None
    assert receipt.money_line(nothing).startswith("price unknown (x)")


def test_what_was_not_answered_costs_nothing():
    sums = receipt.make(state("batch"), [(0, outcome(usage=None, kind="expired"))], 2)

    assert sums.paid_micros == 0
    assert sums.classes == {"expired": 1}


def test_small_savings_are_rounded_not_cut():
    usage = price.Usage(input_tokens=1_001, output_tokens=3)
    sums = receipt.make(state("batch"), [(0, outcome(usage=usage))] * 7, 2)

    assert "(50.0 %)" in receipt.money_line(sums)


@pytest.mark.parametrize(("billing", "basis"), [(("batch", "standard"), "batch+standard"),
                                                ((), "none")])  # fmt: skip
def test_the_basis_names_every_way_of_charging(billing: tuple[str, ...], basis: str):
    assert made(*billing).basis == basis
