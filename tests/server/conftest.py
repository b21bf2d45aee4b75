"""One scripted upstream and one yard for all tests that need no process of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers_upstream import Upstream
from helpers_yard import QUICK, Yard

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture(scope="session")
def shared_yard(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    data = tmp_path_factory.mktemp("shared") / "data"
    bounds = QUICK | {"limits:UNREAD_TIMEOUT_S": 1.0}
    with Yard(data, upstream.url, bounds=bounds) as yard:
        yield yard


@pytest.fixture
def yard(shared_yard: Yard) -> Iterator[Yard]:
    """The shared yard; whatever a test does to it, no defect may show in its log."""
    before = len(shared_yard.read_log())
    yield shared_yard
    log = shared_yard.read_log()[before:]
    assert "Traceback" not in log, log
    assert "defect" not in log, log
