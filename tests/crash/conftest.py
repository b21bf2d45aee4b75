"""Each test has an upstream and a data directory of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crash.checking import assert_holds, assert_no_defect
from helpers_upstream import Upstream
from helpers_yard import Yard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture
def yard(upstream: Upstream, tmp_path: Path) -> Iterator[Yard]:
    """A running yard; whenever it is killed, what it leaves holds and its log shows no defect."""
    with Yard(tmp_path / "data", upstream.url, slots=16) as running:
        yield running
    assert_holds(running.data)
    assert_no_defect(running)
