"""What happens to one batch, model or upstream does not hold the others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from batchyard import limits
from helpers_upstream import Exchange, Upstream, follow_prompt
from helpers_workers import holders_of_batches
from helpers_yard import BATCHES, HEADERS, QUICK, Yard, assert_answered, poll, request


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


class Budget:
    """Answers so many calls of the whale and holds the others, until it is raised."""

    def __init__(self) -> None:
        self.left = 0.0

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.call.name.startswith("whale"):
            while self.left < 1:
                await asyncio.sleep(0.005)
            self.left -= 1
        await follow_prompt(exchange)


@pytest.mark.parametrize("workspace", [None, "wrkspc_newcomer"], ids=["its own", "another"])
def test_one_request_behind_100_000_is_sent_within_one_shard(
    tmp_path: Path, workspace: str | None
) -> None:
    """Counted in calls: while it waits, the whale has fewer than a shard."""
    budget = Budget()
    whale = [request(f"whale-{n}", max_tokens=1) for n in range(100_000)]
    headers = {} if workspace is None else {"anthropic-workspace-id": workspace}
    with (
        Upstream(budget) as upstream,
        Yard(tmp_path / "data", upstream.url, bounds=QUICK, slots=8) as yard,
    ):
        yard.create(whale)
        upstream.wait_calls("whale", 8)
        yard.create([request("small-1")], **headers)
        budget.left += limits.SHARD_REQUESTS - 8 - 1
        upstream.wait_calls("small-1", 1)
        assert upstream.number("whale") < limits.SHARD_REQUESTS


def test_a_cap_leaves_slots_free_for_those_who_come_later(tmp_path: Path) -> None:
    settings = """
[[workspace]]
id = "wrkspc_capped"
share_max = 0.25
"""
    with Upstream() as upstream:
        yard = _Configured(tmp_path / "data", upstream.url, bounds=QUICK, slots=16)
        yard.settings = settings
        with yard:
            for name, slots in (("capped", 4), ("later", 12)):
                prompts = [f"{name}-{n}|hold:shares" for n in range(40)]
                workspace = {"anthropic-workspace-id": f"wrkspc_{name}"}
                yard.create([request(prompt) for prompt in prompts], **workspace)
                upstream.wait_calls(name, slots)
            assert (upstream.number("capped"), upstream.number("later")) == (4, 12)
            upstream.gate("shares").open()


class _Configured(Yard):
    """A yard with more in its settings."""

    settings = ""

    def command(self) -> list[str]:
        command = super().command()
        with Path(command[command.index("--config") + 1]).open("a") as config:
            config.write(self.settings)
        return command


def test_a_priority_is_kept_shown_and_checked(upstream: Upstream, tmp_path: Path) -> None:
    with Yard(tmp_path / "data", upstream.url, bounds=QUICK) as yard:
        high = yard.create([request("top-1")], **{"batchyard-priority": "high"})
        plain = yard.create([request("plain-1")])
        for batch, priority in ((high, "high"), (plain, "normal")):
            yard.wait_ended(batch["id"])
            assert yard.progress(batch["id"])["priority"] == priority
        refused = yard.post(
            BATCHES, {"requests": [request("bad-1")]}, HEADERS | {"batchyard-priority": "urgent"}
        )
        assert refused.status == 400
        assert "low, normal, high are allowed" in refused.json()["error"]["message"]
        assert refused.headers["x-should-retry"] == "false"


def test_a_batch_of_high_priority_passes_older_ones_of_its_workspace(tmp_path: Path) -> None:
    budget = Budget()
    with (
        Upstream(budget) as upstream,
        Yard(tmp_path / "data", upstream.url, bounds=QUICK, slots=4) as yard,
    ):
        yard.create([request(f"whale-a-{n}") for n in range(600)])
        upstream.wait_calls("whale", 4)
        high = {"batchyard-priority": "high"}
        yard.create([request(f"whale-top-{n}") for n in range(90)], **high)
        poll(lambda: len(holders_of_batches(yard.data)) == 2, yard.read_log)
        budget.left += 90
        upstream.wait_until(lambda: upstream.number("whale") >= 94, "94 calls")
        assert upstream.number("whale-top") >= 60


def test_a_model_that_stalls_does_not_hold_another(upstream: Upstream, tmp_path: Path) -> None:
    with Yard(tmp_path / "data", upstream.url, bounds=QUICK, slots=2) as yard:
        stalled = yard.create(
            [request(f"stall-{n}|hold:stall", model="slow") for n in range(1_200)]
            + [request(f"mixed-{n}") for n in range(700)]
        )
        upstream.wait_calls("stall-", 2)
        assert_answered(yard.run(["quick-1"]), ["quick-1"])
        yard.wait_progress(stalled["id"], lambda p: p["results"] == 700)
        assert upstream.number("stall-") == 2
        upstream.gate("stall").open()
        yard.wait_ended(stalled["id"])


class TwoUpstreams(Yard):
    """A yard with a second upstream, for the models `other-*`."""

    def __init__(self, data: Path, first: str, second: str) -> None:
        super().__init__(data, first, slots=2)
        self._second = second

    def command(self) -> list[str]:
        command = super().command()
        config = Path(command[command.index("--config") + 1])
        other = f'[[upstream]]\nname = "other"\nurl = "{self._second}"\nmodels = ["other-*"]\n'
        config.write_text(f"{other}slots = 2\n{config.read_text()}")
        return command


def test_an_upstream_that_stalls_does_not_hold_another(upstream: Upstream, tmp_path: Path) -> None:
    with (
        Upstream() as other,
        TwoUpstreams(tmp_path / "data", upstream.url, other.url) as yard,
    ):
        stalled = yard.create(
            [request(f"dead-{n}|hold:dead") for n in range(1_200)]
            + [request(f"alive-{n}", model="other-model") for n in range(700)]
        )
        upstream.wait_calls("dead-", 2)
        yard.wait_progress(stalled["id"], lambda p: p["results"] == 700)
        late = yard.create([request("late-1", model="other-model")])
        yard.wait_ended(late["id"])
        assert upstream.number("dead-") == 2
        assert other.number("alive-") == 700
        upstream.gate("dead").open()
        yard.wait_ended(stalled["id"])


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
