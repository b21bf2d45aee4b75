"""The tables of the page on growth are what the raw results say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_on_growth_shows_what_the_raw_results_give() -> None:
    command = [sys.executable, str(ROOT / "bench" / "scale.py"), "--table"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.count("\n| ") > 20, "no raw results"
    text = (ROOT / "docs" / "explanation" / "scale.md").read_text(encoding="utf-8")
    start, end = "<!-- begin: python bench/scale.py --table -->\n", "<!-- end -->"
    assert text.partition(start)[2].partition(end)[0] == told
