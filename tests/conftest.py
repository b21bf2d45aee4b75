"""What every layer of tests shares."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import helpers_seed

# A shell that starts this in the background has it ignore Ctrl-C, and all its children with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline, and no check of how long examples take to draw: they would be asserts on the wall
# clock. A failure prints how to repeat it.
settings.register_profile(
    "batchyard",
    settings.get_profile("default"),  # or Hypothesis itself looks whether this is CI
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# What CI draws follows from the commit, so that it fails for what was changed.
settings.register_profile(
    "batchyard-ci", settings.get_profile("batchyard"), derandomize=True, database=None
)
settings.load_profile("batchyard-ci" if helpers_seed.is_fixed() else "batchyard")

TESTS = Path(__file__).parent
# What takes longest in one file, which one process works off: begun first, so that at the end none
# is busy alone.
LONGEST = (
    "cluster/test_ray.py",
    "crash/test_random_kills.py",
    "crash/test_kill_stores.py",
    "crash/test_kill_workers.py",
    "crash/test_kill_points.py",
    "client/test_killed_servers.py",
    "client/test_killed.py",
    "client/test_local.py",
    "compat/test_openapi.py",
    "compat/test_python_suite.py",
    "disk/test_io_errors.py",
    "disk/test_power_cuts.py",
    "disk/test_torn_segments.py",
    "sim/test_interleavings.py",
    "sim/test_limits.py",
    "sim/test_machine.py",
    "sim/test_sabotage.py",
    "sim/test_sim.py",
    "server/test_probe_faults.py",
    "server/test_workers.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {TESTS / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return three processes for two processors: about half of what tests do is to wait."""
    return max(2, len(os.sched_getaffinity(0)) * 3 // 2)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
