"""The command is killed at every point that matters, and given again."""

import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

import helpers_seed
from batchyard.client.running.folder import Files
from client.commands import batchyard
from client.fake_api import FakeApi, errored, succeeded

POINTS = [
    "before_bodies",
    "before_run_event",
    "before_intent",
    "after_intent",
    "create_answered",
    "created_unrecorded",
    "created_recorded",
    "results_chunk",
    "results_before_rename",
    "downloaded_recorded",
    "report_before_rename:2",
    "report_written:2",
    "outcomes_written",
    "receipt_written",
]


def run(
    path: Path, server: FakeApi, crash_at: str = "", *more: str
) -> subprocess.CompletedProcess[str]:
    return batchyard(
        "run", str(path / "docs"), "--prompt", str(path / "p.j2"), "--model", "claude-opus-4-8",
        "--max-tokens", "50", "--out", str(path / "reports"), "--base-url", server.url, "--yes",
        *more, ANTHROPIC_API_KEY="k", BATCHYARD_CRASH_AT=crash_at, BATCHYARD_TEST_HURRY="50",
    )  # fmt: skip


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    for name in ("a.md", "b.md", "sub/c.md"):
        (tmp_path / "docs" / name).write_text(f"text of {name}")
    (tmp_path / "p.j2").write_text("About {{ text }}")
    return tmp_path


@pytest.mark.parametrize(("point", "is_yard"), [(p, y) for p in POINTS for y in (True, False)])
def test_a_killed_run_goes_on_with_one_batch_and_whole_reports(
    documents: Path, server: FakeApi, point: str, is_yard: bool
):
    server.is_yard, server.polls = is_yard, 0
    server.now = server.now.now(server.now.tzinfo)

    killed = run(documents, server, crash_at=point)
    again = run(documents, server)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert again.returncode == 0, again.stderr
    assert len(server.batches) == 1
    out = documents / "reports"
    assert {p.name: p.read_text() for p in out.rglob("*.md")} == {
        "a.md": "Report on a_Dmd.\n",
        "b.md": "Report on b_Dmd.\n",
        "c.md": "Report on sub_-c_Dmd.\n",
    }
    assert json.loads((out / "receipt.json").read_text())["saved"] == 3
    assert [p for p in out.rglob("*") if p.name.endswith(".partial")] == []
    assert again.stdout.splitlines()[-1].startswith("paid ")


def test_a_kill_while_it_is_found_out_whose_batch_it_is_leaves_nothing_behind(
    documents: Path, server: FakeApi
):
    """Another run over the same documents has a batch of the same size at the same time."""
    server.polls = 0
    server.now = server.now.now(server.now.tzinfo)
    ids = ("a_Dmd", "b_Dmd", "sub_-c_Dmd")
    server.accept([{"custom_id": each, "params": {"model": "m"}} for each in ids])
    server.fail("create", "drop")
    state = documents / "reports" / ".batchyard"

    killed = run(documents, server, crash_at="results_chunk")
    left = list(state.glob("candidate-*"))
    del server.batches["msgbatch_01"]  # now there is no doubt
    again = run(documents, server)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert left != []
    assert again.returncode == 0, again.stderr
    assert Files(documents / "reports").read_state().shards[0].batch == "msgbatch_02"
    assert list(state.glob("candidate-*")) == []


def test_a_prompt_that_was_shown_only_by_half_is_cleared_away(documents: Path, server: FakeApi):
    state = documents / "reports" / ".batchyard"
    killed = run(documents, server, crash_at="created_recorded")
    (state / "preview").mkdir(exist_ok=True)
    (state / "preview" / "1-a.md.txt.partial").write_text("About te")

    again = run(documents, server)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert again.returncode == 0, again.stderr
    assert [p for p in state.rglob("*") if p.name.endswith(".partial")] == []


GROWING = [
    "before_extension",
    "extension_bodies",
    "before_extended_event",
    "extended",
    "created_unrecorded:2",
    "downloaded_recorded:2",
    "outcomes_written:2",
    "collected_recorded:2",
    "tables_written",
    "receipt_written",
]


@pytest.mark.parametrize(("point", "is_yard"), [(p, y) for p in GROWING for y in (True, False)])
def test_a_run_that_is_killed_in_a_round_sends_that_round_once(
    documents: Path, server: FakeApi, point: str, is_yard: bool
):
    server.is_yard, server.polls = is_yard, 0
    server.now = server.now.now(server.now.tzinfo)
    server.outcomes["a_Dmd"] = errored("overloaded_error", "busy")

    killed = run(documents, server, crash_at=point)
    again = run(documents, server)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert again.returncode == 0, again.stderr
    sent = [[r["custom_id"] for r in batch.requests] for batch in server.batches.values()]
    assert sent == [["a_Dmd", "b_Dmd", "sub_-c_Dmd"], ["a_Dmd_R1"]]
    out = documents / "reports"
    assert {p.name: p.read_text() for p in out.rglob("*.md")} == {
        "a.md": "Report on a_Dmd_R1.\n",
        "b.md": "Report on b_Dmd.\n",
        "c.md": "Report on sub_-c_Dmd.\n",
    }
    receipt = json.loads((out / "receipt.json").read_text())
    assert (receipt["documents"], receipt["saved"]) == (3, 3)
    assert (out / "errors.jsonl").read_text() == ""


def test_a_run_that_is_killed_before_it_is_listed_is_listed_when_it_goes_on(
    documents: Path, server: FakeApi
):
    server.now = server.now.now(server.now.tzinfo)

    killed = run(documents, server, "run_unlisted")
    before = batchyard("ls").stdout
    run(documents, server)
    run(documents, server)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert before == ""
    assert batchyard("ls").stdout.count("finished, 3 documents, 3 saved") == 1


DELETING = ["batch_deleted", "batch_deleted:2"]


@pytest.mark.parametrize("point", DELETING)
def test_a_run_that_is_killed_while_it_deletes_deletes_the_others(
    documents: Path, server: FakeApi, point: str
):
    server.now = server.now.now(server.now.tzinfo)
    options = ("--delete-after-download", "--shard-size", "1")

    killed = run(documents, server, point, *options)
    left = len(server.batches)
    again = run(documents, server, "", *options)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert left == 3 - int(point[-1] if ":" in point else 1)
    assert again.returncode == 0, again.stderr
    assert server.batches == {}
    deleted = [call.path for call in server.calls if call.method == "DELETE"]
    assert len(deleted) == 4, "the one of which no answer was noted twice"
    assert len(set(deleted)) == 3
    assert server.count("POST", "/batches") == 3
    state = Files(documents / "reports").read_state()
    assert [shard.deleted for shard in state.shards] == [(shard.batch,) for shard in state.shards]


def test_a_run_that_is_killed_when_its_pilot_was_approved_sends_the_rest_once(
    documents: Path, server: FakeApi
):
    server.now = server.now.now(server.now.tzinfo)

    killed = run(documents, server, "approved", "--pilot", "1")
    piloted = len(server.batches)
    again = run(documents, server, "", "--pilot", "1")

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert again.returncode == 0, again.stderr
    assert (piloted, len(server.batches)) == (1, 2)
    assert len(list((documents / "reports").rglob("*.md"))) == 3


def test_a_run_that_is_killed_when_it_has_moved_goes_on_at_the_other_server(
    documents: Path, server: FakeApi, paid: FakeApi
):
    server.now = server.now.now(server.now.tzinfo)
    server.outcomes = {"a_Dmd": succeeded("", stop="refusal")}  # a bad pilot, so that it stops
    run(documents, server, "", "--pilot", "1")
    move = ("attach", str(documents / "reports"), "--approve", "--base-url", paid.url)

    killed = batchyard(*move, ANTHROPIC_API_KEY="k", BATCHYARD_CRASH_AT="moved")
    again = batchyard(*move, ANTHROPIC_API_KEY="k")

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert again.returncode == 3, "one was refused"
    assert (len(server.batches), len(paid.batches)) == (1, 1)
    assert len(list((documents / "reports").rglob("*.md"))) == 2


IMPORTING = [
    "import_unnoted",
    "results_before_rename:2",
    "import_unstarted",
    "import_started",
    "report_written:2",
    "import_uncollected:2",
    "import_unfinished",
]


@pytest.mark.parametrize("point", IMPORTING)
def test_an_import_that_is_killed_is_whole_when_it_is_given_again(
    tmp_path: Path, server: FakeApi, point: str
):
    for ids in (("a", "b"), ("c",)):
        server.accept([{"custom_id": each, "params": {"model": "m"}} for each in ids])
    command = ("import", "msgbatch_01", "msgbatch_02", "--out", str(tmp_path / "got"))
    given = {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_BASE_URL": server.url}

    killed = batchyard(*command, BATCHYARD_CRASH_AT=point, **given)
    again = batchyard(*command, **given)
    listed = batchyard("ls", "--json", **given).stdout.splitlines()

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert again.returncode == 0, again.stderr
    got = tmp_path / "got"
    assert {path.name: path.read_text() for path in got.glob("*.md")} == {
        f"{each}.md": f"Report on {each}.\n" for each in "abc"
    }
    receipt = json.loads((got / "receipt.json").read_text())
    assert (receipt["documents"], receipt["saved"]) == (3, 3)
    assert [json.loads(line)["path"] for line in listed] == [str(got)]
    assert [path for path in got.rglob("*") if path.name.endswith(".partial")] == []


ALL = (*POINTS, *GROWING, *DELETING, "approved", "moved", "run_unlisted", *IMPORTING)
KILLS = int(os.environ.get("BATCHYARD_RUN_KILLS", "2"))
DOCUMENTS = 12
POINTS_OF_LIFE = (
    *POINTS, *GROWING, "after_intent:2", "create_answered:2", "created_recorded:3",
    "results_chunk:2", "report_written:9", "outcomes_written:3", "before_extended_event:2",
    "extended:2", "extension_bodies:2", "collected_recorded:3",
)  # fmt: skip


def budgeted(path: Path, server: FakeApi, crash_at: str = "") -> subprocess.CompletedProcess[str]:
    return batchyard(
        "run", str(path / "docs"), "--prompt", str(path / "p.j2"), "--model", "claude-opus-4-8",
        "--max-tokens", "50", "--out", str(path / "reports"), "--base-url", server.url, "--yes",
        "--sample", "0", "--shard-size", "5", "--budget", "0.012",
        ANTHROPIC_API_KEY="k", BATCHYARD_CRASH_AT=crash_at, BATCHYARD_TEST_HURRY="50",
    )  # fmt: skip


def test_kills_at_random_points_with_rounds_a_budget_and_lost_answers(tmp_path: Path):
    """No second batch that is kept, no report twice or half, none missing."""
    draw = random.Random(helpers_seed.seed("BATCHYARD_RUN_SEED"))
    kills = runs = 0
    while kills < KILLS:
        folder = tmp_path / str(runs)
        kills += _one_life(folder, draw)
        shutil.rmtree(folder)
        runs += 1
    print(f"{kills} kills in {runs} runs: every document has one report, every shard one batch")


def _one_life(path: Path, draw: random.Random) -> int:
    """Kill one run several times, let it end, and check what there is; return the kills."""
    (path / "docs").mkdir(parents=True)
    for number in range(DOCUMENTS):
        (path / "docs" / f"n{number:02}.md").write_text(f"text of {number}")
    (path / "p.j2").write_text("About {{ text }}")
    server = FakeApi(is_yard=True, billing="batch", follows_time=True)
    usage = {"input_tokens": 10, "output_tokens": 30}
    for number in range(DOCUMENTS):
        name = f"n{number:02}_Dmd"
        for suffix in ("", "_R1", "_R2", "_R3"):
            server.outcomes[name + suffix] = succeeded(f"Report {number}.", usage=usage)
        if draw.random() < 0.4:
            server.outcomes[name] = errored("overloaded_error", "busy")
    server.fail("create", *(draw.choice([None, None, "drop", "accept_500"]) for _ in range(3)))
    server.fail("results", draw.choice([None, None, "cut", 503]))
    kills = 0
    try:
        for _ in range(draw.randrange(1, 5)):
            done = budgeted(path, server, crash_at=draw.choice(POINTS_OF_LIFE))
            kills += done.returncode == -signal.SIGKILL
        done = budgeted(path, server)
        assert done.returncode == 0, done.stdout + done.stderr
        _check_life(path, server)
    finally:
        server.close()
    return kills


def _check_life(path: Path, server: FakeApi) -> None:
    out = path / "reports"
    state = Files(out).read_state()
    kept = [shard.batch for shard in state.shards if shard.batch]
    assert sorted(kept) == sorted(server.batches), "a batch that no shard keeps, or two of one"
    assert len(set(kept)) == len(kept)
    sent = [r["custom_id"] for batch in server.batches.values() for r in batch.requests]
    assert len(set(sent)) == len(sent), "a request was sent twice"
    assert {p.name: p.read_text() for p in out.glob("*.md")} == {
        f"n{number:02}.md": f"Report {number}.\n" for number in range(DOCUMENTS)
    }
    receipt = json.loads((out / "receipt.json").read_text())
    assert (receipt["documents"], receipt["saved"]) == (DOCUMENTS, DOCUMENTS)
    assert receipt["paid_micros"] == DOCUMENTS * 400 <= 12_000
    assert [p for p in out.rglob("*") if p.name.endswith(".partial")] == []
