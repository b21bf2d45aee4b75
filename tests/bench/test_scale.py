"""The simulation of a fleet answers to what statements cost and to what comes in."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from batchyard import limits
from batchyard.dispatch.keeper import Keeper
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.testing.clock import ManualClock

BENCH = Path(__file__).parents[2] / "bench"
WORKERS = 8_000  # so that one of them has 1.4 requests a second
SECONDS = 60.0


class Recording:
    """A ledger of which it is known what was asked."""

    def __init__(self, real: SqliteLedger) -> None:
        self._real = real
        self.seen: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.seen.add(name)
        return getattr(self._real, name)


@pytest.fixture(scope="module")
def scale() -> Any:
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("bench_scale", BENCH / "scale.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["bench_scale"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCH))
    return module


def costs_of(scale: Any, ms: float) -> dict[str, Any]:
    """Let every statement cost the same."""
    names = {name for measured in scale.STATEMENTS.values() for name in measured.values()}
    names |= {"claim, batch known", "get", "archive", *scale.CREATE_OF.values()}
    names |= {*scale.SWEEP.values(), "forget_creates 1,000"}
    return {name: {"median_ms": ms, "bytes": 1_000} for name in names}


@functools.cache
def simulated(scale: Any, size: int, spaces: int, ms: float) -> Any:
    return asyncio.run(scale.simulate(size, spaces, WORKERS, SECONDS, costs_of(scale, ms)))


def test_a_worker_with_quick_statements_keeps_up(scale: Any) -> None:
    found = simulated(scale, 10, 5, 1.0)
    offered = scale.PER_SECOND / WORKERS * SECONDS
    assert found.answered == pytest.approx(offered, rel=0.35)
    assert found.items["end_all"] > 0
    assert found.items["commit"] == found.items["end_all"]
    assert 0 < found.connection_busy < 0.1
    assert found.puts >= 2 * found.items["end_all"]  # results, and a manifest


def test_statements_that_cost_too_much_saturate_the_connection_and_nothing_else(scale: Any) -> None:
    quick, slow = (simulated(scale, 1, 5, ms) for ms in (1.0, 2_000.0))
    assert slow.connection_busy > 0.8
    assert slow.answered < 0.7 * quick.answered


def test_large_batches_cost_fewer_statements_than_tiny_ones(scale: Any) -> None:
    tiny, large = (simulated(scale, size, 5, 1.0) for size in (1, 1_000))
    assert large.items["commit"] < tiny.items["commit"] / 20
    assert large.created < tiny.created / 20
    assert large.answered == pytest.approx(tiny.answered, rel=0.35)


def test_what_finds_nothing_is_a_read_and_writes_nothing(scale: Any) -> None:
    found = simulated(scale, 10, 5, 1.0)
    writes = sum(found.statements.values()) - found.looked
    assert found.statements["claim_void"] > 10
    assert found.items["claim_void"] == found.items["pools_apart"] == 0
    assert found.wal_bytes == 1_000 * writes
    assert found.connection_busy * SECONDS == pytest.approx(
        writes / 1_000, rel=0.05
    )  # it is rounded
    assert found.looked > writes


def test_one_item_has_the_price_of_one_and_groups_have_that_of_groups(scale: Any) -> None:
    between = sys.modules["priced"].between
    assert [between(number, [(1, 2.0), (16, 5.0)]) for number in (1, 6, 16, 31)] == [2, 3, 5, 8]
    assert between(9, [(1, 2.0)]) == 2.0


def test_each_worker_looks_whether_a_sweep_is_due_and_one_sweeps_for_all(
    scale: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = simulated(scale, 10, 5, 1.0)
    assert found.statements["begin_sweep"] == pytest.approx(SECONDS / 5, abs=4)
    assert found.items["begin_sweep"] == 0, "nobody's row"

    def busy(ms: float, workers: int) -> float:
        costs = costs_of(scale, 1.0)
        for name in scale.SWEEP.values():
            costs[name] = {"median_ms": ms, "bytes": 0}
        monkeypatch.setattr(scale, "statement_costs", lambda: costs)
        return float(scale.project(found, workers).database_busy)

    for workers in (4, 400):
        more = busy(101.0, workers) - busy(1.0, workers)
        # Four statements, twice in five seconds.
        assert more == pytest.approx(0.4 * (4 * 0.1 - 0.0001), rel=0.01)


def test_all_that_a_sweep_asks_of_the_ledger_has_a_price(scale: Any, tmp_path: Path) -> None:
    async def story() -> set[str]:
        ledger = SqliteLedger(tmp_path / "l.db")
        calls: Any = Recording(ledger)
        await Keeper(calls, scale.Nowhere(), ManualClock(), owner="me").sweep()
        await ledger.close()
        return set(calls.seen)

    assert asyncio.run(story()) == set(scale.SWEEP)


def test_the_measured_part_has_several_shards_of_each_worker(scale: Any) -> None:
    requests = scale.PER_SECOND / scale.WORKERS * scale.SECONDS
    assert requests > 5 * limits.SHARD_REQUESTS
