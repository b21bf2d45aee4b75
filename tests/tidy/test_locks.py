"""What is installed is what was looked at: every lock has a hash for all that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
TYPESCRIPT = ROOT / "tests" / "compat" / "typescript"
_REQUIREMENT = re.compile(r"^([a-z0-9][a-z0-9._-]*)(?:\[[a-z,]+\])?==([^ ;\\]+)", re.MULTILINE)


def requirements(lock: Path) -> list[str]:
    """Return the requirements of a lock, each with the lines that belong to it."""
    return [part for part in re.split(r"\n(?=\S)", lock.read_text(encoding="utf-8")) if part]


def version_of(name: str, lock: str) -> str:
    text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
    return dict(_REQUIREMENT.findall(text))[name]


def packages() -> dict[str, Any]:
    found = json.loads((TYPESCRIPT / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    del found[""]  # ourselves
    assert found
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_requirement_is_one_version_with_its_hashes(lock: Path) -> None:
    for requirement in requirements(lock):
        assert _REQUIREMENT.match(requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


def test_every_npm_package_is_one_version_with_its_hash() -> None:
    for name, package in packages().items():
        assert package["version"], name
        assert package["integrity"].startswith("sha512-"), name


@pytest.mark.parametrize(
    "lock", [*LOCKS, TYPESCRIPT / "package-lock.json"], ids=lambda lock: lock.name
)
def test_no_lock_names_an_address(lock: Path) -> None:
    assert "://" not in lock.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("suite", "client"),
    [
        ("suite-python-2.lock", "suite.lock"),
        ("suite-python-2.lock", "dev.lock"),
        ("suite-python-0.lock", "sdk0.lock"),
    ],
)
def test_a_suite_is_that_of_the_client_that_it_tests(suite: str, client: str) -> None:
    assert version_of("anthropic", suite) == version_of("anthropic", client)


def test_the_clients_are_locked_at_the_versions_that_are_asked_for() -> None:
    asked = json.loads((TYPESCRIPT / "package.json").read_text(encoding="utf-8"))["dependencies"]
    locked = {
        name.removeprefix("node_modules/"): f"npm:{package['name']}@{package['version']}"
        for name, package in packages().items()
        if "name" in package
    }
    assert locked == asked
