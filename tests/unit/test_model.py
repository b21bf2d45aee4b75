"""The values that the ledger keeps."""

from __future__ import annotations

import dataclasses

import pytest

from batchyard.model import Batch, Counts

OPEN = Batch(
    id="b",
    workspace="w",
    requests=1,
    created_us=0,
    expires_us=1,
    version="2023-06-01",
    billing="standard",
)


@pytest.mark.parametrize(
    ("cancel_us", "ended_us", "archived_us", "status"),
    [
        (None, None, None, "in_progress"),
        (5, None, None, "canceling"),
        (None, 6, None, "ended"),
        (5, 6, None, "ended"),
        (5, 6, 7, "ended"),
    ],
)
def test_the_status_follows_from_what_has_happened(
    cancel_us: int | None, ended_us: int | None, archived_us: int | None, status: str
) -> None:
    batch = dataclasses.replace(
        OPEN, cancel_us=cancel_us, ended_us=ended_us, archived_us=archived_us
    )
    assert batch.status == status


def test_counts_add_up() -> None:
    assert Counts(1, 2, 3, 4).total == 10
