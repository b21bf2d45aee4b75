"""Answers that have to match a schema: sent, checked, asked for again, given back as objects."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pydantic
import pytest

from batchyard import Run
from batchyard.client.problems import InputError
from batchyard.client.running.tags import plain
from batchyard.testing import Emulator
from client.commands import batchyard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS = [{"id": name, "text": f"text of {name}"} for name in ("good", "late", "never")]
SCRIPT = """
[[request]]
custom_id = "good*"
outcome = "succeeded"
text = '''{ "title": "fine",
 "score": 7 }'''

[[request]]
custom_id = ["late", "late_R0*"]
outcome = "succeeded"
text = '{"title": "fine", "score": 11}'

[[request]]
custom_id = "late_R1*"
outcome = "succeeded"
text = '{"title": "better", "score": 9}'

[[request]]
custom_id = "never*"
outcome = "succeeded"
text = 'I had rather not.'
"""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
    },
    "required": ["title", "score"],
}


class Rating(pydantic.BaseModel):
    title: str
    score: int = pydantic.Field(ge=0, le=10)


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(script=SCRIPT) as running:
        yield running


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any")


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.j2"
    path.write_text("Rate {{ text }}")
    return path


def run_of(tmp_path: Path, prompt: Path, emulator: Emulator, **more: Any) -> Run:
    return Run(
        tmp_path / "out", rows=ROWS, prompt=prompt, model="claude-opus-4-8", max_tokens=500,
        base_url=emulator.url, **more,
    )  # fmt: skip


def finished(run: Run) -> dict[str, Any]:
    """Send everything and return the last word on each document."""
    with run:
        run.submit(run.plan(sample=0))
        return {doc.key: doc for doc in run}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_model_class_gives_objects_and_an_invalid_answer_is_asked_for_again(
    tmp_path: Path, prompt: Path, emulator: Emulator
):
    docs = finished(run_of(tmp_path, prompt, emulator, returns=Rating))

    assert docs["good"].value == Rating(title="fine", score=7)
    assert docs["late"].value == Rating(title="better", score=9)
    assert (docs["never"].status, docs["never"].value) == ("invalid", None)
    assert "JSON" in docs["never"].reason
    asked = json.loads((tmp_path / "out/.batchyard/requests-001.json").read_bytes())["requests"]
    turns = {plain(each["custom_id"]): each["params"]["messages"] for each in asked}
    assert turns["late_R1"][1]["role"] == "assistant"
    assert "$.score: Input should be less than or equal to 10" in turns["late_R1"][2]["content"]
    again = tmp_path / "out/.batchyard/requests-003.json"
    assert not again.exists()  # an invalid answer is asked for twice, and no more


def test_the_file_of_a_structured_answer_is_the_answer_as_received(
    tmp_path: Path, prompt: Path, emulator: Emulator
):
    finished(run_of(tmp_path, prompt, emulator, returns=SCHEMA, formats=["json", "jsonl"]))

    assert (tmp_path / "out/good.json").read_text() == '{ "title": "fine",\n "score": 7 }\n'
    rows = {row["key"]: row for row in lines(tmp_path / "out/results.jsonl")}
    assert rows["good"]["value"] == {"title": "fine", "score": 7}
    assert "text" not in rows["good"]
    assert rows["never"]["text"] == "I had rather not."
    assert not (tmp_path / "out/never.json").exists()


def test_the_schema_goes_out_by_the_native_output_format_beside_other_settings(
    tmp_path: Path, prompt: Path, emulator: Emulator
):
    params = {"output_config": {"effort": "low"}}
    run = run_of(tmp_path, prompt, emulator, returns=SCHEMA, params=params)

    sent = json.loads(run.plan(sample=0).requests[0].params)

    assert sent["output_config"]["effort"] == "low"
    assert sent["output_config"]["format"]["type"] == "json_schema"
    assert sent["output_config"]["format"]["schema"]["additionalProperties"] is False


def test_two_formats_of_answers_are_refused(tmp_path: Path, prompt: Path, emulator: Emulator):
    params = {"output_config": {"format": {"type": "json_schema", "schema": {}}}}

    with pytest.raises(InputError, match="the schema sets its format"):
        run_of(tmp_path, prompt, emulator, returns=SCHEMA, params=params)


def test_another_process_checks_answers_with_the_schema_of_the_journal(
    tmp_path: Path, prompt: Path, emulator: Emulator
):
    with run_of(tmp_path, prompt, emulator, returns=Rating) as run:
        run.submit(run.plan(sample=0))

    done = batchyard("attach", str(tmp_path / "out"))

    assert done.returncode == 3, done.stderr
    assert [row["key"] for row in lines(tmp_path / "out/errors.jsonl")] == ["never"]
    assert (tmp_path / "out/late.json").read_text() == '{"title": "better", "score": 9}\n'


def test_a_schema_file_on_the_command_line(tmp_path: Path, prompt: Path, emulator: Emulator):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    command = [
        "run", str(tmp_path / "rows.jsonl"), "--prompt", str(prompt), "--model",
        "claude-opus-4-8", "--max-tokens", "500", "--out", str(tmp_path / "out"), "--yes",
        "--base-url", emulator.url, "--sample", "0", "--name", "{{ id }}/rating.json",
    ]  # fmt: skip

    done = batchyard(*command, "--schema", str(tmp_path / "schema.json"))

    assert done.returncode == 3, done.stderr
    assert "1 invalid: the answer is not JSON" in done.stdout
    assert (tmp_path / "out/late/rating.json").read_text() == '{"title": "better", "score": 9}\n'
    other = {**SCHEMA, "required": ["title", "score", "more"]}
    (tmp_path / "schema.json").write_text(json.dumps(other))
    refused = batchyard(*command, "--schema", str(tmp_path / "schema.json"))
    assert refused.returncode == 2
    assert "#/required: a list of names that are in properties" in refused.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "xml"], "--format is xml; it is md, json, jsonl, csv, parquet"),
        (["--format", "json"], "--format json needs --schema"),
        (["--schema", "nowhere.json"], "the schema nowhere.json cannot be read"),
        (["--audit", "/no/such/folder/audit.jsonl"], "there is no such folder"),
        (["--name", "{{ key }}", "--format", "csv"], "--name is for files of documents"),
        (["--name", "same.md"], "a.txt and b.txt would both be same.md"),
    ],
)
def test_an_option_that_cannot_be_kept_is_refused_before_anything_is_sent(
    tmp_path: Path, prompt: Path, options: list[str], says: str
):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x" + name)
    done = batchyard(
        "run", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "--prompt", str(prompt),
        "--model", "claude-opus-4-8", "--max-tokens", "5", "--out", str(tmp_path / "out"), "--yes",
        "--base-url", "http://127.0.0.1:1", *options,
    )  # fmt: skip

    assert done.returncode == 2, done.stdout
    assert says in done.stderr
    assert not (tmp_path / "out/.batchyard").exists()
