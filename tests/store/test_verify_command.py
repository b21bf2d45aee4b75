"""`batchyard check` as a program: against a yard that runs, was killed, was stopped."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helpers_upstream import DEADLINE_S, Exchange, Upstream, follow_prompt
from helpers_yard import BATCHES, Yard, poll, request
from store.yards import change, make_yard, path_of

if TYPE_CHECKING:
    from pathlib import Path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "batchyard", "check", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    asyncio.run(make_yard(tmp_path / "data"))
    return tmp_path / "data"


class Half:
    """Answers a number of calls and holds the others."""

    def __init__(self, answers: float) -> None:
        self.left = answers

    async def __call__(self, exchange: Exchange) -> None:
        if not self.left:
            await exchange.upstream.gate("for ever").wait()
        self.left -= 1
        await follow_prompt(exchange)


def test_a_running_yard_is_left_alone_and_a_killed_one_holds(tmp_path: Path) -> None:
    """One batch has ended, one is canceled, one is half done and lies only in the log."""
    half = Half(720)
    with (
        Upstream(half) as upstream,
        Yard(tmp_path / "data", upstream.url, slots=16) as yard,
    ):
        yard.run([f"first-{n}" for n in range(20)])
        second = yard.create([request(f"second-{n}") for n in range(1_000)])
        upstream.wait_calls("second-", 716)
        results = yard.data / "segments"
        poll(
            lambda: sum(p.read_bytes().count(b"\n") for p in results.glob("??/*/r/[0-9]*")) == 720,
            lambda: "the answers were not written",
        )
        running = run(yard.data)
        assert running.returncode == 3
        assert f"pid {yard.process.pid}" in running.stderr if yard.process else False
        yard.post(f"{BATCHES}/{second['id']}/cancel", b"")
        yard.create([request(f"third-{n}") for n in range(10)])
        yard.kill()
        assert (yard.data / "ledger.db-wal").stat().st_size
        before = {p: p.stat().st_mtime_ns for p in yard.data.rglob("*")}

        killed = run(yard.data)

        assert (killed.returncode, killed.stderr) == (0, ""), killed.stdout
        assert killed.stdout.startswith("checked 3 batches, 3 shards, 1,030 requests, ")
        assert killed.stdout.endswith(": all holds\n")
        assert {p: p.stat().st_mtime_ns for p in yard.data.rglob("*")} == before

        half.left = float("inf")
        yard.start()
        yard.wait_ended(second["id"])
        assert yard.stop() == 0
        stopped = run(yard.data)
        assert (stopped.returncode, stopped.stderr) == (0, ""), stopped.stdout


def test_two_checks_at_once_do_not_disturb_each_other(data: Path) -> None:
    (data / "lock").touch(mode=0o600)
    command = [sys.executable, "-m", "batchyard", "check", str(data)]
    checks = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [check.wait(DEADLINE_S) for check in checks] == [0, 0]


def test_each_finding_is_one_line_with_its_place(data: Path) -> None:
    change(data, "UPDATE batches SET succeeded = 9 WHERE id = ?", path_of(data, "ended").name)
    (path_of(data, "part") / "requests").unlink()
    (data / "a\nb").touch(mode=0o600)
    done = run(data)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    *found, last = done.stdout.splitlines()
    assert found[0].startswith("note stranger a b: ")
    assert any(
        line.startswith(f"error batch-counts {path_of(data, 'ended').name}: ") for line in found
    )
    missing = f"error requests-missing {path_of(data, 'part').relative_to(data / 'segments')}"
    assert any(line.startswith(f"{missing}/requests: ") for line in found)
    assert last.startswith("checked 5 batches, ")
    errors = sum(line.startswith("error ") for line in found)
    assert last.endswith(f": {errors} errors (1 note)")


def test_json_has_an_object_for_each_finding_and_a_summary(data: Path) -> None:
    change(data, "UPDATE shards SET workspace = 'v' WHERE idx = 1")
    done = run(data, "--json")
    assert done.returncode == 1
    finding, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert finding == {
        "event": "finding",
        "level": "error",
        "rule": "shard-row",
        "batch": path_of(data, "part").name,
        "shard": 1,
        "segment": None,
        "offset": None,
        "text": "its workspace or place in the queue is not that of its batch",
    }
    assert summary == {
        "event": "summary",
        "batches": 5,
        "shards": 4,
        "requests": 26,
        "results": 17,
        "errors": 1,
        "notes": 0,
    }


def test_a_directory_that_is_no_yards_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        done = run(path)
        assert (done.returncode, done.stdout) == (2, "")
        assert str(path) in done.stderr
    assert run().returncode == 2
