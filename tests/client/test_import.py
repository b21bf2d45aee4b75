"""Batches made elsewhere, brought into a folder that is a run from then on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from batchyard.client.imported import Importer, Wanted
from batchyard.client.running.folder import Files
from batchyard.clock import SystemClock
from client.commands import batchyard
from client.fake_api import FakeApi, errored, succeeded
from helpers_upstream import DEADLINE_S

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.client.results.receipt import Receipt


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")


def made(server: FakeApi, *custom_ids: str) -> list[dict[str, Any]]:
    """Make a batch as somebody's script would; return its requests."""
    message = {"role": "user", "content": "hello"}
    params = {"model": "claude-opus-4-8", "max_tokens": 9, "messages": [message]}
    requests = [{"custom_id": each, "params": params} for each in custom_ids]
    server.accept(requests)
    return requests


def taken(server: FakeApi, *arguments: str) -> subprocess.CompletedProcess[str]:
    return batchyard("import", *arguments, "--out", "got", "--base-url", server.url)


def test_a_batch_becomes_files_errors_and_a_receipt(tmp_path: Path, server: FakeApi):
    made(server, "request-1", "request-2", "../x")
    server.outcomes["request-2"] = errored("overloaded_error", "Overloaded")

    done = taken(server, "msgbatch_01")

    assert done.returncode == 3, done.stderr
    assert "next: the same `batchyard import` with `--requests FILE`" in done.stdout
    assert "batchyard retry" not in done.stdout, "it would be refused"
    assert (tmp_path / "got" / "request-1.md").read_text() == "Report on request-1.\n"
    assert (tmp_path / "got" / "__" / "x.md").read_text() == "Report on ../x.\n"
    [line] = (tmp_path / "got" / "errors.jsonl").read_text().splitlines()
    assert json.loads(line)["class"] == "retryable"
    receipt = json.loads((tmp_path / "got" / "receipt.json").read_text())
    assert receipt["paid_micros"] == 7_500  # two answers of 1,000 + 100 tokens, half price
    assert receipt["batches"] == ["msgbatch_01"]


def test_it_is_a_run_for_the_other_commands(tmp_path: Path, server: FakeApi):
    made(server, "one", "two")
    taken(server, "msgbatch_01")
    (tmp_path / "p.j2").write_text("{{ name }}: {{ text }}")

    assert "finished, 2 documents, 2 saved" in batchyard("status", "got").stdout
    assert batchyard("report", "got").returncode == 0
    assert [json.loads(x)["key"] for x in batchyard("export", "got").stdout.splitlines()] == [
        "two", "one",
    ]  # fmt: skip
    assert "2 in both: 2 same" in batchyard("diff", "got", "got").stdout
    assert "not known: the batch was made elsewhere" in batchyard("show", "got", "one").stdout
    assert "got, 2 documents" in batchyard("ls").stdout.replace("  finished", "")
    stage = batchyard(
        "run", "--from", "got", "--prompt", "p.j2", "--model", "claude-opus-4-8",
        "--max-tokens", "9", "--out", "next", "--base-url", server.url, "--yes",
    )  # fmt: skip
    assert stage.returncode == 0, stage.stderr
    assert (tmp_path / "next" / "one.md").exists()


def test_importing_twice_is_importing_once(tmp_path: Path, server: FakeApi):
    made(server, "one")
    taken(server, "msgbatch_01")
    before = (tmp_path / "got" / ".batchyard" / "journal.jsonl").read_bytes()
    calls = len(server.calls)

    done = taken(server, "msgbatch_01")

    assert done.returncode == 0, done.stderr
    assert len(server.calls) == calls
    assert (tmp_path / "got" / ".batchyard" / "journal.jsonl").read_bytes() == before


def test_a_folder_with_another_run_is_left_alone(server: FakeApi):
    made(server, "one")
    made(server, "two")
    taken(server, "msgbatch_01")

    done = taken(server, "msgbatch_02")

    assert done.returncode == 2
    assert "got holds another run" in done.stderr


def test_ids_of_several_batches_stay_apart(tmp_path: Path, server: FakeApi):
    made(server, "request-0", "only-here")
    made(server, "request-0")

    done = taken(server, "msgbatch_01", "msgbatch_02")

    assert done.returncode == 0, done.stderr
    names = {str(p.relative_to(tmp_path / "got")) for p in (tmp_path / "got").rglob("*.md")}
    assert names == {"only-here.md", "msgbatch_01/request-0.md", "msgbatch_02/request-0.md"}


def test_a_file_of_results_needs_no_server_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    lines = [
        {"custom_id": "a", "result": succeeded("A")},
        {"custom_id": "b", "result": {"type": "expired"}},
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + "{torn")

    done = batchyard("import", "results.jsonl", "--out", "got")

    assert done.returncode == 3, done.stderr
    assert "1 unreadable lines ignored" in done.stdout
    assert "1 saved" in done.stdout
    assert "1 expired" in done.stdout
    assert (tmp_path / "got" / "a.md").read_text() == "A\n"


def test_without_the_requests_nothing_can_be_sent_again(server: FakeApi):
    made(server, "one")
    server.outcomes["one"] = errored("overloaded_error", "Overloaded")
    taken(server, "msgbatch_01")

    done = batchyard("retry", "got", "--yes")

    assert done.returncode == 2
    assert "their requests are not known" in done.stderr
    assert len(server.batches) == 1
    assert batchyard("attach", "got").returncode == 3


def test_with_the_requests_what_failed_is_sent_again(tmp_path: Path, server: FakeApi):
    requests = made(server, "one", "two")
    server.outcomes["one"] = errored("overloaded_error", "Overloaded")
    taken(server, "msgbatch_01")
    (tmp_path / "sent.jsonl").write_text("".join(json.dumps(r) + "\n" for r in requests))

    again = taken(server, "msgbatch_01", "--requests", "sent.jsonl")
    done = batchyard("retry", "got", "--yes")

    assert again.returncode == 3, again.stderr
    assert len(server.batches) == 2, "an import sends nothing by itself"
    assert done.returncode == 0, done.stderr
    [sent] = server.batches["msgbatch_02"].requests
    assert sent == {"custom_id": "one_R1", "params": requests[0]["params"]}
    assert (tmp_path / "got" / "one.md").read_text() == "Report on one_R1.\n"
    exported = batchyard("export", "got", "--batch-requests")
    assert [json.loads(line) for line in exported.stdout.splitlines()] == requests


def test_requests_that_are_not_those_of_the_batch_are_refused(tmp_path: Path, server: FakeApi):
    made(server, "one")
    (tmp_path / "sent.jsonl").write_text('{"custom_id": "other", "params": {}}\n')

    done = taken(server, "msgbatch_01", "--requests", "sent.jsonl")

    assert done.returncode == 2
    assert "1 results have no request in sent.jsonl, the first is that of one" in done.stderr


def test_a_batch_that_has_not_ended_is_waited_for_and_a_kill_loses_nothing(
    tmp_path: Path, server: FakeApi
):
    server.is_yard, server.billing, server.polls = True, "standard", 1_000_000
    made(server, "one")
    process = subprocess.Popen(
        [sys.executable, "-m", "batchyard", "import", "msgbatch_01", "--out", "got",
         "--base-url", server.url],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "msgbatch_01 has not ended: waiting" in process.stdout.readline()
    process.kill()
    process.communicate(timeout=DEADLINE_S)
    for batch in server.batches.values():
        batch.polls_left = 1

    done = taken(server, "msgbatch_01")

    assert done.returncode == 0, done.stderr
    assert "1 of 1" not in done.stderr
    receipt = json.loads((tmp_path / "got" / "receipt.json").read_text())
    assert (receipt["basis"], receipt["basis_source"]) == ("standard", "server")


def test_results_that_come_cut_are_downloaded_again(tmp_path: Path, server: FakeApi):
    server.is_yard = True
    made(server, "one", "two")
    server.fail("results", "cut_quietly", "cut")

    done = taken(server, "msgbatch_01")

    assert done.returncode == 0, done.stderr
    assert "downloading again: the results are not complete" in done.stdout
    assert Files(tmp_path / "got").read_state().classes == {"succeeded": 2}


@pytest.mark.parametrize(
    ("names", "said", "code"),
    [
        (["msgbatch_none"], "msgbatch_none: 404 not_found_error", 3),
        (["no/such.jsonl"], "no/such.jsonl is no file, and not the id of a batch", 2),
        (["empty.jsonl"], "empty.jsonl holds no result", 2),
        (["msgbatch_01", "msgbatch_01"], "a batch is named twice", 2),
    ],
)
def test_what_cannot_be_imported_is_one_clear_line(
    tmp_path: Path, server: FakeApi, names: list[str], said: str, code: int
):
    (tmp_path / "empty.jsonl").write_text("{}\n")

    done = taken(server, *names)

    assert done.returncode == code
    assert said in done.stderr


def test_an_import_that_was_killed_after_any_event_goes_on(tmp_path: Path):
    for number in (1, 2):
        lines = [{"custom_id": f"r{number}-{each}", "result": succeeded("A")} for each in "xy"]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{number}.jsonl").write_text(text)
    whole = imported(tmp_path / "whole")
    journal = (tmp_path / "whole" / ".batchyard" / "journal.jsonl").read_bytes().splitlines(True)
    assert len(journal) == 12  # begun, two shards of five steps, finished

    for kept in range(len(journal)):
        out = tmp_path / f"cut-{kept}"
        shutil.copytree(tmp_path / "whole", out)
        (out / ".batchyard" / "journal.jsonl").write_bytes(b"".join(journal[:kept]))
        (out / "receipt.json").unlink()
        for shard in (0, 1):
            if not any(b'"collected"' in x and b'"shard":%d' % shard in x for x in journal[:kept]):
                (out / ".batchyard" / f"outcomes-00{shard}.jsonl").unlink()
                (out / f"r{shard + 1}-x.md").unlink()

        done = imported(out)

        assert done.classes == whole.classes == {"succeeded": 4}
        assert done.paid_micros == whole.paid_micros == 4 * 3_750
        assert sorted(p.name for p in out.glob("*.md")) == [
            "r1-x.md", "r1-y.md", "r2-x.md", "r2-y.md",
        ]  # fmt: skip


def imported(out: Path) -> Receipt:
    wanted = Wanted(out=out, names=("1.jsonl", "2.jsonl"))
    return Importer(wanted, clock=SystemClock(), pause=lambda _: False, tell=lambda _: None).run()
