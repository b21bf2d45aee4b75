"""The commands as a person or a script meets them: exit codes, what is printed where."""

import contextlib
import importlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
from itertools import chain
from pathlib import Path

import pytest

from batchyard import __version__
from batchyard.cli import main
from batchyard.cli.sections import SECTIONS
from batchyard.client.running.folder import Files, Lock
from client.commands import batchyard
from client.fake_api import FakeApi, errored
from helpers_upstream import DEADLINE_S


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docs").mkdir()
    for name in ("a.md", "b.md"):
        (tmp_path / "docs" / name).write_text(f"text of {name}")
    (tmp_path / "p.j2").write_text("About {{ text }}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    return tmp_path


OPTIONS = ["docs", "--prompt", "p.j2", "--model", "claude-opus-4-8", "--max-tokens", "50",
           "--out", "reports"]  # fmt: skip


def run(server: FakeApi, *more: str) -> subprocess.CompletedProcess[str]:
    return batchyard("run", *OPTIONS, "--base-url", server.url, *more)


def test_a_piped_run_prints_plain_lines_and_the_money_last(documents: Path, server: FakeApi):
    done = run(server, "--yes")

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "plan reports    2 documents, 1 shard, 284 bytes"
    assert "done reports   2 saved" in lines
    assert lines[-1].startswith("paid $0.0075")
    assert "\x1b" not in done.stdout


def test_without_anybody_to_ask_nothing_is_sent(documents: Path, server: FakeApi):
    done = run(server)

    assert done.returncode == 2
    assert "nothing was sent: there is nobody to ask, and --yes is not given" in done.stderr
    assert server.calls == []


def test_events_are_json_lines(documents: Path, server: FakeApi):
    done = run(server, "--yes", "--json")

    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert next(e["event"] for e in events) == "plan"
    assert events[-1]["event"] == "done"
    assert events[-1]["receipt"]["saved"] == 2


def test_with_json_every_line_of_every_command_is_an_object(documents: Path, server: FakeApi):
    address = ["--base-url", server.url]
    calls = [
        ["plan", *OPTIONS, *address, "--compare", "claude-haiku-4-5"],
        ["run", *OPTIONS, *address, "--yes"],
        ["run", *OPTIONS, *address, "--yes"],
        *([name, "reports"] for name in ("status", "report", "cancel", "attach")),
        ["retry", "reports", "--yes"],
        ["show", "reports", "a.md"],
        ["diff", "reports", "reports"],
        ["ls"],
    ]

    for call in calls:
        done = batchyard(*call, "--json")

        assert done.returncode == 0, (call, done.stderr)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines, call
        assert all(isinstance(line, dict) for line in lines), call
        if call[0] == "plan":
            events = [line["event"] for line in lines]
            assert events == ["prompt"] * 2 + ["plan"] + ["compare"] * 2
            assert lines[0]["text"] == "About text of a.md"


def test_documents_that_need_attention_give_exit_code_3(documents: Path, server: FakeApi):
    server.outcomes = {"a_Dmd": errored("invalid_request_error", "bad \x1b[31m [red]thing\u202e")}

    done = run(server, "--yes")

    assert done.returncode == 3
    assert "done reports   1 saved · 1 needs fix" in done.stdout
    assert r"bad \x1b[31m [red]thing\u202e" in done.stdout


def test_the_same_command_again_says_that_it_is_done(documents: Path, server: FakeApi):
    run(server, "--yes")
    before = len(server.calls)

    again = run(server)

    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("reports is finished")
    assert len(server.calls) == before


def test_changed_inputs_are_refused_with_what_changed(documents: Path, server: FakeApi):
    run(server, "--yes")
    (documents / "docs" / "a.md").write_text("other")
    (documents / "docs" / "new.md").write_text("new")
    (documents / "p.j2").write_text("Say {{ text }}")

    again = run(server, "--yes")

    assert again.returncode == 2
    assert "the prompt p.j2 has another text" in again.stderr
    assert "1 new document: new.md" in again.stderr
    assert "1 changed document: a.md" in again.stderr
    assert "1 document with another request: b.md" in again.stderr
    assert "--allow-prompt-change" in again.stderr
    assert "--fresh" in again.stderr


def test_fresh_starts_anew_and_keeps_the_old_state(documents: Path, server: FakeApi):
    run(server, "--yes")
    (documents / "docs" / "a.md").write_text("other")

    again = run(server, "--yes", "--fresh")

    assert again.returncode == 0, again.stderr
    assert len(server.batches) == 2
    assert (documents / "reports" / ".batchyard.1" / "journal.jsonl").exists()


def test_a_second_process_on_the_same_run_is_refused(documents: Path, server: FakeApi):
    run(server, "--yes")

    with Lock(documents / "reports"):
        second = run(server, "--yes")

    assert second.returncode == 2
    assert "another process works on reports" in second.stderr


def test_a_missing_key_is_said_before_anything_is_sent(
    documents: Path, server: FakeApi, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ANTHROPIC_API_KEY")

    done = run(server, "--yes")

    assert done.returncode == 2
    assert "there is no API key" in done.stderr


def test_a_server_that_refuses_leaves_the_run_to_be_continued(documents: Path, server: FakeApi):
    server.fail("list", 401)

    refused = run(server, "--yes")
    again = run(server)

    assert refused.returncode == 3
    assert "refuses: 401" in refused.stderr
    assert again.returncode == 0, again.stderr


def test_plan_without_a_sample_sends_and_writes_nothing(documents: Path, server: FakeApi):
    done = batchyard("plan", *OPTIONS, "--base-url", server.url, "--sample", "0")

    assert done.returncode == 0, done.stderr
    assert "price, batch" in done.stdout
    assert server.calls == []
    assert not (documents / "reports").exists()


def test_status_ls_and_report_tell_of_a_finished_run(documents: Path, server: FakeApi):
    done = run(server, "--yes")

    status, ls, report = batchyard("status", "reports"), batchyard("ls"), batchyard(
        "report", "reports"
    )  # fmt: skip

    assert "reports: finished, 2 documents, 2 saved, 1 of 1 shards collected" in status.stdout
    assert f"{documents}/reports  finished" in ls.stdout
    assert report.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]


def test_a_folder_without_a_run_is_said(documents: Path):
    done = batchyard("status", "docs")

    assert done.returncode == 2
    assert "docs holds no run" in done.stderr


def killed_at(point: str, server: FakeApi) -> None:
    killed = batchyard("run", *OPTIONS, "--base-url", server.url, "--yes", BATCHYARD_CRASH_AT=point)
    assert killed.returncode == -signal.SIGKILL


def test_status_without_a_key_shows_what_the_journal_says(
    documents: Path, server: FakeApi, monkeypatch: pytest.MonkeyPatch
):
    killed_at("created_recorded", server)
    monkeypatch.delenv("ANTHROPIC_API_KEY")

    done = batchyard("status", "reports")

    assert done.returncode == 0
    assert "shard 0   2 requests   at the server   msgbatch_01" in done.stdout
    assert "the server was not asked: there is no API key" in done.stderr
    assert batchyard("ls").stdout.endswith("  at the server, 2 documents, cost not known yet\n")
    assert json.loads(batchyard("ls", "--json").stdout)["paid_micros"] is None


def test_a_signal_leaves_the_run_and_attach_finishes_it(documents: Path, server: FakeApi):
    server.is_yard, server.billing, server.polls = True, "standard", 1_000_000
    process = subprocess.Popen(
        [sys.executable, "-m", "batchyard", "run", *OPTIONS, "--base-url", server.url, "--yes"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "created" in line:
            break
    process.send_signal(signal.SIGINT)
    _, aside = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 5
    assert re.search(r"come back with:  (batchyard|\S+ -m batchyard) attach reports/", aside)
    assert not server.batches["msgbatch_01"].canceled
    for batch in server.batches.values():
        batch.polls_left = 0
    attached = batchyard("attach", "reports")
    assert attached.returncode == 0, attached.stderr
    assert len(server.batches) == 1
    assert "no batch discount" in attached.stdout.splitlines()[-1]


def test_cancel_from_another_process_keeps_what_was_answered(documents: Path, server: FakeApi):
    server.is_yard, server.polls = True, 1_000_000
    killed_at("created_recorded", server)

    done = batchyard("cancel", "reports")

    assert done.returncode == 3, done.stderr
    assert "0 saved · 2 canceled" in done.stdout
    assert Files(documents / "reports").read_state().finished_us is not None


def test_on_a_terminal_there_is_a_question_and_a_panel(documents: Path, server: FakeApi):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "batchyard", "run", *OPTIONS, "--base-url", server.url],
        stdin=follower, stdout=follower, stderr=follower,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )  # fmt: skip
    os.close(follower)
    os.write(leader, b"y\n")
    shown = b""
    while True:
        try:
            piece = os.read(leader, 65_536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(leader)

    assert process.wait(DEADLINE_S) == 0
    text = shown.decode()
    assert "proceed? [y/N]" in text
    assert "Ctrl-C leaves, nothing is lost" in text
    assert "2 of 2 saved, 2 of 2 requests done" in text


def test_the_second_ctrl_c_leaves_at_once_and_gives_the_terminal_back(documents: Path):
    leader, follower = pty.openpty()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "batchyard", "run", *OPTIONS, "--base-url", url, "--yes",
             "--sample", "0"],
            stdin=follower, stdout=follower, stderr=follower,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        )  # fmt: skip
        shown = b""
        while b"Ctrl-C leaves" not in shown:
            shown += os.read(leader, 65_536)
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
    # What it has written may come in several pieces, and a moment after its end.
    while b"\x1b[?25h" not in shown[shown.rindex(b"\x1b[?25l") :]:
        readable, _, _ = select.select([leader], [], [], DEADLINE_S)
        assert readable, "the cursor is not shown again"
        shown += os.read(leader, 65_536)
    while select.select([leader], [], [], 0)[0]:
        shown += os.read(leader, 65_536)

    assert process.returncode == 5
    assert termios.tcgetattr(follower)[3] & termios.ECHO
    assert b"come back with" not in shown, "the second signal was not the one that ended it"
    os.close(leader)
    os.close(follower)


def test_a_crash_is_one_line_and_the_trace_is_in_the_log(
    documents: Path, server: FakeApi, monkeypatch: pytest.MonkeyPatch
):
    run(server, "--yes")
    (documents / "reports" / "receipt.json").unlink()
    (documents / "reports" / ".batchyard" / "outcomes-000.jsonl").write_text("{torn\n")

    done = batchyard("report", "reports")

    assert done.returncode == 2
    crashed = batchyard("attach", "reports")
    assert crashed.returncode == 1
    assert "Traceback" not in crashed.stderr
    assert "Traceback" in (documents / "reports" / ".batchyard" / "run.log").read_text()


SLOW = {"rich", "jinja2", "pyreqwest", "starlette", "sqlite3", "concurrent.futures", "email.utils"}
"""What takes long to import, and is not needed to look at a run."""


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], SLOW | {"msgspec", "batchyard.client"}),
        (["--version"], SLOW | {"batchyard.client"}),
        (["ls"], SLOW | {"batchyard.client.results.collect"}),
        (["status", "no-folder"], SLOW | {"batchyard.client.results.collect", "batchyard.models"}),
        (["run", "--help"], SLOW | {"batchyard.client"}),
    ],
)
def test_a_command_imports_only_what_it_needs(
    arguments: list[str], absent: set[str], documents: Path
):
    code = (
        "import sys, batchyard.cli.main as main\n"
        f"sys.argv[1:] = {arguments}\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert absent & set(done.stderr.split()) == set()
    assert "batchyard.cli.main" in done.stderr.split()


def test_the_list_of_commands_names_functions_that_are_there_and_fits_80_columns(
    documents: Path,
):
    done = batchyard("--help", COLUMNS="80")

    assert done.returncode == 0
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    for name, (module, function, about) in main.COMMANDS.items():
        assert f"  {name:<8} {about}\n" in done.stdout
        found = getattr(importlib.import_module(f"batchyard.cli.{module}"), function)
        assert found.__doc__
    assert "Did you mean 'run'?" in batchyard("rn").stderr


def test_the_help_of_a_run_has_each_option_in_one_section_of_80_columns(documents: Path):
    sections = list(chain.from_iterable(SECTIONS.values()))
    shown = {}
    for name in ("run", "plan"):
        done = batchyard(name, "--help", COLUMNS="80")
        assert done.returncode == 0
        assert all(len(line) <= 80 for line in done.stdout.splitlines())
        assert f"batchyard {name} notes/" in done.stdout
        shown[name] = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", done.stdout, re.MULTILINE))

    assert len(set(sections)) == len(sections)
    assert shown["run"] | shown["plan"] == set(sections)
    assert {"--prompt", "--budget"} <= shown["run"]
    assert "--budget" not in shown["plan"]


def test_the_plan_says_what_a_folder_leaves_out_and_what_is_empty(documents: Path, server: FakeApi):
    for name in ("a.html", "b.html", "rows.csv", ".hidden.pdf"):
        (documents / "docs" / name).write_text("x")
    (documents / "docs" / "blank.md").write_text(" \n")

    done = batchyard("plan", *OPTIONS, "--base-url", server.url)

    assert "skipped         3 files (.html 2, .csv 1): " in done.stdout
    assert "empty           1 document without any text (blank.md)" in done.stdout
    assert "if this server gives the half price" in done.stdout


def test_an_unknown_claude_model_is_warned_of_with_the_closest(documents: Path, server: FakeApi):
    done = batchyard("plan", *OPTIONS, "--base-url", server.url, "--model", "claude-opus-4.8")

    assert done.returncode == 0
    assert "claude-opus-4.8 is not a known model; the closest is claude-opus-4-8" in done.stdout


def test_a_wrong_option_of_the_server_is_told_before_documents_are_read(documents: Path):
    (documents / "none.md").write_bytes(b"\xff\xfe\x00")  # no text: reading it would fail
    done = batchyard("run", *OPTIONS, "--upstream", "x=simulated:", "--yes")
    assert done.returncode == 2
    assert "--upstream belongs to the server of --local" in done.stderr
    assert "none.md" not in done.stderr


@pytest.mark.parametrize("upstream", ["no-url", "x=ftp://host", "=http://host", "x=nonsense:"])
def test_a_wrong_upstream_is_refused_before_anything_is_written(documents: Path, upstream: str):
    done = batchyard("run", *OPTIONS, "--local", "--upstream", upstream, "--yes")

    assert done.returncode == 2
    assert "is not like NAME=https://host" in done.stderr
    assert not done.stdout
    assert not (documents / "reports").exists()


def test_without_a_key_no_folder_is_made(
    documents: Path, server: FakeApi, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ANTHROPIC_API_KEY")

    done = run(server, "--yes")

    assert "a yard without keys of its own takes any" in done.stderr
    assert not (documents / "reports").exists()


def test_status_of_a_file_is_one_clear_line(documents: Path):
    done = batchyard("status", "p.j2")

    assert done.returncode == 2
    assert done.stderr.startswith("batchyard: p.j2 is not a folder;")


def test_status_shows_why_an_upstream_is_not_called(documents: Path, server: FakeApi):
    server.is_yard, server.polls, server.paused = True, 1_000_000, {"claude": "401 bad key"}
    killed_at("created_recorded", server)

    shown, lines = batchyard("status", "reports"), batchyard("status", "reports", "--json")

    assert "  claude paused: 401 bad key\n" in shown.stdout
    assert json.loads(lines.stdout)["paused"] == {"claude": "401 bad key"}


def test_status_why_says_what_a_shard_waits_for_to_people_and_to_programs(
    documents: Path, server: FakeApi
):
    wait = {"pool": "up/m", "reason": "retrying", "detail": "1 request waits", "until": None}
    failing = {
        "custom_id": "c1", "tries": 2, "reason": "429", "reasons": {"429": 1, "500": 1},
        "message": "slow\x1b[2J", "is_over": False,
    }  # fmt: skip
    server.is_yard, server.polls = True, 1_000_000
    server.told = {"waiting": [wait], "calls": 5, "unknown_calls": 1, "failing": [failing]}
    killed_at("created_recorded", server)

    shown = batchyard("status", "reports", "--why")
    lines = batchyard("status", "reports", "--why", "--json")
    plain = batchyard("status", "reports", "--json")

    assert "retrying: 1 request waits (up/m)\n" in shown.stdout
    assert r"failed 2 times, 429 (1x), 500 (1x): c1: 429: slow\x1b[2J" in shown.stdout
    why = json.loads(lines.stdout)["why"]
    assert (why["waiting"], why["failing"]) == ([wait], [failing])
    assert (why["calls"], why["unknown_calls"]) == (5, 1)
    assert "why" not in json.loads(plain.stdout)


def test_a_refused_create_is_said_once_with_its_reason(documents: Path, server: FakeApi):
    server.is_yard = True
    server.fail("create", 503, 503)

    done = run(server, "--yes")

    assert done.returncode == 0, done.stderr
    assert "shard 0: no answer: 503 api_error: fault 503" in done.stdout


def test_a_file_of_the_run_that_cannot_be_written_is_one_line_and_exit_code_1(
    documents: Path, server: FakeApi, monkeypatch: pytest.MonkeyPatch
):
    Path("reports/.batchyard/requests-000.json.partial").mkdir(parents=True)

    done = run(server, "--yes")

    assert done.returncode == 1
    assert done.stderr == (
        "batchyard: reports/.batchyard/requests-000.json.partial cannot be used: Is a directory\n"
    )


def test_the_version_is_printed(documents: Path):
    done = batchyard("--version")

    assert (done.returncode, done.stdout) == (0, f"batchyard {__version__}\n")
