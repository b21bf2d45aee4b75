"""What happens to one batch, model or upstream does not hold the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers_yard import QUICK, Yard, assert_answered, poll, request

if TYPE_CHECKING:
    from pathlib import Path

    from helpers_upstream import Upstream


def test_canceling_a_stuck_batch_frees_its_slots(upstream: Upstream, tmp_path: Path) -> None:
    """The upstream never answers its calls: they end with the grace, not with their time-out."""
    bounds = QUICK | {"limits:DRAIN_GRACE_S": 0.2}
    with Yard(tmp_path / "data", upstream.url, bounds=bounds, slots=2) as yard:
        stuck = yard.create([request(f"stuck-{n}|hold:stuck") for n in range(2)])
        upstream.wait_calls("stuck-", 2)
        yard.post(f"/v1/messages/batches/{stuck['id']}/cancel", b"")
        ended = yard.wait_ended(stuck["id"])
        assert ended["request_counts"]["canceled"] == 2

        assert_answered(yard.run(["freed-1"]), ["freed-1"])
        assert "Traceback" not in yard.read_log()
    upstream.gate("stuck").open()


def test_a_small_batch_does_not_wait_for_the_end_of_a_big_one(
    upstream: Upstream, tmp_path: Path
) -> None:
    with Yard(tmp_path / "data", upstream.url, bounds=QUICK, slots=4) as yard:
        big = yard.create([request(f"big-{n}") for n in range(1_600)] + [request("big-z|hold:big")])
        small = yard.create([request("small-1")])

        ended = yard.wait_ended(small["id"])

        assert ended["request_counts"]["succeeded"] == 1
        assert yard.batch(big["id"])["processing_status"] == "in_progress"
        upstream.gate("big").open()
        yard.wait_ended(big["id"])


def test_an_upstream_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    """A wrong address must not look like work."""
    with Yard(tmp_path / "data", "http://127.0.0.1:9", bounds=QUICK) as yard:
        batch = yard.create([request("nowhere-1")])
        paused = poll(lambda: yard.progress(batch["id"])["paused"], yard.read_log)
        assert "refused" in next(iter(paused.values()))
        assert yard.read_log().count("waiting pool=") == 1
        assert yard.batch(batch["id"])["processing_status"] == "in_progress"


def test_a_batch_sees_only_the_troubles_of_its_own_pools(
    upstream: Upstream, tmp_path: Path
) -> None:
    with Yard(tmp_path / "data", upstream.url, bounds=QUICK) as yard:
        refused = yard.create([request("refused-1|accepted:troubles", model="other-model")])
        held = yard.create([request("held-1|hold:troubles")])
        poll(lambda: yard.progress(refused["id"])["paused"], yard.read_log)
        assert list(yard.progress(refused["id"])["paused"]) == ["up/other-model"]
        assert yard.progress(held["id"])["paused"] == {}
        upstream.gate("troubles").open()
        for batch in (refused, held):
            yard.wait_ended(batch["id"])


def test_a_damaged_batch_stops_nobody_else(upstream: Upstream, tmp_path: Path) -> None:
    with Yard(tmp_path / "data", upstream.url, bounds=QUICK) as yard:
        damaged = yard.create([request("damaged-1|hold:damaged")])
        upstream.wait_calls("damaged-1", 1)
        yard.kill()
        upstream.gate("damaged").open()
        (segment,) = (tmp_path / "data").glob(f"segments/*/{damaged['id']}/requests")
        segment.write_bytes(segment.read_bytes()[:-10])
        yard.start()

        assert_answered(yard.run(["healthy-1"]), ["healthy-1"])

        assert yard.batch(damaged["id"])["processing_status"] == "in_progress"
        assert f"damaged shard={damaged['id']}/0" in yard.read_log()
        assert yard.stop() == 0
