"""What other clients of the Message Batches API were seen to do wrong, as claims of ours.

Those about results are in `test_peer_defects_results`.
"""

import ast
import json
import signal
from pathlib import Path

import pytest

import batchyard
from batchyard.client.problems import Detached, NeedsAttention
from batchyard.client.running import folder
from client import commands, test_killed
from client.conftest import Bench
from client.fake_api import FakeApi, errored

FOREIGN = [{"custom_id": f"x{i}", "params": {"model": "m"}} for i in range(3)]


@pytest.mark.parametrize("is_yard", [True, False])
@pytest.mark.parametrize("fault", ["drop", "accept_500"])
@pytest.mark.parametrize("shard_requests", [1, 100])
def test_create_lost_reply_makes_one_batch(
    bench: Bench, server: FakeApi, is_yard: bool, fault: str, shard_requests: int
):
    server.is_yard = is_yard
    server.fail("create", fault)

    receipt = bench.run(shard_requests=shard_requests)

    sent = [r["custom_id"] for batch in server.batches.values() for r in batch.requests]
    assert sorted(sent) == ["a_Dmd", "b_Dmd", "sub_-c_Dmd"]
    assert receipt.is_complete


def test_kill_while_waiting_resumes_same_batch(bench: Bench, server: FakeApi):
    server.polls = 2
    bench.pause = lambda _: True
    with pytest.raises(Detached):
        bench.run()
    bench.pause = None

    receipt = bench.run()

    assert list(server.batches) == ["msgbatch_01"]
    assert receipt.batches == ["msgbatch_01"]


def killed_at(bench: Bench, server: FakeApi, point: str) -> int:
    server.now = server.now.now(server.now.tzinfo)
    done = commands.batchyard(
        "run", str(bench.docs), "--prompt", str(bench.prompt), "--model", "claude-opus-4-8",
        "--max-tokens", "100", "--out", str(bench.out), "--base-url", server.url, "--yes",
        "--sample", "0", ANTHROPIC_API_KEY="k", BATCHYARD_CRASH_AT=point,
    )  # fmt: skip
    return done.returncode


@pytest.mark.parametrize("point", ["report_written:2", "outcomes_written", "receipt_written"])
def test_kill_while_collecting_loses_nothing(bench: Bench, server: FakeApi, point: str):
    killed = killed_at(bench, server, point)
    again = killed_at(bench, server, "")

    assert (killed, again) == (-signal.SIGKILL, 0)
    assert len(server.batches) == 1
    assert set(bench.reports()) == {"a.md", "b.md", "sub/c.md"}


def test_resume_after_kill_at_every_step():
    """The steps are listed and killed at in `test_killed`; here: none of the code is forgotten."""
    points = set()
    for path in Path(batchyard.__file__).parent.joinpath("client").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "crash.point":
                points.add(ast.literal_eval(node.args[0]))

    named = {point.partition(":")[0] for point in test_killed.ALL}
    assert named == points


@pytest.mark.parametrize("is_fresh", [True, False])
def test_never_delete_what_we_did_not_write(bench: Bench, server: FakeApi, is_fresh: bool):
    bench.out.mkdir()
    mine = {"notes.txt": "mine", "a.md.bak": "mine", "sub/deep/x.bin": "mine"}
    for name, text in mine.items():
        path = bench.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    bench.run()
    if is_fresh:
        folder.set_aside(bench.files)
        bench.run()

    assert {name: (bench.out / name).read_text() for name in mine} == mine


def test_poll_errors_never_resubmit(bench: Bench, server: FakeApi):
    server.fail("retrieve", *[529] * 12, "drop", 500, 503, 404)

    receipt = bench.run()

    assert server.count("POST", "/batches") == 1
    assert receipt.is_complete


@pytest.mark.parametrize("status", ["canceling", "finalizing", "something_new"])
def test_all_documented_states_and_unknown_ones(bench: Bench, server: FakeApi, status: str):
    server.polls = 3
    server.status = status

    receipt = bench.run()

    assert receipt.is_complete
    assert status in {update.text for update in bench.updates if update.kind == "progress"}


def test_all_failed_still_lists_each(bench: Bench, server: FakeApi):
    for custom_id in ("a_Dmd", "b_Dmd", "sub_-c_Dmd"):
        server.outcomes[custom_id] = errored("invalid_request_error", f"no {custom_id}")

    receipt = bench.run()

    lines = (bench.out / "errors.jsonl").read_text().splitlines()
    assert {line["key"]: line["reason"] for line in map(json.loads, lines)} == {
        "a.md": "no a_Dmd", "b.md": "no b_Dmd", "sub/c.md": "no sub_-c_Dmd",
    }  # fmt: skip
    assert (receipt.documents, receipt.saved) == (3, 0)


def test_never_send_key_to_other_origin(bench: Bench, server: FakeApi):
    """Its `results_url` names another host; and a redirect to one is not followed either."""
    bench.run()
    server.redirect = "http://203.0.113.1/steal"
    bench.files.state.rename(bench.path / "aside")

    with pytest.raises(NeedsAttention, match="redirects elsewhere, and the key does not follow"):
        bench.run()

    assert all(call.headers["host"] == server.url.removeprefix("http://") for call in server.calls)


def test_state_is_data_only(bench: Bench, server: FakeApi):
    bench.run()

    for path in bench.files.state.rglob("*"):
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                json.loads(line)
    source = Path(batchyard.__file__).parent / "client"
    imports = {
        name
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    }
    assert not imports & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}


def test_match_by_id_across_shards(bench: Bench, server: FakeApi):
    """Results come in another order than requests, and with those of other people between them."""
    server.extra_lines = [b'{"custom_id":"b_Dmd","result":{"type":"expired"}}\n']

    bench.run(shard_requests=2)

    assert bench.reports() == {
        "a.md": "Report on a_Dmd.\n",
        "b.md": "Report on b_Dmd.\n",
        "sub/c.md": "Report on sub_-c_Dmd.\n",
    }
