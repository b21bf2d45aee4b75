"""`batchyard cluster` where nothing is there: refusals with a reason, and what a person reads."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from batchyard import __version__
from batchyard.cli.cluster import lines
from batchyard.cluster.worker import ClusterWorker, Order, lend
from batchyard.server import config
from helpers_cluster import PYTHON, environment, run

SHARED = {"BATCHYARD_LEDGER": "postgresql://db/yard", "BATCHYARD_SEGMENTS": "s3://bucket/yard"}

KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}


def without_ray(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the environment of these tests, which has no Ray."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BATCHYARD")}
    return subprocess.run(
        [sys.executable, "-m", "batchyard", "cluster", *arguments],
        capture_output=True, text=True, timeout=120, env=clean | SHARED, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", [["up", "--upstream", "sim=simulated:"], ["status"]])
def test_without_the_extra_the_commands_name_it(command: list[str]) -> None:
    done = without_ray(*command)
    assert done.returncode == 2
    assert "pip install 'batchyard[ray]'" in done.stderr


def test_help_needs_no_ray() -> None:
    done = without_ray("up", "--help")
    assert done.returncode == 0
    assert all(f"--{name}" in done.stdout for name in ("address", "ledger", "segments", "min"))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["up"], "no upstream is configured"),
        (["up", "--upstream", "sim=simulated:", "--name", "a/b"], "--name a/b"),
        (["up", "--upstream", "sim=simulated:", "--min", "9"], "min 9, max 4"),
        (["up", "--upstream", "sim=simulated:", "--segments", "ftp://x"], "ftp://x"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_started(
    arguments: list[str], why: str
) -> None:
    done = run(*arguments, shared=SHARED)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_at_the_start_ends_the_launcher_at_once() -> None:
    """As it ends `serve`: see `server/test_process.py`."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        ledger = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/yard"
        process = subprocess.Popen(
            [str(PYTHON), "-m", "batchyard", "cluster", "up", "--upstream", "sim=simulated:"],
            env=environment(SHARED | KEYS | {"BATCHYARD_LEDGER": ledger}),
        )
        try:
            with silent.accept()[0]:  # it waits for its ledger
                process.send_signal(signal.SIGTERM)
                assert process.wait(120) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("here", "Invalid address format"),
    ],
)
def test_a_cluster_that_is_not_there_is_told_with_what_is_allowed(address: str, why: str) -> None:
    code = f"from batchyard.cluster import engine; engine.connect({address!r}, 'yard')"
    done = subprocess.run(
        [str(PYTHON), "-c", code],
        capture_output=True, text=True, timeout=120, env=environment({}), check=False,
    )  # fmt: skip
    assert f"ConfigError: Ray cluster {address}: " in done.stderr
    assert why in done.stderr
    assert "allowed are auto, local, host:port and ray://host:port" in done.stderr


def test_status_without_a_ledger_says_where_one_is_named() -> None:
    done = run("status", shared={})
    assert done.returncode == 2
    assert "--ledger postgresql://" in done.stderr


def test_a_status_is_read_line_by_line() -> None:
    work = [{"pool": "up/m", "shards": 2, "requests": 1_200, "in_flight": 64}]
    found: dict[str, Any] = {
        "nodes": [
            {"id": "a" * 56, "host": "one", "alive": True, "cpus": 8.0, "gpus": 1.0},
            {"id": "b" * 56, "host": "two", "alive": False, "cpus": 8.0, "gpus": 0.0},
        ],
        "workers": [
            {"name": "workers-1", "group": "workers", "state": "working", "node": "a" * 56,
             "host": "one", "pid": 1, "work": work},
            {"name": "workers-2", "group": "workers", "state": "silent", "node": None,
             "host": None, "pid": None, "work": []},
        ],
        "elsewhere": [{"owner": "plain", "work": work}],
        "waiting": [{"pool": "up/m", "shards": 20_000, "requests": 1, "more": True}],
    }  # fmt: skip
    json.dumps(found)
    assert lines(found) == [
        "1 node, 2 workers",
        "node one aaaaaaaa: 8 CPUs, 1 GPU",
        "node two bbbbbbbb: has left",
        "worker workers-1: working on one aaaaaaaa",
        "  up/m: 1,200 requests left, 64 in flight",
        "worker workers-2: silent",
        "worker plain: not of this cluster",
        "  up/m: 1,200 requests left, 64 in flight",
        "waiting up/m: 1 request and more in 20,000 shards",
    ]
    assert lines({"nodes": [], "workers": [], "elsewhere": [], "waiting": []})[-1] == (
        "nothing waits"
    )


def test_a_node_is_lent_the_keys_of_a_family_of_which_it_has_none() -> None:
    ours = {"AWS_REGION": "r", "AWS_ACCESS_KEY_ID": "k", "GOOGLE_SERVICE_ACCOUNT": "g", "HOME": "h"}
    node = {"AWS_ROLE_ARN": "role"}
    lend(ours, node)
    assert node == {"AWS_ROLE_ARN": "role", "GOOGLE_SERVICE_ACCOUNT": "g"}


@pytest.mark.anyio
async def test_a_node_with_another_version_says_so_and_does_not_work() -> None:
    loaded = config.load(file=None, environment=SHARED, upstreams=["sim=simulated:"], role="worker")
    order = Order(config=loaded, owner="o", version="0.0.1", environment={})
    worker = ClusterWorker(order)
    wrong = await worker.run()
    assert wrong == await worker.ready()
    assert wrong is not None
    assert __version__ in wrong
    assert "0.0.1" in wrong
