"""A PostgreSQL ledger for each test, for every directory of tests whose conftest imports it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchyard.clock import SystemClock
from batchyard.ledger.postgres import PostgresLedger
from store.making import postgres_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return a place in a database that no other test has."""
    return postgres_url(tmp_path)


@pytest.fixture
async def postgres_ledger(url: str) -> AsyncIterator[PostgresLedger]:
    opened = PostgresLedger(url, SystemClock(), database_time=False)
    yield opened
    await opened.close()
