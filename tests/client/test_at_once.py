"""The last few documents of a run one by one, at once, at the list price."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from batchyard import InputError, Paused, Run, files
from batchyard.client.running.folder import Files
from client.commands import OPTIONS, batchyard, run_documents
from client.fake_api import FakeApi, errored, succeeded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "test-key"
FAILED = errored("api_error", "no")
UNPAID = errored("invalid_request_error", "Your credit balance is too low to access the API")


@pytest.fixture
def hosted(documents: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    """A server that is no yard: half the list price for a batch, and single calls."""
    api = FakeApi(is_yard=False, follows_time=True, key_of_messages=KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    yield api
    api.close()


def expire(api: FakeApi, *names: str) -> None:
    api.outcomes = {f"{name}_Dmd": {"type": "expired"} for name in names}


def test_the_last_few_are_offered_at_once_with_their_price_and_asked_for(
    documents: Path, hosted: FakeApi
):
    expire(hosted, "a", "b")
    done = run_documents(hosted, "--yes", "--retries", "0")
    assert done.returncode == 3, done.stderr
    assert "2 are left: `" in done.stdout
    assert "retry reports --now` asks for them at once, at the list price, at most $" in done.stdout
    batches = hosted.count("POST", "/batches")

    again = batchyard("retry", "reports", "--now", "--yes")
    assert again.returncode == 0, again.stderr + again.stdout
    assert "3 saved" in again.stdout
    assert (hosted.count("POST", "/batches"), hosted.count("POST", "/messages")) == (batches, 2)
    reports = {path.name: path.read_text() for path in (documents / "reports").glob("*.md")}
    assert {name for name, text in reports.items() if "Told at once." in text} == {"a.md", "b.md"}
    receipt = json.loads((documents / "reports" / "receipt.json").read_text())
    assert receipt["paid_micros"] > receipt["synchronous_micros"] / 2, "two of three at list price"
    assert "left: `" not in again.stdout

    same = run_documents(hosted, "--yes")
    assert same.returncode == 0, same.stderr
    (documents / "docs" / "d.md").write_text("text of d")
    more = run_documents(hosted, "--yes")
    assert more.returncode == 0, more.stderr
    assert hosted.count("POST", "/batches") == batches + 1, "the next ones are a batch again"
    assert hosted.count("POST", "/messages") == 2


def calls(api: FakeApi) -> tuple[int, int]:
    """Return how many batches were asked for, and how many single calls."""
    return api.count("POST", "/batches"), api.count("POST", "/messages")


def offered(*options: str) -> dict:
    """Return what `retry` shows before it asks; nobody agrees."""
    asked = batchyard("retry", "reports", "--json", *options)
    assert asked.returncode == 2, asked.stdout + asked.stderr
    events = [json.loads(line) for line in asked.stdout.splitlines()]
    return next(event for event in events if event["event"] == "offer")


def journal_of(documents: Path) -> bytes:
    return Files(documents / "reports").journal.read_bytes()


def job(api: FakeApi, **more: object) -> Run:
    return Run(
        "reports", docs=files("docs"), prompt="p.j2", model="claude-opus-4-8", max_tokens=50,
        base_url=api.url, retries=0, **more,
    )  # fmt: skip


def test_what_was_not_answered_for_want_of_credit_is_offered_with_its_price_and_asked_for(
    documents: Path, hosted: FakeApi
):
    hosted.outcomes = {"a_Dmd": UNPAID, "b_Dmd": UNPAID}
    stopped = run_documents(hosted, "--yes", "--retries", "0")
    assert stopped.returncode == 3
    assert "2 are left: `" in stopped.stdout
    before = calls(hosted)

    plain, now = offered(), offered("--now")
    assert plain["again"] == now["again"] == {"billing": 2}
    assert 0 < plain["micros"] < now["micros"]
    assert calls(hosted) == before, "nothing is sent before the price was seen"


def test_all_that_a_round_by_hand_offers_is_sent_also_beside_what_was_not_paid(
    documents: Path, hosted: FakeApi
):
    usage = {"input_tokens": 100_000, "output_tokens": 50}  # so that nothing is left by itself
    hosted.outcomes = {"a_Dmd": UNPAID, "b_Dmd": succeeded("half", stop="max_tokens", usage=usage)}
    run_documents(hosted, "--yes", "--retries", "0")

    assert offered()["again"] == {"billing": 1, "truncated": 1}
    done = batchyard("retry", "reports", "--yes")
    assert done.returncode == 0, done.stdout
    assert [request["custom_id"] for request in hosted.batches["msgbatch_02"].requests] == [
        "a_Dmd_R1", "b_Dmd_R1",
    ]  # fmt: skip


def test_after_a_round_at_once_the_run_is_at_its_server_again(documents: Path, hosted: FakeApi):
    hosted.outcomes = {"a_Dmd": {"type": "expired"}, "b_Dmd": {"type": "canceled"}}
    run_documents(hosted, "--yes", "--retries", "0")
    before, price = calls(hosted), offered("--canceled")["micros"]

    now = batchyard("retry", "reports", "--now", "--yes")
    config = Files(documents / "reports").read_state().config
    assert "2 saved · 1 canceled" in now.stdout
    assert config is not None
    assert (config.local, config.base_url) == (False, hosted.url)
    assert offered("--canceled")["micros"] < price, "one less, and at the price of a batch"
    done = batchyard("retry", "reports", "--canceled", "--yes")
    assert done.returncode == 0, done.stderr
    assert calls(hosted) == (before[0] + 1, 1)

    assert batchyard("retry", "reports", "--now", "--yes").returncode == 0, "nothing is left"
    moved = batchyard("attach", "reports", "--base-url", "http://127.0.0.1:9")
    assert f"the server was {hosted.url} and is http://127.0.0.1:9" in moved.stdout


@pytest.mark.parametrize("point", ["moved", "moved:2"])
def test_a_run_that_was_killed_at_once_is_at_its_server_when_that_is_over(
    documents: Path, hosted: FakeApi, point: str
):
    expire(hosted, "a")
    run_documents(hosted, "--yes", "--retries", "0")
    killed = batchyard("retry", "reports", "--now", "--yes", BATCHYARD_CRASH_AT=point)
    assert killed.returncode < 0
    before = calls(hosted)
    if point == "moved":
        written, price = journal_of(documents), offered("--now")["micros"]
        assert offered()["micros"] < price, "it is a batch again"
        assert journal_of(documents) == written, "nobody has agreed"
    done = batchyard("retry", "reports", "--yes")
    assert done.returncode == 0, done.stderr
    as_batch = point == "moved"
    assert hosted.count("POST", "/batches") == before[0] + as_batch
    assert hosted.count("POST", "/messages") == 1 - as_batch
    config = Files(documents / "reports").read_state().config
    assert config is not None
    assert config.base_url == hosted.url


def test_while_single_calls_are_under_way_the_run_is_where_it_was(documents: Path, hosted: FakeApi):
    hosted.outcomes = {"a_Dmd": {"type": "expired"}, "b_Dmd": errored("invalid_request_error", "x")}
    run_documents(hosted, "--yes", "--retries", "0")
    batchyard("retry", "reports", "--now", "--yes", BATCHYARD_CRASH_AT="after_intent")
    (documents / "p.j2").write_text("In short: {{ text }}")

    moved = batchyard("attach", "reports", "--base-url", "http://127.0.0.1:9")
    assert moved.returncode == 2
    assert f"the server was {hosted.url}" in moved.stderr
    assert "single calls of the run are under way at the first" in moved.stderr
    assert hosted.url in batchyard("doctor", "reports").stdout
    changed = batchyard("retry", "reports", "--with-change", "--yes")
    assert "`batchyard attach reports` comes first" in changed.stderr
    assert calls(hosted) == (1, 0)
    done = batchyard("retry", "reports", "--now")
    assert "2 saved · 1 needs fix" in done.stdout, "it goes on as it was approved"
    assert calls(hosted) == (1, 1)
    config = Files(documents / "reports").read_state().config
    assert config is not None
    assert config.base_url == hosted.url


def test_what_could_not_be_deleted_before_a_round_at_once_is_deleted_after_it(
    documents: Path, hosted: FakeApi
):
    expire(hosted, "a")
    hosted.fail("delete", 403)
    first = run_documents(hosted, "--yes", "--retries", "0", "--delete-after-download")
    assert "not every batch could be deleted" in first.stderr

    done = batchyard("retry", "reports", "--now", "--yes")
    assert done.returncode == 0, done.stderr
    assert "is kept" not in done.stdout
    assert hosted.batches == {}
    state = Files(documents / "reports").read_state()
    assert [shard.deleted for shard in state.shards] == [(shard.batch,) for shard in state.shards]


@pytest.mark.parametrize("option", [(), ("--now",)])
def test_what_a_canceled_run_left_is_sent_when_it_is_asked_for(
    documents: Path, hosted: FakeApi, option: tuple[str, ...]
):
    hosted.outcomes = {"a_Dmd": FAILED, "b_Dmd": {"type": "canceled"}}
    run_documents(hosted, "--yes", "--retries", "0")
    cancel = Files(documents / "reports").cancel
    cancel.touch()  # typed just as the run ended

    assert offered(*option)["again"] == {"retryable": 1}
    assert cancel.exists(), "nobody has agreed"
    done = batchyard("retry", "reports", "--yes", *option)
    assert "2 saved · 1 canceled" in done.stdout, "what was canceled stays so"
    assert sum(calls(hosted)) == 2


def test_a_run_under_way_goes_on_as_it_was_approved(documents: Path, hosted: FakeApi):
    usage = {"input_tokens": 10, "output_tokens": 1}
    hosted.outcomes = dict.fromkeys(("b_Dmd", "c_Dmd"), succeeded("whole", usage=usage))
    hosted.outcomes["a_Dmd"] = succeeded("half", stop="max_tokens", usage=usage)
    left = batchyard(
        "run", *OPTIONS, "--base-url", hosted.url, BATCHYARD_CRASH_AT="created_recorded"
    )  # fmt: skip
    assert left.returncode < 0
    for option in ("--canceled", "--now"):
        refused = batchyard("retry", "reports", "--yes", option)
        assert refused.returncode == 2, option
        assert len(hosted.batches) == 1

    done = batchyard("retry", "reports")
    assert "reports is under way; it goes on as it was approved" in done.stdout
    assert done.returncode == 0, done.stdout
    assert [len(batch.requests) for batch in hosted.batches.values()] == [3, 1]


def test_nothing_is_offered_at_once_while_a_part_waits_and_the_refusal_says_for_what(
    documents: Path, hosted: FakeApi
):
    hosted.outcomes = {"a_Dmd": FAILED}
    stopped = run_documents(hosted, "--yes", "--budget", "0.001", "--shard-size", "1")
    assert stopped.returncode == 4, stopped.stderr
    assert "--now" not in stopped.stdout
    refused = batchyard("retry", "reports", "--now", "--yes")
    assert refused.returncode == 2
    assert "the budget keeps a part of the run from being sent" in refused.stderr

    run_documents(hosted, "--yes", "--fresh", "--pilot", "1", "--no-budget")
    assert "--now" not in batchyard("report", "reports").stdout
    refused = batchyard("retry", "reports", "--now", "--yes")
    assert "the rest of the run waits for a look at its pilot" in refused.stderr


def test_a_round_with_a_change_sends_that_alone(documents: Path, hosted: FakeApi):
    hosted.outcomes = {"a_Dmd": errored("invalid_request_error", "too long"), "b_Dmd": FAILED}
    run_documents(hosted, "--yes", "--retries", "0")
    (documents / "p.j2").write_text("In short: {{ text }}")

    killed = batchyard("retry", "reports", "--now", "--yes", BATCHYARD_CRASH_AT="moved")
    assert killed.returncode < 0
    before = journal_of(documents)
    assert offered("--with-change")["again"] == {"needs_fix": 1}
    assert journal_of(documents) == before, "nobody has agreed"
    done = batchyard("retry", "reports", "--with-change", "--yes")
    assert "2 saved · 1 failed at the server" in done.stdout
    assert [len(batch.requests) for batch in hosted.batches.values()] == [3, 1]
    Files(documents / "reports").cancel.touch()
    canceled = batchyard("retry", "reports", "--with-change", "--yes")
    assert "was canceled, and more of it can be sent again" in canceled.stderr
    both = batchyard("retry", "reports", "--with-change", "--canceled")
    assert "--canceled excludes --with-change" in both.stderr


def test_in_python_a_canceled_run_is_sent_again_and_what_follows_at_once_is_a_batch(
    documents: Path, hosted: FakeApi
):
    hosted.outcomes = {"a_Dmd": FAILED, "b_Dmd": {"type": "canceled"}, "c_Dmd": UNPAID}
    with job(hosted) as run:
        run.submit(run.plan(sample=0))
        with pytest.raises(Paused):
            list(run)
        run.cancel()
        assert run.retry(now=True) == 2
        assert {doc.key: doc.status for doc in run}["b.md"] == "canceled"
        assert calls(hosted) == (1, 2)
        assert run.retry(now=True) == 0, "nothing is left, so nothing stays at once"
        assert run.retry(canceled=True) == 1
        assert {doc.status for doc in run} == {"succeeded"}
        assert calls(hosted) == (2, 2)
        with pytest.raises(InputError, match="canceled excludes with_change"):
            run.retry(canceled=True, with_change=True)


def test_in_python_a_run_under_way_goes_on_as_it_was_approved(documents: Path, hosted: FakeApi):
    usage = {"input_tokens": 1_000_000, "output_tokens": 50}
    hosted.outcomes = {"a_Dmd": succeeded("half", stop="max_tokens", usage=usage)}
    hosted.polls = 1
    with job(hosted) as run:
        run.submit(run.plan(sample=0))
        assert run.retry() == 0
        assert {doc.key: doc.status for doc in run}["a.md"] == "truncated"
        assert calls(hosted) == (1, 0), "beyond the approved price nothing is paid twice unasked"
        assert run.retry() == 1


def test_in_python_retry_asks_at_once_too_and_only_for_what_batches_leave(
    documents: Path, hosted: FakeApi
):
    expire(hosted, "a")
    with Run(
        "reports", docs=files("docs"), prompt="p.j2", model="claude-opus-4-8", max_tokens=50,
        base_url=hosted.url, retries=0,
    ) as run:  # fmt: skip
        run.submit(run.plan(sample=0))
        with pytest.raises(InputError, match="batches of the run are under way"):
            run.retry(now=True)
        assert {doc.key: doc.status for doc in run}["a.md"] == "expired"
        batches = hosted.count("POST", "/batches")
        assert run.retry(now=True) == 1
        assert {doc.status for doc in run} == {"succeeded"}
        assert (hosted.count("POST", "/batches"), hosted.count("POST", "/messages")) == (batches, 1)
        assert "Told at once." in (documents / "reports" / "a.md").read_text()
        with pytest.raises(InputError, match="now excludes with_change"):
            run.retry(now=True, with_change=True)


def test_a_run_goes_on_at_once_when_it_was_killed_there(documents: Path, hosted: FakeApi):
    expire(hosted, "a")
    run_documents(hosted, "--yes", "--retries", "0")
    hosted.fail("message", 529)
    killed = batchyard("retry", "reports", "--now", "--yes", BATCHYARD_CRASH_AT="moved")
    assert killed.returncode < 0
    done = batchyard("retry", "reports", "--now", "--yes")
    assert done.returncode == 0, done.stderr + done.stdout
    assert hosted.count("POST", "/messages") == 2
    assert "Told at once." in (documents / "reports" / "a.md").read_text()


def test_where_a_batch_costs_what_a_call_does_nothing_is_offered(documents: Path, server: FakeApi):
    yard = FakeApi(is_yard=True, billing="standard", follows_time=True)
    try:
        expire(yard, "a")
        done = run_documents(yard, "--yes", "--retries", "0")
        assert done.returncode == 3
        assert "--now" not in done.stdout
        again = batchyard("retry", "reports", "--now", "--yes")
        assert again.returncode == 2
        assert "--now is for servers with a price for batches" in again.stderr
        assert "--now excludes" in batchyard("retry", "reports", "--now", "--with-change").stderr
    finally:
        yard.close()
