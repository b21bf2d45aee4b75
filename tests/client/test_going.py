"""Going on with a run: retry, pilot, budget and notices on the command line and in Python."""

import asyncio
import http.server
import json
import subprocess
import threading
from pathlib import Path

import pytest

from batchyard import AsyncRun, Run, files
from batchyard.client.problems import BudgetReached, InputError
from batchyard.client.running import notify
from client.commands import batchyard
from client.fake_api import FakeApi, errored, succeeded

OPTIONS = ["docs", "--prompt", "p.j2", "--model", "claude-opus-4-8", "--max-tokens", "50",
           "--out", "reports", "--sample", "0", "--yes"]  # fmt: skip


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docs").mkdir()
    for name in ("a.md", "b.md", "c.md"):
        (tmp_path / "docs" / name).write_text(f"text of {name}")
    (tmp_path / "p.j2").write_text("About {{ text }}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("BATCHYARD_TEST_HURRY", "50")
    return tmp_path


@pytest.fixture
def server() -> "FakeApi":
    api = FakeApi(is_yard=True, billing="batch", follows_time=True)
    yield api
    api.close()


def run(server: FakeApi, *more: str) -> subprocess.CompletedProcess[str]:
    return batchyard("run", *OPTIONS, "--base-url", server.url, *more)


def sent(server: FakeApi) -> list[list[str]]:
    return [[r["custom_id"] for r in batch.requests] for batch in server.batches.values()]


def test_retry_starts_one_more_round_by_hand(documents: Path, server: FakeApi):
    server.outcomes = {"a_Dmd": errored("api_error", "no"), "a_Dmd_R1": errored("api_error", "no")}
    first = run(server, "--retries", "0")

    one = batchyard("retry", "reports", "--yes")
    two = batchyard("retry", "reports", "--yes")
    none = batchyard("retry", "reports", "--yes")

    assert (first.returncode, one.returncode, two.returncode, none.returncode) == (3, 3, 0, 0)
    assert sent(server)[1:] == [["a_Dmd_R1"], ["a_Dmd_R2"]]
    assert "round 1: again 1 retryable" in one.stdout


def test_what_needs_a_fix_is_sent_again_with_a_change_and_never_without(
    documents: Path, server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.outcomes = {"a_Dmd": errored("invalid_request_error", "too long")}
    run(server)

    same = batchyard("retry", "reports", "--with-change")
    (documents / "p.j2").write_text("In short: {{ text }}")
    monkeypatch.chdir("/")  # the run knows where its documents and templates are
    changed = batchyard("retry", str(documents / "reports"), "--with-change")

    assert same.returncode == 2
    assert "comes out as it was sent: edit p.j2" in same.stderr
    assert changed.returncode == 0, changed.stderr
    assert sent(server)[1:] == [["a_Dmd_R1"]]
    last = list(server.batches.values())[-1].requests[0]["params"]
    assert last["messages"][0]["content"] == "In short: text of a.md"


def test_what_was_canceled_comes_back_on_request(documents: Path, server: FakeApi):
    server.outcomes = {"a_Dmd": {"type": "canceled"}}
    run(server)

    without = batchyard("retry", "reports", "--yes")
    with_it = batchyard("retry", "reports", "--canceled", "--yes")

    assert (without.returncode, with_it.returncode) == (3, 0)
    assert sent(server)[1:] == [["a_Dmd_R1"]]


def test_a_reached_budget_has_its_exit_code_and_says_how_to_go_on(documents: Path, server: FakeApi):
    stopped = run(server, "--budget", "0.0001")
    further = batchyard("attach", "reports", "--budget", "5")

    assert stopped.returncode == 4
    assert "budget reached: $0.00 of $0.000100 is spent, 3 requests are not sent" in stopped.stderr
    assert "`batchyard attach reports --budget USD` goes on" in stopped.stderr
    assert further.returncode == 0, further.stderr
    assert len(server.batches) == 1


def test_with_yes_the_rest_follows_a_good_pilot_and_not_a_bad_one(documents: Path, server: FakeApi):
    server.outcomes = {"a_Dmd": succeeded("", stop="refusal")}
    bad = run(server, "--pilot", "1")
    waiting = len(server.batches)
    approved = batchyard("attach", "reports", "--approve")

    assert bad.returncode == 3
    assert "1 of 1 documents of the pilot failed, more than 10 %" in bad.stderr
    assert waiting == 1
    assert approved.returncode == 3, approved.stderr
    assert sent(server) == [["a_Dmd"], ["b_Dmd", "c_Dmd"]]

    server.outcomes = {}
    good = run(server, "--pilot", "1", "--fresh")
    assert good.returncode == 0, good.stderr
    assert "likely for the other 2" in good.stdout
    assert sent(server)[2:] == [["a_Dmd"], ["b_Dmd", "c_Dmd"]]


def test_a_command_is_told_of_the_end_without_a_shell(documents: Path, server: FakeApi):
    script = documents / "tell.sh"
    script.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$1" "$BATCHYARD_STATE" "$BATCHYARD_RECEIPT" '
        '"${ANTHROPIC_API_KEY:-none}" > told\n'
    )
    script.chmod(0o755)

    done = run(server, "--notify", f"{script} '$(touch stolen)'")

    assert done.returncode == 0, done.stderr
    receipt = str(documents / "reports" / "receipt.json")
    assert (documents / "told").read_text().splitlines() == [
        "$(touch stolen)", "finished", receipt, "none",
    ]  # fmt: skip
    assert not (documents / "stolen").exists()


def test_a_notice_that_fails_changes_nothing_of_the_end(documents: Path, server: FakeApi):
    done = run(server, "--notify", "false", "--webhook", "http://127.0.0.1:9/x")

    assert done.returncode == 0
    assert "nobody was told: false ended with 1" in done.stderr
    assert "nobody was told: http://127.0.0.1:9/x" in done.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--notify", "'"], "No closing quotation"),
        (["--webhook", "ftp://x"], "--webhook is ftp://x"),
        (["--budget", "much"], "it is an amount in dollars above zero"),
        (["--on-orphan", "hope"], "it is adopt, wait, resubmit, fail"),
    ],
)
def test_an_option_that_is_not_usable_is_refused_before_anything_is_sent(
    documents: Path, server: FakeApi, options: list[str], text: str
):
    done = run(server, *options)

    assert done.returncode == 2
    assert text in done.stderr
    assert server.calls == []


@pytest.fixture
def hook():
    """An address that fails as often as it is told to, and keeps what it got."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = self.server.answers.pop(0)
            self.server.got.append((status, json.loads(body)))
            self.send_response(status)
            self.send_header("location", "http://127.0.0.1:9/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.got = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("answers", "problem", "calls"),
    [
        ([200], None, 1),
        ([500, 503, 200], None, 3),
        ([500, 500, 500], "answers 500", 3),
        ([404], "answers 404", 1),
        ([302], "answers 302", 1),
    ],
)
def test_an_address_gets_the_receipt_and_is_asked_again_when_it_fails(
    hook, answers: list[int], problem: str | None, calls: int
):
    hook.answers = [*answers]
    waits: list[float] = []
    url = f"http://127.0.0.1:{hook.server_port}/x"

    found = notify.post(url, b'{"run":"r"}', pause=waits.append)

    assert (found is None) == (problem is None)
    assert problem is None or problem in (found or "")
    assert [body for _, body in hook.got] == [{"run": "r"}] * calls
    assert len(waits) == calls - 1


def test_ls_shows_state_counts_and_cost_of_all_runs(documents: Path, server: FakeApi):
    server.outcomes = {"a_Dmd": errored("invalid_request_error", "no")}
    run(server)
    batchyard("run", *[o if o != "reports" else "other" for o in OPTIONS], "--base-url", server.url,
              "--budget", "0.0001")  # fmt: skip

    listed = batchyard("ls").stdout.splitlines()
    as_json = [json.loads(line) for line in batchyard("ls", "--json").stdout.splitlines()]

    assert "not sent, 3 documents, paid $0.00" in listed[0]
    assert "finished, 3 documents, 2 saved, 1 need attention, paid $0.0075" in listed[1]
    assert [(e["state"], e["paid_micros"]) for e in as_json] == [
        ("not sent", 0),
        ("finished", 7500),
    ]


# Python ------------------------------------------------------------------------------------------


def options(server: FakeApi) -> dict:
    return {
        "docs": files("docs"), "prompt": "p.j2", "model": "claude-opus-4-8", "max_tokens": 50,
        "base_url": server.url,
    }  # fmt: skip


def test_a_run_in_python_yields_each_document_once_with_its_last_outcome(
    documents: Path, server: FakeApi
):
    server.outcomes = {
        "a_Dmd": errored("api_error", "no"),
        "b_Dmd": errored("invalid_request_error", "no"),
    }
    with Run("reports", **options(server)) as job:
        job.submit(job.plan(sample=0))
        first = [(doc.key, doc.status) for doc in job]
        second = [(doc.key, doc.status) for doc in job]

    assert sorted(first) == sorted(second) == [
        ("a.md", "succeeded"), ("b.md", "needs_fix"), ("c.md", "succeeded"),
    ]  # fmt: skip


def test_retry_and_pilot_in_python(documents: Path, server: FakeApi):
    server.outcomes = {"a_Dmd": errored("api_error", "no")}
    with Run("reports", retries=0, **options(server)) as job:
        plan = job.plan(sample=0)
        found = job.pilot(1, plan)
        piloted = len(server.batches)
        job.submit(plan)
        before = {doc.key: doc.status for doc in job}
        count = job.retry()
        after = {doc.key: doc.status for doc in job}
        receipt = job.report()

    assert (found.documents, found.left, piloted) == (1, 2, 1)
    assert before["a.md"] == "retryable"
    assert count == 1
    assert set(after.values()) == {"succeeded"}
    assert receipt.documents == 3


def test_a_budget_in_python(documents: Path, server: FakeApi):
    with Run("reports", **options(server)) as job:
        plan = job.plan(sample=0)
        job.submit(plan, budget=0.0001)
        with pytest.raises(BudgetReached):
            list(job)
    with Run("reports", **options(server)) as job:
        job.submit(plan, budget=5)
        assert len(list(job)) == 3


def test_cancel_in_python_keeps_the_answers_that_came(documents: Path, server: FakeApi):
    server.polls = 1_000
    with Run("reports", **options(server)) as job:
        job.submit(job.plan(sample=0))
        job.cancel()
        statuses = {doc.status for doc in job}

    assert statuses == {"canceled"}
    assert server.batches["msgbatch_01"].canceled


def test_whoever_retries_nothing_is_told(documents: Path, server: FakeApi):
    with Run("reports", **options(server)) as job, pytest.raises(InputError, match="holds no run"):
        job.retry()


def test_the_asynchronous_run_does_the_same(documents: Path, server: FakeApi):
    async def main() -> list[str]:
        async with AsyncRun("reports", **options(server)) as job:
            await job.submit(await job.plan(sample=0), budget=5)
            keys = [doc.key async for doc in job]
            assert (await job.report()).is_complete
            return keys

    assert sorted(asyncio.run(main())) == ["a.md", "b.md", "c.md"]


def test_an_asynchronous_wait_that_is_cancelled_leaves_the_run_whole(
    documents: Path, server: FakeApi
):
    server.polls = 1_000

    async def main() -> None:
        job = AsyncRun("reports", **options(server))
        await job.submit(await job.plan(sample=0))

        async def wait() -> list[str]:
            return [doc.key async for doc in job]

        waiting = asyncio.create_task(wait())
        while server.count("GET", "msgbatch_01") < 2:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await job.close()

    asyncio.run(main())
    for batch in server.batches.values():
        batch.polls_left = 0
    with Run("reports", **options(server)) as job:
        assert len(list(job)) == 3
    assert len(server.batches) == 1


def test_a_report_tells_its_tries_and_what_all_of_them_cost(documents: Path, server: FakeApi):
    server.outcomes = {"a_Dmd": succeeded("half", stop="pause_turn"),
                       "a_Dmd_R1": errored("api_error", "no")}  # fmt: skip
    with Run("reports", **options(server)) as job:
        plan = job.plan(sample=0)
        job.submit(plan, budget=5)
        live = {doc.key: (doc.tries, doc.cost_micros) for doc in job}
        stored = {doc.key: (doc.tries, doc.cost_micros) for doc in job}

    # 1,000 tokens in and 100 out, at half the price, are 3,750 micro-dollars.
    assert live == stored == {"a.md": (3, 7_500), "b.md": (1, 3_750), "c.md": (1, 3_750)}


def test_what_a_rerun_adds_can_have_a_pilot_of_its_own(documents: Path, server: FakeApi):
    run(server, "--pilot", "1")
    for name in ("d.md", "e.md", "f.md"):
        (documents / "docs" / name).write_text(f"text of {name}")
    server.outcomes = {"d_Dmd_R1": succeeded("", stop="refusal")}

    bad = run(server, "--pilot", "1")
    waiting = sent(server)
    done = batchyard("attach", "reports", "--approve")

    assert bad.returncode == 3
    assert "1 of 1 documents of the pilot failed" in bad.stderr
    assert waiting[2:] == [["d_Dmd_R1"]]
    assert done.returncode == 3, "one was refused"
    assert sent(server)[3:] == [["e_Dmd_R1", "f_Dmd_R1"]]
