"""One run's reports as the next one's documents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import Run, files, outputs_of
from batchyard.client.problems import InputError
from batchyard.client.running import changed
from client.commands import batchyard
from client.fake_api import FakeApi, errored, succeeded

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}},
    "required": ["title"],
    "additionalProperties": False,
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docs").mkdir()
    for name in ("a.md", "b.md"):
        (tmp_path / "docs" / name).write_text(f"text of {name}")
    (tmp_path / "first.j2").write_text("About {{ text }}")
    (tmp_path / "second.j2").write_text("{{ source }} {{ name }} {{ status }}: {{ text }}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    return tmp_path


def run(server: FakeApi, *sources: str, prompt: str, out: str) -> subprocess.CompletedProcess[str]:
    return batchyard(
        "run", *sources, "--prompt", prompt, "--model", "claude-opus-4-8", "--max-tokens", "50",
        "--out", out, "--base-url", server.url, "--yes", "--retries", "0",
    )  # fmt: skip


def prompts(server: FakeApi, batch: int = -1) -> dict[str, str]:
    requests: list[dict[str, Any]] = list(server.batches.values())[batch].requests
    return {r["custom_id"]: r["params"]["messages"][0]["content"] for r in requests}


def test_the_reports_of_a_run_are_the_documents_of_the_next(work: Path, server: FakeApi):
    first = run(server, "docs", prompt="first.j2", out="one")
    assert first.returncode == 0, first.stderr

    done = run(server, "--from", "one", prompt="second.j2", out="two")

    assert done.returncode == 0, done.stderr
    assert prompts(server) == {
        "a_Dmd": "one a succeeded: Report on a_Dmd.",
        "b_Dmd": "one b succeeded: Report on b_Dmd.",
    }
    assert sorted(path.name for path in (work / "two").glob("*.md")) == ["a.md", "b.md"]


def test_after_a_new_document_in_the_first_stage_the_second_sends_one(work: Path, server: FakeApi):
    run(server, "docs", prompt="first.j2", out="one")
    run(server, "--from", "one", prompt="second.j2", out="two")
    (work / "docs" / "c.md").write_text("new")
    run(server, "docs", prompt="first.j2", out="one")

    done = run(server, "--from", "one", prompt="second.j2", out="two")

    assert done.returncode == 0, done.stderr
    assert list(prompts(server).values()) == ["one c succeeded: Report on c_Dmd_R1."]
    assert [len(batch.requests) for batch in server.batches.values()] == [2, 2, 1, 1]


def test_values_columns_and_rows_go_from_stage_to_stage(work: Path, server: FakeApi):
    for key in ("x", "y"):
        server.outcomes[key] = succeeded(json.dumps({"title": f"T{key}"}))
    (work / "values.j2").write_text("{{ value.title }} {{ lang }} {{ input_text }} {{ text }}")
    rows = [{"id": "x", "lang": "de", "text": "eins"}, {"id": "y", "lang": "fr", "text": "deux"}]
    options: dict[str, Any] = {
        "model": "claude-opus-4-8", "max_tokens": 50, "base_url": server.url, "api_key": "k",
    }  # fmt: skip

    first = Run(
        "one", rows=rows, prompt="first.j2", returns=SCHEMA, formats=["json", "jsonl"], **options
    )
    with first:
        first.submit(first.plan(sample=0))
        list(first)
    second = Run("two", docs=first, prompt="values.j2", **options)
    with second:
        second.submit(second.plan(sample=0))
        keys = [doc.key for doc in second]

    third = Run("three", docs=outputs_of("one", "two"), prompt="first.j2", **options)
    with pytest.raises(InputError, match="two documents have the key x: one:x and two:x"):
        third.plan(sample=0)
    assert sorted(keys) == ["x", "y"]
    assert prompts(server)["y"] == 'Ty fr deux {"title": "Ty"}'


def test_documents_without_a_report_are_left_out_and_counted(work: Path, server: FakeApi):
    server.outcomes["b_Dmd"] = errored("invalid_request_error", "too long")
    run(server, "docs", prompt="first.j2", out="one")

    done = run(server, "--from", "one", prompt="second.j2", out="two")

    assert "1 document of one without a report left out (needs_fix 1)" in done.stdout
    assert list(prompts(server)) == ["a_Dmd"]


def test_a_run_under_way_is_no_input_and_the_error_says_what_finishes_it(
    work: Path, server: FakeApi
):
    server.polls = 1_000_000
    batchyard(
        "run", "docs", "--prompt", "first.j2", "--model", "claude-opus-4-8", "--max-tokens", "50",
        "--out", "one", "--base-url", server.url, "--yes", BATCHYARD_CRASH_AT="created_recorded",
    )  # fmt: skip

    done = run(server, "--from", "one", prompt="second.j2", out="two")

    assert done.returncode == 2
    assert "the run in one is not finished" in done.stderr
    assert "`batchyard attach one` finishes it" in done.stderr
    assert len(server.batches) == 1


@pytest.mark.parametrize(
    ("source", "said"),
    [("nowhere", "'nowhere' is not the output folder"), ("docs", "docs holds no run")],
)
def test_what_is_no_run_is_refused(work: Path, server: FakeApi, source: str, said: str):
    done = run(server, "--from", source, prompt="second.j2", out="two")

    assert done.returncode == 2
    assert said.replace("'", "") in done.stderr


def test_a_run_is_not_its_own_input(work: Path, server: FakeApi):
    run(server, "docs", prompt="first.j2", out="one")

    done = run(server, "--from", "one", prompt="second.j2", out="one")

    assert done.returncode == 2
    assert "one is the output folder itself" in done.stderr


def test_stages_and_files_are_documents_together(work: Path, server: FakeApi):
    run(server, "docs", prompt="first.j2", out="one")
    (work / "more").mkdir()
    (work / "more" / "z.md").write_text("text of z")
    (work / "both.j2").write_text("{{ text }}")

    done = run(server, "more", "--from", "one", prompt="both.j2", out="two")

    assert done.returncode == 0, done.stderr
    assert sorted(prompts(server)) == ["a_Dmd", "b_Dmd", "z_Dmd"]


def test_a_stage_can_be_read_again_from_another_folder(work: Path):
    assert changed.places(outputs_of("one")) == (f"run:{work / 'one'}",)


def test_an_unfinished_stage_is_refused_in_python_before_anything_is_sent(
    work: Path, server: FakeApi
):
    first = Run(
        "one", docs=files("docs"), prompt="first.j2", model="claude-opus-4-8", max_tokens=50,
        base_url=server.url, api_key="k",
    )  # fmt: skip
    with pytest.raises(InputError, match="is not the output folder of a run"):
        Run("two", docs=first, prompt="second.j2", model="m", max_tokens=5).plan(sample=0)


def test_columns_that_were_not_kept_are_kept_by_the_same_command_with_another_format(
    work: Path, server: FakeApi
):
    (work / "rows.csv").write_text("id,lang\nx,de\n")
    (work / "row.j2").write_text("About {{ id }}")
    (work / "lang.j2").write_text("{{ lang }}: {{ text }}")
    run(server, "rows.csv", prompt="row.j2", out="one")
    before = run(server, "--from", "one", prompt="lang.j2", out="two")
    assert "'lang' is undefined (document x; it has name, path, source, status" in before.stderr

    kept = run(
        server, "rows.csv", "--format", "md", "--format", "jsonl", prompt="row.j2", out="one"
    )
    done = run(server, "--from", "one", prompt="lang.j2", out="two")

    assert kept.returncode == done.returncode == 0, done.stderr
    assert [len(batch.requests) for batch in server.batches.values()] == [1, 1]
    assert prompts(server) == {"x": "de: Report on x."}
