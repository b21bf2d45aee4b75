"""What the disk damages is told, whichever of several worker processes has found it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from crash.checking import assert_holds
from disk.test_damage import LAST, PER_SHARD, PROMPTS, begin, command, files, flip
from helpers_upstream import Upstream
from helpers_workers import SHORT, wait_workers, workers_yard
from helpers_yard import assert_answered

if TYPE_CHECKING:
    from pathlib import Path


def test_progress_and_status_tell_what_workers_have_found_damaged_also_those_that_died(
    tmp_path: Path,
) -> None:
    bounds = SHORT | {"limits:SHARD_REQUESTS": PER_SHARD}
    with (
        Upstream() as upstream,
        workers_yard(tmp_path / "data", upstream.url, bounds=bounds) as yard,
    ):
        workers = wait_workers(yard)
        batch_id = begin(yard)
        flip(files(yard, batch_id, "r/0.1.*")[0], 0.5)
        files(yard, batch_id, "r/1.1.*")[0].unlink()
        assert yard.progress(batch_id)["damaged"] == [], "nobody has looked yet"
        upstream.gate("late").open()
        yard.wait_ended(batch_id)
        assert_answered(yard.results(batch_id), [*PROMPTS, LAST])
        counts = [upstream.counts[prompt] for prompt in PROMPTS]
        assert counts == [2] * 2 * PER_SHARD + [1] * (PER_SHARD - 1)

        def tells() -> list[str]:
            told = yard.wait_progress(batch_id, lambda shown: len(shown["damaged"]) == 2)["damaged"]
            assert [each["shard"] for each in told] == [0, 1]
            for each in told:
                assert "0 of them could be kept, the others are made again" in each["detail"]
            said = command("status", "--why", batch_id, "--base-url", yard.url)
            return [line.strip() for line in said.splitlines() if "damaged, shard" in line]

        said = tells()
        assert len(said) == 2
        for shard, line in enumerate(said):
            assert f"damaged, shard {shard}: results of it were damaged on the disk" in line
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        for pid in workers:
            wait_workers(yard, but=pid)
        assert tells() == said
        assert yard.stop() == 0
    assert_holds(yard.data)
