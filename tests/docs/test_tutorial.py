"""The tutorial is done from beginning to end: its programs, its commands, its kill."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from batchyard.server import config
from helpers_yard import Yard

TEXT = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
PROGRAMS = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [code for language, code in BLOCKS if language == "sh"]


def shell(command: str, folder: Path, url: str) -> str:
    """Give a command in the second terminal."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("BATCHYARD", "ANTH"))}
    done = subprocess.run(
        ["bash", "-e", "-c", command],
        cwd=folder,
        env=inherited
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        | {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "any", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_step_does_what_it_says(tmp_path: Path) -> None:
    create, look, results, documents, run = COMMANDS
    for name, program in zip(("create.py", "results.py"), PROGRAMS, strict=True):
        assert f"`{name}`" in TEXT
        (tmp_path / name).write_text(program, encoding="utf-8")
    settings = re.search(r"simulated:[^\"]*", TEXT)
    assert settings is not None

    with Yard(tmp_path / "yard", settings[0]) as yard:
        shell(create, tmp_path, yard.url)
        assert " of 1,000 done" in shell(look, tmp_path, yard.url)
        yard.kill()
    with Yard(tmp_path / "yard", settings[0].replace("latency=1", "latency=0")) as yard:
        told = shell(results, tmp_path, yard.url)
        shell(documents, tmp_path, yard.url)
        shell(run, tmp_path, yard.url)

    assert told.startswith("1000 results, 1000 ids\n")
    assert len(list((tmp_path / "reports").glob("*.md"))) == 5


def test_its_settings_are_read(tmp_path: Path) -> None:
    (settings,) = [code for language, code in BLOCKS if language == "toml"]
    file = tmp_path / "batchyard.toml"
    file.write_text(settings, encoding="utf-8")

    first, second = config.load(file=file, environment={"ANTHROPIC_API_KEY": "k"}).upstreams

    assert (first.models, first.slots, first.key) == (("qwen*",), 128, None)
    assert (second.models, second.limits[0].requests) == (("*",), 1_000)
    assert second.key == "k"
