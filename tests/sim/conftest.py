from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMORY = Path("/dev/shm")


@pytest.fixture(autouse=True)
def _check_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check copies the ledger to a temporary directory, some thousand times here."""
    if _MEMORY.is_dir():
        monkeypatch.setattr(tempfile, "tempdir", str(_MEMORY))


@pytest.fixture
def memory() -> Iterator[Path]:
    """Return a directory in memory where there is one, for places to make."""
    with tempfile.TemporaryDirectory(
        prefix="batchyard-sim-", dir=_MEMORY if _MEMORY.is_dir() else None
    ) as name:
        yield Path(name)


@pytest.fixture
def root() -> Iterator[Path]:
    """Return a directory in memory where there is one: what is lost at a power cut is simulated,
    so that waiting for a real disk would add nothing but time.
    """
    with tempfile.TemporaryDirectory(
        prefix="batchyard-sim-", dir=_MEMORY if _MEMORY.is_dir() else None
    ) as name:
        yield Path(name)
