"""Runs with a server of their own: the real one, in front of the simulated model."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import batchyard as package
from batchyard import Run, files
from batchyard.client.api import Api
from batchyard.client.problems import InputError, InputsChanged, NeedsAttention
from batchyard.client.running.folder import Files
from batchyard.client.running.local import RESTARTS_MAX, LocalYard, find_running
from client.commands import batchyard


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docs").mkdir()
    for number in range(12):
        (tmp_path / "docs" / f"d{number:02}.md").write_text(f"# Project {number}\n\nIt parses.\n")
    (tmp_path / "p.j2").write_text("Describe this:\n{{ text }}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMAND = ["run", "docs", "--prompt", "p.j2", "--model",
           "claude-opus-4-8", "--max-tokens", "4000", "--out", "reports", "--local", "--yes",
           "--shard-size", "4"]  # fmt: skip


def command(crash_at: str = "") -> subprocess.CompletedProcess[str]:
    return batchyard(*COMMAND, BATCHYARD_CRASH_AT=crash_at)


def test_a_local_run_needs_no_key_and_says_what_it_is(documents: Path):
    done = command()

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "no API key: using the simulated model; reports are placeholders" in lines
    assert "done reports   12 saved" in lines
    assert lines[-1].startswith("simulated, nothing was charged; at list prices: would have paid $")
    assert len(list((documents / "reports").glob("*.md"))) == 12


# One point of each kind: the call is not made, made and not recorded, recorded, and while saving.
# All others, at random: `test_killed_servers.py`.
@pytest.mark.parametrize(
    "point", ["after_intent", "create_answered:2", "created_recorded:3", "report_written:6"]
)
def test_a_killed_local_run_goes_on_with_one_batch_per_shard(documents: Path, point: str):
    killed = command(point)
    again = command()

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert again.returncode == 0, again.stderr
    state = Files(documents / "reports").read_state()
    assert [shard.generation for shard in state.shards] == [0, 0, 0]
    receipt = json.loads((documents / "reports" / "receipt.json").read_text())
    assert receipt["classes"] == {"succeeded": 12}
    assert len(set(receipt["batches"])) == 3
    assert batches_of_the_yard(documents) == set(receipt["batches"])


def batches_of_the_yard(documents: Path) -> set[str]:
    state = Files(documents / "reports")
    yard = LocalYard(state.yard, state.yard_log, ["sim=simulated:"])
    api = Api(yard.start(lambda _: False, lambda _: None), "local")
    try:
        return {batch.id for batch in api.list_page().data}
    finally:
        api.close()
        assert yard.stop()


def library_run(documents: Path, **options) -> Run:
    settings = {"model": "claude-opus-4-8", "max_tokens": 4_000, "local": True} | options
    return Run("reports", docs=files("docs"), prompt="p.j2", **settings)


def test_the_library_yields_every_document_when_its_report_is_on_disk(documents: Path):
    with library_run(documents) as run:
        run.submit(run.plan())
        reports = {doc.key: doc for doc in run}
        receipt = run.report()

    assert len(reports) == 12
    assert all(doc.status == "succeeded" for doc in reports.values())
    assert all(doc.text and doc.text == doc.path.read_text() for doc in reports.values())
    assert sum(doc.cost_micros for doc in reports.values()) == receipt.paid_micros == 0


def test_iteration_that_was_broken_off_is_taken_up_by_another_run(documents: Path):
    with library_run(documents, shard_size=4) as run:
        run.submit(run.plan())
        first = next(iter(run)).key

    with library_run(documents, shard_size=4) as again:
        again.submit(again.plan())
        keys = [doc.key for doc in again]

    assert len(keys) == len(set(keys)) == 12
    assert first in keys


def test_another_prompt_in_the_same_folder_is_refused(documents: Path):
    with library_run(documents) as run:
        run.submit(run.plan())
    (documents / "p.j2").write_text("Other: {{ text }}")

    with library_run(documents) as other, pytest.raises(InputsChanged, match="another text"):
        other.submit(other.plan())


def test_rows_are_documents_too(documents: Path):
    rows = [{"id": "contract_17", "text": "one"}, {"id": "a/b", "text": "two"}]
    with Run(
        "reports", rows=rows, prompt="p.j2", model="claude-opus-4-8", max_tokens=50, local=True
    ) as run:
        run.submit(run.plan())
        paths = {doc.key: str(doc.path) for doc in run}

    assert paths == {"contract_17": "reports/contract_17.md", "a/b": "reports/a/b.md"}


def test_a_run_needs_documents_of_one_kind():
    with pytest.raises(InputError, match="one of the two"):
        Run("reports", prompt="p.j2", model="m", max_tokens=1)


def test_a_server_that_does_not_start_is_explained_with_its_log(documents: Path):
    done = batchyard(*COMMAND, "--upstream", "x=simulated:nonsense=1")

    assert done.returncode == 3
    assert "the local server did not start" in done.stderr
    assert "nonsense" in done.stderr


class StubbornYard(LocalYard):
    """A yard with calls in flight: it ends only when somebody opens its FIFO."""

    fifo: Path
    started: subprocess.Popen[bytes]

    def _spawn(self) -> subprocess.Popen[bytes]:
        program = (
            'import os, sys; print(\'{"url": "http://x", "pid": 1}\', flush=True); '
            "open(sys.argv[1]).read(); print('bye')"
        )
        self.started = subprocess.Popen(
            [sys.executable, "-c", program, str(self.fifo)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        return self.started


@pytest.mark.timeout(60)
def test_leaving_a_yard_that_drains_does_not_wait_for_it(tmp_path: Path):
    yard = StubbornYard(tmp_path / "yard", tmp_path / "log", [])
    yard.fifo = tmp_path / "end"
    os.mkfifo(yard.fifo)

    assert yard.start(lambda _: False, lambda _: None) == "http://x"
    assert not yard.stop(0.01)

    yard.fifo.write_text("now")
    os.waitpid(yard.started.pid, 0)


def test_a_local_server_that_is_killed_is_started_again_and_the_run_ends(
    documents: Path,
):
    with library_run(documents, shard_size=4) as run:
        run.submit(run.plan())
        address = find_running(Files(documents / "reports").yard)
        assert address is not None
        os.kill(address.pid, signal.SIGKILL)
        reports = list(run)

    assert len(reports) == 12
    assert all(doc.status == "succeeded" for doc in reports)


class ShortLivedYard(LocalYard):
    """A yard that ends as soon as it has started."""

    def _spawn(self) -> subprocess.Popen[bytes]:
        program = 'print(\'{"url": "http://x", "pid": 1}\')'
        self.started = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self.started


def test_a_local_server_that_always_ends_is_given_up_with_its_log(tmp_path: Path):
    yard = ShortLivedYard(tmp_path / "yard", tmp_path / "yard.log", [])
    said: list[str] = []
    yard.start(lambda _: False, said.append)

    for _ in range(RESTARTS_MAX):
        yard.started.wait()
        yard.locate(lambda _: False, said.append)
    yard.started.wait()
    with pytest.raises(NeedsAttention, match=r"yard\.log"):
        yard.locate(lambda _: False, said.append)

    assert len(said) == RESTARTS_MAX
    assert yard.stop()


def test_after_a_failure_another_run_opens_the_folder_in_the_same_process(documents: Path):
    failed = library_run(documents)
    with pytest.raises(NeedsAttention):
        failed.report()

    with library_run(documents) as again:
        again.submit(again.plan())


def test_documents_of_the_wrong_type_are_explained():
    with pytest.raises(TypeError, match=r"write docs=files\("):
        Run("reports", docs="docs", prompt="p.j2", model="m", max_tokens=1)


def test_a_printed_plan_holds_no_documents(documents: Path):
    text = repr(library_run(documents).plan())

    assert "documents=12" in text
    assert len(text) < 200


def test_all_files_that_are_not_utf8_are_named_at_once(tmp_path: Path):
    for number in range(7):
        (tmp_path / f"{number}.md").write_bytes("é".encode("latin-1"))

    with pytest.raises(InputError) as caught:
        files(str(tmp_path)).read()

    lines = caught.value.message.splitlines()
    assert lines[0].startswith("7 files are no text")
    assert "byte 0 is 0xe9" in lines[1]
    assert "1.md is not UTF-8" in lines[2]
    assert lines[-1] == "  and 2 more"


def test_what_the_package_offers_is_listed_for_completion():
    assert {"Run", "files"} <= set(dir(package))


def test_a_pilot_of_a_simulated_model_shows_what_it_would_cost(documents: Path):
    done = batchyard(*COMMAND, "--pilot", "4")

    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("price  "))
    assert "simulated, nothing is charged; at list prices in batches: $0.0" in line
    assert "$0.00 " not in line
    assert "likely for the other 8" in line
