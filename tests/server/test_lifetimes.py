"""Expiry and archiving in a real process, with shorter lives."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from helpers_yard import BATCHES, QUICK, Yard, assert_answered, poll, request

if TYPE_CHECKING:
    from pathlib import Path

    from helpers_upstream import Upstream

SECOND_US = 1_000_000


def test_at_expiry_each_request_ends_as_what_it_was(upstream: Upstream, tmp_path: Path) -> None:
    """Answered, tried in vain, held by the upstream beyond the grace, or never sent."""
    bounds = QUICK | {"limits:PROCESSING_WINDOW_US": 10 * SECOND_US, "limits:DRAIN_GRACE_S": 0.5}
    prompts = ["life-done", "life-tried|529", "life-held|hold:life"]
    unsent = [f"life-unsent-{n}" for n in range(4)]
    with Yard(tmp_path / "data", upstream.url, bounds=bounds, slots=2) as yard:
        batch = yard.create([request(prompt) for prompt in [*prompts, *unsent]])
        upstream.wait_calls("life-held", 1)
        upstream.wait_calls("life-tried", 2)
        ended = yard.wait_ended(batch["id"])
        results = yard.results(batch["id"])
        log = yard.read_log()
    upstream.gate("life").open()

    assert ended["ended_at"] >= batch["expires_at"]
    assert results["life-done"]["type"] == "succeeded"
    assert results["life-tried"]["error"]["error"] == {
        "details": {"error_visibility": "user_facing"},
        "type": "overloaded_error",
        "message": "scripted 529",
    }
    assert results["life-held"] == {"type": "expired"}
    assert [results[name] for name in unsent] == [{"type": "expired"}] * 4
    counts = ended["request_counts"]
    assert counts == {"processing": 0, "succeeded": 1, "errored": 1, "canceled": 0, "expired": 5}
    assert upstream.number("life-unsent") == 0
    assert "Traceback" not in log


def test_a_batch_that_expires_while_the_yard_is_down(upstream: Upstream, tmp_path: Path) -> None:
    bounds = {"limits:PROCESSING_WINDOW_US": 10 * SECOND_US}
    held = [f"down-{n}|hold:down" for n in range(700)]
    with Yard(tmp_path / "data", upstream.url, bounds=bounds, slots=3) as yard:
        batch = yard.create([request("down-done"), *map(request, held)])
        yard.wait_progress(batch["id"], lambda progress: progress["results"] == 1)
        yard.kill()
        calls = upstream.number("down-")
        end = datetime.fromisoformat(batch["expires_at"])
        poll(lambda: datetime.now(UTC) > end, lambda: "time stands still")
        yard.start()
        ended = yard.wait_ended(batch["id"])
        assert ended["request_counts"]["succeeded"] == 1
        assert ended["request_counts"]["expired"] == 700
        assert "Traceback" not in yard.read_log()
    upstream.gate("down").open()
    assert upstream.number("down-") == calls


def test_an_archived_batch_is_listed_without_results(upstream: Upstream, tmp_path: Path) -> None:
    bounds = {"limits:RETENTION_US": 0, "limits:KEEPER_INTERVAL_S": 0.05}
    with Yard(tmp_path / "data", upstream.url, bounds=bounds) as yard:
        batch = yard.create([request("old|hold:old")])
        assert yard.batch(batch["id"])["archived_at"] is None, "archived before its end"
        upstream.gate("old").open()
        ended = yard.wait_ended(batch["id"])
        path = f"{BATCHES}/{batch['id']}"
        poll(lambda: yard.batch(batch["id"])["archived_at"], lambda: "it is never archived")
        poll(lambda: not yard.files(), lambda: f"files are left: {yard.files()}")

        archived = yard.batch(batch["id"])
        assert archived["processing_status"] == "ended"
        assert archived["request_counts"] == ended["request_counts"]
        assert archived["archived_at"] >= archived["ended_at"]
        assert archived["results_url"] is None
        assert yard.get(BATCHES).json()["data"] == [archived]
        results = yard.get(f"{path}/results")
        assert results.status == 404
        assert results.headers["x-should-retry"] == "false"
        assert results.json()["error"]["message"].endswith("has no available results.")
        yard.kill()
        yard.start()
        assert yard.batch(batch["id"]) == archived
        assert yard.request("DELETE", path).status == 200
        assert yard.get(path).status == 404
        assert "Traceback" not in yard.read_log()


def test_a_key_of_an_ended_window_makes_a_new_batch(upstream: Upstream, tmp_path: Path) -> None:
    bounds = {"limits:SDK_RETRY_WINDOW_US": 0, "limits:IDEMPOTENCY_WINDOW_US": 0}
    with Yard(tmp_path / "data", upstream.url, bounds=bounds) as yard:
        for header in ({"idempotency-key": "k"}, {"x-stainless-retry-count": "1"}):
            made = {yard.create([request("window")], **header)["id"] for _ in range(3)}
            assert len(made) == 3
            for batch_id in made:
                yard.wait_ended(batch_id)
                assert_answered(yard.results(batch_id), ["window"])
