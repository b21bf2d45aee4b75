"""An upstream that limits or is away: what waits, what the log says, and that leaving is quick."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard.limits import WINDOW_FIRST
from helpers_ports import Port
from helpers_upstream import Upstream
from helpers_yard import BATCHES, QUICK, Yard, assert_answered, request

if TYPE_CHECKING:
    from pathlib import Path


def test_a_server_that_is_told_to_end_does_not_wait_for_a_limit(
    upstream: Upstream, tmp_path: Path
) -> None:
    """Requests at the gate are not sent any more, and go on where they were at the next start."""
    refused = [f"quitting-{n}|429:900,message" for n in range(WINDOW_FIRST)]
    behind = [f"quitting-behind-{n}" for n in range(200)]
    with Yard(tmp_path / "data", upstream.url, bounds=QUICK) as yard:
        batch = yard.create([request(prompt) for prompt in [*refused, *behind]])
        upstream.wait_calls("quitting-", len(refused))
        yard.wait_progress(
            batch["id"],
            lambda progress: "cooling_down" in [wait["reason"] for wait in progress["waiting"]],
        )
        told = yard.progress(batch["id"])["waiting"]
        (wait,) = [wait for wait in told if wait["reason"] == "cooling_down"]
        assert wait["detail"] == "the upstream asked to wait (rate limited); single calls try"
        assert wait["until"] is not None
        assert yard.stop() == 0
        sent = upstream.number("quitting-")
        yard.start()
        yard.wait_ended(batch["id"])
        assert_answered(yard.results(batch["id"]), [*refused, *behind])
        assert upstream.number("quitting-") == len(refused) * 2 + len(behind)
        assert sent < len(refused) + len(behind), "none of those that waited was sent on leaving"


def test_the_log_says_once_that_an_upstream_is_away_and_once_that_it_is_back(
    tmp_path: Path,
) -> None:
    prompts = [f"away-{n}" for n in range(40)]
    with Port() as later, Yard(tmp_path / "data", later.url, bounds=QUICK) as yard:
        batch = yard.create([request(prompt) for prompt in prompts])
        yard.wait_progress(
            batch["id"],
            lambda progress: [w["reason"] for w in progress["waiting"]][:1] == ["breaker_open"],
        )
        with Upstream(port=later.number):
            yard.wait_ended(batch["id"])
        assert_answered(yard.results(batch["id"]), prompts)
        log = yard.read_log()
        assert (log.count("waiting pool="), log.count("recovered pool=")) == (1, 1), log


def test_a_cancel_ends_what_waits_at_a_limit(yard: Yard, upstream: Upstream) -> None:
    prompts = [f"stuck-{n}|429:900" for n in range(80)]
    batch = yard.create([request(prompt, model="stuck") for prompt in prompts])
    upstream.wait_calls("stuck-", 1)
    yard.post(f"{BATCHES}/{batch['id']}/cancel", b"")
    ended = yard.wait_ended(batch["id"])
    assert ended["request_counts"]["canceled"] == 80
