"""Tests of batch code with batchyard's emulator: no key, no network, no waiting.

    pip install batchyard anthropic pytest
    pytest examples/test_batches.py

`run_batch` stands for your own code. It waits by a `sleep` that it is given, so that a test can
turn the emulator's clock instead of waiting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchyard.testing import Emulator


def run_batch(
    client: anthropic.Anthropic, prompts: dict[str, str], sleep: Callable[[float], None]
) -> dict[str, Any]:
    """Send prompts, wait for the batch, return the result of each."""
    batch = client.messages.batches.create(
        requests=[
            {
                "custom_id": name,
                "params": {
                    "model": "claude-haiku-4-5",
                    "max_tokens": 200,
                    "messages": [{"role": "user", "content": prompt}],
                },
            }
            for name, prompt in prompts.items()
        ]
    )
    while batch.processing_status != "ended":
        sleep(60)
        batch = client.messages.batches.retrieve(batch.id)
    return {line.custom_id: line.result for line in client.messages.batches.results(batch.id)}


@pytest.fixture
def client(batchyard_emulator: Emulator) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=batchyard_emulator.url, api_key="any") as client:
        yield client


def test_every_prompt_has_an_answer(
    batchyard_emulator: Emulator, client: anthropic.Anthropic
) -> None:
    results = run_batch(client, {"a": "One?", "b": "Two?"}, batchyard_emulator.advance)
    assert {result.type for result in results.values()} == {"succeeded"}


@pytest.mark.batchyard(
    script='[[request]]\ncustom_id = "slow-*"\noutcome = "slow"\nseconds = "30h"'
)
def test_what_is_not_done_in_24_hours_expires(
    batchyard_emulator: Emulator, client: anthropic.Anthropic
) -> None:
    prompts = {"slow-1": "A long one.", "quick": "A short one."}
    results = run_batch(client, prompts, lambda _: batchyard_emulator.advance("25h"))
    assert results["quick"].type == "succeeded"
    assert results["slow-1"].type == "expired"


@pytest.mark.batchyard(latency=30, slots=2)
def test_a_cancel_races_with_the_answers(
    batchyard_emulator: Emulator, client: anthropic.Anthropic
) -> None:
    requests = [
        {
            "custom_id": f"r-{n}",
            "params": {
                "model": "claude-haiku-4-5",
                "max_tokens": 200,
                "messages": [{"role": "user", "content": "Hello"}],
            },
        }
        for n in range(6)
    ]
    batch = client.messages.batches.create(requests=requests)  # type: ignore[arg-type]
    batchyard_emulator.advance("5s")  # two requests are being answered, four wait
    batch = client.messages.batches.cancel(batch.id)
    assert batch.processing_status == "canceling"
    batchyard_emulator.advance("1m")
    batch = client.messages.batches.retrieve(batch.id)
    assert batch.processing_status == "ended"
    assert (batch.request_counts.succeeded, batch.request_counts.canceled) == (2, 4)


@pytest.mark.batchyard(script="[credit]\nrequests = 3")
def test_no_credit_is_left(batchyard_emulator: Emulator, client: anthropic.Anthropic) -> None:
    prompts = {f"r-{n}": "Hello" for n in range(5)}
    results = run_batch(client, prompts, batchyard_emulator.advance)
    broke = [result for result in results.values() if result.type == "errored"]
    assert [result.error.error.type for result in broke] == ["billing_error"] * 2
    with pytest.raises(anthropic.APIStatusError) as refused:
        run_batch(client, prompts, batchyard_emulator.advance)
    assert refused.value.status_code == 402
    batchyard_emulator.pay_in(requests=100)
    results = run_batch(client, prompts, batchyard_emulator.advance)
    assert {result.type for result in results.values()} == {"succeeded"}
