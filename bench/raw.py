"""Raw results: one small JSON file for each command, kept in the repository."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yard

import batchyard

if TYPE_CHECKING:
    import argparse

RESULTS = Path(__file__).parent / "results"


def add_write(parser: argparse.ArgumentParser) -> None:
    """Add the option for programs that print a line, and keep what is behind it if asked to."""
    parser.add_argument("--write", action="store_true", help="keep the raw result in bench/results")


def keep(name: str, work: dict[str, Any], **found: Any) -> Path:
    """Write the raw result of a command.

    Args:
        name: of the file.
        work: what was done. With a `kind` it is in the tables of bench/table.py.
        found: what came of it, each run with its load.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "name": name,
        "work": work,
        "command": shlex.join(_command()),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": yard.machine(),
        "commit": commit(),
        "load_at_end": [round(value, 2) for value in os.getloadavg()],
        **found,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def load() -> float:
    """Return how many processes wanted a core in the last minute."""
    return round(os.getloadavg()[0], 2)


def commit() -> str:
    """Return the commit of the source that runs, and whether it has been changed since."""
    source = str(Path(batchyard.__file__).parent)

    def git(*arguments: str) -> str:
        command = ["git", "-C", source, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = " with changes" if git("status", "--porcelain", source) else ""
    return f"{git('rev-parse', '--short', 'HEAD') or 'no commit'}{changed}"


def _command() -> list[str]:
    program = Path(sys.argv[0]).resolve()
    return ["python", str(program.relative_to(Path(__file__).parents[1])), *sys.argv[1:]]
