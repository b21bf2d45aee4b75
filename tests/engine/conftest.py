"""vLLM itself needs a GPU: a stand-in with the same names takes its place on the path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

STANDIN = Path(__file__).with_name("standin")


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `import vllm` find the stand-in, and forget it afterwards."""
    monkeypatch.syspath_prepend(str(STANDIN))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory in which a model might be."""
    path = tmp_path / "tiny-model"
    path.mkdir()
    return path
