"""A yard ends when it is told to, whatever holds it up, and nothing is lost by it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from crash.checking import assert_holds, written_lines
from helpers_yard import Yard, assert_answered, poll, request

if TYPE_CHECKING:
    from pathlib import Path

    from helpers_upstream import Upstream


def test_leaving_that_takes_too_long_is_cut_short_and_shows_where_it_stood(
    upstream: Upstream, tmp_path: Path
) -> None:
    prompts = ["long-1|hold:long", "long-2"]
    bounds = {"server.run:_LEAVE_MAX_S": 1.0}
    with Yard(tmp_path / "data", upstream.url, bounds=bounds) as yard:
        batch = yard.create([request(prompt) for prompt in prompts])
        poll(lambda: written_lines(yard) == 1, yard.read_log)
        yard.signal(signal.SIGTERM)
        assert yard.wait() == 1
        log = yard.read_log()
        assert "1 calls in flight" in log
        assert "Timeout" in log
        assert "in run_until_complete" in log or "in run" in log, "no stack"
        assert_holds(yard.data)
        upstream.gate("long").open()
        yard.start()
        yard.wait_ended(batch["id"])
        assert_answered(yard.results(batch["id"]), prompts)
    assert (upstream.counts["long-1"], upstream.counts["long-2"]) == (2, 1)
