"""What these tests share: a recorded story, and places for images of disks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from disk import story, tracing

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def _strace() -> None:
    tracing.strace()  # fails with a sentence that says what to do


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a directory in memory where there is one: losing bytes is simulated, so that waiting
    for a real disk would add nothing but time. The copies that a check makes are there too.
    """
    if _MEMORY.is_dir():
        monkeypatch.setattr(tempfile, "tempdir", str(_MEMORY))
    with tempfile.TemporaryDirectory(prefix="batchyard-disk-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def told(_strace: None, tmp_path_factory: pytest.TempPathFactory) -> story.Story:
    """Return the story, recorded once: the server syncs as it does by itself."""
    return story.tell(tmp_path_factory.mktemp("story"))
