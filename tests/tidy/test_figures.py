"""The tables that compare us with other systems are what the raw results say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("document", "options"), [("bench/README.md", []), ("README.md", ["--short"])]
)
def test_a_table_is_what_the_raw_results_give(document: str, options: list[str]) -> None:
    command = [sys.executable, str(ROOT / "bench" / "table.py"), *options]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.strip(), "no raw results"
    assert told in (ROOT / document).read_text(encoding="utf-8")
