"""The last few documents of a run one by one, at once, at the list price."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from client.commands import batchyard, run_documents
from client.fake_api import FakeApi

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "test-key"


@pytest.fixture
def hosted(documents: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    """A server that is no yard: half the list price for a batch, and single calls."""
    api = FakeApi(is_yard=False, follows_time=True, key_of_messages=KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    yield api
    api.close()


def expire(api: FakeApi, *names: str) -> None:
    api.outcomes = {f"{name}_Dmd": {"type": "expired"} for name in names}


def test_the_last_few_are_offered_at_once_with_their_price_and_asked_for(
    documents: Path, hosted: FakeApi
):
    expire(hosted, "a", "b")
    done = run_documents(hosted, "--yes", "--retries", "0")
    assert done.returncode == 3, done.stderr
    assert "2 are left: `" in done.stdout
    assert "retry reports --now` asks for them at once, at the list price, at most $" in done.stdout
    batches = hosted.count("POST", "/batches")

    again = batchyard("retry", "reports", "--now", "--yes")
    assert again.returncode == 0, again.stderr + again.stdout
    assert "3 saved" in again.stdout
    assert (hosted.count("POST", "/batches"), hosted.count("POST", "/messages")) == (batches, 2)
    reports = {path.name: path.read_text() for path in (documents / "reports").glob("*.md")}
    assert {name for name, text in reports.items() if "Told at once." in text} == {"a.md", "b.md"}
    receipt = json.loads((documents / "reports" / "receipt.json").read_text())
    assert receipt["paid_micros"] > receipt["synchronous_micros"] / 2, "two of three at list price"
    assert "left: `" not in again.stdout

    same = run_documents(hosted, "--yes")
    assert same.returncode == 0, same.stderr
    (documents / "docs" / "d.md").write_text("text of d")
    more = run_documents(hosted, "--yes")
    assert more.returncode == 0, more.stderr
    assert hosted.count("POST", "/batches") == batches + 1, "the next ones are a batch again"
    assert hosted.count("POST", "/messages") == 2


def test_a_run_goes_on_at_once_when_it_was_killed_there(documents: Path, hosted: FakeApi):
    expire(hosted, "a")
    run_documents(hosted, "--yes", "--retries", "0")
    hosted.fail("message", 529)
    killed = batchyard("retry", "reports", "--now", "--yes", BATCHYARD_CRASH_AT="moved")
    assert killed.returncode < 0
    done = batchyard("retry", "reports", "--now", "--yes")
    assert done.returncode == 0, done.stderr + done.stdout
    assert hosted.count("POST", "/messages") == 2
    assert "Told at once." in (documents / "reports" / "a.md").read_text()


def test_where_a_batch_costs_what_a_call_does_nothing_is_offered(documents: Path, server: FakeApi):
    yard = FakeApi(is_yard=True, billing="standard", follows_time=True)
    try:
        expire(yard, "a")
        done = run_documents(yard, "--yes", "--retries", "0")
        assert done.returncode == 3
        assert "--now" not in done.stdout
        again = batchyard("retry", "reports", "--now", "--yes")
        assert again.returncode == 2
        assert "--now is for servers with a price for batches" in again.stderr
        assert "--now excludes" in batchyard("retry", "reports", "--now", "--with-change").stderr
    finally:
        yard.close()
