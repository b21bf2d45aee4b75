"""Going on with a run: retry, pilot, budget and notices on the command line and in Python."""

import asyncio
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from batchyard import AsyncRun, BudgetReached, Detached, InputError, InputsChanged, Run, files
from batchyard.client.running import notify
from batchyard.client.running.folder import Files
from batchyard.client.running.session import Session
from client.commands import OPTIONS, batchyard, run_documents
from client.fake_api import FakeApi, errored, succeeded


@pytest.fixture
def server(paid: FakeApi) -> FakeApi:
    return paid


def sent(server: FakeApi) -> list[list[str]]:
    return [[r["custom_id"] for r in batch.requests] for batch in server.batches.values()]


def test_retry_starts_one_more_round_by_hand(documents: Path, server: FakeApi):
    server.outcomes = {"a_Dmd": errored("api_error", "no"), "a_Dmd_R1": errored("api_error", "no")}
    first = run_documents(server, "--retries", "0")

    one = batchyard("retry", "reports", "--yes")
    two = batchyard("retry", "reports", "--yes")
    none = batchyard("retry", "reports", "--yes")

    assert (first.returncode, one.returncode, two.returncode, none.returncode) == (3, 3, 0, 0)
    assert sent(server)[1:] == [["a_Dmd_R1"], ["a_Dmd_R2"]]
    assert "round 1: sent again, 1 failed at the server" in one.stdout


def test_what_needs_a_fix_is_sent_again_with_a_change_and_never_without(
    documents: Path, server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.outcomes = {"a_Dmd": errored("invalid_request_error", "too long")}
    run_documents(server)

    same = batchyard("retry", "reports", "--with-change")
    (documents / "p.j2").write_text("In short: {{ text }}")
    monkeypatch.chdir("/")  # the run knows where its documents and templates are
    asked = batchyard("retry", str(documents / "reports"), "--with-change")
    before = sent(server)
    changed = batchyard("retry", str(documents / "reports"), "--with-change", "--yes")

    assert same.returncode == 2
    assert "comes out as it was sent: edit p.j2" in same.stderr
    assert asked.returncode == 2
    assert "again reports: 1 needs fix; at most $0.0006" in asked.stdout
    assert before == [["a_Dmd", "b_Dmd", "c_Dmd"]], "nothing is sent before the price was seen"
    assert changed.returncode == 0, changed.stderr
    assert sent(server)[1:] == [["a_Dmd_R1"]]
    last = list(server.batches.values())[-1].requests[0]["params"]
    assert last["messages"][0]["content"] == "In short: text of a.md"


def test_what_was_canceled_comes_back_on_request(documents: Path, server: FakeApi):
    server.outcomes = {"a_Dmd": {"type": "canceled"}}
    run_documents(server)

    without = batchyard("retry", "reports", "--yes")
    with_it = batchyard("retry", "reports", "--canceled", "--yes")

    assert (without.returncode, with_it.returncode) == (3, 0)
    assert sent(server)[1:] == [["a_Dmd_R1"]]


def test_a_reached_budget_has_its_exit_code_and_says_how_to_go_on(documents: Path, server: FakeApi):
    stopped = run_documents(server, "--budget", "0.001", "--shard-size", "1")
    further = batchyard("attach", "reports", "--budget", "5")

    assert stopped.returncode == 4
    assert "budget reached: $0.003750 of $0.001000 is spent, 2 requests are not" in stopped.stderr
    assert "`batchyard attach reports --budget USD` goes on" in stopped.stderr
    assert further.returncode == 0, further.stderr
    assert len(server.batches) == 3


def test_a_budget_for_nothing_is_refused_before_anything_is_written(
    documents: Path, server: FakeApi
):
    refused = run_documents(server, "--budget", "0.0001")

    assert refused.returncode == 4
    assert "nothing was sent: the first 1 requests may cost $0.00" in refused.stderr
    assert "--budget 0.01 is enough for all" in refused.stderr
    assert not (documents / "reports").exists()
    assert server.batches == {}


@pytest.mark.parametrize(
    "more", [["--model", "my-own-model"], ["--tools", "tools.json"]], ids=["price", "tools"]
)
def test_a_budget_that_cannot_be_kept_is_refused_before_anything_is_written(
    documents: Path, server: FakeApi, more: list[str]
):
    tools = '[{"type": "web_search_20250305", "name": "web_search"}]'
    (documents / "tools.json").write_text(tools)

    refused = run_documents(server, "--budget", "5", *more)

    assert refused.returncode == 2
    assert "a budget of $5.00 cannot be kept" in refused.stderr
    assert not (documents / "reports").exists()
    assert run_documents(server, *more).returncode == 0, "nothing of the budget is left behind"


@pytest.mark.parametrize("command", ["run", "attach"])
def test_a_budget_is_raised_lowered_and_taken_back(documents: Path, server: FakeApi, command: str):
    def again(*more: str) -> int:
        if command == "run":
            return run_documents(server, "--shard-size", "1", *more).returncode
        return batchyard("attach", "reports", *more).returncode

    run_documents(server, "--budget", "0.001", "--shard-size", "1")
    sent_by = [len(server.batches)]
    for more in (["--budget", "0.0045"], ["--budget", "0.0042"], [], ["--no-budget"]):
        assert again(*more) == (0 if more == ["--no-budget"] else 4)
        sent_by.append(len(server.batches))

    assert sent_by == [1, 2, 2, 2, 3]
    both = batchyard("attach", "reports", "--budget", "5", "--no-budget")
    assert both.returncode == 2
    assert "exclude each other" in both.stderr


def test_with_yes_the_rest_follows_a_good_pilot_and_not_a_bad_one(documents: Path, server: FakeApi):
    server.outcomes = {"a_Dmd": succeeded("", stop="refusal")}
    bad = run_documents(server, "--pilot", "1")
    waiting = len(server.batches)
    approved = batchyard("attach", "reports", "--approve")

    assert bad.returncode == 3
    assert "1 of 1 documents of the pilot failed, more than 10 %" in bad.stderr
    assert waiting == 1
    assert approved.returncode == 3, approved.stderr
    assert sent(server) == [["a_Dmd"], ["b_Dmd", "c_Dmd"]]

    server.outcomes = {}
    good = run_documents(server, "--pilot", "1", "--fresh")
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

    done = run_documents(server, "--notify", f"{script} '$(touch stolen)'")

    assert done.returncode == 0, done.stderr
    receipt = str(documents / "reports" / "receipt.json")
    assert (documents / "told").read_text().splitlines() == [
        "$(touch stolen)", "finished", receipt, "none",
    ]  # fmt: skip
    assert not (documents / "stolen").exists()


def test_a_notice_that_fails_changes_nothing_of_the_end(documents: Path, server: FakeApi):
    done = run_documents(server, "--notify", "false", "--webhook", "http://127.0.0.1:9/x")

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
    done = run_documents(server, *options)

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


def told_by(documents: Path) -> list[str]:
    """Write a command for `--notify`, and return its words."""
    script = documents / "tell.sh"
    script.write_text(
        '#!/bin/sh\nprintf "%s|%s\\n" "$BATCHYARD_STATE" "$BATCHYARD_RECEIPT" > told\n'
    )
    script.chmod(0o755)
    return ["--notify", str(script)]


def test_a_pilot_that_stops_tells_that_it_needs_a_person(documents: Path, server: FakeApi, hook):
    server.outcomes = {"a_Dmd": succeeded("", stop="refusal")}
    hook.answers = [200]
    url = f"http://127.0.0.1:{hook.server_port}/x"

    done = run_documents(server, "--pilot", "1", *told_by(documents), "--webhook", url)

    assert done.returncode == 3
    receipt = documents / "reports" / "receipt.json"
    assert (documents / "told").read_text() == f"attention|{receipt}\n"
    assert [body["waits_for"] for _, body in hook.got] == ["pilot"]


def test_a_run_that_is_stuck_tells_why_and_no_receipt_of_before(
    documents: Path, server: FakeApi, hook
):
    run_documents(server)
    (documents / "docs" / "d.md").write_text("text of d.md")
    server.fail("create", 404)
    hook.answers = [200]
    url = f"http://127.0.0.1:{hook.server_port}/x"

    done = run_documents(server, *told_by(documents), "--webhook", url)

    assert done.returncode == 3
    assert (documents / "told").read_text() == "attention|\n"
    ((_, body),) = hook.got
    assert (body["state"], body["out"]) == ("attention", "reports")
    assert body["message"] in done.stderr


def test_ls_shows_state_counts_and_cost_of_all_runs(documents: Path, server: FakeApi):
    server.outcomes = {"a_Dmd": errored("invalid_request_error", "no")}
    run_documents(server)
    server.fail("list", 401)
    batchyard("run", *[o if o != "reports" else "other" for o in OPTIONS], "--base-url", server.url)

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
    with Run("reports", **options(server), shard_size=1) as job:
        plan = job.plan(sample=0)
        with pytest.raises(BudgetReached, match="nothing was sent"):
            job.submit(plan, budget=0.0001)
        assert not (documents / "reports").exists()
        job.submit(plan, budget=0.001)
        with pytest.raises(BudgetReached, match="2 requests are not sent"):
            list(job)
        assert job.report().classes == {"not_sent": 2, "succeeded": 1}
    with Run("reports", **options(server), shard_size=1) as job:
        job.submit(plan, budget="none")
        assert len(list(job)) == 3
        assert job.report().classes == {"succeeded": 3}


def test_after_a_budget_stop_the_counts_add_up_to_the_inputs(documents: Path, server: FakeApi):
    more = ["--shard-size", "1", "--format", "md", "--format", "jsonl"]
    run_documents(server, "--budget", "0.001", *more)
    stopped = batchyard("report", "reports")
    receipt = json.loads((documents / "reports" / "receipt.json").read_bytes())
    rows = (documents / "reports" / "results.jsonl").read_bytes().splitlines()
    errors = (documents / "reports" / "errors.jsonl").read_bytes().splitlines()
    done = run_documents(server, "--no-budget", *more)

    assert stopped.returncode == 4
    assert "done reports   1 saved · 2 not sent" in stopped.stdout
    assert "2 not sent: not sent: the budget is reached" not in stopped.stdout
    assert "with a larger `--budget USD`, or with `--no-budget`" in stopped.stdout
    assert receipt["documents"] == 3
    assert receipt["classes"] == {"not_sent": 2, "succeeded": 1}
    assert receipt["waits_for"] == "budget"
    assert [json.loads(row)["status"] for row in rows] == ["succeeded", "not_sent", "not_sent"]
    assert [json.loads(line)["class"] for line in errors] == ["not_sent", "not_sent"]
    assert done.returncode == 0, done.stderr
    assert batchyard("report", "reports").returncode == 0
    assert (documents / "reports" / "errors.jsonl").read_bytes() == b""


def test_a_rerun_that_its_budget_stops_counts_each_document_once(documents: Path, server: FakeApi):
    run_documents(server, "--shard-size", "1")
    (documents / "docs" / "a.md").write_text("another text")
    for name in ("x.md", "y.md"):
        (documents / "docs" / name).write_text("a new one")
    (documents / "docs" / "y.md").write_text("a newer one")
    stopped = run_documents(
        server, "--shard-size", "1", "--allow-input-change", "--budget", "0.0123"
    )

    assert stopped.returncode == 4
    receipt = json.loads((documents / "reports" / "receipt.json").read_bytes())
    assert receipt["documents"] == sum(receipt["classes"].values()) == 5
    assert receipt["classes"]["not_sent"] == 2


def test_another_format_in_python_writes_what_a_finished_run_has_not(
    documents: Path, server: FakeApi
):
    def texts_of(**more: object) -> dict[str, str]:
        with Run("reports", **options(server), **more) as job:
            job.submit(job.plan(sample=0))
            return {doc.key: (doc.text or "").strip() for doc in job}

    texts = texts_of(formats=["jsonl"])
    reports = documents / "reports"
    before = sorted(path.name for path in reports.iterdir() if path.is_file())
    as_files = texts_of()
    (reports / "b.md").unlink()
    with_table = texts_of(formats=["md", "csv"])

    assert before == ["errors.jsonl", "receipt.json", "results.jsonl"]
    assert as_files == with_table == texts
    assert sorted(path.name for path in reports.glob("*.md")) == ["a.md", "b.md", "c.md"]
    assert (reports / "results.csv").exists()
    with Run("reports", **options(server), formats=["md", "csv"]) as job:
        (reports / "results.csv").unlink()
        assert job.report().saved == 3
    assert (reports / "results.csv").exists()
    assert len(server.batches) == 1


# Another server ----------------------------------------------------------------------------------


@pytest.fixture
def other() -> Iterator[FakeApi]:
    api = FakeApi(is_yard=True, billing="batch", follows_time=True)
    yield api
    api.close()


@pytest.mark.parametrize("command", ["run", "attach"])
def test_a_wrong_address_is_corrected_while_nothing_is_there(
    documents: Path, server: FakeApi, other: FakeApi, command: str
):
    server.fail("create", 404)
    wrong = run_documents(server, "--budget", "5")
    right = (
        run_documents(other)
        if command == "run"
        else batchyard("attach", "reports", "--base-url", other.url)
    )

    assert wrong.returncode == 3
    assert right.returncode == 0, right.stderr
    assert f"the server was {server.url} and is {other.url}" in right.stdout
    assert (len(server.batches), len(other.batches)) == (0, 1)
    state = Files(documents / "reports").read_state()
    assert state.config is not None
    assert state.config.base_url == other.url
    assert state.terms.budget_micros == 5_000_000, "the terms stay"


@pytest.mark.parametrize("command", ["run", "attach"])
def test_a_run_with_batches_at_one_server_does_not_go_to_another_unasked(
    documents: Path, server: FakeApi, other: FakeApi, command: str
):
    def at_other(*more: str) -> subprocess.CompletedProcess[str]:
        if command == "run":
            return run_documents(other, *more)
        return batchyard("attach", "reports", "--base-url", other.url, *more)

    batchyard("run", *OPTIONS, "--base-url", server.url, BATCHYARD_CRASH_AT="created_recorded")
    refused = at_other()
    other.batches = server.batches
    allowed = at_other("--allow-server-change")

    assert refused.returncode == 2
    assert "1 batch of the run is at the first" in refused.stderr
    assert "--allow-server-change" in refused.stderr
    assert [call for call in other.calls if call.path.endswith("/batches")] == []
    assert allowed.returncode == 0, allowed.stderr
    assert len(server.batches) == 1


@pytest.mark.parametrize("more", [["--suffix", ".txt"], ["--name", "{{ stem }}.txt"]])
def test_other_names_for_reports_that_are_written_are_refused(
    documents: Path, server: FakeApi, more: list[str]
):
    run_documents(server)
    renamed = run_documents(server, *more)

    assert renamed.returncode == 2
    assert f"{more[0]} was" in renamed.stderr
    assert "and the reports are written" in renamed.stderr
    assert run_documents(server).returncode == 0


@pytest.mark.parametrize("name", ["../..", "../{{ stem }}.md", "a/../../b.md", "/tmp/{{ stem }}"])
def test_a_template_of_names_cannot_lead_out_of_the_folder(
    documents: Path, server: FakeApi, name: str
):
    refused = run_documents(server, "--name", name)

    assert refused.returncode == 2
    assert f"--name {name}: names are below the output folder" in refused.stderr
    assert server.calls == []


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
    (documents / "p.j2").write_text("Of {{ text }}")

    async def changed() -> None:
        async with AsyncRun("reports", **options(server)) as job:
            plan = await job.plan(sample=0)
            with pytest.raises(InputsChanged):
                await job.submit(plan)
            await job.submit(plan, allow=("prompt",))

    asyncio.run(changed())
    assert sent(server)[1] == ["a_Dmd_R1", "b_Dmd_R1", "c_Dmd_R1"]


def test_a_run_that_another_thread_leaves_says_so_and_goes_on(documents: Path, server: FakeApi):
    server.polls = 1_000

    def leave(job: Run) -> None:
        while not server.count("GET", "msgbatch_01"):
            threading.Event().wait(0.01)
        job.leave()

    with Run("reports", **options(server)) as job:
        job.submit(job.plan(sample=0))
        thread = threading.Thread(target=leave, args=(job,))
        thread.start()
        with pytest.raises(Detached):
            list(job)
        thread.join()
        server.batches["msgbatch_01"].polls_left = 0

        assert len(list(job)) == 3
    assert len(server.batches) == 1


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
    run_documents(server, "--pilot", "1")
    for name in ("d.md", "e.md", "f.md"):
        (documents / "docs" / name).write_text(f"text of {name}")
    server.outcomes = {"d_Dmd_R1": succeeded("", stop="refusal")}

    bad = run_documents(server, "--pilot", "1")
    waiting = sent(server)
    done = batchyard("attach", "reports", "--approve")

    assert bad.returncode == 3
    assert "1 of 1 documents of the pilot failed" in bad.stderr
    assert waiting[2:] == [["d_Dmd_R1"]]
    assert done.returncode == 3, "one was refused"
    assert sent(server)[3:] == [["e_Dmd_R1", "f_Dmd_R1"]]


@pytest.mark.parametrize("more", [["--pilot", "1"], ["--shard-size", "1"]])
def test_a_run_that_has_sent_nothing_takes_another_pilot_and_size_and_keeps_its_budget(
    documents: Path, server: FakeApi, more: list[str]
):
    server.fail("create", 404)
    wrong = run_documents(server, "--budget", "5")
    right = run_documents(server, *more)

    assert wrong.returncode == 3
    assert right.returncode == 0, right.stderr
    first, *rest = [len(batch) for batch in sent(server)]
    assert first == 1
    assert sum(rest) == 2
    terms = Files(documents / "reports").read_state().terms
    assert terms.budget_micros == 5_000_000, "the last budget counts"


def test_a_run_that_has_begun_without_a_pilot_refuses_one(documents: Path, server: FakeApi):
    begun = [*OPTIONS, "--base-url", server.url]
    batchyard("run", *begun, BATCHYARD_CRASH_AT="created_recorded")
    refused = run_documents(server, "--pilot", "1")
    with (
        Run("reports", **options(server)) as job,
        pytest.raises(InputError, match="has sent batches without a pilot"),
    ):
        job.pilot(1)
    all_first = run_documents(server, "--pilot", "3", "--shard-size", "2")

    assert refused.returncode == 2
    assert "reports has sent batches without a pilot" in refused.stderr
    assert all_first.returncode == 0, "with nothing left for after it, it is the same run"
    assert "--shard-size stays 10,000" in all_first.stdout
    assert run_documents(server, "--pilot", "1").returncode == 0, "nothing is sent any more"
    assert len(server.batches) == 1


def test_a_reader_that_leaves_does_not_stop_what_is_paid_for(documents: Path, server: FakeApi):
    command = [sys.executable, "-m", "batchyard", "run", *OPTIONS, "--base-url", server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        complaints = running.stderr.read().decode()

    assert running.returncode == 0, complaints
    assert complaints == "nobody reads the output any more; the run goes on without it\n"
    assert len(list((documents / "reports").glob("*.md"))) == 3
    assert len(server.batches) == 1


def test_a_reader_that_left_before_anything_was_said_does_not_stop_it_either(
    documents: Path, server: FakeApi
):
    command = [sys.executable, "-m", "batchyard", "run", *OPTIONS, "--base-url", server.url]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=writing, check=False)
    os.close(writing)

    assert done.returncode == 0
    assert len(list((documents / "reports").glob("*.md"))) == 3


def test_a_folder_that_cannot_be_written_is_refused_as_an_option():
    with TemporaryDirectory() as name:  # that of the tests is closed to others
        Path(name).chmod(0o755)
        out = Path(name, "reports")
        out.mkdir(0o555)
        child = os.fork()
        if child == 0:  # permissions do not bind root, so it is somebody else who tries
            code = 1
            try:
                if os.geteuid() == 0:
                    os.setresuid(65534, 65534, 65534)
                with Session(out):
                    pass
            except InputError as error:
                code = 0 if error.message == f"{out} cannot be used: it cannot be written to" else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_model_that_changed_is_named_and_not_called_a_changed_document(
    documents: Path, server: FakeApi
):
    run_documents(server)
    options = [o if o != "claude-opus-4-8" else "claude-opus-4-88" for o in OPTIONS]
    refused = batchyard("run", *options, "--base-url", server.url)

    assert refused.returncode == 2
    assert "--model was claude-opus-4-8 and is claude-opus-4-88" in refused.stderr
    assert "3 documents with another request: a.md, b.md, c.md" in refused.stderr
    assert "changed document" not in refused.stderr


def test_a_row_with_another_model_of_its_own_is_named_with_both(documents: Path, server: FakeApi):
    def rows(model: str) -> None:
        row = {"id": "x", "text": "some text", "own": {"model": model}}
        (documents / "docs" / "rows.jsonl").write_text(json.dumps(row))

    options = ["docs/rows.jsonl", *OPTIONS[1:], "--override", "own", "--base-url", server.url]
    rows("claude-haiku-4-5")
    first = batchyard("run", *options)
    rows("claude-opus-4-8")
    refused = batchyard("run", *options)

    assert first.returncode == 0, first.stderr
    assert refused.returncode == 2
    assert "x: model was claude-haiku-4-5 and is claude-opus-4-8" in refused.stderr
    assert "(--allow-input-change)" in refused.stderr
