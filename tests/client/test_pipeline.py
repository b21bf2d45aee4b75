"""The loop of a run against a server that misbehaves."""

import json

import pytest

from batchyard.client.problems import Detached, NeedsAttention
from batchyard.client.running import journal
from batchyard.client.running.journal import Phase
from batchyard.client.running.pipeline import Pipeline
from client.conftest import Bench
from client.fake_api import FakeApi, errored, succeeded

REPORTS = {
    "a.md": "Report on a_Dmd.\n",
    "b.md": "Report on b_Dmd.\n",
    "sub/c.md": "Report on sub_-c_Dmd.\n",
}


def errors(bench: Bench) -> list[dict]:
    return [json.loads(line) for line in (bench.out / "errors.jsonl").read_text().splitlines()]


def test_a_report_for_each_document_mirrors_the_input_tree(bench: Bench, server: FakeApi):
    receipt = bench.run()

    assert bench.reports() == REPORTS
    assert receipt.is_complete
    assert errors(bench) == []
    assert json.loads((bench.out / "receipt.json").read_text())["saved"] == 3


def test_every_shard_is_created_before_anything_is_waited_for(bench: Bench, server: FakeApi):
    bench.run(shard_requests=1)

    methods = [(c.method, c.path.count("/")) for c in server.calls]
    creates = [i for i, call in enumerate(methods) if call == ("POST", 3)]
    assert len(creates) == 3
    assert not [i for i, call in enumerate(methods) if call == ("GET", 4) and i < creates[-1]]


def test_the_body_that_is_sent_is_the_one_on_disk(bench: Bench, server: FakeApi):
    bench.run()

    assert server.bodies == [bench.files.requests(0).read_bytes()]


@pytest.mark.parametrize("fault", ["drop", "accept_500"])
def test_a_yard_is_asked_again_with_the_same_key_after_a_lost_answer(
    bench: Bench, server: FakeApi, fault: str
):
    server.is_yard = True
    server.fail("create", fault)

    bench.run()

    keys = {c.headers["idempotency-key"] for c in server.calls if c.path.endswith("/batches")
            and c.method == "POST"}  # fmt: skip
    assert len(server.batches) == 1
    assert len(keys) == 1
    assert server.count("POST", "/batches") == 2
    assert bench.reports() == REPORTS


@pytest.mark.parametrize("fault", ["drop", "accept_500"])
def test_the_hosted_api_is_searched_after_a_lost_answer_and_the_batch_adopted(
    bench: Bench, server: FakeApi, fault: str
):
    server.fail("create", fault)

    bench.run()

    assert len(server.batches) == 1
    assert server.count("POST", "/batches") == 1
    assert bench.files.read_state().shards[0].adopted
    assert bench.reports() == REPORTS


def test_a_create_that_reached_nobody_is_sent_again_only_after_the_grace_period(
    bench: Bench, server: FakeApi
):
    server.fail("create", "refuse_drop")

    bench.run(grace_s=120)

    assert len(server.batches) == 1
    assert server.count("POST", "/batches") == 2
    assert bench.clock.elapsed_s >= 120
    assert bench.files.read_state().shards[0].generation == 1


def test_a_batch_that_a_proxy_passed_on_late_is_adopted_and_not_sent_again(
    bench: Bench, server: FakeApi
):
    server.fail("create", ("late", 70))

    bench.run(grace_s=120)

    assert len(server.batches) == 1
    assert server.count("POST", "/batches") == 1
    assert bench.reports() == REPORTS


FOREIGN = [{"custom_id": f"x{i}", "params": {"model": "m"}} for i in range(3)]


def test_of_two_batches_that_could_be_ours_the_results_tell_which_is(bench: Bench, server: FakeApi):
    server.fail("create", "drop")
    server.accept(FOREIGN)

    bench.run()

    assert bench.files.read_state().shards[0].batch == "msgbatch_02"
    assert server.count("POST", "/batches") == 1
    assert bench.reports() == REPORTS


def test_the_others_go_on_while_it_is_not_known_which_of_two_batches_is_ours(
    bench: Bench, server: FakeApi
):
    server.fail("create", "drop")
    server.accept(FOREIGN[:1])
    server.polls = 40
    server.batches["msgbatch_01"].polls_left = 1_000

    def pause(seconds: float) -> bool:
        if len(bench.reports()) == 2:  # the other shards: now both of the doubtful ones end
            for batch in server.batches.values():
                batch.polls_left = 0
        return bench.clock.pause(seconds)

    bench.pause = pause
    bench.run(shard_requests=1)

    assert bench.files.read_state().shards[0].batch == "msgbatch_02"
    assert len(server.batches) == 4
    assert bench.reports() == REPORTS
    assert any("2 batches of its size" in update.text for update in bench.updates)


def test_whoever_wants_no_doubt_is_stopped_by_a_create_call_without_an_answer(
    bench: Bench, server: FakeApi
):
    server.fail("create", "drop")

    with pytest.raises(NeedsAttention, match="--on-orphan wait, adopt or resubmit"):
        bench.run(on_orphan="fail")

    assert server.count("POST", "/batches") == 1


def test_whoever_adopts_takes_the_oldest_and_gives_it_back_when_it_is_not_ours(
    bench: Bench, server: FakeApi
):
    server.fail("create", "drop")
    server.accept(FOREIGN)

    bench.run(on_orphan="adopt")

    assert bench.files.read_state().shards[0].disowned == ("msgbatch_01",)
    assert server.count("POST", "/batches") == 1
    assert bench.reports() == REPORTS


@pytest.mark.parametrize("faults", [(), (503,)])
def test_whoever_resubmits_does_not_wait_and_the_batch_that_turns_up_is_kept_and_its_twin_canceled(
    bench: Bench, server: FakeApi, faults: tuple[int, ...]
):
    server.fail("create", "drop")
    server.fail("results", *faults)
    server.hide_created = True
    server.polls = 300

    def pause(seconds: float) -> bool:
        if len(server.batches) == 2:
            server.batches["msgbatch_01"].listed = server.batches["msgbatch_02"].listed = True
            server.batches["msgbatch_01"].polls_left = 0
        return bench.clock.pause(seconds)

    bench.pause = pause
    bench.run(on_orphan="resubmit")

    shard = bench.files.read_state().shards[0]
    assert server.batches["msgbatch_02"].canceled
    assert (shard.batch, shard.duplicates) == ("msgbatch_01", ("msgbatch_02",))
    assert bench.reports() == REPORTS


def test_a_batch_of_another_size_or_time_is_not_adopted(bench: Bench, server: FakeApi):
    small = [{"custom_id": "x", "params": {"model": "m"}}]
    server.accept(small)
    server.accept(small * 3, created_at="2026-11-22T07:59:00.000000Z")
    server.fail("create", "drop")

    bench.run()

    assert bench.files.read_state().shards[0].batch == "msgbatch_03"


def test_an_adopted_batch_without_our_documents_is_given_back(bench: Bench, server: FakeApi):
    foreign = [{"custom_id": f"x{i}", "params": {"model": "m"}} for i in range(3)]
    server.accept(foreign)
    server.fail("create", "refuse_drop")

    bench.run(grace_s=30)

    state = bench.files.read_state()
    assert state.shards[0].disowned == ("msgbatch_01",)
    assert state.shards[0].batch == "msgbatch_02"
    assert bench.reports() == REPORTS


def test_an_intent_that_is_open_at_the_start_is_resolved_before_anything_is_sent(
    bench: Bench, server: FakeApi
):
    writer = bench.writer()
    writer.record(journal.Intent(shard=0, generation=0, key="k"))
    writer.close()
    bench.clock.pause(3_600)

    bench.run()

    creates = [i for i, c in enumerate(server.calls) if c.method == "POST"]
    assert len(server.batches) == 1
    assert creates[0] >= 2, "the list is read before the batch is created"


@pytest.mark.parametrize("status", [429, 529])
def test_a_refused_create_is_repeated_without_a_search(bench: Bench, server: FakeApi, status: int):
    server.fail("create", status, status)

    bench.run()

    assert len(server.batches) == 1
    assert server.count("POST", "/batches") == 3
    assert server.count("GET", "/batches") == 1


def test_a_shard_that_the_server_does_not_take_keeps_no_other_from_being_saved(
    bench: Bench, server: FakeApi
):
    server.fail("create", 400)

    with pytest.raises(NeedsAttention, match="shard 0 was not created: 400"):
        bench.run(shard_requests=1)
    saved = bench.reports()
    bench.run()

    assert set(saved) == {"b.md", "sub/c.md"}
    assert bench.reports() == REPORTS
    assert len(server.batches) == 3


def test_a_server_that_takes_no_more_is_not_asked_for_each_shard_and_the_sent_ones_are_saved(
    bench: Bench, server: FakeApi
):
    server.fail("create", None, 402, 402)

    with pytest.raises(NeedsAttention, match="shard 1 was not created: 402") as caught:
        bench.run(shard_requests=1)

    assert caught.value.message.count("not created") == 1
    assert server.count("POST", "/batches") == 2
    assert set(bench.reports()) == {"a.md"}


def test_an_invalid_create_stops_the_run_and_leaves_it_unsent(bench: Bench, server: FakeApi):
    server.fail("create", 400)

    with pytest.raises(NeedsAttention, match="shard 0 was not created: 400 invalid_request_error"):
        bench.run()

    assert bench.files.read_state().shards[0].phase is Phase.PLANNED


def test_an_unreachable_server_is_said_before_anything_is_recorded(bench: Bench, server: FakeApi):
    writer = bench.writer()
    pipeline = bench.pipeline(writer)
    server.close()

    with pytest.raises(NeedsAttention, match=r"cannot reach .*nothing was sent"):
        pipeline.run()

    writer.close()
    assert bench.files.read_state().nothing_sent


def test_failing_polls_never_send_a_batch_again(bench: Bench, server: FakeApi):
    server.fail("retrieve", *[500] * 9, "drop", 404, 503)

    bench.run()

    assert len(server.batches) == 1
    assert bench.reports() == REPORTS


def test_a_batch_that_the_server_does_not_know_is_said_after_two_minutes(
    bench: Bench, server: FakeApi
):
    server.fail("retrieve", *[404] * 100)

    with pytest.raises(NeedsAttention, match="does not know batch msgbatch_01"):
        bench.run()

    assert bench.clock.elapsed_s >= 120


def test_one_lost_shard_does_not_keep_the_others_from_being_saved(bench: Bench, server: FakeApi):
    writer = bench.writer(shard_requests=1)
    pipeline = bench.pipeline(writer)
    pipeline.submit()
    del server.batches[str(writer.state.shards[0].batch)]

    with pytest.raises(NeedsAttention, match="shard 0"):
        pipeline.run()

    writer.close()
    assert set(bench.reports()) == {"b.md", "sub/c.md"}


def test_failing_progress_hides_no_ended_batch_and_its_billing_stays_known(
    bench: Bench, server: FakeApi
):
    server.is_yard, server.billing, server.polls = True, "batch", 1
    server.fail("progress", None, *[500] * 4)

    receipt = bench.run()

    assert server.count("GET", "/progress") == 5
    assert receipt.is_complete
    assert receipt.basis == "batch"


def test_a_shard_that_is_collected_is_told_before_a_later_one_fails(bench: Bench, server: FakeApi):
    is_leaving = False
    bench.pause = lambda _: is_leaving
    writer = bench.writer(shard_requests=1)
    pipeline = bench.pipeline(writer)
    pipeline.submit()

    collected = pipeline.advance()
    first = next(collected)
    is_leaving = True
    with pytest.raises(Detached):
        next(collected)

    writer.close()
    assert first == 0
    assert set(bench.reports()) == {"a.md", "b.md"}, "the second was written and not recorded"


@pytest.mark.parametrize("fault", ["cut", "cut_quietly", 503])
def test_a_cut_download_never_becomes_a_file_and_is_repeated(
    bench: Bench, server: FakeApi, fault: object
):
    server.fail("results", fault)

    receipt = bench.run()

    assert receipt.is_complete
    assert server.count("GET", "/results") == 2


def test_credentials_go_to_our_own_base_url_only(bench: Bench, server: FakeApi):
    bench.run()

    assert {c.headers["x-api-key"] for c in server.calls} == {"test-key"}
    assert {c.headers["anthropic-version"] for c in server.calls} == {"2023-06-01"}


def test_each_kind_of_failure_has_its_class_and_reason(bench: Bench, server: FakeApi):
    bench.retries = 0
    server.outcomes = {
        "a_Dmd": errored("invalid_request_error", "prompt is too long"),
        "b_Dmd": succeeded("half", stop="max_tokens"),
        "sub_-c_Dmd": succeeded("", stop="refusal"),
    }

    receipt = bench.run()

    assert {e["key"]: (e["class"], e["reason"]) for e in errors(bench)} == {
        "a.md": ("needs_fix", "prompt is too long"),
        "b.md": ("truncated", "the report is cut: stop_reason max_tokens"),
        "sub/c.md": ("refused", "the model refused"),
    }
    assert bench.reports() == {"b.md": "half\n"}
    assert receipt.saved == 1
    assert not receipt.is_complete


def test_ids_that_were_not_sent_are_ignored_and_told(bench: Bench, server: FakeApi):
    server.extra_lines = [b'{"custom_id":"other_Wfile_Dmd","result":{"type":"expired"}}\n',
                          b"garbage\n",
                          b'{"custom_id":"b_Dmd","result":{"type":"expired"}}\n']  # fmt: skip

    receipt = bench.run()

    assert receipt.is_complete
    text = next(u.text for u in bench.updates if u.kind == "collected")
    assert text == (
        "1 unknown ids ignored (first other file.md), 1 repeated ids ignored, "
        "1 unreadable lines ignored"
    )


def test_a_document_without_a_result_is_missing(bench: Bench, server: FakeApi):
    server.outcomes = {}
    bench.retries = 0
    server.fail("results", "cut_quietly", "cut_quietly", "cut_quietly")

    receipt = bench.run()

    assert receipt.classes == {"missing": 2, "succeeded": 1}


def test_a_run_that_was_left_goes_on_where_it_was(bench: Bench, server: FakeApi):
    server.polls = 3
    bench.pause = lambda _: True
    with pytest.raises(Detached):
        bench.run()
    bench.pause = None

    bench.run()

    assert len(server.batches) == 1
    assert bench.reports() == REPORTS


def test_a_finished_run_makes_no_call(bench: Bench, server: FakeApi):
    bench.run()
    before = len(server.calls)

    bench.run()

    assert len(server.calls) == before


def test_cancel_withdraws_what_was_not_sent_and_cancels_the_rest(bench: Bench, server: FakeApi):
    server.polls = 1_000
    writer = bench.writer(shard_requests=1)
    pipeline = bench.pipeline(writer)
    pipeline._sender.meet()
    pipeline._sender.settle(0)
    bench.files.cancel.touch()

    receipt = pipeline.run()

    writer.close()
    assert receipt.classes == {"canceled": 3}
    assert list(server.batches) == ["msgbatch_01"]
    assert server.batches["msgbatch_01"].canceled


def canceled_while_under_way(bench: Bench) -> Pipeline:
    """Send everything, then cancel from outside."""
    pipeline = bench.pipeline(bench.writer())
    pipeline.submit()
    bench.files.cancel.touch()
    return pipeline


def test_a_refused_cancel_is_told_once_and_hides_no_ended_batch(bench: Bench, server: FakeApi):
    server.polls = 3
    server.fail("cancel", 400, 400)

    receipt = canceled_while_under_way(bench).run()

    assert receipt.is_complete
    assert server.count("POST", "/cancel") == 1
    notices = [u.text for u in bench.updates if u.kind == "notice"]
    assert notices == ["msgbatch_01 was not canceled: 400 api_error: fault 400 (request req_01)"]


def test_a_cancel_that_the_server_could_not_serve_is_asked_for_again(bench: Bench, server: FakeApi):
    server.polls = 1_000
    server.fail("cancel", *[503] * 4)

    receipt = canceled_while_under_way(bench).run()

    assert receipt.classes == {"canceled": 3}


def test_a_batch_of_an_open_call_is_canceled_as_soon_as_it_is_found(bench: Bench, server: FakeApi):
    writer = bench.writer()
    writer.record(journal.Intent(shard=0, generation=0, key="k"))
    server.accept(json.loads(bench.files.requests(0).read_bytes())["requests"])
    bench.files.cancel.touch()

    bench.pipeline(writer).submit()

    writer.close()
    assert server.batches["msgbatch_01"].canceled
    assert any("found out whether its batch exists" in update.text for update in bench.updates)


@pytest.mark.parametrize(
    ("is_yard", "billing", "basis", "source", "paid", "saved"),
    [
        (False, None, "batch", "assumed", 11_250, 11_250),
        (True, "batch", "batch", "server", 11_250, 11_250),
        (True, "standard", "standard", "server", 22_500, 0),
        (True, "simulated", "simulated", "server", 0, 0),
        (True, None, "standard", "assumed", 22_500, 0),
    ],
)
def test_the_receipt_is_honest_about_who_charges_what(
    bench: Bench, server: FakeApi, is_yard: bool, billing: str | None, basis: str, source: str,
    paid: int, saved: int,
):  # fmt: skip
    server.is_yard, server.billing = is_yard, billing

    receipt = bench.run()

    assert (receipt.basis, receipt.basis_source) == (basis, source)
    assert (receipt.paid_micros, receipt.saved_micros) == (paid, saved)
    assert (receipt.list_batch_micros, receipt.list_synchronous_micros) == (11_250, 22_500)


@pytest.mark.parametrize("usage", [None, {}, "x", {"input_tokens": 1}, {"output_tokens": None}])
def test_an_answer_that_does_not_tell_its_usage_has_an_unknown_cost(
    bench: Bench, server: FakeApi, usage: object
):
    server.outcomes = {"a_Dmd": succeeded("Report.", usage=usage)}

    receipt = bench.run()

    assert receipt.is_complete
    assert receipt.paid_micros is None
    assert receipt.models["claude-opus-4-8"].answers_without_usage == 1
    assert receipt.models["claude-opus-4-8"].input_tokens == 2_000


def test_an_unknown_model_has_an_unknown_price(bench: Bench, server: FakeApi):
    receipt = bench.run(model="my-own-model")

    assert receipt.paid_micros is None
    assert receipt.models["my-own-model"].input_tokens == 3_000


@pytest.mark.parametrize(("is_yard", "repeated"), [(True, 6), (False, None)])
def test_the_receipt_tells_how_many_calls_a_yard_repeated(
    bench: Bench, server: FakeApi, is_yard: bool, repeated: int | None
):
    server.is_yard, server.repeated_calls, server.polls = is_yard, 2, 1

    receipt = bench.run(shard_requests=1)

    assert receipt.repeated_calls == repeated
    assert json.loads((bench.out / "receipt.json").read_text())["repeated_calls"] == repeated
