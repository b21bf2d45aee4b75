"""What the documents show is run: the examples, the Python of the README and of the run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import batchyard
from helpers_yard import Yard

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
RUN = (ROOT / "docs" / "run.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", RUN, re.DOTALL)


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    """Run Python as a newcomer would: without a key unless one is given."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ANTHROPIC_", "BATCHYARD_", "XDG_"))
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=clean | {"XDG_STATE_HOME": str(cwd / "state")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def readmes(tmp_path: Path) -> Path:
    folder = tmp_path / "readmes"
    folder.mkdir()
    for number in range(3):
        (folder / f"project-{number}.md").write_text(f"Project {number} is a library.\n" * 9)
    return folder


def test_the_demo_collects_real_readmes_of_this_machine(tmp_path: Path) -> None:
    out = python(str(EXAMPLES / "collect_readmes.py"), "found", cwd=tmp_path)

    found = list((tmp_path / "found").glob("*.md"))
    assert f"collected {len(found)} READMEs" in out
    assert len([path for path in found if path.name.startswith("python-")]) >= 10
    assert all(path.stat().st_size >= 200 for path in found)


def test_the_example_of_the_library_writes_a_report_for_each_readme(
    readmes: Path, tmp_path: Path
) -> None:
    out = python(str(EXAMPLES / "reports.py"), str(readmes), "reports", cwd=tmp_path)

    assert "3 saved, simulated" in out
    assert sorted(path.name for path in (tmp_path / "reports").glob("*.md")) == [
        f"project-{number}.md" for number in range(3)
    ]


def test_the_readme_shows_two_python_programs() -> None:
    assert len(BLOCKS) == 2, "this file runs the first two; look at it when there are more"


def test_the_library_part_of_the_readme_runs_against_a_yard(readmes: Path, tmp_path: Path) -> None:
    template = EXAMPLES.joinpath("report.md.j2").read_text(encoding="utf-8")
    (tmp_path / "report.md.j2").write_text(template, encoding="utf-8")

    with Yard(tmp_path / "data", "simulated:") as yard:
        out = python(
            "-c",
            BLOCKS[0],
            cwd=tmp_path,
            ANTHROPIC_BASE_URL=yard.url,
            ANTHROPIC_API_KEY="any",
        )

    assert out.count("succeeded") >= 3, out
    assert len(list((tmp_path / "reports").glob("*.md"))) == len(list(readmes.iterdir()))


def test_the_errors_that_the_run_names_can_be_imported_and_no_others() -> None:
    named = re.findall(r"^\| `([A-Z]\w+)` \| ", RUN, re.MULTILINE)
    errors = [name for name in batchyard.__all__ if name not in {"AsyncRun", "Run"}]

    assert {*named, "BatchyardError", "files", "outputs_of"} == set(errors)
    for name in named:
        assert issubclass(getattr(batchyard, name), batchyard.BatchyardError), name


def test_the_programs_of_the_run_run_against_a_yard(readmes: Path, tmp_path: Path) -> None:
    for name in ("report.md.j2", "rate.md.j2", "summary.md.j2"):
        (tmp_path / name).write_text("Say something of this:\n{{ text }}", encoding="utf-8")
    assert len(PROGRAMS) == 4, "this test runs four; look at it when there are more"
    found = []
    with Yard(tmp_path / "data", "simulated:?latency=0") as yard:
        given = {"ANTHROPIC_BASE_URL": yard.url, "ANTHROPIC_API_KEY": "any"}
        for program in PROGRAMS:  # the last one reads the reports of the others
            out = python("-c", program, cwd=tmp_path, **given)
            found.append([line.split() for line in out.splitlines() if line.strip()])

    names = {path.name for path in readmes.iterdir()}
    for lines in found:
        assert {line[0] for line in lines} >= names, found
    statuses = [{line[1] for line in lines if line[0] in names} for lines in found]
    assert statuses[0] <= {"succeeded", "invalid"}, "a simulated score is any number"
    assert statuses[1:3] == [{"succeeded"}] * 2
    assert sorted(path.name for path in (tmp_path / "summaries").glob("*.md")) == sorted(names)


def test_the_server_part_of_the_readme_runs_with_the_official_client(tmp_path: Path) -> None:
    request = {
        "custom_id": "a",
        "params": {
            "model": "claude-opus-4-6",
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "hi"}],
        },
    }
    with Yard(tmp_path / "data", "simulated:") as yard:
        program = BLOCKS[1].replace("http://127.0.0.1:8787", yard.url)
        program = program.replace("[...]", f"[{request!r}]") + "\nprint(batch.request_counts)\n"
        out = python("-c", program, cwd=tmp_path)

    assert "processing=1" in out
