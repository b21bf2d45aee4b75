"""What a terminal is given: bounded, escaped, and one line when something changed."""

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from batchyard.cli import ending, planned, render
from batchyard.cli.panel import Panel
from batchyard.client.inputs.documents import files
from batchyard.client.inputs.template import Template
from batchyard.client.planning.compare import Row
from batchyard.client.planning.plan import Settings, make
from batchyard.client.planning.pricing import Price
from batchyard.client.results import receipt
from batchyard.client.results.collect import Outcome
from batchyard.client.running.journal import Config, Phase, Shard, State
from batchyard.client.running.updates import Update


def shards(count: int, **fields: object) -> list[Shard]:
    return [Shard(index=i, requests=10, bytes=1, sha256="", **fields) for i in range(count)]


def panel_of(known: list[Shard], name: str = "reports") -> Panel:
    return Panel(name, known, saved=lambda: (7, 9))


def drawn(panel: Panel, width: int = 80, height: int = 14) -> list[str]:
    panel._console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with panel._console.capture() as capture:
        panel._console.print(panel._draw())
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_panel_fits_the_screen_however_many_shards_there_are(width: int):
    lines = drawn(panel_of(shards(400)), width)

    assert len(lines) <= 12
    assert all(len(line) <= width for line in lines)


def test_shards_under_way_are_shown_before_the_others():
    panel = panel_of(shards(400))
    panel.update(Update(kind="progress", shard=333, done=5, total=10))

    lines = drawn(panel)

    assert any(line.startswith("shard 333  at the server") for line in lines)
    assert lines[-1] == "… 391 more shards, 0 of them collected"


def test_documents_count_once_as_saved_however_many_shards_they_were_in():
    again = Shard(index=1, requests=2, bytes=1, sha256="", round=1, phase=Phase.COLLECTED)
    panel = panel_of([*shards(1, phase=Phase.COLLECTED), again])
    panel.update(Update(kind="saving", shard=2, done=1, total=2))
    panel.update(Update(kind="collected", shard=1, done=2, total=2))

    lines = drawn(panel)

    assert lines[0].startswith("8 of 9 saved, 14 of 14 requests done   reports")
    assert "10/10" in lines[1]


def test_text_of_others_cannot_act_on_the_terminal():
    assert render.safe("a\x1b[31mb\u202ec\r\x07") == r"a\x1b[31mb\u202ec\r\x07"
    panel = panel_of(shards(1), "x\x1b]0;title\x07")
    panel.update(Update(kind="waiting", shard=0, text="[red]bad\x1b[2J[/red]"))

    text = "\n".join(drawn(panel, 120))

    assert "\x1b]0" not in text
    assert "\x1b[2J" not in text
    assert r"[red]bad\x1b[2J[/red]" in text


def test_the_ending_counts_every_written_report_as_saved():
    config = Config(model="m", max_tokens=1, prompt="p", prompt_sha256="0", shard_requests=9)
    state = State("r", config, (Shard(index=0, requests=4, bytes=1, sha256=""),), 1)
    kinds = ("succeeded", "truncated", "paused", "refused")
    outcomes = [Outcome(key=k, custom_id=k, class_=k, type=k) for k in kinds]
    done = receipt.make(state, [(0, outcome) for outcome in outcomes], 2)

    lines = ending.lines("reports", done, [], errors="errors.jsonl")

    assert done.saved == 3
    assert lines == ["done reports   3 saved (1 paused, 1 cut short) · 1 refused"]


def test_plain_lines_say_a_thing_once(capsys: pytest.CaptureFixture[str]):
    lines = render.Lines()
    for _ in range(3):
        lines.update(Update(kind="waiting", shard=0, text="503 overloaded"))
    lines.update(Update(kind="saving", shard=0, done=1, total=2))

    assert capsys.readouterr().out == "shard 0: 503 overloaded\n"


def test_one_reason_is_one_line_though_each_refused_call_has_an_id(
    capsys: pytest.CaptureFixture[str],
):
    lines = render.Lines()
    for number in range(3):
        text = f"529 overloaded_error: busy (request req_{number})"
        lines.update(Update(kind="waiting", shard=0, text=text))

    assert capsys.readouterr().out.count("529 overloaded_error: busy") == 1


def test_many_shards_leave_what_stands_above_the_panel_on_the_screen():
    lines = drawn(panel_of(shards(400)), 200, 60)

    assert len(lines) == 12
    assert lines[-1] == "… 390 more shards, 0 of them collected"


def test_a_narrow_panel_shows_how_long_it_takes_and_is_left():
    panel = panel_of([Shard(index=0, requests=10_000, bytes=1, sha256="")])
    for done in (0, 4_000):
        panel.update(Update(kind="progress", shard=0, done=done, total=10_000, retry_in_s=60.0))

    row = drawn(panel, 80)[1]

    assert re.search(r"4,000/10,000  \d:\d\d  about \d:\d\d left", row), row


def test_a_comparison_that_is_too_wide_is_two_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    names = ["claude-opus-4-8", "a-model-with-quite-a-long-name-of-its-own"]
    rows = [Row(name, 1_000_000, Price(1, 20_000_000, 30_000_000), 64_000, 1_024) for name in names]

    def shown(columns: int) -> list[str]:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        planned.comparison(rows)
        return capsys.readouterr().out.splitlines()

    wide, narrow = shown(200), shown(90)

    assert len(wide) == 3
    assert wide[0].split() == ["model", "low", "likely", "ceiling", "input", "output", "cap",
                               "cache", "from"]  # fmt: skip
    assert all(len(line) <= 90 for line in narrow)
    assert [line.split()[0] for line in narrow if line] == ["model", *names, "model", *names]
    assert narrow[0].split()[-1] == "input"
    assert narrow[4].split()[1:] == ["output", "cap", "cache", "from"]


def test_an_event_has_counts_only_where_something_is_counted(capsys: pytest.CaptureFixture[str]):
    events = render.Events()
    events.update(Update(kind="notice", text="busy"))
    events.update(Update(kind="progress", shard=0, done=0, total=5))

    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert told == [
        {"event": "notice", "text": "busy"},
        {"event": "progress", "shard": 0, "done": 0, "total": 5},
    ]


def test_only_what_differs_of_the_first_lines_is_shown_of_a_further_prompt(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    for name in ("a", "b"):
        (tmp_path / f"{name}.md").write_text(f"text of {name}")
    (tmp_path / "p.j2").write_text("Do this.\nAnd that.\n{{ text }}\nThank you.")
    settings = Settings(model="claude-opus-4-8", max_tokens=10)
    documents = files(str(tmp_path / "*.md")).read(outside=tmp_path / "out")
    plan = make(documents, Template(tmp_path / "p.j2"), None, settings)

    render.prompts(plan)
    short = capsys.readouterr().out
    render.prompts(plan, whole=True)
    whole = capsys.readouterr().out

    assert short.count("| Do this.") == 1
    assert "  | … 2 lines as in the first\n  | text of b\n" in short
    assert whole.count("| Do this.") == 2
