"""A run that stopped: by billing or a budget it can still be shown; a pilot that fits begins."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from batchyard import Run, files
from batchyard.client.problems import BudgetReached
from batchyard.client.running.folder import Files
from client.commands import batchyard, run_documents
from client.fake_api import FakeApi, errored

if TYPE_CHECKING:
    from pathlib import Path

UNPAID = errored("invalid_request_error", "Your credit balance is too low to access the API")


@pytest.fixture
def server(paid: FakeApi) -> FakeApi:
    return paid


def job(server: FakeApi) -> Run:
    return Run("reports", docs=files("docs"), prompt="p.j2", model="claude-opus-4-8",
               max_tokens=50, base_url=server.url)  # fmt: skip


def receipt(documents: Path) -> dict:
    return json.loads((documents / "reports" / "receipt.json").read_bytes())


def test_a_run_that_was_sent_in_full_and_waits_for_credit_can_be_shown(
    documents: Path, server: FakeApi
):
    server.outcomes = {"a_Dmd": UNPAID}
    stopped = run_documents(server)

    shown = batchyard("report", "reports")
    with job(server) as again:
        done = again.report()
    server.outcomes = {}
    paid = batchyard("attach", "reports")

    assert stopped.returncode == 3
    assert "1 of 3 documents were not answered for want of credit" in stopped.stderr
    assert shown.returncode == 3
    assert "done reports   2 saved · 1 billing" in shown.stdout
    assert (done.waits_for, done.classes) == ("billing", {"billing": 1, "succeeded": 2})
    assert paid.returncode == 0, paid.stderr
    assert receipt(documents)["waits_for"] is None


def test_a_run_whose_budget_ends_before_a_further_round_can_be_shown(
    documents: Path, server: FakeApi
):
    server.outcomes = {"a_Dmd": errored("api_error", "no")}
    # The first round may cost less than this, its two answers cost more.
    stopped = run_documents(server, "--budget", "0.005")

    shown = batchyard("report", "reports")
    with job(server) as again:
        done = again.report()
    further = batchyard("attach", "reports", "--no-budget")

    assert stopped.returncode == 4
    assert "budget reached" in stopped.stderr
    assert shown.returncode == 4
    assert "done reports   2 saved · 1 failed at the server" in shown.stdout
    assert (done.waits_for, done.classes) == ("budget", {"retryable": 1, "succeeded": 2})
    assert further.returncode == 0, further.stderr
    assert receipt(documents)["waits_for"] is None


def test_while_something_is_under_way_nobody_is_told_that_the_run_waits(
    documents: Path, server: FakeApi
):
    server.outcomes = {"a_Dmd": UNPAID}
    run_documents(server)
    batchyard("attach", "reports", BATCHYARD_CRASH_AT="created_recorded")

    shown = batchyard("report", "reports")

    assert Files(documents / "reports").read_state().at_server == 1
    assert shown.returncode == 2
    assert "is not finished" in shown.stderr


@pytest.fixture
def twenty(documents: Path) -> Path:
    for number in range(17):
        (documents / "docs" / f"n{number:02}.md").write_text(f"some text {number}")
    return documents


def test_a_pilot_that_fits_in_the_budget_is_sent_although_the_first_ten_would_not(
    twenty: Path, server: FakeApi
):
    whole = run_documents(server, "--budget", "0.003")
    none = len(server.batches)
    pilot = run_documents(server, "--budget", "0.003", "--pilot", "2")

    assert (whole.returncode, none) == (4, 0)
    assert "nothing was sent" not in pilot.stderr
    assert [len(batch.requests) for batch in server.batches.values()] == [2]


def test_a_pilot_that_is_refused_leaves_no_folder(twenty: Path, server: FakeApi):
    with job(server) as some:
        plan = some.plan(sample=0)
        with pytest.raises(BudgetReached, match="nothing was sent"):
            some.pilot(2, plan, budget=0.0001)
        refused = (twenty / "reports").exists()
        found = some.pilot(2, plan, budget=0.003)

    assert not refused
    assert (found.documents, found.left) == (2, 18)
    assert server.bodies
    assert run_documents(server, "--pilot", "2", "--budget", "0.0001", "--fresh").returncode == 4
