"""Results and requests of a run in another form, later."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

import pyarrow.parquet
import pytest

from client.commands import batchyard
from client.fake_api import FakeApi, errored, succeeded

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def reports(tmp_path: Path, server: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a run: one document saved, one paused and then whole, one refused."""
    rows = [{"id": name, "lang": "de", "text": f"text of {name}"} for name in ("a", "b", "c")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.j2").write_text("About {{ text }}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    server.outcomes["b"] = succeeded("half", stop="pause_turn")
    server.outcomes["c"] = errored("invalid_request_error", "=too long")
    done = batchyard(
        "run", "rows.jsonl", "--prompt", "p.j2", "--model", "claude-opus-4-8", "--max-tokens",
        "4000", "--out", "reports", "--format", "md", "--format", "jsonl", "--base-url", server.url,
        "--yes",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    return tmp_path / "reports"


def test_json_lines_are_those_that_the_run_itself_writes(reports: Path):
    done = batchyard("export", "reports")

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == (reports / "results.jsonl").read_text()
    costs = [json.loads(line)["cost_micros"] for line in done.stdout.splitlines()]
    assert costs == [3_750, 7_500, 0]  # of all tries


def test_the_ending_of_the_file_says_the_format(reports: Path):
    done = batchyard("export", "reports", "--to", "out.csv")

    assert done.returncode == 0, done.stderr
    assert done.stderr == "out.csv: 3 documents of reports\n"
    rows = list(csv.DictReader(io.StringIO((reports.parent / "out.csv").read_text())))
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert rows[2]["reason"] == "'=too long"


def test_parquet_goes_to_a_file_and_through_a_pipe(reports: Path):
    done = batchyard("export", "reports", "--to", "out.parquet")

    assert done.returncode == 0, done.stderr
    table = pyarrow.parquet.read_table(reports.parent / "out.parquet")
    assert table.column("status").to_pylist() == ["succeeded", "succeeded", "needs_fix"]
    assert table.column("lang").to_pylist() == ["de"] * 3


def test_requests_are_exported_once_each_with_the_bytes_that_were_sent(
    reports: Path, server: FakeApi
):
    done = batchyard("export", "reports", "--batch-requests")

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    body = (reports / ".batchyard" / "requests-000.json").read_text()
    assert lines == json.loads(body)["requests"]  # not those of the round after it
    assert len(server.batches) == 2
    assert all(line in body for line in done.stdout.splitlines())


def test_a_run_under_way_exports_what_it_has_and_says_so(reports: Path, server: FakeApi):
    server.polls = 1_000_000
    rows = reports.parent / "rows.jsonl"
    rows.write_text(rows.read_text() + '{"id": "d", "lang": "fr", "text": "new"}\n')
    batchyard(
        "run", "rows.jsonl", "--prompt", "p.j2", "--model", "claude-opus-4-8", "--max-tokens",
        "4000", "--out", "reports", "--format", "md", "--base-url", server.url, "--yes",
        BATCHYARD_CRASH_AT="created_recorded",
    )  # fmt: skip

    done = batchyard("export", "reports", "--to", "-")

    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == "3 documents of reports; 1 have no outcome yet\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "xml"], "--format is xml; it is jsonl, csv, parquet"),
        (["--to", "no/x.csv"], "there is no such folder"),
        (["--batch-requests", "--format", "csv"], "--format is for results"),
    ],
)
def test_a_wrong_export_is_one_clear_line(reports: Path, options: list[str], said: str):
    done = batchyard("export", "reports", *options)

    assert done.returncode == 2
    assert said in done.stderr
