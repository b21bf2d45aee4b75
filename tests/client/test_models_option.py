"""`--models`: a table of models of one's own, in the real program."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

OWN = """
[[model]]
ids = ["qwen3-8b"]
max_output = 8192
cache_min = 0
generic = true
"""


def plan(folder: Path, *options: str, tokens: int, **environment: str) -> tuple[int, str]:
    (folder / "d.md").write_text("text")
    (folder / "p.j2").write_text("{{ text }}")
    done = subprocess.run(
        [sys.executable, "-m", "batchyard", "plan", "d.md", "--prompt", "p.j2", "--out", "r",
         "--model", "qwen3-8b", "--max-tokens", str(tokens), *options],
        cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_the_file_sets_the_cap_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    assert plan(tmp_path, tokens=9_000)[0] == 0
    assert plan(tmp_path, "--models", "own.toml", tokens=8_192)[0] == 0
    code, error = plan(tmp_path, "--models", "own.toml", tokens=8_193)
    assert code == 2
    assert "d.md: invalid_request_error: max_tokens: 8193 > 8192" in error


def test_the_environment_names_the_file_too(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    code, error = plan(tmp_path, tokens=8_193, BATCHYARD_MODELS="own.toml")
    assert (code, "8193 > 8192" in error) == (2, True)


def test_a_file_that_cannot_be_used_is_a_mistake_of_the_command(tmp_path: Path) -> None:
    assert plan(tmp_path, "--models", "none.toml", tokens=5) == (
        2,
        "batchyard: none.toml: the table of models cannot be read: No such file or directory\n",
    )
    (tmp_path / "own.toml").write_text(OWN + "prefil = false\n")
    assert plan(tmp_path, "--models", "own.toml", tokens=5) == (
        2,
        "batchyard: own.toml: model qwen3-8b: Object contains unknown field `prefil`\n",
    )


def test_names_of_models_are_compared_and_only_a_plan_does_that(tmp_path: Path) -> None:
    named = ("--models", "claude-opus-4-8,claude-haiku-4-5")
    (tmp_path / "d.md").write_text("text")
    (tmp_path / "p.j2").write_text("{{ text }}")
    said = {}
    for command in ("plan", "run"):
        done = subprocess.run(
            [sys.executable, "-m", "batchyard", command, "d.md", "--prompt", "p.j2", "--out", "r",
             "--model", "claude-opus-4-8", "--max-tokens", "5", "--sample", "0", *named],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        said[command] = (done.returncode, done.stdout, done.stderr)
    assert said["plan"][0] == 0, said["plan"]
    assert said["plan"][1].count("claude-haiku-4-5") == 1
    assert said["run"][0] == 2
    assert "`batchyard plan --models` compares models" in said["run"][2]
