"""Several worker processes on one ledger: shared slots, deaths, frozen ones, and the end."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from batchyard.server import orphans
from crash.checking import assert_holds
from helpers_upstream import Upstream
from helpers_workers import (
    LASTING,
    SHORT,
    Slow,
    hold_shared,
    is_alive,
    pids_of,
    wait_free,
    wait_workers,
    workers_yard,
)
from helpers_yard import BATCHES, assert_answered, poll, request

if TYPE_CHECKING:
    from pathlib import Path

    from helpers_yard import Yard


def prompts_of(name: str, number: int, step: str = "") -> list[str]:
    return [f"{name}-{n:04}{step}" for n in range(number)]


def repeated(upstream: Upstream) -> int:
    return sum(number - 1 for number in upstream.counts.values())


def test_workers_divide_the_slots_and_the_work_and_leave_in_order(tmp_path: Path) -> None:
    slow = Slow()
    prompts = prompts_of("both", 1_500)
    with (
        Upstream(slow) as upstream,
        workers_yard(tmp_path / "data", upstream.url, bounds=LASTING) as yard,
    ):
        pids = wait_workers(yard)
        batch = yard.create([request(prompt) for prompt in prompts])
        hold_shared(yard, slow)
        yard.wait_progress(batch["id"], lambda p: p["in_flight"] == 16)
        slow.holds = False
        upstream.gate("held").open()
        ended = yard.wait_ended(batch["id"])
        assert ended["request_counts"]["succeeded"] == len(prompts)
        assert_answered(yard.results(batch["id"]), prompts)
        assert slow.most == 16, "never more than are configured, over all workers"
        assert pids_of(yard) == pids
        assert yard.stop() == 0
        assert not any(map(is_alive, pids))
        assert repeated(upstream) == 0
        assert "Traceback" not in yard.read_log()
    assert_holds(yard.data)


def test_the_work_of_a_killed_worker_goes_on_at_once_and_it_is_replaced(tmp_path: Path) -> None:
    """Its lease is not waited for: it ends in an hour."""
    slow = Slow()
    prompts = prompts_of("killed", 1_500)
    bounds = SHORT | {"limits:LEASE_US": 3_600_000_000}
    with (
        Upstream(slow) as upstream,
        workers_yard(tmp_path / "data", upstream.url, bounds=bounds) as yard,
    ):
        victim = wait_workers(yard)[0]
        batch = yard.create([request(prompt) for prompt in prompts])
        hold_shared(yard, slow)
        os.kill(victim, signal.SIGKILL)
        wait_workers(yard, but=victim)
        slow.holds = False
        upstream.gate("held").open()
        yard.wait_ended(batch["id"])
        assert_answered(yard.results(batch["id"]), prompts)
        assert 0 < repeated(upstream) <= 16
        assert yard.stop() == 0
    assert_holds(yard.data)


def freeze(yard: Yard, pids: list[int]) -> None:
    """Freeze processes, none of them while it keeps others from writing."""

    def is_done() -> bool:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        directory = os.open(yard.data, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            return False
        finally:
            os.close(directory)
        return True

    poll(is_done, lambda: "one of them always writes")


def test_a_frozen_worker_that_wakes_is_fenced_off(tmp_path: Path) -> None:
    slow = Slow()
    prompts = prompts_of("frozen", 1_500)
    with Upstream(slow) as upstream, workers_yard(tmp_path / "data", upstream.url) as yard:
        frozen = wait_workers(yard)[0]
        batch = yard.create([request(prompt) for prompt in prompts])
        hold_shared(yard, slow)
        freeze(yard, [frozen])
        try:
            slow.holds = False
            upstream.gate("held").open()
            ended = yard.wait_ended(batch["id"])
        finally:
            os.kill(frozen, signal.SIGCONT)
        assert ended["request_counts"]["succeeded"] == len(prompts)
        poll(lambda: "lost shard=" in yard.read_log(), yard.read_log)
        assert_answered(yard.results(batch["id"]), prompts)
        again = prompts_of("after", 600)
        assert_answered(yard.run(again), again)
        assert frozen in pids_of(yard), "it goes on"
        assert repeated(upstream) <= 16
        assert yard.stop() == 0
        assert "Traceback" not in yard.read_log()
    assert_holds(yard.data)


def leases_left_s(yard: Yard, of: str = "shards WHERE state = 1") -> list[float]:
    """Return how long the leases of the shards that are held last, as the ledger has them."""
    with closing(sqlite3.connect(f"file:{yard.data / 'ledger.db'}?mode=ro", uri=True)) as db:
        leases = db.execute(f"SELECT lease_us FROM {of}").fetchall()
    return [lease_us / 1e6 - time.clock_gettime(time.CLOCK_BOOTTIME) for (lease_us,) in leases]


def test_a_yard_that_is_frozen_as_a_whole_for_longer_than_a_lease_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    # Longer than a busy machine stops one of them, which is not what this is about.
    slow, bounds = Slow(), SHORT | {"limits:LEASE_US": 10_000_000}
    prompts = prompts_of("paused", 4_000)
    with (
        Upstream(slow) as upstream,
        workers_yard(tmp_path / "data", upstream.url, bounds=bounds) as yard,
    ):
        workers = wait_workers(yard)
        batch = yard.create([request(prompt) for prompt in prompts])
        hold_shared(yard, slow)
        assert yard.process is not None
        freeze(yard, [yard.process.pid, *workers])
        poll(lambda: max(leases_left_s(yard)) < 0, lambda: str(leases_left_s(yard)))
        os.kill(yard.process.pid, signal.SIGCONT)
        of_sweeps = "shares WHERE pool = '#contact'"
        poll(lambda: max(leases_left_s(yard, of_sweeps)) > 0, lambda: "the server does not sweep")
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        slow.holds = False
        upstream.gate("held").open()
        assert yard.wait_ended(batch["id"])["request_counts"]["succeeded"] == len(prompts)
        assert_answered(yard.results(batch["id"]), prompts)
        assert repeated(upstream) == 0
        assert yard.stop() == 0
        assert "lost shard" not in yard.read_log()
    assert_holds(yard.data)


def test_a_worker_without_a_sign_of_life_is_replaced(tmp_path: Path) -> None:
    bounds = SHORT | {"limits:WORKER_SILENT_S": 8.0}
    with (
        Upstream() as upstream,
        workers_yard(tmp_path / "data", upstream.url, bounds=bounds) as yard,
    ):
        silent = wait_workers(yard)[0]
        os.kill(silent, signal.SIGSTOP)
        wait_workers(yard, but=silent)
        poll(lambda: not is_alive(silent), lambda: "it is ended")
        assert "gave no sign of life" in yard.read_log()
        assert_answered(yard.run(["silent-1"]), ["silent-1"])
        assert yard.stop() == 0


def test_workers_end_with_a_server_that_is_killed_and_the_next_one_goes_on(
    tmp_path: Path,
) -> None:
    prompts = prompts_of("parent", 1_200, "|hold:parent")
    with Upstream() as upstream, workers_yard(tmp_path / "data", upstream.url) as yard:
        pids = wait_workers(yard)
        batch = yard.create([request(prompt) for prompt in prompts])
        upstream.wait_calls("parent", 16)
        yard.kill()
        wait_free(yard.data)
        # Who ends lets go of its files first, and is gone a moment later.
        poll(lambda: not any(map(is_alive, pids)), lambda: f"{pids} end")
        assert_holds(yard.data)
        upstream.gate("parent").open()
        yard.start()
        yard.wait_ended(batch["id"])
        assert_answered(yard.results(batch["id"]), prompts)
        assert repeated(upstream) <= 16
        assert yard.stop() == 0


def test_a_frozen_worker_of_a_server_that_was_killed_does_not_hold_up_the_next_start(
    tmp_path: Path,
) -> None:
    """It cannot end by itself, and holds the lock: the next server ends it."""
    prompts = prompts_of("held", 40, "|hold:held")
    with Upstream() as upstream, workers_yard(tmp_path / "data", upstream.url) as yard:
        frozen, other = wait_workers(yard)
        batch = yard.create([request(prompt) for prompt in prompts])
        upstream.wait_calls("held", 16)
        os.kill(frozen, signal.SIGSTOP)
        yard.kill()
        yard.start()
        poll(lambda: not any(map(is_alive, (frozen, other))), lambda: "both are ended")
        upstream.gate("held").open()
        yard.wait_ended(batch["id"])
        assert_answered(yard.results(batch["id"]), prompts)
        assert yard.stop() == 0
        assert not list((yard.data / "workers").iterdir()), "none is left to be ended"
    assert_holds(yard.data)


def test_another_process_with_the_number_of_a_worker_is_not_ended(tmp_path: Path) -> None:
    """The start time tells them apart."""
    (tmp_path / "workers").mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        orphans.record(tmp_path, other.pid)
        path = tmp_path / "workers" / str(other.pid)
        boot, started = path.read_text().split()
        path.write_text(f"{boot} {int(started) - 1}")
        assert orphans.end(tmp_path) == []
        path.write_text(f"another {started}")
        assert orphans.end(tmp_path) == []
        assert other.poll() is None
        path.write_text(f"{boot} {started}")
        assert orphans.end(tmp_path) == [other.pid]
        assert other.wait() == -signal.SIGKILL


def test_a_signal_lets_the_calls_of_all_workers_end(tmp_path: Path) -> None:
    prompts = prompts_of("drain", 1_200, "|hold:drain")
    with (
        Upstream() as upstream,
        workers_yard(tmp_path / "data", upstream.url, bounds=LASTING) as yard,
    ):
        pids = wait_workers(yard)
        batch = yard.create([request(prompt) for prompt in prompts])
        upstream.wait_calls("drain", 16)
        yard.signal(signal.SIGTERM)
        poll(lambda: "leaving" in yard.read_log(), yard.read_log)
        upstream.gate("drain").open()
        assert yard.wait() == 0
        assert not any(map(is_alive, pids))
        before = len(upstream.calls)
        assert before < len(prompts)
        yard.start()
        yard.wait_ended(batch["id"])
        assert_answered(yard.results(batch["id"]), prompts)
        assert repeated(upstream) == 0, "what was answered while it left is kept"


def test_a_second_signal_ends_all_processes_at_once(tmp_path: Path) -> None:
    with Upstream() as upstream, workers_yard(tmp_path / "data", upstream.url) as yard:
        pids = wait_workers(yard)
        yard.create([request("stuck-1|hold:second")])
        upstream.wait_calls("stuck", 1)
        yard.signal(signal.SIGTERM)
        poll(lambda: "leaving" in yard.read_log(), yard.read_log)
        yard.signal(signal.SIGTERM)
        assert yard.wait() == 1
        poll(lambda: not any(map(is_alive, pids)), lambda: f"{pids} end")
        upstream.gate("second").open()


def test_a_cancel_reaches_the_workers(tmp_path: Path) -> None:
    with (
        Upstream() as upstream,
        workers_yard(tmp_path / "data", upstream.url, slots=2, bounds=LASTING) as yard,
    ):
        wait_workers(yard)
        prompts = prompts_of("cancel", 20, "|hold:cancel")
        batch = yard.create([request(prompt) for prompt in prompts])
        upstream.wait_calls("cancel", 2)
        yard.post(f"{BATCHES}/{batch['id']}/cancel", b"")
        yard.wait_progress(batch["id"], lambda p: p["counts"]["canceled"] == 18)
        upstream.gate("cancel").open()
        ended = yard.wait_ended(batch["id"])
        counts = ended["request_counts"]
        assert (counts["succeeded"], counts["canceled"]) == (2, 18)
        assert len(upstream.calls) == 2


def test_no_worker_begins_a_call_after_a_cancel_was_answered(tmp_path: Path) -> None:
    """All slots of both are taken, and all become free at the moment of the answer."""
    slow, prompts = Slow(), prompts_of("late", 1_500)
    with (
        Upstream(slow) as upstream,
        workers_yard(tmp_path / "data", upstream.url, bounds=LASTING) as yard,
    ):
        wait_workers(yard)
        batch = yard.create([request(prompt) for prompt in prompts])
        hold_shared(yard, slow)
        answer = yard.post(f"{BATCHES}/{batch['id']}/cancel", b"")
        begun = len(upstream.calls)
        upstream.gate("held").open()
        assert answer.status == 200
        counts = yard.wait_ended(batch["id"])["request_counts"]
        assert len(upstream.calls) == begun < len(prompts)
        assert (counts["succeeded"], counts["canceled"]) == (begun, len(prompts) - begun)
        assert repeated(upstream) == 0


def test_progress_says_why_requests_wait_in_a_worker(tmp_path: Path) -> None:
    with (
        Upstream() as upstream,
        workers_yard(tmp_path / "data", upstream.url, slots=2) as yard,
    ):
        batch = yard.create([request("denied-1|401,401,401,hold:denied")])
        paused = poll(lambda: yard.progress(batch["id"])["paused"], yard.read_log)
        assert list(paused) == ["up/scripted"]
        upstream.gate("denied").open()
        yard.wait_ended(batch["id"])


def test_progress_counts_the_calls_of_all_workers_also_of_one_that_died(tmp_path: Path) -> None:
    prompts = [f"told-{n}|500,hold:told" for n in range(8)] + ["told-x|hold:told"]
    with (
        Upstream() as upstream,
        workers_yard(tmp_path / "data", upstream.url, bounds=LASTING) as yard,
    ):
        victim = wait_workers(yard)[0]
        batch = yard.create([request(prompt) for prompt in prompts])
        for prompt in prompts[:8]:
            upstream.wait_calls(prompt.partition("|")[0], 2)
        calls = len(upstream.calls)
        yard.wait_progress(batch["id"], lambda p: p["calls"] == calls)
        told = yard.wait_progress(batch["id"], lambda p: p["as_of"])
        assert (told["repeated_calls"], sum(told["failed_calls"].values())) == (8, 8)
        failing = {each["custom_id"]: each for each in told["failing"]}
        assert set(failing) == {f"told-{n}" for n in range(8)}
        assert {(each["tries"], each["is_over"]) for each in failing.values()} == {(1, False)}
        assert "scripted 500" in failing["told-0"]["message"]
        as_of = datetime.fromisoformat(told["as_of"])
        later = as_of + timedelta(milliseconds=100)
        yard.wait_progress(
            batch["id"], lambda p: p["as_of"] and datetime.fromisoformat(p["as_of"]) > later
        )
        for pid in wait_workers(yard):
            os.kill(pid, signal.SIGKILL)
        wait_workers(yard, but=victim)
        upstream.wait_until(lambda: len(upstream.calls) == calls + 9, "those in flight, again")
        yard.wait_progress(batch["id"], lambda p: p["calls"] == calls + 9)
        upstream.gate("told").open()
        yard.wait_ended(batch["id"])
        assert yard.progress(batch["id"])["calls"] == calls + 9, "as before"


def test_progress_says_who_has_the_slots_of_all_workers(tmp_path: Path) -> None:
    with (
        Upstream() as upstream,
        workers_yard(tmp_path / "data", upstream.url, slots=2, bounds=LASTING) as yard,
    ):
        wait_workers(yard)
        first = yard.create([request(prompt) for prompt in prompts_of("first", 20, "|hold:share")])
        upstream.wait_calls("first", 2)
        second = yard.create([request("second-1")])
        # Until all have told what they have.
        said = "0 of 2 slots; the others work for other batches"
        (waiting,) = yard.wait_progress(
            second["id"], lambda p: any(w["detail"] == said for w in p["waiting"])
        )["waiting"]
        assert waiting["reason"] == "behind_share"
        assert waiting["pool"] == "up/scripted"
        upstream.gate("share").open()
        for batch in (first, second):
            yard.wait_ended(batch["id"])


def test_progress_says_until_when_the_upstream_asked_a_worker_to_wait(tmp_path: Path) -> None:
    with Upstream() as upstream, workers_yard(tmp_path / "data", upstream.url) as yard:
        wait_workers(yard)
        batch = yard.create([request("cooling-1|429:600,message")])
        yard.wait_progress(batch["id"], lambda p: p["waiting"])
        waiting = yard.progress(batch["id"])["waiting"][0]
        assert waiting["reason"] == "cooling_down"
        left = datetime.fromisoformat(waiting["until"]) - datetime.now(UTC)
        assert 0 < left.total_seconds() <= 600
        yard.post(f"{BATCHES}/{batch['id']}/cancel", b"")
        yard.wait_ended(batch["id"])


def kill_sender(
    yard: Yard, upstream: Upstream, name: str, before: int, batch: str
) -> dict[str, Any] | None:
    """Kill the worker that sends a request once more; return progress if that was given up."""

    def look() -> int | dict[str, Any] | None:
        if upstream.number(name) > before:
            with closing(
                sqlite3.connect(f"file:{yard.data / 'ledger.db'}?mode=ro", uri=True)
            ) as db:
                row = db.execute("SELECT owner FROM shards WHERE batch = ?", (batch,)).fetchone()
            found = row and re.search(rf"\[(\d+)\] working owner={row[0]}", yard.read_log())
            return int(found[1]) if found else None
        told = yard.progress(batch)
        return told if told["counts"]["errored"] else None

    found = poll(look, lambda: f"{upstream.counts}: {yard.read_log()[-3_000:]}")
    if isinstance(found, int):
        os.kill(found, signal.SIGKILL)
        return None
    return found


def test_a_request_that_ends_its_worker_again_and_again_is_given_up_and_no_other(
    tmp_path: Path,
) -> None:
    """Long calls of others die with it, and are never blamed for that."""
    slow = prompts_of("innocent", 3, "|hold:poison")
    with (
        Upstream() as upstream,
        workers_yard(tmp_path / "data", upstream.url, bounds=LASTING) as yard,
    ):
        batches = [yard.create([request(prompt)]) for prompt in slow]
        upstream.wait_calls("innocent", 3)
        poison = yard.create(
            [request("quick-1"), request("poison-1|hold:never"), request("same-1|hold:poison")]
        )

        kills = 0
        while not kill_sender(yard, upstream, "poison-1", kills, poison["id"]):
            kills += 1
        upstream.gate("poison").open()
        yard.wait_ended(poison["id"])
        results = yard.results(poison["id"])
        assert results["same-1"]["type"] == "succeeded", "it is of the same shard"
        assert results["quick-1"]["type"] == "succeeded", "what it had is kept"
        error = results["poison-1"]["error"]["error"]
        assert error["type"] == "api_error"
        assert "ended 8 times in a row" in error["message"]
        # The first left a result; one that is killed the moment after a renewal may not count.
        assert 9 <= upstream.counts["poison-1"] == kills <= 16
        for batch, prompt in zip(batches, slow, strict=True):
            yard.wait_ended(batch["id"])
            assert_answered(yard.results(batch["id"]), [prompt])
        assert yard.stop() == 0
    assert_holds(yard.data)


def test_a_store_that_fails_in_a_worker_ends_the_yard(tmp_path: Path) -> None:
    """As it does in one process: the next start recovers from what is on disk."""
    with Upstream() as upstream, workers_yard(tmp_path / "data", upstream.url) as yard:
        pids = wait_workers(yard)
        batch = yard.create([request("store-1|hold:store")])
        upstream.wait_calls("store", 1)
        (results,) = (tmp_path / "data").glob(f"segments/*/{batch['id']}/r")
        results.rmdir()
        results.write_bytes(b"")
        upstream.gate("store").open()
        assert yard.wait() == 1
        poll(lambda: not any(map(is_alive, pids)), lambda: f"{pids} end")
        assert "the store failed" in yard.read_log()
        with closing(sqlite3.connect(f"file:{yard.data / 'ledger.db'}?mode=ro", uri=True)) as db:
            (failed,) = db.execute("SELECT sum(failures + at_risk) FROM shards").fetchone()
        assert failed == 0, "it is none of the shard"
        results.unlink()
        results.mkdir()
        yard.start()
        yard.wait_ended(batch["id"])


@pytest.mark.parametrize("workers", ["0", "65", "two"])
def test_another_number_of_workers_is_refused(tmp_path: Path, workers: str) -> None:
    yard = workers_yard(tmp_path / "data", "http://127.0.0.1:9")
    yard._environment = {"BATCHYARD_WORKERS": workers}
    yard.launch()
    assert yard.wait() == 2
    assert "workers" in yard.read_log()
