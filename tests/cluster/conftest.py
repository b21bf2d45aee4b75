"""The stores of these tests: a PostgreSQL and an S3 server of this process."""

from __future__ import annotations

from store.fixtures import postgres_ledger as ledger
from store.fixtures import url
from store.making import stop_servers

__all__ = ["ledger", "url"]


def pytest_sessionfinish() -> None:
    stop_servers()
