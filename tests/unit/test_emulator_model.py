"""The scripted model: every outcome as the yard sees it, and what a script counts."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from anthropic.types import Message
from anthropic.types.messages import MessageBatchIndividualResponse

from batchyard import limits, price, result
from batchyard.dispatch import retry
from batchyard.emulator.model import ScriptedModel
from batchyard.emulator.script import parse
from batchyard.emulator.vocabulary import CATEGORIES
from batchyard.testing.clock import ManualClock
from batchyard.upstream import Call, Failure, Forward, Reply, Upstream, Verdict
from batchyard.upstream.simulated import Settings, Simulated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.upstream import Outcome

pytestmark = pytest.mark.anyio

VERSION = "2026-10-21"


def scripted(text: str = "", *, clock: ManualClock | None = None, seed: int = 0) -> ScriptedModel:
    clock = clock or ManualClock()
    simulated = Simulated("sim", Settings(seed=seed, words=40), clock)
    return ScriptedModel(simulated, parse(text), clock=clock, seed=seed)


def params(**fields: Any) -> bytes:
    usual = {
        "model": "claude-haiku-4-5",
        "max_tokens": 1_000,
        "messages": [{"role": "user", "content": "Describe gears."}],
    }
    return json.dumps(usual | fields).encode()


async def send(
    model: ScriptedModel, /, custom_id: str = "a", *, workspace: str = "w", **fields: Any
) -> Outcome:
    body = params(**fields)
    return await model.send(Call(body, VERSION, (), workspace, custom_id=custom_id))


async def line(model: ScriptedModel, /, custom_id: str = "a", **fields: Any) -> bytes:
    """Return the result line that the outcome of one call becomes, or the name of the action."""
    action = retry.decide(await send(model, custom_id, **fields), 0)
    match action:
        case retry.Done(message):
            return result.succeeded(custom_id, message.body)
        case retry.Fail(kind, text, request_id):
            return result.errored(custom_id, kind, text, request_id=request_id)
        case retry.Unsent(why):
            return result.unsent(custom_id, why)
        case retry.Again() | retry.Pause():
            return type(action).__name__.encode()


async def message(model: ScriptedModel, /, custom_id: str = "a", **fields: Any) -> Message:
    """Return the message of a succeeded line, checked by the official client's types."""
    found = await line(model, custom_id, **fields)
    assert result.read_line(found)[:2] == (custom_id, "succeeded"), found
    body = json.loads(found)
    typed = MessageBatchIndividualResponse.model_validate(body)
    assert typed.result.type == "succeeded"
    strict = Message.model_validate(body["result"]["message"])
    assert strict.usage.service_tier == "batch"
    for block in strict.content:
        extra = block.model_extra
        assert not extra, f"{block.type} has keys that the official client does not know: {extra}"
    assert not strict.model_extra
    assert not strict.usage.model_extra
    return strict


async def kinds(model: ScriptedModel, custom_ids: Sequence[str]) -> list[str]:
    """Return what becomes of requests in this order: a result type, or `Again`."""
    found = [await line(model, each) for each in custom_ids]
    return [each.decode() if each == b"Again" else str(result.read_line(each)[1]) for each in found]


def request(keys: str) -> str:
    return f"[[request]]\n{keys}\n"


async def test_it_is_an_upstream() -> None:
    upstream: Upstream = scripted()
    assert (upstream.name, upstream.billing, upstream.fetches_urls) == ("sim", "simulated", True)
    await upstream.close()


async def test_without_a_rule_a_request_succeeds() -> None:
    found = await message(scripted(request('custom_id = "b"\noutcome = "expired"')))
    assert found.stop_reason == "end_turn"
    assert found.stop_details is None


async def test_a_succeeded_answer_has_the_text_and_usage_of_the_script() -> None:
    text = request(
        'outcome = "succeeded"\ntext = \'{"id": "{custom_id}"}\'\n'
        "input_tokens = 12\noutput_tokens = 0"
    )
    found = await message(scripted(text), "doc-1")
    assert [block.to_dict() for block in found.content] == [
        {"type": "text", "text": '{"id": "doc-1"}'}
    ]
    assert found.stop_reason == "end_turn"
    assert (found.usage.input_tokens, found.usage.output_tokens) == (12, 0)


async def test_a_refusal_is_a_billed_message_without_content() -> None:
    found = await message(scripted(request('outcome = "refusal"\nmessage = "No."')))
    assert found.stop_reason == "refusal"
    assert found.content == []
    assert found.stop_details is not None
    assert found.stop_details.to_dict() == {
        "type": "refusal",
        "category": None,
        "explanation": "No.",
    }
    assert found.usage.input_tokens > 1
    assert found.usage.output_tokens == 1


@pytest.mark.parametrize("category", CATEGORIES)
async def test_a_refusal_in_the_middle_explains_its_category(category: str) -> None:
    text = request(f'outcome = "refusal"\ncategory = "{category}"\ntext = "Take the"')
    found = await message(scripted(text))
    assert [block.to_dict() for block in found.content] == [{"type": "text", "text": "Take the"}]
    assert found.stop_details is not None
    assert found.stop_details.category == category
    explanation = found.stop_details.explanation
    assert explanation is not None
    assert explanation.startswith("This request was declined because it ")


async def test_a_refusal_without_a_category_explains_nothing() -> None:
    found = await message(scripted(request('outcome = "refusal"')))
    assert found.stop_details is not None
    assert (found.stop_details.category, found.stop_details.explanation) == (None, None)


@pytest.mark.parametrize("tokens", [1, 10, 1_000, 64_000])
async def test_a_truncated_answer_has_used_up_max_tokens_and_stops_half_way(tokens: int) -> None:
    whole = await message(scripted(), max_tokens=64_000)
    found = await message(scripted(request('outcome = "truncated"')), max_tokens=tokens)
    assert (found.stop_reason, found.usage.output_tokens) == ("max_tokens", tokens)
    [full], [part] = whole.content, found.content
    assert full.type == part.type == "text"
    assert full.text != part.text
    assert full.text.startswith(part.text)


async def test_an_answer_that_is_cut_anyway_is_not_cut_again() -> None:
    plain = await message(scripted(), max_tokens=10)
    found = await message(scripted(request('outcome = "truncated"')), max_tokens=10)
    assert found.content == plain.content


async def test_truncated_json_is_no_json() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"format": {"type": "json_schema", "schema": schema}}
    found = await message(scripted(request('outcome = "truncated"')), output_config=form)
    [block] = found.content
    assert block.type == "text"
    with pytest.raises(ValueError, match=r"delimiter|terminated|Expecting"):
        json.loads(block.text)


async def test_a_truncated_tool_call_is_left_out() -> None:
    tools = [{"name": "save", "input_schema": {"type": "object"}}]
    model = scripted(request('outcome = "truncated"'))
    found = await message(model, tools=tools, tool_choice={"type": "any"})
    assert (found.content, found.stop_reason, found.usage.output_tokens) == (
        [], "max_tokens", 1_000,
    )  # fmt: skip


async def test_a_truncated_answer_may_have_its_text_given() -> None:
    found = await message(scripted(request('outcome = "truncated"\ntext = "[1, "')))
    assert [block.to_dict() for block in found.content] == [{"type": "text", "text": "[1, "}]
    assert found.usage.output_tokens == 1_000


async def test_an_exceeded_context_window_ends_before_max_tokens() -> None:
    found = await message(scripted(request('outcome = "context_window"')))
    assert found.stop_reason == "model_context_window_exceeded"
    assert 0 < found.usage.output_tokens < 1_000
    [block] = found.content
    assert block.type == "text"
    assert block.text


async def test_a_paused_turn_has_searched_and_can_be_resumed() -> None:
    model = scripted(request('outcome = "pause_turn"\ntimes = 1'))
    tools = [{"type": "web_search_20260318", "name": "web_search"}]
    paused = await message(model, tools=tools)
    assert paused.stop_reason == "pause_turn"
    use, found = paused.content
    assert use.type == "server_tool_use"
    assert found.type == "web_search_tool_result"
    assert use.id == found.tool_use_id
    assert use.id.startswith("srvtoolu_01")
    assert use.input == {"query": "Describe gears."}
    assert isinstance(found.content, list)
    assert all("imulated" in each.title for each in found.content)
    assert paused.usage.server_tool_use is not None
    assert paused.usage.server_tool_use.to_dict() == {
        "web_search_requests": 1,
        "web_fetch_requests": 0,
    }
    turns = [
        {"role": "user", "content": "Describe gears."},
        {"role": "assistant", "content": [block.to_dict() for block in paused.content]},
    ]
    ended = await message(model, tools=tools, messages=turns)
    assert ended.stop_reason == "end_turn"
    assert [block.type for block in ended.content] == ["text"]
    assert ended.usage.server_tool_use is None
    assert ended.usage.input_tokens > 100


async def test_a_paused_turn_is_priced_with_its_search() -> None:
    found = await line(scripted(request('outcome = "pause_turn"')))
    assert result.read_line(found)[2].web_searches == 1


@pytest.mark.parametrize("kind", sorted(result.ERROR_TYPES))
async def test_an_errored_request_has_the_type_and_a_text(kind: str) -> None:
    found = await line(scripted(request(f'outcome = "errored"\nerror = "{kind}"')))
    assert result.read_line(found)[1] == "errored"
    typed = MessageBatchIndividualResponse.model_validate_json(found)
    assert typed.result.type == "errored"
    assert typed.result.error.error.type == kind
    assert len(typed.result.error.error.message) > 5
    assert typed.result.error.request_id is None


async def test_an_errored_request_is_an_api_error_with_the_text_of_the_script() -> None:
    outcome = await send(scripted(request('outcome = "errored"\nmessage = "Oh."')))
    assert outcome == Verdict("errored", "api_error", "Oh.")


@pytest.mark.parametrize("kind", ["expired", "canceled"])
async def test_a_request_that_was_never_sent_has_its_exact_line(kind: str) -> None:
    found = await line(scripted(request(f'outcome = "{kind}"')), "x-1")
    assert found == b'{"custom_id":"x-1","result":{"type":"%b"}}\n' % kind.encode()


@pytest.mark.parametrize(
    ("keys", "kind", "text", "after", "counted"),
    [
        ('outcome = "overloaded"', "overloaded_error", "Overloaded", None, False),
        ('outcome = "rate_limited"\nretry_after = 5\nmessage = "Slow"', "rate_limit_error", "Slow",
         5.0, False),
        ('outcome = "server_error"\nretry_after = 0', "api_error", "Internal server error", 0.0,
         True),
        ('outcome = "timeout"', "timeout_error",
         "The upstream did not answer in time: as the script says", None, True),
        ('outcome = "broken"\nmessage = "reset"', "api_error",
         "The connection to the upstream broke: reset", None, True),
        ('outcome = "garbage"', "api_error",
         "The upstream's reply is not a message: JSON is malformed: invalid character (byte 0)",
         None, True),
        ('outcome = "garbage"\ntext = "[]"', "api_error",
         "The upstream's reply is not a message: Expected `object`, got `array`", None, True),
    ],
)  # fmt: skip
async def test_what_is_retried_is_tried_again_as_its_kind_is(
    keys: str, kind: str, text: str, after: float | None, counted: bool
) -> None:
    model = scripted(request(keys))
    for _ in range(3):  # always, without `times`
        action = retry.decide(await send(model), 0)
        assert action == retry.Again(kind, text, after, counted=counted)


async def test_times_counts_the_calls_of_each_request_by_itself() -> None:
    model = scripted(request('outcome = "broken"\ntimes = 2'))
    found = await kinds(model, ["a", "b", "a", "b", "a", "b", "a"])
    assert found == ["Again"] * 4 + ["succeeded"] * 3
    outcome = await send(model, "a", workspace="other")
    assert isinstance(outcome, Failure), "a request of another workspace is another request"


async def test_rules_with_times_make_a_sequence() -> None:
    text = (
        request('outcome = "rate_limited"\ntimes = 1')
        + request('outcome = "errored"\ntimes = 1')
        + request('outcome = "expired"')
    )
    assert await kinds(scripted(text), ["a"] * 4) == ["Again", "errored", "expired", "expired"]


async def test_first_takes_requests_in_order_of_arrival_and_keeps_them() -> None:
    model = scripted(request('custom_id = "x*"\nfirst = 2\noutcome = "errored"'))
    order = ["x9", "a", "x5", "x1", "x9", "x1", "x5"]
    assert await kinds(model, order) == [
        "errored", "succeeded", "errored", "succeeded", "errored", "succeeded", "errored",
    ]  # fmt: skip


async def test_first_and_times_and_share_work_together() -> None:
    ids = [f"d{number}" for number in range(40)]
    share = scripted(request('share = 0.5\noutcome = "errored"'), seed=3)
    chosen = [each for each in ids if await kinds(share, [each]) == ["errored"]]
    model = scripted(request('share = 0.5\nfirst = 3\ntimes = 1\noutcome = "errored"'), seed=3)
    found = await kinds(model, ids)
    assert [each for each, kind in zip(ids, found, strict=True) if kind == "errored"] == chosen[:3]
    assert set(await kinds(model, ids)) == {"succeeded"}


async def test_a_slow_answer_takes_its_time_and_is_waited_for() -> None:
    clock = ManualClock()
    model = scripted(request('outcome = "slow"\nseconds = "1h"'), clock=clock)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(message(model))
        await clock.advance(3_599)
        assert (task.done(), model.waiting) == (False, 1)
        await clock.advance(1)
    assert task.result().stop_reason == "end_turn"
    assert model.waiting == 0


@pytest.mark.parametrize("outcome", ["errored", "overloaded", "refusal", "expired"])
async def test_every_outcome_may_take_time(outcome: str) -> None:
    clock = ManualClock()
    model = scripted(request(f'outcome = "{outcome}"\nseconds = 60'), clock=clock)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(send(model))
        await clock.advance(59)
        assert (task.done(), model.waiting) == (False, 1)
        await clock.advance(1)


async def test_a_slow_call_that_is_given_up_no_longer_waits() -> None:
    clock = ManualClock()
    model = scripted(request('outcome = "slow"\nseconds = 60'), clock=clock)
    task = asyncio.create_task(send(model))
    await clock.wait_for_sleepers(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (model.waiting, clock.sleeping) == (0, 0)


async def test_latency_is_waited_for_too_and_messages_of_clients_are_not_counted() -> None:
    clock = ManualClock()
    simulated = Simulated("sim", Settings(latency=2), clock)
    model = ScriptedModel(simulated, parse(""), clock=clock, seed=0)

    async def forward() -> int:
        request = Forward("POST", "/v1/messages", VERSION, (), "w", params())
        async with model.forward(request) as reply:
            return reply.status

    async with asyncio.TaskGroup() as group:
        sent = group.create_task(send(model))
        own = group.create_task(forward())
        await clock.advance(1)
        assert (model.waiting, clock.sleeping) == (1, 2)
        await clock.advance(1)
    assert model.waiting == 0
    assert isinstance(sent.result(), Reply)
    assert own.result() == 200


async def test_a_call_lets_others_run_whatever_its_outcome() -> None:
    for keys in ('outcome = "errored"', 'outcome = "broken"', 'outcome = "succeeded"'):
        order: list[str] = []

        async def other(order: list[str] = order) -> None:
            order.append("other")

        async with asyncio.TaskGroup() as group:
            group.create_task(other())
            await send(scripted(request(keys)))
            order.append("answer")
        assert order == ["other", "answer"], keys


async def test_a_bad_request_is_refused_whatever_the_script_says() -> None:
    for outcome in ("refusal", "truncated", "pause_turn", "succeeded"):
        model = scripted(request(f'outcome = "{outcome}"'))
        found = json.loads(await line(model, max_tokens=9_999_999))["result"]
        assert found["type"] == "errored"
        assert found["error"]["error"]["type"] == "invalid_request_error"
        assert found["error"]["request_id"].startswith("workerreq_01")


MIXED = """
    [[request]]
    share = 0.2
    outcome = "errored"
    [[request]]
    share = 0.2
    outcome = "refusal"
    [[request]]
    share = 0.2
    outcome = "truncated"
    [[request]]
    custom_id = "*7"
    outcome = "pause_turn"
    [[request]]
    share = 0.2
    outcome = "overloaded"
    times = 1
"""


async def lines(model: ScriptedModel, custom_ids: Sequence[str]) -> dict[str, bytes]:
    """Return the result line of each request, tried until it has one."""
    found = {}
    for each in custom_ids:
        fields: dict[str, Any] = {}
        if each.endswith("9"):  # a schema whose fault is found out only when the request is run
            form = {"type": "json_schema", "schema": {"if": {}}}
            fields = {"output_config": {"format": form}}
        found[each] = await line(model, each, **fields)
        while found[each] == b"Again":
            found[each] = await line(model, each, **fields)
    return found


@pytest.mark.parametrize("order_seed", range(5))
async def test_results_are_the_same_bytes_in_any_order(order_seed: int) -> None:
    ids = [f"doc-{number}" for number in range(200)]
    shuffled = random.Random(order_seed).sample(ids, len(ids))
    expected = await lines(scripted(MIXED, seed=11), ids)
    assert await lines(scripted(MIXED, seed=11), shuffled) == expected
    types = [result.read_line(each)[1] for each in expected.values()]
    assert 20 < types.count("errored") < types.count("succeeded")


async def test_another_seed_gives_other_results() -> None:
    ids = [f"doc-{number}" for number in range(50)]
    one, other = [await lines(scripted(MIXED, seed=seed), ids) for seed in (11, 12)]
    assert sum(one[each] != other[each] for each in ids) > 40


async def test_equal_requests_of_a_batch_have_message_ids_of_their_own() -> None:
    model = scripted()
    found = [await message(model, f"d{number}") for number in range(20)]
    assert len({each.id for each in found}) == 20
    assert len({str(each.content) for each in found}) == 1


async def test_the_account_runs_dry_after_exactly_so_many_answers() -> None:
    text = request('custom_id = "bad"\noutcome = "errored"') + "[credit]\nrequests = 3"
    model = scripted(text)
    assert (model.credit_left, model.out_of_credit) == (3, False)
    found = await kinds(model, ["a", "bad", "b", "c", "d", "bad"])
    assert found == ["succeeded", "errored", "succeeded", "succeeded", "errored", "errored"]
    assert (model.credit_left, model.out_of_credit) == (0, True)
    error = json.loads(await line(model, "bad"))["result"]["error"]["error"]
    assert error["type"] == "billing_error"
    assert error["message"].startswith("Your credit balance is too low ")


async def test_a_bad_request_costs_nothing() -> None:
    for text in ("[credit]\nrequests = 1", "[credit]\nusd = 1"):
        model = scripted(text)
        found = json.loads(await line(model, max_tokens=9_999_999))["result"]["error"]["error"]
        assert found["type"] == "invalid_request_error"
        assert model.credit_left == 1


async def test_a_top_up_lets_requests_succeed_again() -> None:
    model = scripted("[credit]\nrequests = 0")
    assert await kinds(model, ["a"]) == ["errored"]
    model.add_credit(requests=2)
    assert await kinds(model, ["a", "b", "c"]) == ["succeeded", "succeeded", "errored"]


async def test_calls_that_are_on_their_way_together_do_not_overdraw() -> None:
    clock = ManualClock()
    text = request('outcome = "slow"\nseconds = 60') + "[credit]\nrequests = 2"
    model = scripted(text, clock=clock)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(send(model, f"d{number}")) for number in range(5)]
        await clock.advance(60)
    verdicts = [isinstance(task.result(), Verdict) for task in tasks]
    assert verdicts == [False, False, True, True, True]
    assert model.credit_left == 0


async def test_credit_in_dollars_is_counted_by_the_price_of_usage_in_batches() -> None:
    # 10,000 input tokens of claude-haiku-4-5 in a batch: 10,000 x $0.50 per million = $0.005.
    usage = 'outcome = "succeeded"\ninput_tokens = 10000\noutput_tokens = 0'
    model = scripted(request(usage) + "[credit]\nusd = 0.012")
    assert await kinds(model, ["a", "b"]) == ["succeeded", "succeeded"]
    assert model.credit_left == pytest.approx(0.002)
    assert await kinds(model, ["c", "d"]) == ["succeeded", "errored"]
    assert model.credit_left == pytest.approx(-0.003)
    model.add_credit(usd=0.003)
    assert model.out_of_credit, "what was overdrawn is paid first"
    model.add_credit(usd=0.001)
    assert await kinds(model, ["e", "f"]) == ["succeeded", "errored"]


async def test_credit_in_dollars_does_not_guess_the_price_of_a_model() -> None:
    model = scripted("[credit]\nusd = 1")
    assert price.cost_micros("qwen3:8b", price.Usage(), "batch") is None
    found = json.loads(await line(model, model="qwen3:8b"))["result"]["error"]["error"]
    assert found["message"] == "The script counts credit in usd, and qwen3:8b has no price."
    assert model.credit_left == 1


@pytest.mark.parametrize(
    ("text", "paid", "message"),
    [
        ("", {"requests": 1}, "the script sets no credit"),
        ("[credit]\nrequests = 1", {}, "either requests or usd is needed"),
        ("[credit]\nrequests = 1", {"requests": 1, "usd": 1.0}, "either requests or usd"),
        ("[credit]\nrequests = 1", {"usd": 1.0}, "the script counts credit in requests"),
        ("[credit]\nusd = 1", {"requests": 1}, "the script counts credit in usd"),
        ("[credit]\nusd = 1", {"usd": -1.0}, "-1.0 is not an amount from 0 to 1000000000"),
        ("[credit]\nusd = 1", {"usd": float("nan")}, "nan is not an amount"),
    ],
)
async def test_a_wrong_payment_is_refused(text: str, paid: dict[str, Any], message: str) -> None:
    model = scripted(text)
    before = model.credit_left
    with pytest.raises(ValueError, match=message):
        model.add_credit(**paid)
    assert model.credit_left == before


async def test_another_script_starts_its_counts_and_its_credit_anew() -> None:
    text = request('outcome = "errored"\ntimes = 1\nfirst = 1') + "[credit]\nrequests = 1"
    model = scripted(text)
    assert await kinds(model, ["a", "a", "b"]) == ["errored", "succeeded", "errored"]
    model.script = parse(text)
    assert (model.script, model.credit_left) == (parse(text), 1)
    assert await kinds(model, ["b", "b"]) == ["errored", "succeeded"]
    model.script = parse("")
    assert model.credit_left is None
    assert await kinds(model, ["a", "b"]) == ["succeeded", "succeeded"]


async def test_the_seed_of_another_script_counts_and_a_missing_one_changes_nothing() -> None:
    ids = [f"doc-{number}" for number in range(30)]
    expected = await lines(scripted(MIXED, seed=12), ids)
    model = scripted(MIXED, seed=11)
    before = await lines(model, ids)
    model.script = parse(MIXED)
    assert await lines(model, ids) == before
    model.script = parse(f"seed = 12\n{MIXED}")
    assert await lines(model, ids) == expected


async def test_a_retried_outcome_may_outlast_the_attempts() -> None:
    model = scripted(request(f'outcome = "server_error"\ntimes = {limits.ATTEMPTS_MAX}'))
    found = await kinds(model, ["a"] * (limits.ATTEMPTS_MAX + 1))
    assert found == ["Again"] * limits.ATTEMPTS_MAX + ["succeeded"]


async def test_messages_of_clients_are_answered_without_the_script() -> None:
    model = scripted(request('outcome = "errored"') + "[credit]\nrequests = 0")
    request_ = Forward("POST", "/v1/messages", VERSION, (), "w", params())
    async with model.forward(request_) as reply:
        body = json.loads(b"".join([chunk async for chunk in reply.chunks()]))
    assert (reply.status, body["type"]) == (200, "message")
