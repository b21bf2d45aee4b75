"""What is sent again, and what is not: rounds of a run against a server that misbehaves."""

import json
from dataclasses import replace

import msgspec
import pytest

from batchyard.client.planning.plan import Request, pack
from batchyard.client.problems import Detached, Paused
from batchyard.client.results import finals, formats
from batchyard.client.running import billing, budget, folder, journal, offers, rounds
from batchyard.client.running.tags import tagged
from client.conftest import Bench
from client.fake_api import FakeApi, errored, succeeded


def sent(server: FakeApi) -> list[list[str]]:
    return [[r["custom_id"] for r in batch.requests] for batch in server.batches.values()]


def params(server: FakeApi, batch: int, custom_id: str) -> dict:
    requests = list(server.batches.values())[batch].requests
    return next(r["params"] for r in requests if r["custom_id"] == custom_id)


def errors(bench: Bench) -> dict[str, str]:
    lines = (bench.out / "errors.jsonl").read_text().splitlines()
    return {entry["key"]: entry["class"] for entry in map(json.loads, lines)}


def test_all_causes_of_a_round_go_into_one_batch_and_only_what_can_succeed(
    bench: Bench, server: FakeApi
):
    server.outcomes = {
        "a_Dmd": errored("overloaded_error", "busy"),
        "b_Dmd": errored("invalid_request_error", "prompt is too long"),
        "sub_-c_Dmd": succeeded("half", stop="max_tokens"),
    }

    receipt = bench.run(shard_requests=2)

    assert sent(server)[2:] == [["a_Dmd_R1", "sub_-c_Dmd_R1"]]
    assert params(server, 2, "sub_-c_Dmd_R1")["max_tokens"] == 200
    assert params(server, 2, "a_Dmd_R1") == params(server, 0, "a_Dmd")
    assert errors(bench) == {"b.md": "needs_fix"}
    assert receipt.classes == {"needs_fix": 1, "succeeded": 2}
    assert receipt.documents == 3


def test_a_document_is_sent_again_three_times_and_no_more(bench: Bench, server: FakeApi):
    for suffix in ("", "_R1", "_R2", "_R3"):
        server.outcomes["a_Dmd" + suffix] = errored("api_error", "no")

    receipt = bench.run()

    assert sent(server)[1:] == [["a_Dmd_R1"], ["a_Dmd_R2"], ["a_Dmd_R3"]]
    assert receipt.classes == {"retryable": 1, "succeeded": 2}
    assert bench.files.read_state().finished_us is not None


def test_without_retries_nothing_is_sent_again(bench: Bench, server: FakeApi):
    server.outcomes = {"a_Dmd": errored("api_error", "no")}
    bench.retries = 0

    bench.run()

    assert len(server.batches) == 1
    assert errors(bench) == {"a.md": "retryable"}


def test_what_expired_goes_in_smaller_batches_and_it_is_said_when_it_was_a_whole_one(
    bench: Bench, server: FakeApi
):
    for number in range(21):
        (bench.docs / f"n{number}.md").write_text(f"number {number}")
    for custom_id in ("a_Dmd", "b_Dmd", "sub_-c_Dmd", *(f"n{n}_Dmd" for n in range(21))):
        server.outcomes[custom_id] = {"type": "expired"}

    receipt = bench.run()

    assert [len(ids) for ids in sent(server)] == [24, 12, 12]
    assert receipt.is_complete
    assert "all 24 requests of shard 0 expired" in [u.text for u in bench.updates]


def test_a_missing_result_is_downloaded_again_before_the_document_is_sent_again(
    bench: Bench, server: FakeApi
):
    server.fail("results", "cut_quietly", "cut_quietly", "cut_quietly")

    receipt = bench.run()

    assert server.count("GET", "msgbatch_01/results") == 3
    assert [len(ids) for ids in sent(server)] == [3, 2]
    assert receipt.is_complete


BILL = errored("invalid_request_error", "Your credit balance is too low to access the API")
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
CODE = {"type": "code_execution_20250825", "name": "code_execution"}


@pytest.mark.parametrize("tools", [None, [SEARCH], [CODE]])
def test_a_paused_turn_goes_on_with_the_content_of_the_assistant_unchanged(
    bench: Bench, server: FakeApi, tools: list | None
):
    bench.params = {"tools": tools} if tools else {}
    server.outcomes = {"a_Dmd": succeeded("first half, ", stop="pause_turn")}

    bench.run()

    before, after = params(server, 0, "a_Dmd"), params(server, 1, "a_Dmd_R1")
    content = server.outcomes["a_Dmd"]["message"]["content"]
    assert after["messages"] == [*before["messages"], {"role": "assistant", "content": content}]
    assert bench.reports()["a.md"] == "first half, Report on a_Dmd_R1.\n"


def test_what_needs_a_fix_or_was_refused_is_never_sent_again(bench: Bench, server: FakeApi):
    server.outcomes = {
        "a_Dmd": errored("invalid_request_error", "no"),
        "b_Dmd": succeeded("", stop="refusal"),
        "sub_-c_Dmd": errored("permission_error", "no"),
    }

    bench.run()

    assert len(server.batches) == 1


def test_a_truncated_answer_at_the_cap_of_the_model_is_flagged_and_not_sent_again(
    bench: Bench, server: FakeApi
):
    server.outcomes = {"a_Dmd": succeeded("half", stop="max_tokens")}

    bench.run(max_tokens=128_000)

    assert len(server.batches) == 1
    assert errors(bench) == {"a.md": "truncated"}
    assert any("at the model's cap" in update.text for update in bench.updates)


def test_when_credit_runs_out_nothing_more_is_sent_and_the_same_command_goes_on(
    bench: Bench, server: FakeApi
):
    server.outcomes = {"a_Dmd": BILL, "b_Dmd": errored("api_error", "no")}

    with pytest.raises(Paused, match="1 of 3 documents were not answered for want of credit"):
        bench.run()
    paused = bench.files.read_state()
    stopped = len(server.batches)
    receipt = bench.run()

    assert stopped == 1
    assert paused.finished_us is None
    assert sent(server)[1] == ["a_Dmd_R1", "b_Dmd_R1"]
    assert receipt.is_complete


def test_what_was_canceled_is_sent_again_on_request_only(bench: Bench, server: FakeApi):
    server.outcomes = {"a_Dmd": {"type": "canceled"}, "b_Dmd": errored("api_error", "no")}
    bench.retries = 0
    bench.run()
    bench.retries = 3

    def again(*also: str) -> None:
        writer = bench.writer()
        pipeline = bench.pipeline(writer)
        pipeline.repeat(also)
        pipeline.run()
        writer.close()

    again()
    after_first = sent(server)[1:]
    again("canceled")

    assert after_first == [["b_Dmd_R1"]]
    assert sent(server)[2:] == [["a_Dmd_R2"]]
    assert bench.files.read_state().classes == {"succeeded": 3}


def test_a_canceled_run_starts_no_round(bench: Bench, server: FakeApi):
    server.outcomes = {"a_Dmd": errored("api_error", "no")}
    writer = bench.writer()
    pipeline = bench.pipeline(writer)
    pipeline.submit()
    bench.files.cancel.touch()

    pipeline.run()

    writer.close()
    assert len(server.batches) == 1


def test_a_run_that_is_left_in_a_round_goes_on_with_the_same_round(bench: Bench, server: FakeApi):
    server.outcomes = {"a_Dmd": errored("api_error", "no")}
    server.polls = 2
    bench.pause = lambda s: len(server.batches) == 2 or bench.clock.pause(s)
    with pytest.raises(Detached):
        bench.run()
    bench.pause = None

    receipt = bench.run()

    assert [len(ids) for ids in sent(server)] == [3, 1]
    assert receipt.is_complete


def test_the_tries_of_each_document_are_counted(bench: Bench, server: FakeApi):
    server.outcomes = {"a_Dmd": errored("api_error", "no"), "a_Dmd_R1": errored("api_error", "no")}

    bench.run()

    found = rounds.last_outcomes(bench.files, bench.files.read_state())
    tries = {last.outcome.key: (last.outcome.class_, last.tries) for last in found}
    assert tries == {
        "a.md": ("succeeded", 3), "b.md": ("succeeded", 1), "sub/c.md": ("succeeded", 1),
    }  # fmt: skip


WHOLE = b'{"custom_id":"x","key":"x","sha256":"","output":"x","shard":1}\n'


@pytest.mark.parametrize("torn", [WHOLE[:20], WHOLE, WHOLE + WHOLE[:9]])
def test_what_an_extension_that_did_not_happen_left_behind_does_not_count(
    bench: Bench, server: FakeApi, torn: bytes
):
    writer = bench.writer()
    with bench.files.documents.open("ab") as file:
        file.write(torn)
    bench.files.requests(1).write_bytes(b"half of a bo")

    before = [entry.key for entry in bench.files.read_documents()]
    shard = bench.plan().shards[0]
    new = folder.extend(writer, [shard], "retry", round_=1, again={"expired": 3})

    writer.close()
    assert before == ["a.md", "b.md", "sub/c.md"]
    assert new == range(1, 2)
    assert [(e.key, e.shard) for e in bench.files.read_documents()] == [
        (key, number) for number in (0, 1) for key in before
    ]
    assert bench.files.requests(1).read_bytes() == b"".join(tagged(shard).body())
    assert bench.files.read_state().shards[1].why == "retry"


def test_the_terms_that_were_given_last_count(bench: Bench, server: FakeApi):
    writer = bench.writer()
    writer.record(journal.Terms(budget_micros=5, retries=1, on_orphan="adopt"))
    writer.close()

    terms = bench.files.read_state().terms

    assert (terms.budget_micros, terms.retries, terms.on_orphan) == (5, 1, "adopt")


def test_large_shards_of_a_run_can_be_told_apart_by_their_number_of_requests():
    requests = [Request(f"r{n}", f"r{n}", "", f"r{n}.md", b"{}") for n in range(9_000)]

    sizes = [len(shard.requests) for shard in pack(requests, 2_000)]

    assert sum(sizes) == 9_000
    assert len(set(sizes)) == len(sizes) == 5
    assert all(1_900 < size < 2_000 and size % 100 for size in sizes[:-1])
    assert [len(shard.requests) for shard in pack(requests[:2_000], 2_000)] == [2_000]


# What was approved ---------------------------------------------------------------------------


# 1,260 micro-dollars in a batch.
CUT = succeeded("half", stop="max_tokens", usage={"input_tokens": 4, "output_tokens": 100})


def price_of_all(bench: Bench) -> int:
    """Return the ceiling that a person is shown before the run."""
    price = bench.plan().batch
    assert price is not None
    return price.ceiling


def paid(bench: Bench) -> int:
    return budget.standing(bench.files.read_state(), lambda _: None).spent


def test_rounds_never_spend_beyond_the_ceiling_that_was_approved(bench: Bench, server: FakeApi):
    server.outcomes = dict.fromkeys(("a_Dmd", "b_Dmd", "sub_-c_Dmd"), CUT)
    bench.approved = (price_of_all(bench),) * 2

    receipt = bench.run()

    assert len(server.batches) == 1
    assert receipt.classes == {"truncated": 3}
    assert paid(bench) <= bench.approved[0]
    assert any("3 cut short not sent again: more than" in u.text for u in bench.updates)


def test_as_many_as_fit_in_what_was_approved_are_sent_again_with_a_larger_limit(
    bench: Bench, server: FakeApi
):
    server.outcomes = {"a_Dmd": CUT, "b_Dmd": CUT}
    server.outcomes["sub_-c_Dmd"] = succeeded("x", usage={"input_tokens": 20, "output_tokens": 0})
    one = budget.ceiling(
        {"model": "claude-opus-4-8", "max_tokens": 200, "messages": [
            {"role": "user", "content": "Report on a.md: text of a.md"}]}, "batch")  # fmt: skip
    spent = 2 * 1_260 + 50
    bench.approved = (spent + one, 0)

    receipt = bench.run()

    assert sent(server)[1:] == [["a_Dmd_R1"]]
    assert receipt.classes == {"succeeded": 2, "truncated": 1}


def test_what_was_not_charged_is_sent_again_whatever_was_approved(bench: Bench, server: FakeApi):
    server.outcomes = {"a_Dmd": errored("api_error", "no"), "b_Dmd": {"type": "expired"}}
    bench.approved = None

    receipt = bench.run()

    assert sent(server)[1:] == [["a_Dmd_R1", "b_Dmd_R1"]]
    assert receipt.is_complete


def test_what_was_approved_without_a_price_is_sent_again_as_often_as_the_terms_allow(
    bench: Bench, server: FakeApi
):
    server.outcomes = {"a_Dmd": CUT, "a_Dmd_R1": CUT, "b_Dmd": succeeded("", stop="refusal")}
    bench.approved = None

    receipt = bench.run(model="my-own-model")

    assert sent(server)[1:] == [["a_Dmd_R1"], ["a_Dmd_R2"]]
    assert receipt.classes == {"succeeded": 2, "refused": 1}


def test_of_batches_that_were_made_elsewhere_nothing_is_paid_twice_by_itself(
    bench: Bench, server: FakeApi
):
    server.outcomes = {"a_Dmd": CUT, "b_Dmd": errored("api_error", "no")}
    writer = bench.writer()
    assert writer.state.config is not None
    config = msgspec.structs.replace(writer.state.config, imported="requests")
    shard = bench.plan().shards[0]
    folder.extend(writer, [shard], "retry", round_=1, again={}, by_hand=True, config=config)
    writer.close()

    writer = bench.writer()
    writer.state = replace(writer.state, approved=None)
    bench.pipeline(writer).run()
    writer.close()

    again = [custom_id for ids in sent(server)[2:] for custom_id in ids]
    assert again
    assert not [custom_id for custom_id in again if custom_id.startswith("a_")]


def test_what_was_refused_for_want_of_credit_elsewhere_is_not_sent_by_itself(
    bench: Bench, server: FakeApi
):
    server.outcomes = {"a_Dmd": BILL}
    with pytest.raises(Paused):
        bench.run()
    writer = bench.writer()
    assert writer.state.config is not None
    config = msgspec.structs.replace(writer.state.config, imported="requests")
    writer.state = replace(writer.state, config=config)

    bench.pipeline(writer).run()

    writer.close()
    assert len(server.batches) == 1


def test_with_tools_of_the_server_nothing_is_paid_twice_beyond_what_was_approved(
    bench: Bench, server: FakeApi
):
    server.outcomes = dict.fromkeys(("a_Dmd", "b_Dmd"), CUT)
    bench.params = {"tools": [SEARCH]}
    server.outcomes["a_Dmd_R1"] = CUT
    server.outcomes["sub_-c_Dmd"] = succeeded("x", usage={"input_tokens": 20, "output_tokens": 0})
    spent = 2 * 1_260 + 50
    bench.approved = (spent + 1, 0)

    receipt = bench.run()

    assert sent(server)[1:] == [["a_Dmd_R1", "b_Dmd_R1"]], "and no second round: all is spent"
    assert receipt.classes == {"succeeded": 2, "truncated": 1}


def test_a_round_by_hand_costs_what_was_shown_for_it_and_no_more(bench: Bench, server: FakeApi):
    server.outcomes = {"a_Dmd": CUT, "b_Dmd": CUT, "a_Dmd_R1": CUT, "b_Dmd_R1": CUT}
    bench.approved = (0, 0)
    bench.run()
    before = paid(bench)

    offer = offers.make(bench.files, bench.files.read_state(), "batch")
    writer = bench.writer()
    pipeline = bench.pipeline(writer)
    pipeline.repeat(room=offer.micros)
    pipeline.run()
    writer.close()

    assert offer.again == {"truncated": 2}
    assert sent(server)[1:] == [["a_Dmd_R1", "b_Dmd_R1"]], "and no automatic round after it"
    state = bench.files.read_state()
    assert offer.micros is not None
    assert state.approved == (before + offer.micros,) * 2


@pytest.mark.parametrize(("said", "is_dear"), [(None, True), ("standard", True), ("batch", False)])
def test_what_a_round_may_cost_at_a_yard_follows_how_it_charges(
    bench: Bench, server: FakeApi, said: str | None, is_dear: bool
):
    server.is_yard, server.billing = True, said
    server.outcomes = {"a_Dmd": CUT}
    bench.approved = (0, 0)
    bench.run()
    state = bench.files.read_state()

    offer = offers.make(bench.files, state, billing.presumed(state))

    cheap = offers.make(bench.files, state, "batch")
    assert offer.micros is not None
    assert cheap.micros is not None
    assert (offer.micros > cheap.micros > 0) == is_dear


@pytest.mark.parametrize("failure", [errored("api_error", "no"), {"type": "expired"}])
def test_a_cut_report_stays_the_last_word_when_its_repetition_is_not_answered(
    bench: Bench, server: FakeApi, failure: dict
):
    server.outcomes = {"a_Dmd": CUT, **{f"a_Dmd_R{n}": failure for n in (1, 2, 3)}}

    receipt = bench.run()

    assert sent(server)[1:] == [["a_Dmd_R1"], ["a_Dmd_R2"], ["a_Dmd_R3"]]
    assert {params(server, n, f"a_Dmd_R{n}")["max_tokens"] for n in (1, 2, 3)} == {200}
    assert receipt.classes == {"succeeded": 2, "truncated": 1}
    assert bench.files.read_state().classes == {"succeeded": 2, "truncated": 1}
    assert bench.reports()["a.md"] == "half\n"
    entry = json.loads((bench.out / "errors.jsonl").read_text())
    assert (entry["class"], entry["output"], entry["tries"]) == ("truncated", "a.md", 4)
    assert "stop_reason max_tokens; sent again, and not answered: " in entry["reason"]
    assert receipt.paid_micros == 1_260 + 2 * 3_750
    lines = (bench.files.state / "audit.jsonl").read_text().splitlines()
    audit = [json.loads(line) for line in lines]
    kind = "expired" if failure["type"] == "expired" else "retryable"
    assert [each["class"] for each in audit if each["key"] == "a.md"] == ["truncated", *[kind] * 3]


def test_the_text_of_a_report_that_was_kept_is_the_one_that_came(bench: Bench, server: FakeApi):
    server.outcomes = {"a_Dmd": CUT, "a_Dmd_R1": errored("invalid_request_error", "no")}

    bench.run()

    state = bench.files.read_state()
    last = next(f for f in finals.finals(bench.files, state) if f.entry.key == "a.md")
    assert len(server.batches) == 2, "a repetition that needs a fix is not repeated"
    assert formats.answer(bench.files, last.shard, last.outcome) == "half"
