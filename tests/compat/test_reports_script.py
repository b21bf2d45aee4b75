"""The script of the tutorials runs unmodified against a yard: 500 READMEs in, 500 reports out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers_clients import CLIENTS, require
from helpers_upstream import DEADLINE_S
from helpers_yard import Yard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers_clients import Client

SCRIPT = Path(__file__).with_name("reports_script.py")
EXTENDED = "output-300k-2026-03-24"
NAMES = {f"proj_{number:03d}" for number in range(1, 501)}
PYTHONS = {name: client for name, client in CLIENTS.items() if name.startswith("python")}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Yard(tmp_path_factory.mktemp("yard") / "data", "simulated:") as yard:
        yield yard.url


def run_script(python: str, url: str, beta: str, folder: Path) -> None:
    done = subprocess.run(
        [python, str(SCRIPT), url, beta],
        cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("client", PYTHONS.values(), ids=PYTHONS)
def test_five_hundred_readmes_become_five_hundred_reports(
    client: Client, url: str, tmp_path: Path
) -> None:
    require(*client.needs)
    run_script(client.program[0], url, EXTENDED, tmp_path)

    reports = {path.stem: path.read_text() for path in (tmp_path / "reports").iterdir()}
    assert set(reports) == NAMES
    assert all(reports.values())
    assert not (tmp_path / "batch_errors.json").exists()
    assert (tmp_path / "batch_id.txt").read_text().startswith("msgbatch_")


def test_without_the_beta_each_request_is_refused_by_name_and_none_is_lost(
    url: str, tmp_path: Path
) -> None:
    run_script(sys.executable, url, "", tmp_path)

    errors = json.loads((tmp_path / "batch_errors.json").read_text())
    assert {error["id"] for error in errors} == NAMES
    assert all("max_tokens: 300000 > 128000" in error["error"] for error in errors)
    assert list((tmp_path / "reports").iterdir()) == []
