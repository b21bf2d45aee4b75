"""What other clients of batches were found to get wrong with requests, results and money."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import Run, price
from batchyard.cli import ending
from batchyard.client.problems import NeedsAttention
from batchyard.client.results import finals
from batchyard.client.running.journal import Saving
from batchyard.testing import Emulator
from client.fake_api import errored, succeeded

if TYPE_CHECKING:
    from pathlib import Path

    from client.conftest import Bench
    from client.fake_api import FakeApi

# Every kind of answer that the API documents, with what we call it.
RESULTS: dict[str, tuple[dict[str, Any], str]] = {
    "ok": (succeeded("fine"), "succeeded"),
    "stop": (succeeded("fine", stop="stop_sequence"), "succeeded"),
    "cut": (succeeded("half", stop="max_tokens"), "truncated"),
    "full": (succeeded("half", stop="model_context_window_exceeded"), "truncated"),
    "refused": (succeeded("", stop="refusal"), "refused"),
    "silent": (succeeded("", stop="end_turn"), "empty"),
    "wrong": (errored("invalid_request_error", "text of it"), "needs_fix"),
    "large": (errored("request_too_large", "text of it"), "needs_fix"),
    "gone": (errored("not_found_error", "text of it"), "needs_fix"),
    "key": (errored("authentication_error", "text of it"), "needs_fix"),
    "rights": (errored("permission_error", "text of it"), "needs_fix"),
    "server": (errored("api_error", "text of it"), "retryable"),
    "busy": (errored("overloaded_error", "text of it"), "retryable"),
    "rate": (errored("rate_limit_error", "text of it"), "retryable"),
    "slow": (errored("timeout_error", "text of it"), "retryable"),
    "late": ({"type": "expired"}, "expired"),
    "stopped": ({"type": "canceled"}, "canceled"),
    "new": ({"type": "something_new"}, "missing"),
}


def results_of(bench: Bench, server: FakeApi, results: dict[str, dict[str, Any]]) -> None:
    """Make the documents of the bench these, each with its result, also when it is sent again."""
    for path in sorted(bench.docs.rglob("*.md")):
        path.unlink()
    for name, result in results.items():
        (bench.docs / f"{name}.md").write_text(f"text of {name}")
        for suffix in ("", "_R1", "_R2", "_R3"):
            server.outcomes[f"{name}_Dmd{suffix}"] = result


def errors(bench: Bench) -> dict[str, dict[str, Any]]:
    lines = (bench.out / "errors.jsonl").read_text().splitlines()
    return {each["key"]: each for each in map(json.loads, lines)}


def test_params_reach_wire_byte_equal(tmp_path: Path, server: FakeApi):
    params = {
        "tools": [{"name": "t", "input_schema": {"type": "object", "x": [1, 1.0, None]}}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "adaptive"},
        "stop_sequences": ["\u00e9\n"],
        "output_config": {"effort": "high"},
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "temperature": 1,
    }
    prompt, system = tmp_path / "p.j2", tmp_path / "s.j2"
    prompt.write_text("{{ text }} \u2028 caf\u00e9")
    system.write_text("You are {{ id }}.")
    with Run(
        tmp_path / "out", rows=[{"id": "a", "text": "x"}], prompt=prompt, system=system,
        model="claude-opus-4-8", max_tokens=2_000, params=params, base_url=server.url, api_key="k",
    ) as run:  # fmt: skip
        plan = run.plan(sample=0)
        run.submit(plan)

    [body] = server.bodies
    assert plan.requests[0].params in body
    assert body == (tmp_path / "out/.batchyard/requests-000.json").read_bytes()
    sent = json.loads(body)["requests"][0]["params"]
    assert {name: sent[name] for name in params} == params
    assert sent["system"] == "You are a."
    assert sent["messages"][0]["content"] == "x \u2028 caf\u00e9"


def test_batch_price_or_refuse(bench: Bench, server: FakeApi):
    server.fail("create", *[404] * 9)

    with pytest.raises(NeedsAttention):
        bench.run()

    # Nothing was sent to where it would cost twice as much, and nothing is taken for done.
    assert {call.path for call in server.calls if call.method == "POST"} == {"/v1/messages/batches"}
    assert server.batches == {}
    assert bench.reports() == {}
    assert bench.files.read_state().finished_us is None


def test_every_error_class_has_its_own_name(bench: Bench, server: FakeApi):
    bench.retries = 0
    results_of(bench, server, {name: result for name, (result, _) in RESULTS.items()})

    done = bench.run()

    classes = {f.entry.key: f.outcome.class_ for f in finals.finals(bench.files, state(bench))}
    assert classes == {f"{name}.md": kind for name, (_, kind) in RESULTS.items()}
    found = errors(bench)
    for name, (result, _) in RESULTS.items():
        if result["type"] == "errored":
            assert found[f"{name}.md"]["type"] == result["error"]["error"]["type"]
            assert found[f"{name}.md"]["reason"] == "text of it"
    assert found["late.md"]["type"] == "expired"
    assert found["new.md"]["reason"] == "a result of unknown type something_new"
    text = "\n".join(ending.lines("r", done, last_failures(bench), errors="errors.jsonl"))
    for kind in {kind for _, kind in RESULTS.values()} - {"succeeded"}:
        assert f" {ending.WORDS[kind]}: " in text
    assert text.count("next: ") == len({kind for _, kind in RESULTS.values()}) - 1
    assert "unknown error" not in text.lower()


def state(bench: Bench):
    return bench.files.read_state()


def last_failures(bench: Bench):
    last = (final.outcome for final in finals.finals(bench.files, state(bench)))
    return [outcome for outcome in last if outcome.class_ != "succeeded"]


@pytest.mark.parametrize("kind", ["invalid_request_error", "request_too_large"])
def test_invalid_is_not_retried(bench: Bench, server: FakeApi, kind: str):
    results_of(bench, server, {"a": errored(kind, "no"), "b": succeeded("fine")})

    done = bench.run()

    assert server.count("POST", "/batches") == 1
    assert done.classes == {"needs_fix": 1, "succeeded": 1}
    assert errors(bench)["a.md"]["tries"] == 1


def test_cost_equals_usage_times_price(bench: Bench, server: FakeApi):
    # Opus 4.8: $5 in, $25 out, $6.25 and $10 to write, $0.50 to read; a batch costs half of it.
    usages: dict[str, tuple[dict[str, Any], int]] = {
        "plain": ({"input_tokens": 1_000, "output_tokens": 100}, 2_500 + 1_250),
        "write": (
            {
                "input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 3_000,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 1_000, "ephemeral_1h_input_tokens": 2_000,
                },
            },
            3_125 + 10_000,
        ),
        "read": (
            {"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": 10_000},
            2_515,  # 2.5 + 12.5 + 2,500
        ),
        "search": (
            {"input_tokens": 0, "output_tokens": 0, "server_tool_use": {"web_search_requests": 3}},
            30_000,  # in full
        ),
        "us": (
            {"input_tokens": 1_000, "output_tokens": 0, "inference_geo": "us"}, 2_750,
        ),
    }  # fmt: skip
    results_of(bench, server, {n: succeeded("x", usage=usage) for n, (usage, _) in usages.items()})

    done = bench.run()

    expected = sum(micros for _, micros in usages.values())
    assert done.paid_micros == expected == 52_140
    audit = (bench.files.state / "audit.jsonl").read_text().splitlines()
    assert {r["key"]: r["cost_micros"] for r in map(json.loads, audit)} == {
        f"{name}.md": micros for name, (_, micros) in usages.items()
    }
    # Twice everything but the searches.
    assert done.synchronous_micros == 2 * (expected - 30_000) + 30_000
    [sums] = done.models.values()
    assert (sums.input_tokens, sums.output_tokens, sums.web_searches) == (2_001, 101, 3)
    assert (sums.cache_write_5m_tokens, sums.cache_write_1h_tokens) == (1_000, 2_000)
    assert sums.cache_read_tokens == 10_000
    assert done.cache_share == pytest.approx(10_000 / 15_001, abs=1e-4)
    assert done.prices == price.version()


def test_a_try_that_was_charged_and_repeated_is_part_of_the_cost(bench: Bench, server: FakeApi):
    usage = {"input_tokens": 1_000, "output_tokens": 100}  # 3,750 micro-dollars in a batch
    results_of(bench, server, {"a": succeeded("half", stop="max_tokens", usage=usage)})
    server.outcomes["a_Dmd_R1"] = succeeded("whole", usage=usage)

    done = bench.run()

    assert (done.documents, done.requests, done.paid_micros) == (1, 2, 7_500)
    assert done.classes == {"succeeded": 1}
    assert bench.reports() == {"a.md": "whole\n"}


def test_counts_sum_to_inputs(bench: Bench, server: FakeApi):
    mixed = ("ok", "wrong", "late", "stopped", "busy", "cut")
    results_of(bench, server, {name: RESULTS[name][0] for name in mixed})

    done = bench.run()

    assert done.documents == len(mixed) == sum(done.classes.values())
    assert done.classes == {
        "canceled": 1, "expired": 1, "needs_fix": 1, "retryable": 1, "succeeded": 1, "truncated": 1,
    }  # fmt: skip
    assert done.requests == len(mixed) + 3 * len(("late", "busy", "cut"))
    assert state(bench).classes == done.classes
    assert len(errors(bench)) == 5
    counts = ending.headline("r", done)
    assert counts == (
        "done r   2 saved (1 cut short) · 1 canceled · 1 expired · 1 needs fix · "
        "1 failed at the server"
    )


def run_with(tmp_path: Path, emulator: Emulator, **more: Any) -> Run:
    prompt = tmp_path / "p.j2"
    prompt.write_text("{{ text }}")
    return Run(
        tmp_path / "out", rows=[{"id": "a", "text": "x"}, {"id": "b", "text": "y"}], prompt=prompt,
        model="claude-opus-4-8", max_tokens=500, base_url=emulator.url, api_key="k", shard_size=1,
        **more,
    )  # fmt: skip


def test_the_copy_of_the_server_is_deleted_when_all_is_on_disk_and_only_on_request(tmp_path: Path):
    with Emulator() as emulator:
        with run_with(tmp_path, emulator) as run:
            run.submit(run.plan(sample=0))
            list(run)
        out = tmp_path / "out"
        before = journal_of(out)
        assert "deleted" not in [event["event"] for event in before]
        with run_with(tmp_path, emulator, delete_after_download=True) as run:
            run.submit(run.plan(sample=0))
            list(run)
            batches = run.report().batches

    after = journal_of(out)[len(before) :]
    assert [event["event"] for event in after] == ["saving", "deleted", "deleted", "finished"]
    assert [event["batch"] for event in after if event["event"] == "deleted"] == batches
    assert (out / "a.md").exists()


def test_a_batch_whose_results_are_not_whole_is_not_deleted(bench: Bench, server: FakeApi):
    server.fail("results", *["cut_quietly"] * 3)
    bench.retries = 0
    writer = bench.writer()
    writer.record(Saving(delete=True))
    try:
        bench.pipeline(writer).run()
    finally:
        writer.close()

    assert not [call for call in server.calls if call.method == "DELETE"]
    assert any("is kept at the server" in update.text for update in bench.updates)
    assert list(server.batches) == ["msgbatch_01"]


def test_a_batch_that_cannot_be_deleted_is_named_and_tried_again(bench: Bench, server: FakeApi):
    writer = bench.writer()
    writer.record(Saving(delete=True))
    try:
        server.fail("delete", 400)
        with pytest.raises(NeedsAttention, match=r"everything is saved[^\n]*\n  msgbatch_01: 400"):
            bench.pipeline(writer).run()
        assert writer.state.finished_us is None
        assert len(bench.reports()) == 3
        bench.pipeline(writer).run()
        assert writer.state.finished_us is not None
        assert server.batches == {}
    finally:
        writer.close()


def journal_of(out: Path) -> list[dict[str, Any]]:
    lines = (out / ".batchyard/journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_batch_that_is_gone_already_counts_as_deleted(bench: Bench, server: FakeApi):
    writer = bench.writer()
    writer.record(Saving(delete=True))
    try:
        server.fail("delete", 404)  # as after a kill between the call and its note
        bench.pipeline(writer).run()
        assert writer.state.shards[0].deleted == ("msgbatch_01",)
        assert writer.state.finished_us is not None
    finally:
        writer.close()
