"""How often a server is asked, and who is asked at all."""

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from batchyard.client.api import Api
from batchyard.client.running.sending import Sender
from batchyard.client.running.updates import Pace
from batchyard.client.running.watching import Watcher
from client.commands import batchyard
from client.conftest import Bench
from client.fake_api import FakeApi
from disk import tracing


@pytest.mark.parametrize(("is_yard", "first_s", "longest_s"), [(False, 2, 60), (True, 0.2, 5)])
def test_looks_grow_apart_with_the_age_of_a_batch_up_to_a_bound(
    bench: Bench, server: FakeApi, is_yard: bool, first_s: float, longest_s: float
):
    server.is_yard, server.polls = is_yard, 25
    waits: list[float] = []

    def pause(seconds: float) -> bool:
        if any(call.method == "GET" and call.path.endswith("msgbatch_01") for call in server.calls):
            waits.append(seconds)
        return bench.clock.pause(seconds)

    bench.pause = pause
    bench.run()

    looks = [seconds for seconds in waits if seconds > 0]
    assert first_s <= looks[0] <= 1.1 * first_s * 1.25
    assert all(later > 1.1 * earlier for earlier, later in itertools.pairwise(looks[:6]))
    assert longest_s <= looks[-2] <= 1.1 * longest_s
    assert max(looks) <= 1.1 * longest_s
    assert server.count("POST", "/batches") == 1


def test_the_first_look_at_a_large_batch_is_later(bench: Bench, server: FakeApi):
    writer = bench.writer()
    large = replace(writer.state.shards[0], requests=5_000)
    writer.state = replace(writer.state, shards=(large,))
    api = Api(server.url, "k")
    pace = Pace(bench.clock.pause, bench.updates.append)
    sender = Sender(writer, api, clock=bench.clock, pace=pace, grace_s=1)
    watcher = Watcher(writer, api, clock=bench.clock, pace=pace, sender=sender)

    delay = watcher.postpone(0)

    assert 12 <= delay <= 1.1 * 12  # two seconds, and two for each thousand requests
    writer.close()
    api.close()


def test_betas_reach_the_wire_and_raise_the_output_cap_of_the_plan(tmp_path: Path, server: FakeApi):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("text")
    (tmp_path / "p.j2").write_text("About {{ text }}")
    options = [
        str(tmp_path / "docs"), "--prompt", str(tmp_path / "p.j2"), "--model", "claude-opus-4-8",
        "--max-tokens", "300000", "--out", str(tmp_path / "out"), "--base-url", server.url, "--yes",
    ]  # fmt: skip

    refused = batchyard("run", *options, ANTHROPIC_API_KEY="k")
    beta = "output-300k-2026-03-24"
    done = batchyard("run", *options, "--beta", beta, ANTHROPIC_API_KEY="k")

    assert refused.returncode == 2
    assert f"--beta {beta}" in refused.stderr
    assert done.returncode == 0, done.stderr
    (create,) = [
        call
        for call in server.calls
        if call.path.startswith("/v1/messages/batches") and call.method == "POST"
    ]
    assert create.headers["anthropic-beta"] == beta
    assert json.loads(server.bodies[0])["requests"][0]["params"]["max_tokens"] == 300_000


def test_a_run_speaks_to_its_server_and_to_nobody_else(tmp_path: Path, server: FakeApi):
    """Seen by the system calls of the whole process: no telemetry, no look for updates, no name."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("text")
    (tmp_path / "p.j2").write_text("About {{ text }}")
    trace = tmp_path / "trace"
    command = [
        tracing.strace(), "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-e", "signal=none",
        "-o", str(trace), sys.executable, "-m", "batchyard", "run", str(tmp_path / "docs"),
        "--prompt", str(tmp_path / "p.j2"), "--model", "claude-opus-4-8", "--max-tokens", "50",
        "--out", str(tmp_path / "out"), "--base-url", server.url, "--yes",
    ]  # fmt: skip

    done = subprocess.run(
        command, env=os.environ | {"ANTHROPIC_API_KEY": "k"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    called = re.findall(r"connect\(\d+, \{(.*?)\}", trace.read_text())
    port = server.url.rpartition(":")[2]
    assert called
    assert {c for c in called if f"htons({port})" not in c or '"127.0.0.1"' not in c} == set()
