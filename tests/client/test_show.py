"""One document of a run from the prompt to the answer, as a person reads it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from client.commands import batchyard
from client.fake_api import FakeApi, succeeded

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = [
    {"type": "thinking", "thinking": "let me see", "signature": "s"},
    {
        "type": "text",
        "text": "It is \x1b[31mred\x1b[0m.",
        "citations": [
            {"type": "page_location", "document_title": "Guide", "start_page_number": 3,
             "cited_text": "red indeed"},
        ],
    },
    {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "sky"}},
]  # fmt: skip


@pytest.fixture
def reports(tmp_path: Path, server: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docs").mkdir()
    for name in ("a.md", "b.md"):
        (tmp_path / "docs" / name).write_text(f"text of\t{name}\n\x1b]0;title\x07")
    (tmp_path / "p.j2").write_text("About {{ text }}")
    (tmp_path / "s.j2").write_text("Be brief.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    server.outcomes["a_Dmd"] = succeeded("", stop="end_turn", content=CONTENT)
    server.outcomes["b_Dmd"] = succeeded("half", stop="pause_turn")
    start(server)
    return tmp_path / "reports"


def start(server: FakeApi, **environment: str) -> subprocess.CompletedProcess[str]:
    return batchyard(
        "run", "docs", "--prompt", "p.j2", "--system", "s.j2", "--model", "claude-opus-4-8",
        "--max-tokens", "4000", "--param", 'stop_sequences=["END"]', "--out", "reports",
        "--base-url", server.url, "--yes", **environment,
    )  # fmt: skip


def test_prompt_parameters_and_answer_are_readable_and_harmless(reports: Path):
    done = batchyard("show", "reports", "a.md")

    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[:2] == ["document        a.md", "status          succeeded"]
    assert re.fullmatch(r"request         a_Dmd\S*, msgbatch_01", lines[2])
    assert "cost            $0.003750" in lines
    assert '                stop_sequences: ["END"]' in lines
    text = done.stdout
    assert "system\n  | Be brief.\n" in text
    assert "prompt\n  | About text of   a.md\n  | \\x1b]0;title\\x07\n" in text
    assert "  | [thinking]\n  | let me see\n" in text
    assert "  | It is \\x1b[31mred\\x1b[0m.\n  | [1] Guide, page 3: “red indeed”\n" in text
    assert '  | [tool call look]\n  | {\n  |   "at": "sky"\n' in text


def test_all_tries_are_counted_and_paid_together(reports: Path):
    done = batchyard("show", "reports", "b.md")

    assert "tries           2: paused, succeeded" in done.stdout
    assert "cost            $0.007500 for all tries" in done.stdout
    assert "assistant\n  | [thinking]\n  | hm\n" in done.stdout, "what it was continued from"


def test_raw_is_the_line_as_received(reports: Path):
    done = batchyard("show", "reports", "a.md", "--raw")

    assert done.stdout in (reports / ".batchyard" / "results-000.jsonl").read_text()
    custom_id = json.loads(done.stdout)["custom_id"]
    assert custom_id.startswith("a_Dmd")
    assert batchyard("show", "reports", custom_id, "--raw").stdout == done.stdout


def test_raw_on_a_terminal_is_escaped(reports: Path):
    leader, follower = pty.openpty()
    raw = reports / ".batchyard" / "results-000.jsonl"
    raw.write_text(raw.read_text().replace("\\u001b", "\u009b"))  # a control that JSON lets through
    process = subprocess.Popen(
        [sys.executable, "-m", "batchyard", "show", "reports", "a.md", "--raw"], stdout=follower
    )
    assert process.wait(60) == 0
    os.close(follower)
    shown = b""
    while b"\n" not in shown:
        shown += os.read(leader, 65_536)
    os.close(leader)
    assert b"\\x9b[31mred" in shown


def test_json_has_everything_in_one_object(reports: Path):
    done = batchyard("show", "reports", "a.md", "--json")

    shown = json.loads(done.stdout)
    assert shown["params"]["stop_sequences"] == ["END"]
    assert shown["result"]["result"]["message"]["content"] == CONTENT
    assert (shown["status"], shown["cost_micros"]) == ("succeeded", 3_750)


def test_before_the_answer_there_is_the_prompt_and_where_it_stands(reports: Path, server: FakeApi):
    server.polls = 1_000_000
    (reports.parent / "docs" / "c.md").write_text("text of c.md")
    start(server, BATCHYARD_CRASH_AT="created_recorded")

    done = batchyard("show", "reports", "c.md")
    raw = batchyard("show", "reports", "c.md", "--raw")

    assert "status          at the server" in done.stdout
    assert "  | About text of c.md" in done.stdout
    assert raw.returncode == 2
    assert "there is no result of c.md yet: at the server" in raw.stderr


def test_an_unknown_document_is_told_with_some_that_are_known(reports: Path):
    done = batchyard("show", "reports", "nothing")

    assert done.returncode == 2
    assert "reports has no document nothing; it has a.md, b.md" in done.stderr
