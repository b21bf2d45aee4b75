"""The official Python client's own tests, of two generations, against the emulator.

They come with its source distributions. None that reaches a server is skipped.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from helpers_clients import ROOT, SUITES, Emulator, require
from helpers_upstream import DEADLINE_S

if TYPE_CHECKING:
    from pathlib import Path

GA_BATCHES = "tests.api_resources.messages.test_batches"
BETA_BATCHES = "tests.api_resources.beta.messages.test_batches"
JSONL = "tests.decoders.test_jsonl"
GA_MODELS = "tests.api_resources.test_models"
BETA_MODELS = "tests.api_resources.beta.test_models"
GA_MESSAGES = "tests.api_resources.test_messages"
BETA_MESSAGES = "tests.api_resources.beta.test_messages"


@dataclass(frozen=True)
class Suite:
    """The tests of one generation."""

    folder: Path
    python: Path
    plugin: str
    passed: dict[str, int]
    """How many tests each module holds: for the loose and the strict client, and for aiohttp where
    it is asynchronous. All of them must pass; a skipped one would be one less."""
    left_out: str = ""
    """Name of a test that is not run."""


ALL = {
    "2": Suite(
        folder=SUITES / "python-2",
        python=ROOT / ".venv-suite" / "bin" / "python",
        plugin="tests._alias_httpx",  # as its pyproject.toml says
        passed={
            GA_BATCHES: 126,
            BETA_BATCHES: 126,
            JSONL: 10,
            GA_MODELS: 45,
            BETA_MODELS: 45,
            GA_MESSAGES: 60,
            BETA_MESSAGES: 60,
        },
        # Its five variants ask for models that are long gone and expect an answer; ours is 404.
        left_out="test_deprecated_model_warning",
    ),
    # Its tests of Messages are not run: their bodies break the rules of the API, such as a thinking
    # budget above max_tokens, and are refused at once.
    "0": Suite(
        folder=SUITES / "python-0",
        python=ROOT / ".venv-sdk0" / "bin" / "python",
        plugin="unskip",
        passed={
            GA_BATCHES: 97,
            BETA_BATCHES: 122,
            JSONL: 6,
            GA_MODELS: 45,
            BETA_MODELS: 45,
        },
    ),
}


@pytest.fixture(scope="module", params=ALL)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a suite and how often each outcome occurred, by module."""
    suite = ALL[request.param]
    require(suite.python, suite.folder / "tests" / "conftest.py")
    folder = tmp_path_factory.mktemp("suite")
    report = folder / "report.xml"
    files = [f"{module.replace('.', '/')}.py" for module in suite.passed]
    # Its own settings, but for the distribution over processes.
    settings = ["-o", "addopts=", "-p", suite.plugin, "-p", "no:cacheprovider"]
    if suite.left_out:
        settings += ["-k", f"not {suite.left_out}"]
    with Emulator(folder / "data", "--fixtures") as emulator:
        done = subprocess.run(
            [str(suite.python), "-B", "-m", "pytest", *settings, f"--junit-xml={report}", *files],
            cwd=suite.folder,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT / "tests" / "compat" / "python"),
                "TEST_API_BASE_URL": emulator.url,
            },
            timeout=4 * DEADLINE_S,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        assert "Traceback" not in emulator.read_log(), emulator.read_log()
    return suite, outcomes(report)


def outcomes(report: Path) -> dict[str, Counter[str]]:
    """Return how often each outcome occurred, by module."""
    found: dict[str, Counter[str]] = {}
    for case in ET.parse(report).iter("testcase"):
        parts = case.attrib["classname"].split(".")
        module = ".".join(part for part in parts if not part.startswith("Test"))
        kinds = [child.tag for child in case if child.tag in {"failure", "error", "skipped"}]
        found.setdefault(module, Counter())[kinds[0] if kinds else "passed"] += 1
    return found


def test_every_test_of_the_official_suite_passes_and_none_is_skipped(
    run: tuple[Suite, dict[str, Counter[str]]],
) -> None:
    suite, found = run
    assert found == {module: {"passed": count} for module, count in suite.passed.items()}
