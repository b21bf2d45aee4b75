"""Two APIs and two workers as real processes that share nothing but PostgreSQL and a bucket."""

from __future__ import annotations

import contextlib
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import anthropic
import pytest

from helpers_many import SHORT, Fleet, Member
from helpers_upstream import Upstream
from helpers_yard import BATCHES, HEADERS, KEY, assert_answered, poll, request
from store.making import no_standby, postgres, s3, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers_yard import Answer


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        yield opened


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Fleet]:
    root = tmp_path_factory.mktemp("fleet")
    with Fleet(root, upstream.url, postgres(), s3(), "fleet") as opened:
        yield opened


@pytest.fixture
def fleet(started: Fleet) -> Fleet:
    """The fleet, with those that a test has ended."""
    started.start()
    return started


@contextlib.contextmanager
def frozen(member: Member) -> Iterator[None]:
    """Freeze a process for a while."""
    member.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        member.signal(signal.SIGCONT)


def name(prompt: str) -> str:
    return prompt.partition("|")[0]


def _holding(fleet: Fleet, upstream: Upstream, gate: str, number: int = 6) -> tuple[str, list[str]]:
    """Create a batch whose calls wait for the gate of its name; half of it is answered before."""
    prompts = [f"{gate}{n}|hold:{gate}" if n % 2 else f"{gate}{n}" for n in range(number)]
    batch = fleet.apis[0].create([request(prompt) for prompt in prompts])
    for prompt in prompts:
        upstream.wait_calls(name(prompt), 1)
    return batch["id"], prompts


def test_any_api_answers_for_all_and_the_official_client_notices_nothing(fleet: Fleet) -> None:
    one, two = (
        anthropic.Anthropic(base_url=api.url, api_key=KEY, max_retries=2) for api in fleet.apis
    )
    prompts = [f"p{n}" for n in range(20)]
    batch = one.messages.batches.create(requests=[request(p) for p in prompts])  # type: ignore[misc]
    poll(lambda: two.messages.batches.retrieve(batch.id).ended_at, lambda: batch.id)
    results = {
        line.custom_id: line.result.model_dump() for line in two.messages.batches.results(batch.id)
    }
    assert_answered(results, prompts)
    assert batch.id in [b.id for b in one.messages.batches.list()]
    two.messages.batches.delete(batch.id)
    assert batch.id not in [b.id for b in one.messages.batches.list()]
    for client in (one, two):
        client.close()


def test_work_and_cancel_reach_workers_that_no_api_knows(fleet: Fleet, upstream: Upstream) -> None:
    batch_id, prompts = _holding(fleet, upstream, "c")
    answer = fleet.apis[1].post(f"{BATCHES}/{batch_id}/cancel", {})
    assert answer.json()["processing_status"] == "canceling"
    upstream.gate("c").open()
    fleet.apis[0].wait_ended(batch_id)
    assert len(fleet.apis[1].results(batch_id)) == len(prompts)


def test_what_a_killed_worker_held_is_done_by_the_other_and_no_result_is_there_twice(
    fleet: Fleet, upstream: Upstream
) -> None:
    with frozen(fleet.workers[1]):
        batch_id, prompts = _holding(fleet, upstream, "k", 8)
        fleet.workers[0].kill()
    upstream.gate("k").open()
    fleet.apis[0].wait_ended(batch_id)
    assert_answered(fleet.apis[1].results(batch_id), prompts)
    calls = [upstream.number(name(prompt)) for prompt in prompts]
    assert max(calls) == 2, "it was killed with calls in flight"


def test_a_frozen_worker_that_wakes_changes_nothing(fleet: Fleet, upstream: Upstream) -> None:
    with frozen(fleet.workers[1]):
        batch_id, prompts = _holding(fleet, upstream, "f", 8)
        fleet.workers[0].signal(signal.SIGSTOP)
    try:
        upstream.gate("f").open()
        fleet.apis[0].wait_ended(batch_id)
        before = fleet.apis[0].results(batch_id)
        assert_answered(before, prompts)
    finally:
        fleet.workers[0].signal(signal.SIGCONT)
    poll(lambda: "lost shard" in fleet.workers[0].read_log(), fleet.workers[0].read_log)
    assert fleet.workers[0].stop() == 0
    assert fleet.apis[0].results(batch_id) == before


def test_a_database_that_is_killed_and_comes_back_costs_no_call(
    fleet: Fleet, upstream: Upstream
) -> None:
    batches = [_holding(fleet, upstream, f"d{n}x") for n in range(3)]
    fleet.postgres.kill()
    try:
        for number in range(3):
            upstream.gate(f"d{number}x").open()
        answer = fleet.apis[0].get(f"{BATCHES}/{batches[0][0]}")
        assert (answer.status, answer.json()["error"]["type"]) == (529, "overloaded_error")
        assert answer.headers["retry-after"]
    finally:
        fleet.postgres.start()
    for batch_id, prompts in batches:
        poll(
            lambda: fleet.apis[1].get(f"{BATCHES}/{batch_id}").status == 200,  # noqa: B023
            fleet.apis[1].read_log,
        )
        fleet.apis[1].wait_ended(batch_id)
        assert_answered(fleet.apis[1].results(batch_id), prompts)
        assert [upstream.number(name(prompt)) for prompt in prompts] == [1] * len(prompts)
    assert all(
        member.process.poll() is None for member in [*fleet.apis, *fleet.workers] if member.process
    )


def test_a_create_whose_commit_hangs_and_its_repeat_at_another_api_are_one_batch(
    tmp_path: Path, upstream: Upstream
) -> None:
    url = postgres().create("hanging")
    shared = s3().environment | {
        "BATCHYARD_LEDGER": url,
        "BATCHYARD_SEGMENTS": s3().url("hanging"),
    }
    bounds = SHORT | {"limits:SHARED_KEEPER_INTERVAL_S": 1e6}  # nothing but creates is committed
    apis = [Member(tmp_path, f"api{n}", "api", upstream.url, shared, bounds) for n in range(2)]
    body = {"requests": [request("stalled")]}

    def repeat() -> Answer:
        for count in range(1, 100):
            headers = HEADERS | {"x-stainless-retry-count": str(count)}
            answer = apis[1].post(BATCHES, body, headers)
            if answer.status != 529:
                break
        return answer

    with ThreadPoolExecutor(1) as threads, contextlib.ExitStack() as stack:
        for api in apis:
            api.launch()
            stack.callback(api.kill)
        for api in apis:
            api.wait_ready()
            poll(lambda: api.get(BATCHES).status == 200, api.read_log)  # noqa: B023
        with no_standby():
            assert apis[0].post(BATCHES, body).status == 529
            repeated = threads.submit(repeat)
            wait_for("Lock", url)
        batch = repeated.result().json()
        listed = apis[0].get(BATCHES).json()["data"]
    assert [each["id"] for each in listed] == [batch["id"]]


def test_the_other_api_goes_on_when_one_is_killed(fleet: Fleet, upstream: Upstream) -> None:
    batch_id, prompts = _holding(fleet, upstream, "a")
    fleet.apis[0].kill()
    upstream.gate("a").open()
    fleet.apis[1].wait_ended(batch_id)
    assert_answered(fleet.apis[1].results(batch_id), prompts)
    assert_answered(fleet.apis[1].run(["again"]), ["again"])


def test_a_worker_that_is_told_to_end_finishes_its_calls_and_gives_back_the_rest(
    fleet: Fleet, upstream: Upstream
) -> None:
    batch_id, prompts = _holding(fleet, upstream, "t")
    for worker in fleet.workers:
        worker.signal(signal.SIGTERM)
    upstream.gate("t").open()
    assert [worker.wait() for worker in fleet.workers] == [0, 0]
    fleet.workers[0].start()
    fleet.apis[0].wait_ended(batch_id)
    assert_answered(fleet.apis[0].results(batch_id), prompts)
    assert [upstream.number(name(prompt)) for prompt in prompts] == [1] * len(prompts)


def test_a_process_in_both_roles_shares_the_work_with_the_others(
    fleet: Fleet, upstream: Upstream, tmp_path: Path
) -> None:
    with Member(tmp_path, "both", "all", upstream.url, fleet.shared) as both:
        with frozen(fleet.workers[0]), frozen(fleet.workers[1]):
            assert_answered(both.run(["alone"]), ["alone"])
        assert_answered(fleet.apis[0].run(["together"]), ["together"])
        assert both.stop() == 0


def test_text_that_postgresql_cannot_hold_is_known_nowhere(fleet: Fleet) -> None:
    api = fleet.apis[0]
    odd = request("odd") | {"params": {**request("odd")["params"], "model": "script\0ed"}}  # type: ignore[dict-item]
    batch = api.create([odd, request("even")])["id"]
    api.wait_ended(batch)
    results = api.results(batch)
    assert results["odd"]["type"] == "errored"
    assert results["even"]["type"] == "succeeded"
    for path in ("/x%00y", "/x%00y/results", "/x%00y/progress"):
        assert api.get(BATCHES + path).status == 404, path
    assert api.post(f"{BATCHES}/x%00y/cancel", b"").status == 404
    assert api.get(f"{BATCHES}?after_id=x%00y").status == 400


def test_any_api_tells_what_the_workers_count_and_why_requests_wait(
    fleet: Fleet, upstream: Upstream
) -> None:
    prompts = ["count1|500,hold:count", "count2|hold:count", "count3|401,401,hold:count"]
    batch = fleet.apis[0].create([request(prompt) for prompt in prompts])["id"]
    for api in fleet.apis:
        api.wait_progress(batch, lambda p: "paused" in [w["reason"] for w in p["waiting"]])
        api.wait_progress(batch, lambda p: "HTTP 401" in str(p["failed_calls"]) or p["failing"])
        told = api.progress(batch)
        assert told["calls"] >= 2
        assert told["as_of"] is not None
    upstream.gate("count").open()
    fleet.apis[1].post(f"{BATCHES}/{batch}/cancel", b"")
    fleet.apis[0].wait_ended(batch)
