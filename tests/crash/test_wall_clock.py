"""The wall clock of a machine is set, days forth and back, under a real server that works.

`bounds/sitecustomize.py` moves the wall clock of its processes and leaves their other clock alone.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from crash.checking import assert_holds
from helpers_upstream import Upstream, text_of
from helpers_workers import BOUNDS, LASTING, wait_workers
from helpers_yard import BATCHES, QUICK, Yard, answer_text, poll, request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

DAY_S = 86_400
SOON = timedelta(hours=1)
# Each duty many times while the clock is wrong.
OFTEN = QUICK | {"limits:KEEPER_INTERVAL_S": 0.05, "limits:RENEW_INTERVAL_S": 0.1}
# A jump is believed at once, as a program would that knows nothing of jumps.
BELIEVED = {"clock:_JUMP_US": 1 << 60}
# A jump is believed when it has stood for this long, instead of two and a half minutes.
STANDS = {"clock:_JUMP_STANDS_S": 0.5}
# Some shards wait for a worker.
SHARED = LASTING | {"limits:SHARD_REQUESTS": 4}


class SetYard(Yard):
    """A yard on a machine whose wall clock can be set."""

    def __init__(
        self, data: Path, upstream: str, bounds: Mapping[str, float], workers: int = 1
    ) -> None:
        self._off = data.with_name("wall-clock")
        self.set_clock(0)
        environment = {
            "BATCHYARD_WORKERS": str(workers),
            "BATCHYARD_TEST_BOUNDS": json.dumps({**OFTEN, **bounds}),
            "BATCHYARD_TEST_WALL_CLOCK": str(self._off),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(BOUNDS), os.environ.get("PYTHONPATH", "")])
            ),
        }
        super().__init__(data, upstream, slots=4, environment=environment)

    def set_clock(self, off_s: int) -> None:
        """Let the wall clock be so much later than it is, or earlier."""
        new = self._off.with_suffix(".new")
        new.write_text(str(off_s))
        new.replace(self._off)

    def wait_said(self, text: str, times: int = 1) -> None:
        poll(lambda: self.read_log().count(text) >= times, lambda: f"{text}: {self.read_log()}")

    def _leases(self) -> dict[tuple[str, int, int], int]:
        """Return until when each shard is held, by batch, index and attempt."""
        found = "SELECT batch, idx, attempt, lease_us FROM shards WHERE state = 1"
        with closing(sqlite3.connect(f"file:{self.data / 'ledger.db'}?mode=ro", uri=True)) as db:
            return {
                (batch, idx, attempt): until for batch, idx, attempt, until in db.execute(found)
            }

    def wait_renewed(self) -> None:
        """Wait until what is held now was renewed, or has been lost."""
        before = self._leases()
        poll(
            lambda: all(until > before.get(key, 0) for key, until in self._leases().items()),
            lambda: f"renewed: {before} {self._leases()}",
        )

    def work(self, name: str) -> list[dict[str, Any]]:
        """Run some batches, one after the other, so that every duty comes up; return them."""
        made = []
        for number in range(3):
            prompts = [f"{name}-{number}-{n}" for n in range(3)]
            batch = self.create([request(prompt) for prompt in prompts])
            made.append(self.wait_ended(batch["id"]))
            results = self.results(batch["id"])
            assert {k: answer_text(v) for k, v in results.items()} == {
                p: text_of(p) for p in prompts
            }
        return made


@contextmanager
def on_a_set_clock(
    root: Path, bounds: Mapping[str, float], workers: int = 1
) -> Iterator[tuple[SetYard, Upstream]]:
    with Upstream() as upstream, SetYard(root / "data", upstream.url, bounds, workers) as yard:
        yield yard, upstream
        assert yard.stop() == 0
        assert_holds(yard.data)
        assert "Traceback" not in yard.read_log()


def held(yard: Yard, upstream: Upstream, prompts: list[str]) -> str:
    """Create a batch some of whose calls are in flight, and the others wait for a slot."""
    batch_id: str = yard.create([request(f"{prompt}|hold:late") for prompt in prompts])["id"]
    upstream.wait_until(lambda: len(upstream.in_flight) == 4, "all slots are filled")
    return batch_id


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_clock_that_is_wrong_for_a_while_expires_archives_and_revives_nothing(
    tmp_path: Path,
) -> None:
    prompts = [f"open-{n}" for n in range(9)]
    with on_a_set_clock(tmp_path, {}) as (yard, upstream):
        ended = yard.work("before")
        bytes_before = [yard.get(f"{BATCHES}/{batch['id']}/results").body for batch in ended]
        running = yard.create([request(f"{prompt}|hold:late") for prompt in prompts[:2]])
        now = moment(running["created_at"])
        for times, off_days in enumerate((2, -2, 40, -40), 1):
            yard.set_clock(off_days * DAY_S)
            yard.wait_said("the wall clock jumped by", times)
            for batch in yard.work(f"at-{off_days}"):
                assert abs(moment(batch["created_at"]) - now) < SOON
                assert abs(moment(batch["ended_at"]) - now) < SOON
            assert [yard.batch(batch["id"]) for batch in ended] == ended
            assert yard.batch(running["id"])["processing_status"] == "in_progress"
            yard.set_clock(0)
            yard.work(f"right-{off_days}")
        found = [yard.get(f"{BATCHES}/{batch['id']}/results").body for batch in ended]
        assert found == bytes_before
        upstream.gate("late").open()
        assert yard.wait_ended(running["id"])["request_counts"]["succeeded"] == 2
        assert set(upstream.counts.values()) == {1}, "a lease was taken for over"


def test_without_the_guard_the_same_clock_would_expire_what_runs(tmp_path: Path) -> None:
    """So the test above can fail."""
    with on_a_set_clock(tmp_path, BELIEVED) as (yard, upstream):
        batch_id = held(yard, upstream, [f"open-{n}" for n in range(9)])
        yard.set_clock(2 * DAY_S)
        yard.wait_progress(batch_id, lambda shown: shown["counts"]["expired"] == 5)
        upstream.gate("late").open()
        assert yard.wait_ended(batch_id)["request_counts"]["expired"] == 5


def test_a_clock_that_stays_is_followed_and_what_has_ended_by_it_is_not_revived(
    tmp_path: Path,
) -> None:
    with on_a_set_clock(tmp_path, STANDS) as (yard, upstream):
        batch_id = held(yard, upstream, [f"open-{n}" for n in range(9)])
        yard.set_clock(2 * DAY_S)
        yard.wait_said("followed now")
        yard.wait_progress(batch_id, lambda shown: shown["counts"]["expired"] == 5)
        upstream.gate("late").open()
        ended = yard.wait_ended(batch_id)
        assert ended["request_counts"]["expired"] == 5, "what was never sent had its day"
        results = yard.get(f"{BATCHES}/{batch_id}/results").body
        yard.set_clock(-2 * DAY_S)
        yard.wait_said("followed now", 2)
        later = yard.work("back")
        assert moment(later[0]["created_at"]) < moment(ended["created_at"]) - timedelta(days=1)
        assert yard.batch(batch_id) == ended
        assert yard.get(f"{BATCHES}/{batch_id}/results").body == results
        yard.kill()
        yard.start()
        again = yard.batch(batch_id)
        assert {**again, "results_url": ""} == {**ended, "results_url": ""}  # the port is another


def test_workers_that_begin_while_the_clock_is_wrong_expire_nothing(tmp_path: Path) -> None:
    prompts = [f"open-{n}" for n in range(40)]
    with on_a_set_clock(tmp_path, SHARED, workers=2) as (yard, upstream):
        began = wait_workers(yard)
        running = held(yard, upstream, prompts)
        yard.set_clock(2 * DAY_S)
        for victim in began:
            os.kill(victim, signal.SIGKILL)
            wait_workers(yard, but=victim)
        upstream.gate("late").open()
        for batch in [yard.wait_ended(running), *yard.work("wrong")]:
            counts = batch["request_counts"]
            assert counts["succeeded"] == sum(counts.values()), counts
        assert "followed now" not in yard.read_log(), "it was wrong all the time"


def test_corrections_of_less_than_an_hour_end_no_lease_and_give_no_slot_twice(
    tmp_path: Path,
) -> None:
    prompts = [f"open-{n}" for n in range(40)]
    with on_a_set_clock(tmp_path, SHARED, workers=2) as (yard, upstream):
        wait_workers(yard)
        batch_id = held(yard, upstream, prompts)
        for step in range(1, 13):
            yard.set_clock(step * 600)  # a process that looks late has some at once
            right = datetime.now(UTC) + timedelta(minutes=10 * step)
            made = yard.create([request(f"step-{step}")])  # by now the server has followed
            assert abs(moment(made["created_at"]) - right) < SOON / 10
            yard.wait_renewed()
            assert len(upstream.in_flight) == 4
        assert "not followed yet" not in yard.read_log()
        upstream.gate("late").open()
        assert yard.wait_ended(batch_id)["request_counts"]["succeeded"] == len(prompts)
        assert set(upstream.counts.values()) == {1}
        assert "lost shard" not in yard.read_log()
