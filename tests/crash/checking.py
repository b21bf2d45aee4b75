"""What must hold of a data directory whenever its yard is dead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard.verify import Finding, check

if TYPE_CHECKING:
    from pathlib import Path

    from helpers_yard import Yard


def assert_holds(data: Path) -> None:
    """Check a data directory that no yard works on."""
    if not any((data / name).exists() for name in ("ledger.db", "segments")):
        return  # killed before it had made anything
    errors = errors_in(data)
    assert not errors, errors


def errors_in(data: Path) -> list[str]:
    """Return what `batchyard check` says is wrong with a data directory that no yard works on."""
    findings: list[Finding] = []
    check(data, findings.append)
    return [f"{f.rule} {f.where}: {f.text}" for f in findings if f.level == "error"]


def assert_no_defect(yard: Yard) -> None:
    """Check that the log of a yard tells of no error in its own code."""
    log = yard.read_log()
    assert "Traceback" not in log, log
    assert "defect" not in log, log


def kill(yard: Yard) -> None:
    """Kill a yard, and check what it leaves."""
    yard.kill()
    assert_holds(yard.data)


def written_lines(yard: Yard) -> int:
    """Return how many whole result lines are in segments."""
    found = (yard.data / "segments").glob("??/*/r/[0-9]*")
    return sum(path.read_bytes().count(b"\n") for path in found)
