"""One suite over every store: a second one is added to `LEDGERS` or `SEGMENTS` and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from store.fixtures import postgres_ledger, url
from store.making import LEDGERS, SEGMENTS, stop_servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from batchyard.ledger import Ledger
    from batchyard.segments import Segments

__all__ = ["ledger", "open_ledger", "postgres_ledger", "store", "url"]


def pytest_sessionfinish() -> None:
    stop_servers()


@pytest.fixture(params=sorted(LEDGERS))
def open_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Ledger]:
    """Opens the same ledger each time."""
    return lambda: LEDGERS[request.param](tmp_path)


@pytest.fixture
async def ledger(open_ledger: Callable[[], Ledger]) -> AsyncIterator[Ledger]:
    opened = open_ledger()
    yield opened
    await opened.close()


@pytest.fixture(params=sorted(SEGMENTS))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Segments:
    return SEGMENTS[request.param](tmp_path / "segments")
