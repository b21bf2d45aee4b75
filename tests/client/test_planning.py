"""Plans as a person makes them: counted, compared, cached, and sent again only where needed."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from batchyard import Run, files, price
from batchyard.client.api import Api
from batchyard.client.inputs.documents import Sources
from batchyard.client.inputs.template import Template
from batchyard.client.planning import counting, earlier, preview
from batchyard.client.planning.advice import explain
from batchyard.client.planning.caching import Mode
from batchyard.client.planning.plan import Plan, Settings, make, subset, with_cache
from batchyard.client.problems import InputsChanged
from batchyard.client.running.folder import Files
from batchyard.testing import Emulator
from client.commands import batchyard
from client.fake_api import FakeApi, errored

OPTIONS = ["docs", "--prompt", "p.j2", "--model", "claude-opus-4-8", "--max-tokens", "50",
           "--out", "reports"]  # fmt: skip


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docs").mkdir()
    for name in ("a.md", "b.md"):
        (tmp_path / "docs" / name).write_text(f"text of {name}")
    (tmp_path / "p.j2").write_text("About {{ text }}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    return tmp_path


def run(server: FakeApi, *more: str, command: str = "run"):
    return batchyard(command, *OPTIONS, "--base-url", server.url, *more)


def counted_calls(server: FakeApi) -> int:
    return sum(call.path == "/v1/messages/count_tokens" for call in server.calls)


def sent(server: FakeApi) -> list[list[str]]:
    return [[r["custom_id"] for r in batch.requests] for batch in server.batches.values()]


@pytest.mark.parametrize(
    ("billing", "rows", "micros"),
    [
        ("standard", ["price           $0.", "this server says that it pays the synchronous"], "s"),
        ("simulated", ["price, batch    $0.", "charged         nothing: the model is sim"], "b"),
        ("batch", ["price, batch    $0.", "synchronous     $0."], "b"),
    ],
)
def test_a_yard_is_planned_at_the_price_that_it_says_it_pays(
    documents: Path, server: FakeApi, billing: str, rows: list[str], micros: str
):
    server.is_yard, server.billing = True, billing

    shown = run(server, command="plan").stdout
    planned = json.loads(run(server, "--yes", "--json").stdout.splitlines()[0])

    price = planned["synchronous_micros" if micros == "s" else "batch_micros"]["ceiling"]
    assert f"${price / 1_000_000:.6f} ceiling" in shown.replace("$0.00 ", "")
    assert all(row in shown for row in rows), shown
    assert "if this server gives the half price" not in shown
    assert planned["billing"] == billing


def test_nobody_but_a_yard_is_asked_how_it_charges(documents: Path, server: FakeApi):
    shown = run(server, command="plan").stdout

    assert "if this server gives the half price" in shown
    assert [call.path for call in server.calls] == ["/v1/messages/count_tokens"]


# Counting ----------------------------------------------------------------------------------------


def tokens_of(request: dict) -> int:
    """Count as a tokenizer would that is far from what is guessed, by script."""
    text = json.dumps(request["messages"], ensure_ascii=False)
    cjk = sum("\u4e00" <= char <= "\u9fff" for char in text)
    digits = sum(char in "0123456789" for char in text)
    return 15 + 2 * cjk + digits + (len(text) - cjk - digits) // 3


def mixed(count: int) -> list[dict]:
    texts = (
        "The quick brown fox. ",
        "for x in range(10): y[x] += f(x)\n",
        "文档分析报告。",
        "3.14 ",
    )
    return [
        {"id": f"r{n}", "text": f"{n} " + texts[n % 4] * (5 + n * 7 % 90)} for n in range(count)
    ]


def plan_of(tmp_path: Path, rows: list[dict], **settings) -> Plan:
    path = tmp_path / "p.j2"
    path.write_text("{{ text }}")
    options = {"model": "claude-opus-4-8", "max_tokens": 100} | settings
    return make(Sources(rows=tuple(rows)).read(), Template(path), None, Settings(**options))


def test_the_counted_total_is_within_its_interval_of_what_the_server_says(
    tmp_path: Path, server: FakeApi
):
    server.tokens_of = tokens_of
    made = plan_of(tmp_path, mixed(300))
    truth = sum(tokens_of(json.loads(bytes(r.body))["params"]) for r in made.requests)
    api = Api(server.url, "k")

    counted = counting.calibrated(made, api.count_tokens, 60)
    api.close()

    assert abs(made.tokens.input - truth) / truth > 0.05, "the guess is not good by chance"
    spread = counted.tokens.spread_percent
    assert abs(counted.tokens.input - truth) <= truth * spread / 100
    assert spread < 5
    assert 55 <= counted.tokens.sampled <= 65
    assert counted_calls(server) == counted.tokens.sampled


def test_when_all_requests_were_counted_the_plan_shows_and_prices_their_sum(
    tmp_path: Path, server: FakeApi
):
    server.tokens_of = lambda request: 10 + len(json.dumps(request)) ** 2 // 997
    made = plan_of(tmp_path, mixed(40))
    true = [
        server.tokens_of({"model": "claude-opus-4-8", "messages": params["messages"]})
        for params in (json.loads(bytes(r.body))["params"] for r in made.requests)
    ]
    api = Api(server.url, "k")

    counted = counting.calibrated(made, api.count_tokens, 60)
    api.close()

    assert counted.tokens.sampled == 40
    assert counted.tokens.spread_percent == 0
    assert counted.tokens.input == sum(true)
    assert counted.batch is not None
    # Opus 4.8 in a batch: 2.5 micro-dollars for a token in, 12.5 for one out.
    assert counted.batch.ceiling == sum(round(each * 2.5 + 100 * 12.5) for each in true)
    some = subset(counted, {made.requests[3].key, made.requests[7].key})
    assert some.tokens.input == true[3] + true[7]


def test_what_is_counted_is_the_request_without_what_the_call_does_not_take(
    tmp_path: Path, server: FakeApi
):
    seen = []
    server.tokens_of = lambda request: seen.append(request) or 10
    made = plan_of(tmp_path, mixed(3), params={"stop_sequences": ["x"], "tool_choice": None})
    api = Api(server.url, "k")

    counting.calibrated(made, api.count_tokens, 60)
    api.close()

    assert {frozenset(request) for request in seen} == {
        frozenset({"model", "messages", "tool_choice"})
    }


def test_requests_for_other_models_stay_as_uncertain_as_they_were(tmp_path: Path, server: FakeApi):
    server.tokens_of = tokens_of
    rows = [{**row, "own": {"model": "claude-haiku-4-5"} if n % 2 else None}
            for n, row in enumerate(mixed(40))]  # fmt: skip
    made = plan_of(tmp_path, rows, override="own")
    api = Api(server.url, "k")

    counted = counting.calibrated(made, api.count_tokens, 60)
    api.close()

    assert counted.tokens.sampled == 20, "only those of the run's own model are asked for"
    assert 5 < counted.tokens.spread_percent < 20


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_a_server_that_does_not_count_is_asked_once_and_the_estimate_stays(
    tmp_path: Path, server: FakeApi, status: int
):
    server.tokens_of = tokens_of
    server.fail("count", *[status] * 100)
    made = plan_of(tmp_path, mixed(100))
    api = Api(server.url, "k")

    kept = counting.calibrated(made, api.count_tokens, 60)
    api.close()

    assert kept.tokens == made.tokens
    assert len(server.calls) == 1
    assert "token counts are estimates: count_tokens" in kept.notices[0]


def test_a_server_that_stops_in_between_leaves_what_it_counted(tmp_path: Path, server: FakeApi):
    server.tokens_of = tokens_of
    server.fail("count", *[None] * 30, *[429] * 100)
    made = plan_of(tmp_path, mixed(300))
    api = Api(server.url, "k")

    partly = counting.calibrated(made, api.count_tokens, 60)
    api.close()

    assert partly.tokens.sampled == 30
    assert "30 requests were counted: count_tokens: 429" in partly.notices[0]
    assert counted_calls(server) < 60


def test_a_plan_says_that_it_was_counted_and_with_a_sample_of_0_asks_nobody(
    documents: Path, server: FakeApi
):
    server.tokens_of = tokens_of

    counted = run(server, command="plan")
    calls = len(server.calls)
    guessed = run(server, "--sample", "0", command="plan")

    assert "(all 2 counted)" in counted.stdout
    assert calls == 2
    assert "±25 % (estimate)" in guessed.stdout
    assert len(server.calls) == calls


# Earlier answers ---------------------------------------------------------------------------------


def test_the_likely_output_is_that_of_earlier_answers_to_the_same_prompt(
    documents: Path, server: FakeApi
):
    (documents / "docs" / "c.md").write_text("text of c.md")
    run(server, "--yes", "--max-tokens", "5000")
    other = ["plan", "docs", "--prompt", "p.j2", "--model", "claude-opus-4-8", "--out", "x",
             "--base-url", server.url]  # fmt: skip

    same, longer = (batchyard(*other, "--max-tokens", n) for n in ("5000", "5001"))

    assert "likely (as in reports, 3 answers)" in same.stdout
    assert "300 low · 300 likely" in same.stdout, "the server answers with 100 tokens"
    assert "likely (a guess)" in longer.stdout


def test_a_trial_of_few_documents_is_seen_together_with_the_runs_before_it(
    documents: Path, server: FakeApi
):
    run(server, "--yes", "--out", "first")
    (documents / "docs" / "b.md").unlink()
    run(server, "--yes", "--out", "second")

    planned = run(server, "--out", "third", command="plan")

    assert "likely (as in second and 1 more run, 3 answers)" in planned.stdout


@pytest.mark.parametrize("enough", [1, 2])
def test_runs_from_before_there_were_enough_answers_are_not_looked_at(
    documents: Path, server: FakeApi, monkeypatch: pytest.MonkeyPatch, enough: int
):
    monkeypatch.setattr(earlier, "_ANSWERS_ENOUGH", enough)
    monkeypatch.setattr(earlier, "_ANSWERS_MIN", 1)
    run(server, "--yes", "--out", "first")
    (documents / "docs" / "b.md").unlink()
    run(server, "--yes", "--out", "second")
    config = Files(documents / "second").read_state().config
    assert config is not None

    seen = earlier.look(config, documents / "third")

    assert seen is not None
    assert (seen.runs, seen.answers) == [(("second",), 1), (("second", "first"), 3)][enough - 1]


# What is shown -----------------------------------------------------------------------------------


def test_five_rendered_prompts_are_shown_in_short_and_in_full_on_request(
    documents: Path, server: FakeApi
):
    for number in range(8):
        (documents / "docs" / f"n{number}.md").write_text("line\n" * (number + 20))

    short, whole = run(server, command="plan"), run(server, "--show", command="plan")

    assert short.stdout.count("prompt of ") == 5
    assert "… and 21 more lines" in short.stdout
    assert "more line" not in whole.stdout
    assert whole.stdout.count("  | line") > short.stdout.count("  | line")
    assert not (documents / "reports").exists()


def test_a_run_keeps_the_prompts_beside_its_state(documents: Path, server: FakeApi):
    run(server, "--yes")

    kept = sorted((documents / "reports" / ".batchyard" / "preview").iterdir())

    assert [path.name for path in kept] == ["1-a.md.txt", "2-b.md.txt"]
    assert kept[0].read_text() == "About text of a.md\n"


def test_the_prompts_shown_are_those_that_are_sent(tmp_path: Path):
    rows = [{"id": f"r{n}", "text": "x" * (n * 7 % 11 + 1)} for n in range(11)]
    made = plan_of(tmp_path, rows)

    shown = preview.prompts(made)

    sizes = [len(prompt.text) for prompt in shown]
    assert len({prompt.key for prompt in shown}) == 5
    assert (min(sizes), max(sizes)) == (1, 11)
    for prompt in shown:
        assert {"id": prompt.key, "text": prompt.text} in rows


def test_terminal_escapes_in_a_prompt_are_shown_escaped(documents: Path, server: FakeApi):
    (documents / "docs" / "a.md").write_text("\x1b[31mred")

    shown = run(server, "--sample", "0", command="plan")

    assert "\x1b" not in shown.stdout
    assert r"\x1b[31mred" in shown.stdout


def test_models_are_compared_without_sending_anything(documents: Path, server: FakeApi):
    compared = run(server, "--sample", "0", "--compare", "claude-haiku-4-5,unheard-of",
                   "--param", "output_config={\"effort\":\"low\"}", command="plan")  # fmt: skip

    rows = {
        line.split()[0]: line.split()
        for line in compared.stdout.splitlines()
        if line and "refuses" not in line
    }
    assert rows["claude-opus-4-8"][-1] == "1,024"
    assert rows["claude-haiku-4-5"][-2:] == ["64,000", "4,096"]
    assert rows["unheard-of"][1:4] == ["unknown"] * 3
    assert "claude-haiku-4-5 refuses 2 requests: " in compared.stdout
    assert server.calls == []


@pytest.mark.parametrize(("billing", "column"), [("standard", "synchronous"), ("batch", "batch")])
def test_models_are_compared_at_the_prices_that_the_server_takes(
    documents: Path, server: FakeApi, billing: str, column: str
):
    server.is_yard, server.billing = True, billing
    command = ("--compare", "claude-haiku-4-5")

    shown = run(server, *command, command="plan").stdout
    as_json = run(server, *command, "--json", command="plan").stdout.splitlines()

    planned, own, _ = (json.loads(line) for line in as_json[-3:])
    assert own[column] == planned[f"{column}_micros"]
    line = next(line for line in shown.splitlines() if line.startswith("claude-opus-4-8 "))
    likely = price.dollars(own[column]["likely"])
    assert line.split()[2] == likely, shown
    assert f"{likely} likely" in shown


# Parameters --------------------------------------------------------------------------------------


def test_parameters_reach_the_wire(documents: Path, server: FakeApi):
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    (documents / "tools.json").write_text(json.dumps(tools))

    done = run(server, "--yes", "--param", 'stop_sequences=["END"]', "--tools", "tools.json",
               "--thinking", "adaptive")  # fmt: skip

    assert done.returncode == 0, done.stderr
    params = server.batches["msgbatch_01"].requests[0]["params"]
    assert params["stop_sequences"] == ["END"]
    assert params["tools"] == tools
    assert params["thinking"] == {"type": "adaptive"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("temperature", "--param temperature is not like NAME=JSON"),
        ("temperature=hot", "the value is not JSON"),
        ("model=1", "--param model: --model sets it"),
        ("max_tokens=1", "--param max_tokens: --max-tokens sets it"),
        ("top_k=-1", "2 of 2 requests would be refused"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_before_anything_is_sent(
    documents: Path, server: FakeApi, option: str, message: str
):
    done = run(server, "--yes", "--param", option)

    assert done.returncode == 2
    assert message in done.stderr
    assert server.calls == []


def test_a_row_may_have_parameters_of_its_own(documents: Path, server: FakeApi):
    rows = [
        {"id": "a", "text": "one", "own": {"max_tokens": 7, "stop_sequences": None}},
        {"id": "b", "text": "two", "own": None},
        {"id": "c", "text": "three", "own": '{"model": "claude-haiku-4-5"}'},
    ]
    (documents / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["rows.jsonl", *OPTIONS[1:], "--base-url", server.url]

    done = batchyard("run", *options, "--yes", "--override", "own", "--param",
                     'stop_sequences=["E"]')  # fmt: skip

    assert done.returncode == 0, done.stderr
    sent_params = {r["custom_id"]: r["params"] for r in server.batches["msgbatch_01"].requests}
    assert sent_params["a"]["max_tokens"] == 7
    assert "stop_sequences" not in sent_params["a"]
    assert sent_params["b"]["max_tokens"] == 50
    assert sent_params["c"]["model"] == "claude-haiku-4-5"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"messages": []}, "sets messages"),
        ([1], "is not an object"),
        ("{", "is not JSON"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": None}, "a: invalid_request_error: model"),
        ({"model": 5}, "a: invalid_request_error: model"),
        ({"max_tokens": None}, "a: invalid_request_error: max_tokens"),
    ],
)
def test_what_a_row_may_not_set_is_refused_with_its_place(
    documents: Path, server: FakeApi, own: object, message: str
):
    (documents / "rows.jsonl").write_text(json.dumps({"id": "a", "text": "x", "own": own}) + "\n")
    options = ["rows.jsonl", *OPTIONS[1:], "--base-url", server.url]

    done = batchyard("run", *options, "--yes", "--override", "own")

    assert done.returncode == 2
    assert message in done.stderr
    assert server.calls == []


def test_tables_have_the_order_of_the_rows(documents: Path, server: FakeApi):
    rows = [{"text": f"row {number}"} for number in range(1, 12)]
    rows[4] = rows[1]  # shares its request, and stands with it
    (documents / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["rows.jsonl", *OPTIONS[1:], "--base-url", server.url]

    done = batchyard("run", *options, "--yes", "--format", "jsonl", "--shard-size", "4")

    assert done.returncode == 0, done.stderr
    lines = (documents / "reports" / "results.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    assert keys == ["1", "2", "5", "3", "4", "6", "7", "8", "9", "10", "11"]


# Documents that are the same ---------------------------------------------------------------------


def test_equal_requests_are_sent_once_and_every_document_gets_the_report(
    documents: Path, server: FakeApi
):
    for name in ("c.md", "d.md"):
        (documents / "docs" / name).write_text("text of a.md")

    done = run(server, "--yes")

    assert done.returncode == 0, done.stderr
    assert "4 documents in 2 requests" in done.stdout
    assert sent(server) == [["a_Dmd", "b_Dmd"]]
    assert (documents / "reports" / "d.md").read_text() == "Report on a_Dmd.\n"
    receipt = json.loads((documents / "reports" / "receipt.json").read_text())
    assert receipt["documents"] == receipt["saved"] == 4
    # Two answers of 1,000 and 100 tokens at $2.50 and $12.50 per million.
    assert receipt["paid_micros"] == 2 * (2_500 + 1_250)


def test_documents_that_share_a_request_share_its_repetition(documents: Path, server: FakeApi):
    (documents / "docs" / "c.md").write_text("text of a.md")
    server.outcomes = {"a_Dmd": errored("api_error", "try again")}

    done = run(server, "--yes")

    assert done.returncode == 0, done.stderr
    assert sent(server) == [["a_Dmd", "b_Dmd"], ["a_Dmd_R1"]]
    for name in ("a.md", "c.md"):
        assert (documents / "reports" / name).read_text() == "Report on a_Dmd_R1.\n"
    receipt = json.loads((documents / "reports" / "receipt.json").read_text())
    assert (receipt["documents"], receipt["saved"]) == (3, 3)


def test_of_documents_that_shared_a_request_a_changed_one_leaves_the_others_alone(
    documents: Path, server: FakeApi
):
    (documents / "docs" / "c.md").write_text("text of a.md")
    run(server, "--yes")
    (documents / "docs" / "a.md").write_text("other text")

    again = run(server, "--yes", "--allow-input-change")

    assert again.returncode == 0, again.stderr
    assert sent(server)[1] == ["a_Dmd_R1"]
    assert (documents / "reports" / "a.md").read_text() == "Report on a_Dmd_R1.\n"
    assert (documents / "reports" / "c.md").read_text() == "Report on a_Dmd.\n"
    receipt = json.loads((documents / "reports" / "receipt.json").read_text())
    assert (receipt["documents"], receipt["saved"]) == (3, 3)
    # Three answers were paid: the one that a.md no longer has, too.
    assert receipt["paid_micros"] == 3 * (2_500 + 1_250)


# The same command again --------------------------------------------------------------------------


def test_only_new_documents_are_sent_when_the_same_command_comes_again(
    documents: Path, server: FakeApi
):
    run(server, "--yes")
    (documents / "docs" / "c.md").write_text("text of c.md")

    again = run(server, "--yes")

    assert again.returncode == 0, again.stderr
    assert sent(server) == [["a_Dmd", "b_Dmd"], ["c_Dmd_R1"]]
    assert "change          1 new document: c.md" in again.stdout
    assert "kept            2 documents as before, not sent and not paid again" in again.stdout
    assert (documents / "reports" / "c.md").exists()
    assert json.loads((documents / "reports" / "receipt.json").read_text())["documents"] == 3
    assert run(server, "--yes").stdout.startswith("reports is finished")
    assert len(server.batches) == 2


def test_plan_shows_what_a_run_would_send_beside_a_finished_one(documents: Path, server: FakeApi):
    run(server, "--yes")
    (documents / "docs" / "a.md").write_text("other text")
    (documents / "docs" / "c.md").write_text("text of c.md")

    shown = run(server, "--sample", "0", command="plan").stdout

    assert "plan reports    2 documents, 1 shard" in shown
    assert "change          1 changed document: a.md (--allow-input-change)" in shown
    assert "kept            1 document as before" in shown
    (documents / "docs" / "a.md").write_text("text of a.md")
    (documents / "docs" / "c.md").unlink()
    assert "nothing would be sent" in run(server, "--sample", "0", command="plan").stdout
    assert len(server.batches) == 1


def test_a_changed_document_needs_leave_and_then_replaces_its_report(
    documents: Path, server: FakeApi
):
    run(server, "--yes")
    (documents / "docs" / "a.md").write_text("other text")

    refused = run(server, "--yes")
    allowed = run(server, "--yes", "--allow-input-change")

    assert refused.returncode == 2
    assert "1 changed document: a.md (--allow-input-change)" in refused.stderr
    assert allowed.returncode == 0, allowed.stderr
    assert sent(server) == [["a_Dmd", "b_Dmd"], ["a_Dmd_R1"]]
    assert (documents / "reports" / "a.md").read_text() == "Report on a_Dmd_R1.\n"
    receipt = json.loads((documents / "reports" / "receipt.json").read_text())
    assert (receipt["documents"], receipt["saved"]) == (2, 2)


def test_a_removed_document_is_named_and_its_report_kept(documents: Path, server: FakeApi):
    run(server, "--yes")
    (documents / "docs" / "a.md").unlink()

    again = run(server, "--yes")

    assert again.returncode == 0, again.stderr
    assert "1 removed document: a.md; what they have is kept" in again.stdout
    assert (documents / "reports" / "a.md").exists()
    assert len(server.batches) == 1


def test_a_comment_in_the_template_needs_no_leave_and_sends_nothing(
    documents: Path, server: FakeApi
):
    run(server, "--yes")
    (documents / "p.j2").write_text("{# better #}About {{ text }}")

    again = run(server, "--yes")

    assert again.returncode == 0, again.stderr
    assert "the prompt p.j2 has another text" in again.stdout
    assert len(server.batches) == 1


@pytest.mark.parametrize("point", ["extension_bodies", "before_extended_event", "extended"])
def test_a_kill_while_new_documents_are_added_sends_each_once(
    documents: Path, server: FakeApi, point: str
):
    run(server, "--yes")
    (documents / "docs" / "c.md").write_text("text of c.md")
    command = ("run", *OPTIONS, "--base-url", server.url, "--yes")

    killed = batchyard(*command, BATCHYARD_CRASH_AT=point)
    again = batchyard(*command)

    assert killed.returncode == -9
    assert again.returncode == 0, again.stderr
    assert sent(server) == [["a_Dmd", "b_Dmd"], ["c_Dmd_R1"]]
    assert json.loads((documents / "reports" / "receipt.json").read_text())["saved"] == 3


def test_another_model_needs_its_own_leave_and_then_everything_is_sent(
    documents: Path, server: FakeApi
):
    run(server, "--yes")
    model = ("--model", "claude-haiku-4-5")

    refused = run(server, "--yes", *model, "--allow-prompt-change")
    allowed = run(server, "--yes", *model, "--allow-model-change")

    assert refused.returncode == 2
    assert (
        "--model was claude-opus-4-8 and is claude-haiku-4-5 (--allow-model-change)"
        in refused.stderr
    )
    assert allowed.returncode == 0, allowed.stderr
    assert sent(server)[1] == ["a_Dmd_R1", "b_Dmd_R1"]
    config = Files(documents / "reports").read_state().config
    assert config is not None
    assert config.model == "claude-haiku-4-5"


def test_the_library_sends_only_what_is_new_as_well(documents: Path, server: FakeApi):
    def finish(*allow: str) -> list[str]:
        with Run("reports", docs=files("docs"), prompt="p.j2", model="claude-opus-4-8",
                 max_tokens=50, base_url=server.url) as run:  # fmt: skip
            run.submit(run.plan(sample=0), allow=allow)
            return sorted(doc.key for doc in run)

    finish()
    (documents / "docs" / "c.md").write_text("text of c.md")

    assert set(finish()) == {"a.md", "b.md", "c.md"}
    assert sent(server)[1] == ["c_Dmd_R1"]
    (documents / "docs" / "c.md").write_text("other text")
    with pytest.raises(InputsChanged, match=r"1 changed document: c.md \(--allow-input-change\)"):
        finish()
    finish("input")
    assert sent(server)[2] == ["c_Dmd_R2"]


# Caching -----------------------------------------------------------------------------------------

RULES = "".join(f"Rule {n}: name the place and be short.\n" for n in range(200))


def cached(tmp_path: Path, prompt: str, system: str | None, cache: Mode, rows: int = 5) -> Plan:
    (tmp_path / "p.j2").write_text(prompt)
    (tmp_path / "s.j2").write_text(system or "")
    documents = Sources(rows=tuple({"id": f"r{n}", "text": f"text {n}"} for n in range(rows)))
    settings = Settings(model="claude-opus-4-8", max_tokens=100, cache=cache)
    instructions = Template(tmp_path / "s.j2") if system else None
    return with_cache(make(documents.read(), Template(tmp_path / "p.j2"), instructions, settings))


def params_of(made: Plan) -> list[dict]:
    return [json.loads(request.params) for request in made.requests]


def test_a_shared_system_prompt_gets_the_breakpoint(tmp_path: Path):
    made = cached(tmp_path, "About {{ text }}", RULES, "auto")

    for params in params_of(made):
        assert params["system"] == [
            {"type": "text", "text": RULES, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
        ]
        assert params["messages"][0]["content"].startswith("About text ")


def test_a_shared_beginning_of_the_prompt_is_split_from_the_document(tmp_path: Path):
    made = cached(tmp_path, RULES + "\nThe document is {{ text }}", None, "5m")

    for number, params in enumerate(params_of(made)):
        first, second = params["messages"][0]["content"]
        assert first["cache_control"] == {"type": "ephemeral", "ttl": "5m"}
        assert first["text"] + second["text"] == f"{RULES}\nThe document is text {number}"
        assert "cache_control" not in second


def test_the_breakpoint_changes_no_word_of_the_prompt_and_not_what_counts_as_the_same(
    tmp_path: Path,
):
    plain = cached(tmp_path, RULES + "{{ text }}", None, "off")
    made = cached(tmp_path, RULES + "{{ text }}", None, "auto")

    assert [r.digest for r in made.requests] == [r.digest for r in plain.requests]
    assert [r.params for r in made.requests] != [r.params for r in plain.requests]
    assert all(len(b"".join(shard.body())) == shard.size for shard in made.shards)


@pytest.mark.parametrize(
    ("prompt", "system", "rows", "said"),
    [
        ("About {{ text }}", "Be short.", 5, "below the minimum of 1,024: no caching"),
        ("About {{ text }}", RULES, 2, "--cache 1h keeps them, after the system prompt"),
    ],
)
def test_auto_caches_nothing_that_is_too_short_or_shared_by_few(
    tmp_path: Path, prompt: str, system: str, rows: int, said: str
):
    made = cached(tmp_path, prompt, system, "auto", rows)

    assert made.breakpoint is None
    assert "cache_control" not in json.dumps(params_of(made))
    assert said in explain(made.advice)[0]


def test_the_price_follows_the_share_of_hits(tmp_path: Path):
    plain = cached(tmp_path, "About {{ text }}", RULES, "off")
    made = cached(tmp_path, "About {{ text }}", RULES, "1h")
    assert plain.batch is not None
    assert made.batch is not None
    prefix = made.advice.prefix
    assert prefix is not None

    # Opus 4.8 in a batch: $2.50 in, $5.00 to write for an hour, $0.25 to read, per million.
    written = prefix.tokens * 5 * (5.00 - 2.50)
    read_98 = prefix.tokens * 5 * (0.98 * 0.25 + 0.02 * 5.00 - 2.50)

    assert made.batch.ceiling - plain.batch.ceiling == pytest.approx(1.25 * written, rel=0.01)
    assert made.batch.low - plain.batch.low == pytest.approx(0.75 * read_98, rel=0.01)
    saved = made.advice.saved
    assert saved[98] == pytest.approx(-read_98, rel=0.01)
    assert saved[30] < 0 < saved[60] < saved[98]


def test_a_variable_that_comes_too_early_is_named_with_what_it_costs(tmp_path: Path):
    made = cached(tmp_path, "Document {{ text }}\n" + RULES, None, "auto")

    assert made.breakpoint is None
    advice = explain(made.advice)
    assert "p.j2:1: {{ text }} comes before text that is always the same" in advice[-1]


def test_a_cached_request_passes_the_check_of_the_server(documents: Path, server: FakeApi):
    (documents / "s.j2").write_text(RULES)
    (documents / "docs" / "c.md").write_text("text of c.md")

    done = run(server, "--yes", "--system", "s.j2", "--cache", "auto")

    assert done.returncode == 0, done.stderr
    assert "kept for 1h, breakpoint after the system prompt" in done.stdout
    requests = server.batches["msgbatch_01"].requests
    assert [r["params"]["system"][0]["cache_control"]["ttl"] for r in requests] == ["1h"] * 3


# Start-up and size -------------------------------------------------------------------------------


@pytest.mark.skipif("BATCHYARD_LONG" not in os.environ, reason="a minute: BATCHYARD_LONG=1")
def test_a_hundred_thousand_rows_take_little_memory_each(tmp_path: Path):
    rows = tuple({"id": f"r{n}", "text": f"text {n} " * 50} for n in range(100_000))
    (tmp_path / "p.j2").write_text("About {{ text }}")
    settings = Settings(model="claude-opus-4-8", max_tokens=100)
    documents = Sources(rows=rows).read()
    tracemalloc.start()

    made = make(documents, Template(tmp_path / "p.j2"), None, settings)

    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.documents == 100_000
    assert size < 150_000_000


# Against the emulator ----------------------------------------------------------------------------


def test_a_plan_is_counted_by_the_emulator_and_its_cached_prefix_is_read(documents: Path):
    (documents / "s.j2").write_text(RULES)
    for number in range(30):
        (documents / "docs" / f"n{number}.md").write_text(f"Document {number}. " * (number + 5))
    with (
        Emulator() as emulator,
        Run("reports", docs=files("docs"), prompt="p.j2", system="s.j2", cache="auto",
            model="claude-opus-4-8", max_tokens=500, base_url=emulator.url) as run,
    ):  # fmt: skip
        plan = run.plan(sample=12)
        run.submit(plan)
        for _ in run:
            pass
        usage = run.report().models["claude-opus-4-8"]

    assert plan.tokens.sampled == 12
    assert plan.breakpoint is not None
    read_in = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_1h_tokens
    assert abs(plan.tokens.input - read_in) <= read_in * plan.tokens.spread_percent / 100
    assert usage.cache_read_tokens + usage.cache_write_1h_tokens > 0
    assert usage.cache_write_5m_tokens == 0
