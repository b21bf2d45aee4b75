"""What plans, counts and refusals say to people is what is so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from client.commands import batchyard, run_documents
from client.fake_api import FakeApi, succeeded

if TYPE_CHECKING:
    from pathlib import Path

CUT = succeeded("half", stop="max_tokens", usage={"input_tokens": 4, "output_tokens": 50})
SEARCH = {"type": "web_search_20250305", "name": "web_search"}


def plan(server: FakeApi, *more: str) -> str:
    done = batchyard(
        "plan", "docs", "--prompt", "p.j2", "--model", "claude-opus-4-8", "--max-tokens", "50",
        "--out", "reports", "--sample", "0", "--base-url", server.url, *more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("uses", [None, 2])
def test_a_plan_with_a_tool_of_the_server_has_no_ceiling(
    documents: Path, server: FakeApi, uses: int | None
):
    without = json.loads(plan(server, "--json").splitlines()[-1])["batch_micros"]["ceiling"]
    tool = SEARCH if uses is None else {**SEARCH, "max_uses": uses}
    (documents / "tools.json").write_text(json.dumps([tool]))

    shown = plan(server, "--tools", "tools.json", "--compare", "claude-haiku-4-5")
    events = map(json.loads, plan(server, "--tools", "tools.json", "--json").splitlines())
    planned = next(event for event in events if event["event"] == "plan")

    assert "likely · ceiling unknown" in shown
    assert "ceiling         unknown: web_search is not bounded; $0.0" in shown
    assert ("with the fee of 2 searches each" in shown) == (uses == 2)
    assert "only while less than $0.0" in shown
    assert [line.split()[3] for line in shown.splitlines()[-2:]] == ["unknown", "unknown"]
    assert planned["unbounded"] == ["web_search"]
    fees = 3 * 10_000 * (uses or 0)
    more = planned["batch_micros"]["ceiling"] - without
    assert fees < more < fees + 2_000, "the fees, and the tool in the prompts"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("my-own-model", "also what would be paid twice, such as cut answers: no ceiling is known"),
        ("claude-opus-4-8", "what would be paid twice, such as cut answers: only within the ceil"),
    ],
)
def test_a_plan_says_what_is_paid_twice(documents: Path, server: FakeApi, model: str, said: str):
    assert said in plan(server, "--model", model)


def test_a_template_that_uses_no_document_is_said(documents: Path, server: FakeApi):
    (documents / "p.j2").write_text("{% set x = 1 %}Say {{ x }}")
    (documents / "s.j2").write_text("Of {{ name }}")

    assert "note            no template uses a document, such as {{ text }}" in plan(server)
    assert "no template uses" not in plan(server, "--system", "s.j2")
    for name in ("b.md", "c.md"):
        (documents / "docs" / name).unlink()
    assert "no template uses" not in plan(server)


def test_a_parameter_that_is_not_known_is_said(documents: Path, server: FakeApi):
    rows = [{"id": "a", "text": "x", "own": {"top_q": 3}}, {"id": "b", "text": "y", "own": None}]
    (documents / "docs" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ("--param", "temprature=0.5", "--param", "zzz=1")

    notes = _notices(plan(server, *options, "--json"))
    of_rows = batchyard(
        "plan", "docs/rows.jsonl", "--prompt", "p.j2", "--model", "claude-opus-4-8", "--max-tokens",
        "50", "--override", "own", "--out", "x", "--base-url", server.url, "--sample", "0",
        "--json",
    )  # fmt: skip
    assert of_rows.returncode == 0, of_rows.stderr

    refused = "is not a known parameter; the hosted API refuses it unless a beta adds it"
    assert notes[:2] == [f"temprature {refused}; the closest is temperature", f"zzz {refused}"]
    assert _notices(of_rows.stdout)[0] == f"top_q {refused}; the closest is top_p"
    assert "temprature is not a known parameter" in plan(server, *options)
    known = plan(server, "--param", "temperature=1", "--param", 'service_tier="auto"')
    assert "is not a known parameter" not in known


def _notices(events: str) -> list[str]:
    planned = map(json.loads, events.splitlines())
    return next(event for event in planned if event["event"] == "plan")["notices"]


def test_counts_say_what_is_saved_but_cut(documents: Path, server: FakeApi):
    server.outcomes = {"a_Dmd": CUT, "b_Dmd": succeeded("", stop="refusal")}
    run_documents(server, "--retries", "0")

    status, listed = batchyard("status", "reports").stdout, batchyard("ls").stdout
    again = run_documents(server).stdout

    assert status.count("2 saved (1 cut short), 1 need attention") == 2
    assert "2 saved (1 cut short), 1 need attention" in listed
    assert "2 saved (1 cut short), 1 need attention" in again
    assert json.loads(batchyard("ls", "--json").stdout)["counts"] == {
        "saved": 2, "need attention": 1,
    }  # fmt: skip


def test_batches_that_were_cut_in_two_are_not_counted(documents: Path, server: FakeApi):
    for number in range(30):
        (documents / "docs" / f"n{number}.md").write_text(f"number {number}")
        server.outcomes[f"n{number}_Dmd"] = CUT
    run_documents(server, "--budget", "0.02", "--retries", "0")
    run_documents(server, "--no-budget", "--retries", "0")
    batches = len(server.batches)

    done = run_documents(server, "--no-budget", "--retries", "0")

    assert batches > 1
    assert f"{batches} of {batches} batches created, {batches} collected" in done.stdout


def test_an_answer_that_documents_share_is_shown_once_by_a_pilot(documents: Path, server: FakeApi):
    for name in ("a.md", "b.md"):
        (documents / "docs" / name).write_text("the same")

    done = run_documents(server, "--pilot", "1")

    assert done.stdout.count("Report on a_Dmd.") == 1, done.stdout


def test_an_ending_that_names_no_format_is_refused(documents: Path, server: FakeApi):
    run_documents(server)

    refused = batchyard("export", "reports", "--to", "e.xlsx")
    named = batchyard("export", "reports", "--to", "e.xlsx", "--format", "csv")
    bare = batchyard("export", "reports", "--to", "e")

    assert refused.returncode == 2
    assert "e.xlsx: its ending is that of no format; .jsonl, .csv, .parquet is" in refused.stderr
    assert (named.returncode, bare.returncode) == (0, 0)
    assert json.loads((documents / "e").read_text().splitlines()[0])["key"] == "a.md"


def test_an_import_of_a_batch_that_is_not_there_leaves_no_folder(documents: Path, server: FakeApi):
    server.accept([{"custom_id": "one", "params": {"model": "m"}}])
    options = ("--out", "got", "--base-url", server.url)

    done = batchyard("import", "msgbatch_01", "msgbatch_99", *options)
    left = (documents / "got").exists()
    good = batchyard("import", "msgbatch_01", *options)

    assert (done.returncode, left, good.returncode) == (3, False, 0)
    assert "msgbatch_99" in done.stderr
