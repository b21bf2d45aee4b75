"""Two runs over the same inputs, compared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from client.commands import batchyard
from client.fake_api import FakeApi, errored, succeeded

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

SCHEMA = {
    "type": "object",
    "properties": {
        "score": {"type": "integer"},
        "author": {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
            "additionalProperties": False,
        },
    },
    "required": ["score", "author"],
    "additionalProperties": False,
}


@pytest.fixture
def work(documents: Path) -> Path:
    (documents / "schema.json").write_text(json.dumps(SCHEMA))
    return documents


def run(
    server: FakeApi, out: str, *more: str, model: str = "claude-opus-4-8"
) -> subprocess.CompletedProcess[str]:
    return batchyard(
        "run", "docs", "--prompt", "p.j2", "--model", model, "--max-tokens", "50", "--out", out,
        "--base-url", server.url, "--yes", "--retries", "0", *more,
    )  # fmt: skip


def answers(server: FakeApi, **texts: str) -> None:
    for name, text in texts.items():
        server.outcomes[f"{name}_Dmd"] = succeeded(text)


def rated(score: int, name: str) -> str:
    return json.dumps({"author": {"name": name}, "score": score})


def test_answers_costs_and_what_only_one_has_stand_beside_each_other(work: Path, server: FakeApi):
    answers(server, a="same", b="this", c="c")
    run(server, "one")
    (work / "docs" / "c.md").unlink()
    (work / "docs" / "d.md").write_text("text of d.md")
    answers(server, b="that", d="d")
    for name in ("a", "b", "d"):
        server.outcomes[f"{name}_Dmd"]["message"]["model"] = "claude-haiku-4-5"
    run(server, "two", model="claude-haiku-4-5")

    done = batchyard("diff", "one", "two")

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "                A  one                          B  two"
    assert lines[1] == "model           claude-opus-4-8                 claude-haiku-4-5"
    assert "cost            $0.0112                         $0.002250" in lines
    assert "per document    $0.003750                       $0.000750" in lines
    assert "2 in both: 1 same (50.0 %), 1 different · only in A 1 · only in B 1" in lines
    assert lines[lines.index("different") + 1] == "  b.md"
    assert max(map(len, lines)) <= 80


def test_agreement_is_told_for_every_field_of_structured_answers(work: Path, server: FakeApi):
    answers(server, a=rated(1, "x"), b=rated(2, "x"), c=rated(3, "x"))
    run(server, "one", "--schema", "schema.json")
    spaced = '{ "score": 1,\n "author": {"name": "x"} }'  # the same value in other letters
    answers(server, a=spaced, b=rated(2, "y"), c=rated(4, "y"))
    run(server, "two", "--schema", "schema.json")

    done = batchyard("diff", "one", "two")
    lines = [json.loads(x) for x in batchyard("diff", "one", "two", "--json").stdout.splitlines()]

    assert "3 in both: 1 same (33.3 %), 2 different" in done.stdout
    fields = {x.split()[0]: x.split()[1:] for x in done.stdout.splitlines() if x.endswith(" %")}
    assert fields == {"author.name": ["1", "3", "33.3", "%"], "score": ["2", "3", "66.7", "%"]}
    assert "  c.md: author.name, score" in done.stdout
    assert [line["what"] for line in lines[:-1]] == ["same", "different", "different"]
    assert lines[1]["fields"] == ["author.name"]
    assert lines[-1]["fields"]["score"] == {"documents": 3, "equal": 2, "percent": 66.7}
    assert lines[-1]["a"]["per_document_micros"] == 3_750


def test_one_document_is_shown_line_by_line_and_escaped(work: Path, server: FakeApi):
    answers(server, a="first\nsecond\x1b[2J\nthird")
    run(server, "one")
    answers(server, a="first\nother\nthird")
    run(server, "two")

    done = batchyard("diff", "one", "two", "--key", "a.md")
    same = batchyard("diff", "one", "two", "--key", "b.md")

    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "--- one: a.md", "+++ two: a.md", "@@ -1,3 +1,3 @@", " first", "-second\\x1b[2J",
        "+other", " third",
    ]  # fmt: skip
    assert same.stdout == "b.md: the answers are the same\n"


def test_a_document_that_one_run_did_not_answer_is_different(work: Path, server: FakeApi):
    run(server, "one")
    server.outcomes["a_Dmd"] = errored("invalid_request_error", "too long")
    server.outcomes["b_Dmd"] = succeeded("no", stop="refusal")
    run(server, "two")
    run(server, "three")

    done = batchyard("diff", "one", "two")
    alike = batchyard("diff", "two", "three")

    assert "  a.md: succeeded, needs_fix" in done.stdout
    assert "  b.md: succeeded, refused" in done.stdout
    assert "3 in both: 3 same (100.0 %)" in alike.stdout, "both ended without an answer, alike"


def test_other_inputs_are_counted(work: Path, server: FakeApi):
    run(server, "one")
    (work / "docs" / "a.md").write_text("changed")
    run(server, "two")

    done = batchyard("diff", "one", "two")

    assert "1 document had another input in the one than in the other" in done.stdout


def test_a_run_under_way_is_compared_as_far_as_it_is(work: Path, server: FakeApi):
    run(server, "one")
    server.polls = 1_000_000
    batchyard(
        "run", "docs", "--prompt", "p.j2", "--model", "claude-opus-4-8", "--max-tokens", "50",
        "--out", "two", "--base-url", server.url, "--yes", BATCHYARD_CRASH_AT="created_recorded",
    )  # fmt: skip

    done = batchyard("diff", "one", "two")

    assert done.returncode == 0, done.stderr
    assert "0 of 3 so far" in done.stdout
    assert "only in A 3" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["one", "none"], "none does not exist"), (["one", "one", "--key", "z"], "an outcome of z")],
)
def test_wrong_usage_is_one_clear_line(
    work: Path, server: FakeApi, arguments: list[str], said: str
):
    run(server, "one")

    done = batchyard("diff", *arguments)

    assert done.returncode == 2
    assert said in done.stderr
