"""The stores of these tests: a PostgreSQL and an S3 server of this process."""

from __future__ import annotations

from store.making import stop_servers


def pytest_sessionfinish() -> None:
    stop_servers()
