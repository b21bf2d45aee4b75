"""An end because the ledger cannot be written any more is none of the shards that were held."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from crash.checking import assert_holds
from disk.tracing import Disturbed
from helpers_upstream import Upstream
from helpers_workers import SHORT, wait_workers, workers_yard
from helpers_yard import BATCHES, QUICK, Yard, poll, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


def shard_of(yard: Yard) -> tuple[str | None, int, int]:
    """Return owner, `at_risk` and `failures` of the only shard, as the ledger has them."""
    with closing(sqlite3.connect(f"file:{yard.data / 'ledger.db'}?mode=ro", uri=True)) as db:
        owner, at_risk, failures = db.execute(
            "SELECT owner, at_risk, failures FROM shards"
        ).fetchone()
    return owner, at_risk, failures


def hold(yard: Yard, upstream: Upstream) -> str:
    """Create a batch of one request that has no answer before the end of the test."""
    batch_id: str = yard.create([request("held|hold:late")])["id"]
    return taken(yard, upstream, batch_id, 1)


def taken(yard: Yard, upstream: Upstream, batch_id: str, calls: int) -> str:
    """Wait for so many calls, and for the renewal that tells of the last one."""
    upstream.wait_calls("held", calls)
    poll(lambda: shard_of(yard)[1], lambda: "the shard is at risk")
    yard.wait_progress(batch_id, lambda shown: shown["in_flight"] == 1)
    return batch_id


def failing(yard: Yard, pid: int | None = None) -> Disturbed:
    """Let no sync of the ledger succeed any more, in one process."""
    files = [yard.data / name for name in ("ledger.db", "ledger.db-wal")]
    return Disturbed(yard, "fdatasync,fsync", "error=EIO", *files, pid=pid)


def finish(yard: Yard, upstream: Upstream, batch_id: str) -> None:
    upstream.gate("late").open()
    counts = yard.wait_ended(batch_id)["request_counts"]
    assert counts["succeeded"] == 1
    assert yard.stop() == 0
    assert not (yard.data / "ledger.failed").exists()
    assert_holds(yard.data)


def test_one_process_is_counted_when_it_is_killed_and_not_when_its_ledger_has_failed(
    upstream: Upstream, tmp_path: Path
) -> None:
    bounds = QUICK | {"limits:RENEW_INTERVAL_S": 0.2}
    with Yard(tmp_path / "data", upstream.url, slots=16, bounds=bounds) as yard:
        batch_id = hold(yard, upstream)
        yard.kill()
        yard.start()
        taken(yard, upstream, batch_id, 2)
        assert shard_of(yard)[2] == 1
        with failing(yard) as disturbed:
            assert yard.wait() == 1
            assert disturbed.injected
        assert "the store failed" in yard.read_log()
        assert shard_of(yard)[1:] == (1, 1), "it could not be told any more"
        assert "I/O error" in (yard.data / "ledger.failed").read_text()
        assert_holds(yard.data)
        yard.start()
        taken(yard, upstream, batch_id, 3)
        assert shard_of(yard)[2] == 1
        finish(yard, upstream, batch_id)


@pytest.mark.parametrize("who", ["worker", "server"])
def test_of_several_processes_the_one_whose_ledger_fails_ends_all_and_nothing_is_counted(
    upstream: Upstream, tmp_path: Path, who: str
) -> None:
    with workers_yard(tmp_path / "data", upstream.url, bounds=SHORT) as yard:
        wait_workers(yard)
        batch_id = hold(yard, upstream)
        owner, _, _ = shard_of(yard)
        working = re.search(rf"\[(\d+)\] working owner={owner}", yard.read_log())
        assert working
        with failing(yard, int(working[1]) if who == "worker" else None) as disturbed:
            if who == "server":  # it writes seldom
                assert yard.post(BATCHES, {"requests": [request("other")]}).status != 200
            assert yard.wait() == 1
            assert disturbed.injected
        assert "the store failed" in yard.read_log()
        assert shard_of(yard)[2] == 0
        yard.start()
        taken(yard, upstream, batch_id, 2)
        assert shard_of(yard)[2] == 0
        finish(yard, upstream, batch_id)
