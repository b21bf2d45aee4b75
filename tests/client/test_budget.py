"""A budget holds: what might exceed it is not sent, whatever answers cost in the end."""

import re
import signal
from pathlib import Path

import pytest

from batchyard.client.asked import config_of
from batchyard.client.problems import BudgetReached, InputError
from batchyard.client.running import budget, folder, pilot
from batchyard.client.running.journal import Phase
from client.commands import OPTIONS, batchyard, run_documents
from client.conftest import Bench
from client.fake_api import FakeApi, errored, succeeded

# An Opus 4.8 request of the bench: a prompt of some 40 tokens, 100 tokens of answer, at half price.
CEILING = 1_400
DOCUMENTS = 20


@pytest.fixture
def many(bench: Bench, server: FakeApi) -> Bench:
    """Twenty documents whose answers cost far less than they could."""
    for path in bench.docs.rglob("*.md"):
        path.unlink()
    usage = {"input_tokens": 20, "output_tokens": 20}
    for number in range(DOCUMENTS):
        (bench.docs / f"n{number:02}.md").write_text("some text")
        for suffix in ("", "_R1"):
            answer = succeeded(f"Report {number}.", usage=usage)
            server.outcomes[f"n{number:02}_Dmd{suffix}"] = answer
    bench.prompt.write_text("Report on {{ name }}: {{ text }}")
    return bench


def sizes(server: FakeApi) -> list[int]:
    return [len(batch.requests) for batch in server.batches.values()]


def ceiling(bench: Bench) -> int:
    """Return what the whole run can cost."""
    bench.writer().close()
    total = budget.of_shard(bench.files.requests(0), "batch")
    assert total is not None
    return total


def never_exceeded(bench: Bench) -> bool:
    """Whether all that was sent, at its ceiling or at its cost, is within the budget."""
    state = bench.files.read_state()
    assert bench.budget_micros is not None
    now = budget.standing(state, lambda _: None)
    return now.spent + now.reserved <= bench.budget_micros


def test_a_ceiling_is_the_whole_output_and_the_prompt_at_the_price_of_the_server(bench: Bench):
    params = {"model": "claude-opus-4-8", "max_tokens": 1_000, "messages": [
        {"role": "user", "content": "word " * 1_000}]}  # fmt: skip

    batch, standard = budget.ceiling(params, "batch"), budget.ceiling(params, "standard")

    assert batch is not None
    assert 1_000 * 12.5 < batch < 1_000 * 12.5 + 2_500 * 2.5
    assert standard == 2 * batch
    assert budget.ceiling(params, "simulated") == 0


def test_a_prompt_that_is_written_to_the_cache_costs_more_at_most(bench: Bench):
    block = {"type": "text", "text": "word " * 1_000}

    def cost(**control: object) -> int:
        params = {"model": "claude-opus-4-8", "max_tokens": 1, "messages": [
            {"role": "user", "content": [{**block, **control}]}]}  # fmt: skip
        return budget.ceiling(params, "batch") or 0

    plain = cost()
    assert cost(cache_control={"type": "ephemeral"}) > 1.2 * plain
    assert cost(cache_control={"type": "ephemeral", "ttl": "1h"}) > 1.9 * plain


@pytest.mark.parametrize(
    "params",
    [
        {"model": "my-own-model", "max_tokens": 5, "messages": []},
        {"model": "claude-opus-4-8", "max_tokens": 5, "messages": [],
         "tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        *(
            {"model": "claude-opus-4-8", "max_tokens": 5, "messages": [], "tools": [{"type": kind}]}
            for kind in ("mcp_toolset", "advisor_20260301", "tool_search_tool_bm25", "new_20270101")
        ),
        {"model": "claude-opus-4-8", "max_tokens": 5, "messages": [],
         "mcp_servers": [{"type": "url", "url": "https://m.example", "name": "m"}]},
    ],
)  # fmt: skip
def test_what_has_no_bound_has_no_ceiling(params: dict):
    assert budget.ceiling(params, "batch") is None


@pytest.mark.parametrize("kind", [None, "custom", "bash_20250124", "computer_toolset_20260801"])
def test_tools_that_whoever_asks_runs_have_a_ceiling(kind: str | None):
    params = {"model": "claude-opus-4-8", "max_tokens": 5, "messages": [], "mcp_servers": [],
              "tools": [{"type": kind, "name": "own"}]}  # fmt: skip

    assert budget.ceiling(params, "batch")


@pytest.mark.parametrize("billing", [None, "standard"])
def test_the_budget_that_is_said_to_be_enough_is_enough(
    many: Bench, server: FakeApi, billing: str | None
):
    plan = many.plan()
    with pytest.raises(BudgetReached, match="is enough for all") as refused:
        budget.check(plan, 10_000, None)
    said = re.search(r"--budget ([\d.]+) is enough", refused.value.message)
    assert said
    many.budget_micros = budget.parse(said[1])
    server.is_yard, server.billing = True, billing
    server.follows_time = True

    many.run()

    assert sizes(server) == [DOCUMENTS], "sent at once, so that all of it fitted"


def test_with_a_budget_an_unknown_price_is_refused_before_anything_is_sent(
    bench: Bench, server: FakeApi
):
    bench.budget_micros = 1_000_000

    with pytest.raises(InputError, match="unknown price"):
        bench.run(model="my-own-model")

    assert server.batches == {}
    assert bench.files.read_state().nothing_sent


def test_a_run_within_its_budget_is_sent_at_once(many: Bench, server: FakeApi):
    many.budget_micros = ceiling(many)

    receipt = many.run()

    assert sizes(server) == [DOCUMENTS]
    assert receipt.is_complete


def test_a_shard_waits_until_the_difference_of_an_earlier_one_is_released(
    many: Bench, server: FakeApi
):
    server.polls = 2
    many.writer(shard_requests=10).close()
    one = budget.of_shard(many.files.requests(0), "batch")
    assert one is not None
    many.budget_micros = one * 3 // 2
    seen: list[int] = []
    many.pause = lambda s: bool(seen.append(len(server.batches))) or many.clock.pause(s)

    receipt = many.run()

    assert seen[0] == 1, "the second shard was sent while the first was under way"
    assert sizes(server) == [10, 10]
    assert receipt.is_complete
    assert never_exceeded(many)


def test_a_shard_that_does_not_fit_is_cut_so_that_something_does(many: Bench, server: FakeApi):
    many.budget_micros = ceiling(many) * 3 // 4

    receipt = many.run()

    first, *rest = sizes(server)
    assert 10 <= first <= 15
    assert sum(rest) == DOCUMENTS - first
    assert receipt.is_complete
    assert receipt.documents == DOCUMENTS
    assert never_exceeded(many)
    assert many.files.read_state().shards[0].phase is Phase.REPLACED


def test_when_nothing_fits_it_is_said_what_would_and_a_larger_budget_goes_on(
    many: Bench, server: FakeApi
):
    many.budget_micros = ceiling(many) // 10

    with pytest.raises(BudgetReached, match=r"\$0\.00 of \$.* is spent, 20 requests are not sent"):
        many.run()
    sent = dict(server.batches)
    many.budget_micros = ceiling(many)
    receipt = many.run()

    assert sent == {}
    assert receipt.is_complete
    assert sizes(server) == [DOCUMENTS]


def test_a_round_of_repetitions_obeys_the_budget_too(many: Bench, server: FakeApi):
    for number in range(DOCUMENTS):
        server.outcomes[f"n{number:02}_Dmd"] = succeeded("cut", stop="max_tokens", usage={
            "input_tokens": 20, "output_tokens": 100})  # fmt: skip
    many.budget_micros = ceiling(many)

    with pytest.raises(BudgetReached, match="20 requests are not sent"):
        many.run()
    once = sizes(server)
    many.budget_micros = 4 * many.budget_micros
    receipt = many.run()

    assert once == [DOCUMENTS]
    assert receipt.is_complete


def test_a_budget_is_an_amount_of_dollars():
    assert budget.parse("40") == 40_000_000
    assert budget.parse("$1,250.5") == 1_250_500_000
    for text in ("", "0", "-1", "x", "1e-9", "nan"):
        with pytest.raises(InputError, match="--budget"):
            budget.parse(text)


# Pilots ------------------------------------------------------------------------------------------


def started(many: Bench, count: int):
    many.out.mkdir(exist_ok=True)
    writer = folder.Journal(many.files, many.clock)
    plan, reasons = pilot.split(many.plan(), count)
    config = config_of(
        plan, prompt=many.prompt, system=None, base_url=many.server.url, local=False, upstreams=()
    )
    folder.start(writer, plan, config, reasons=reasons)
    return writer


def test_a_pilot_is_spread_over_the_inputs_and_is_not_sent_again(many: Bench, server: FakeApi):
    writer = started(many, 4)
    pipeline = many.pipeline(writer)

    pipeline.run()
    held = (sizes(server), pipeline.is_held, writer.state.finished_us)
    pipeline.approve()
    receipt = pipeline.run()

    writer.close()
    assert held == ([4], True, None)
    ids = [[r["custom_id"] for r in batch.requests] for batch in server.batches.values()]
    assert ids[0] == ["n00_Dmd", "n05_Dmd", "n10_Dmd", "n15_Dmd"]
    assert not set(ids[0]) & set(ids[1])
    assert receipt.is_complete
    assert receipt.documents == DOCUMENTS


def test_a_pilot_says_what_came_and_what_the_rest_will_cost(many: Bench, server: FakeApi):
    server.outcomes["n05_Dmd"] = errored("invalid_request_error", "no")
    writer = started(many, 4)
    many.pipeline(writer).run()

    found = pilot.findings(many.files, writer.state)

    writer.close()
    assert (found.documents, found.left, dict(found.classes)) == (
        4, 16, {"succeeded": 3, "needs_fix": 1},
    )  # fmt: skip
    assert found.lengths == [20, 20, 20]
    assert found.histogram() == [("to 100", 3)]
    assert found.paid_micros == 3 * 300
    assert found.rest_micros is not None
    assert 16 * 270 < found.rest_micros <= 16 * 300
    assert not found.is_good, "one of four is more than a tenth"


@pytest.mark.parametrize(
    ("model", "usage", "each"),
    [
        ("claude-haiku-4-5", {}, (20 * 0.5, 20 * 2.5)),
        ("claude-opus-4-8", {"cache_read_input_tokens": 1_000}, (20 * 2.5 + 1_000 * 0.25, 250)),
        ("claude-opus-4-8", {"inference_geo": "us"}, (1.1 * 50, 1.1 * 250)),
        ("claude-opus-4-8", {"server_tool_use": {"web_search_requests": 2}}, (50, 250 + 20_000)),
    ],
    ids=["model", "cache", "us", "searches"],
)
def test_the_rest_after_a_pilot_costs_what_answers_like_its_own_cost(
    many: Bench, server: FakeApi, model: str, usage: dict, each: tuple[float, float]
):
    more = {"model": model, "usage": {"input_tokens": 20, "output_tokens": 20} | usage}
    for name in server.outcomes:
        server.outcomes[name] = succeeded("Report.", **more)
    writer = started(many, 4)
    many.pipeline(writer).run()

    found = pilot.findings(many.files, writer.state)

    writer.close()
    prompt, rest = each
    assert found.paid_micros == 4 * (prompt + rest)
    assert found.rest_micros is not None
    # The prompts of the rest are as long, but the brackets around a batch count as well.
    assert 16 * (0.9 * prompt + rest) < found.rest_micros <= 16 * (prompt + rest)


def test_a_pilot_of_everything_leaves_no_rest(many: Bench, server: FakeApi):
    writer = started(many, DOCUMENTS)

    receipt = many.pipeline(writer).run()
    found = pilot.findings(many.files, writer.state)

    writer.close()
    assert receipt.is_complete
    assert sizes(server) == [DOCUMENTS]
    assert (found.documents, found.left, found.rest_micros) == (DOCUMENTS, 0, 0)


# Killed ------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_as_it_begins_keeps_the_terms_it_was_given(
    documents: Path, paid: FakeApi
):
    options = ("--budget", "0.001", "--retries", "0", "--format", "jsonl", "--shard-size", "1")
    killed = batchyard(
        "run", *OPTIONS, "--base-url", paid.url, *options, BATCHYARD_CRASH_AT="run_unlisted"
    )
    state = folder.Files(documents / "reports").read_state()
    again = batchyard("attach", "reports")

    assert killed.returncode == -signal.SIGKILL
    assert (state.terms.budget_micros, state.terms.retries) == (1_000, 0)
    assert state.saving.formats == ("jsonl",)
    assert again.returncode == 4, again.stderr
    assert sizes(paid) == [1]
    assert (documents / "reports" / "results.jsonl").exists()


def test_a_rerun_that_is_killed_as_it_grows_keeps_the_budget_it_was_given(
    documents: Path, paid: FakeApi
):
    run_documents(paid)
    for name in ("d.md", "e.md"):
        (documents / "docs" / name).write_text(f"text of {name}")
    options = ("--budget", "0.0126", "--shard-size", "1")
    killed = batchyard(
        "run", *OPTIONS, "--base-url", paid.url, *options, BATCHYARD_CRASH_AT="extended"
    )
    again = batchyard("attach", "reports")

    assert killed.returncode == -signal.SIGKILL
    assert again.returncode == 4, again.stderr
    assert sizes(paid) == [3, 1]


def test_a_round_by_hand_that_is_killed_as_it_begins_keeps_the_budget_it_was_given(
    documents: Path, paid: FakeApi
):
    paid.outcomes = {"a_Dmd": errored("invalid_request_error", "no")}
    run_documents(paid)
    (documents / "p.j2").write_text("In short: {{ text }}")
    killed = batchyard("retry", "reports", "--with-change", "--yes", "--budget", "0.001",
                       BATCHYARD_CRASH_AT="extended")  # fmt: skip
    again = batchyard("attach", "reports")

    assert killed.returncode == -signal.SIGKILL
    assert again.returncode == 4, again.stderr
    assert sizes(paid) == [3]


@pytest.mark.parametrize("command", ["run", "attach"])
def test_a_command_that_is_killed_as_it_moves_a_run_keeps_the_budget_it_was_given(
    documents: Path, server: FakeApi, paid: FakeApi, command: str
):
    server.fail("create", 404)
    run_documents(server)
    more = ("--base-url", paid.url, "--budget", "0.001")
    arguments = ("run", *OPTIONS) if command == "run" else ("attach", "reports")
    killed = batchyard(*arguments, *more, BATCHYARD_CRASH_AT="moved")
    again = batchyard("attach", "reports")

    assert killed.returncode == -signal.SIGKILL
    assert again.returncode == 4, again.stderr
    assert sizes(paid) == [1], "what fits of it"
