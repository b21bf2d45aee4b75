"""An upstream whose model is in the process, over a stand-in for vLLM with the same interface."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from batchyard.errors import BadGateway, ConfigError, Overloaded
from batchyard.testing.clock import ManualClock
from batchyard.upstream import Call, Failure, FailureKind, Forward, Reply
from batchyard.upstream.engine.adapter import EngineUpstream
from batchyard.upstream.engine.settings import Settings
from batchyard.upstream.engine.vllm import VllmEngine
from batchyard.upstream.fold import Fold
from batchyard.upstream.http import StreamTimeouts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("vllm")]

USUAL = StreamTimeouts()


def upstream_of(model: Path, clock: ManualClock | None = None, **options: Any) -> EngineUpstream:
    usual = {"max_num_seqs": 4, "max_model_len": 100}
    engine = VllmEngine(Settings(model=str(model), **(usual | options)))
    return EngineUpstream("local", "tiny", engine, clock or ManualClock(), timeouts=USUAL)


@pytest.fixture
async def upstream(model: Path) -> AsyncIterator[EngineUpstream]:
    opened = upstream_of(model)
    await opened.start()
    yield opened
    await opened.close()
    assert llm().stopped


def llm() -> Any:
    """Return the engine that was started last."""
    return sys.modules["vllm.v1.engine.async_llm"].AsyncLLM.started[-1]


def call(text: str, begun: Callable[[], None] | None = None, **fields: Any) -> Call:
    usual = {
        "model": "tiny",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": text}],
    }
    return Call(json.dumps(usual | fields).encode(), "2023-06-01", (), "w", begun=begun)


async def message(upstream: EngineUpstream, text: str, **fields: Any) -> dict[str, Any]:
    outcome = await upstream.send(call(text, **fields))
    assert isinstance(outcome, Reply), outcome
    assert outcome.status == 200, outcome.body
    found: dict[str, Any] = json.loads(outcome.body)
    return found


async def error_of(upstream: EngineUpstream, text: str, **fields: Any) -> tuple[int, str]:
    outcome = await upstream.send(call(text, **fields))
    assert isinstance(outcome, Reply), outcome
    return outcome.status, json.loads(outcome.body)["error"]["message"]


# Answers ------------------------------------------------------------------------------------------


async def test_an_answer_is_a_message_with_its_counts(upstream: EngineUpstream) -> None:
    found = await message(upstream, "one two", system="Be short.")
    assert found["id"].startswith("msg_")
    assert {k: v for k, v in found.items() if k not in {"id", "usage"}} == {
        "type": "message", "role": "assistant", "model": "tiny",
        "content": [{"type": "text", "text": "one two "}],
        "stop_reason": "end_turn", "stop_sequence": None,
    }  # fmt: skip
    assert found["usage"] == {
        "input_tokens": 7, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
        "output_tokens": 2, "service_tier": "standard",
    }  # fmt: skip
    prompts = list(llm().prompts.values())
    assert prompts == ["<system> Be short. <user> one two <assistant>"]
    again = await message(upstream, "one two", system="Be short.")
    assert again["usage"]["cache_read_input_tokens"] == 4
    assert again["usage"]["input_tokens"] == 3


@pytest.mark.parametrize(
    ("text", "fields", "reason", "stop", "said"),
    [
        ("a b END c", {"stop_sequences": ["END"]}, "stop_sequence", "END", "a b "),
        ("long:9", {"max_tokens": 3}, "max_tokens", None, "word word word "),
        ("long:200", {"max_tokens": 999}, "model_context_window_exceeded", None, "word " * 97),
    ],
)
async def test_why_an_answer_ended_is_told(
    upstream: EngineUpstream, text: str, fields: Any, reason: str, stop: str | None, said: str
) -> None:
    found = await message(upstream, text, **fields)
    assert (found["stop_reason"], found["stop_sequence"]) == (reason, stop)
    assert found["content"] == [{"type": "text", "text": said}]


async def test_params_reach_the_engine_as_they_were_given(upstream: EngineUpstream) -> None:
    schema = {"type": "object"}
    await message(
        upstream, "x", temperature=0.25, top_p=0.5, top_k=7, stop_sequences=["A", "B"],
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )  # fmt: skip
    (asked,) = llm().asked.values()
    assert (asked.temperature, asked.top_p, asked.top_k) == (0.25, 0.5, 7)
    assert (asked.stop, asked.max_tokens) == (["A", "B"], 50)
    assert asked.structured_outputs.json == schema
    assert llm().args.max_num_seqs == 4
    assert llm().args.max_model_len == 100


async def test_an_answer_that_the_client_has_begun_goes_on(upstream: EngineUpstream) -> None:
    turns = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "on and on"}]
    found = await message(upstream, "", messages=turns)
    assert found["content"][0]["text"] == "on and on "
    assert list(llm().prompts.values()) == ["<user> Go <assistant> on and on"]


async def test_what_can_never_be_answered_is_refused_once(upstream: EngineUpstream) -> None:
    status, text = await error_of(upstream, "word " * 200)
    assert (status, text) == (400, "prompt is too long: 202 tokens > 99 maximum")
    status, text = await error_of(upstream, "untemplatable")
    assert (status, text) == (
        400,
        "the chat template of the model: the template takes no such turn",
    )
    impossible = {"format": {"type": "json_schema", "schema": {"type": "impossible"}}}
    status, text = await error_of(upstream, "x", output_config=impossible)
    assert (status, text) == (400, "the grammar backend does not support this schema")
    status, text = await error_of(upstream, "x", tools=[{"name": "t"}])
    assert status == 400
    assert text.startswith("tools: not supported")


async def test_the_engine_is_never_given_more_than_it_works_on(upstream: EngineUpstream) -> None:
    found = await asyncio.gather(*(message(upstream, f"n{n} long:20") for n in range(30)))
    assert [f["content"][0]["text"].split()[0] for f in found] == [f"n{n}" for n in range(30)]
    assert llm().most == 4


# Time, cancel, death ------------------------------------------------------------------------------


async def test_a_canceled_call_ends_its_generation(upstream: EngineUpstream) -> None:
    begun = asyncio.Event()
    task = asyncio.create_task(upstream.send(call("hang", begun.set)))
    await begun.wait()
    assert llm().running == 1
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert llm().running == 0
    assert llm().aborted == list(llm().asked)


async def test_an_engine_that_falls_silent_is_given_up(upstream: EngineUpstream) -> None:
    upstream._timeouts = StreamTimeouts(idle_s=0.02)
    outcome = await upstream.send(call("hang", lambda: None))
    assert outcome == Failure(FailureKind.TIMEOUT, "the next token took too long")
    assert llm().aborted == list(llm().asked)


async def test_the_beginning_of_an_answer_is_told_once_and_before_its_end(
    upstream: EngineUpstream,
) -> None:
    told: list[int] = []
    outcome = await upstream.send(call("long:5", lambda: told.append(llm().running)))
    assert isinstance(outcome, Reply)
    assert told == [1]
    kinds = {asked.output_kind.name for asked in llm().asked.values()}
    assert kinds == {"DELTA"}
    await message(upstream, "x")
    assert list(llm().asked.values())[-1].output_kind.name == "FINAL_ONLY"


async def test_a_long_answer_comes_in_pieces_and_is_whole(model: Path) -> None:
    upstream = upstream_of(model, max_model_len=20_000)
    await upstream.start()
    found = await message(upstream, "long:9000", max_tokens=10_000)
    assert found["content"][0]["text"] == "word " * 9_000
    assert found["usage"]["output_tokens"] == 9_000
    assert [asked.output_kind.name for asked in llm().asked.values()] == ["DELTA"]
    await upstream.close()


async def test_a_generation_that_fails_is_no_end_of_the_engine(upstream: EngineUpstream) -> None:
    outcome = await upstream.send(call("fail"))
    assert outcome == Failure(FailureKind.BROKEN, "the engine failed: EngineGenerateError")
    outcome = await upstream.send(call("a abort"))
    assert outcome == Failure(FailureKind.BROKEN, "the engine gave the request up (abort)")
    assert (await message(upstream, "fine"))["stop_reason"] == "end_turn"


@pytest.mark.parametrize("number", [0, 2])
async def test_an_output_that_is_odd_is_a_failure_and_no_refusal(
    upstream: EngineUpstream, number: int
) -> None:
    outcome = await upstream.send(call(f"a many:{number}"))
    told = f"the engine gave {number} completions, not one"
    assert outcome == Failure(FailureKind.BROKEN, told)
    with pytest.raises(BadGateway, match=told):
        await forwarded(upstream, "POST", "/v1/messages", asking(f"a many:{number}"))


async def test_an_answer_without_a_reason_for_its_end_is_none(upstream: EngineUpstream) -> None:
    told = "the engine ended the answer without a reason"
    assert await upstream.send(call("a cut")) == Failure(FailureKind.BROKEN, told)
    with pytest.raises(BadGateway, match=told):
        await forwarded(upstream, "POST", "/v1/messages", asking("a cut"))
    _, _, body = await forwarded(upstream, "POST", "/v1/messages", asking("a cut", stream=True))
    last = body.split(b"\n\n")[-2]
    assert last.startswith(b"event: error\n")
    assert told.encode() in last


async def held(task: asyncio.Task[Any]) -> Any:
    """Wait until the template of a call is at work; return the engine."""
    await asyncio.sleep(0)
    assert await asyncio.to_thread(llm()._tokenizer.held.wait, 60)
    assert not task.done()
    return llm()


async def test_a_call_whose_engine_is_stopped_meanwhile_was_never_sent(model: Path) -> None:
    upstream = upstream_of(model)
    await upstream.start()
    task = asyncio.create_task(upstream.send(call("slow")))
    engine = await held(task)
    await upstream.close()
    engine._tokenizer.gate.set()
    outcome = await task
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.CONNECT, outcome
    assert not engine.asked


@pytest.mark.parametrize("is_client", [False, True])
async def test_a_call_whose_engine_dies_meanwhile_was_never_sent(
    model: Path, is_client: bool
) -> None:
    upstream = upstream_of(model)
    await upstream.start()
    task: asyncio.Task[Any] = asyncio.create_task(
        forwarded(upstream, "POST", "/v1/messages", asking("slow"))
        if is_client
        else upstream.send(call("slow"))
    )
    engine = await held(task)
    engine._dead = True
    engine._tokenizer.gate.set()
    outcome = await task
    if is_client:
        assert outcome[0] == Overloaded.status
    else:
        assert isinstance(outcome, Failure)
        assert outcome.kind is FailureKind.CONNECT, outcome
    assert not engine.asked
    assert upstream._restarting is not None
    await upstream._restarting
    assert (await message(upstream, "works again"))["stop_reason"] == "end_turn"
    await upstream.close()


async def test_a_call_whose_engine_is_replaced_meanwhile_goes_to_the_new_one(model: Path) -> None:
    upstream = upstream_of(model)
    await upstream.start()
    task = asyncio.create_task(upstream.send(call("quite slow")))
    old = await held(task)
    upstream._note_down("another call has seen it die")
    assert upstream._restarting is not None
    await upstream._restarting
    assert llm() is not old
    old._tokenizer.gate.set()
    llm()._tokenizer.gate.set()
    outcome = await task
    assert isinstance(outcome, Reply), outcome
    assert json.loads(outcome.body)["content"][0]["text"] == "quite slow "
    assert not old.asked
    await upstream.close()


async def test_an_engine_that_died_is_started_again_and_meanwhile_nothing_counts_as_sent(
    model: Path,
) -> None:
    clock = ManualClock()
    upstream = upstream_of(model, clock)
    await upstream.start()
    first = llm()
    model.rename(model.with_name("away"))  # so that it does not come back at once
    outcome = await upstream.send(call("die"))
    assert outcome == Failure(
        FailureKind.BROKEN, "the engine died: EngineCore encountered an issue"
    )
    outcome = await upstream.send(call("x"))
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.CONNECT
    while not clock.sleeping:
        await asyncio.sleep(0.001)
    outcome = await upstream.send(call("x"))
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.CONNECT
    assert "the engine does not start: cannot load" in outcome.text
    model.with_name("away").rename(model)
    await clock.advance(1.0)
    assert upstream._restarting is not None
    await upstream._restarting
    assert (await message(upstream, "works again"))["stop_reason"] == "end_turn"
    assert first.stopped
    assert llm() is not first
    await upstream.close()


async def test_an_engine_that_is_being_ended_when_the_yard_leaves_is_ended(model: Path) -> None:
    upstream = upstream_of(model)
    await upstream.start()
    gate, threads = threading.Event(), ThreadPoolExecutor(1)
    threads.submit(gate.wait, 60)  # so that its end has to wait for a thread
    asyncio.get_running_loop().set_default_executor(threads)
    upstream._note_down("a call has seen it die")
    await asyncio.sleep(0)
    closing = asyncio.create_task(upstream.close())
    for _ in range(10):
        await asyncio.sleep(0)
    gate.set()
    await closing
    assert llm().stopped


async def test_a_model_that_cannot_be_loaded_is_told_at_the_start(tmp_path: Path) -> None:
    upstream = upstream_of(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"upstream local: cannot load .*nothing"):
        await upstream.start()
    await upstream.close()


# Passing on ---------------------------------------------------------------------------------------


async def forwarded(
    upstream: EngineUpstream, method: Any, path: str, body: object = None
) -> tuple[int, Mapping[str, str], bytes]:
    data = b"" if body is None else json.dumps(body).encode()
    async with upstream.forward(Forward(method, path, "2023-06-01", (), "w", data)) as reply:
        return reply.status, reply.headers, b"".join([chunk async for chunk in reply.chunks()])


def asking(text: str, **fields: Any) -> dict[str, Any]:
    return json.loads(call(text, **fields).params)  # type: ignore[no-any-return]


async def test_a_client_gets_messages_counts_and_the_model(upstream: EngineUpstream) -> None:
    status, headers, body = await forwarded(upstream, "POST", "/v1/messages", asking("one two"))
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body)["content"][0]["text"] == "one two "
    _, _, body = await forwarded(upstream, "POST", "/v1/messages/count_tokens", asking("one two"))
    assert json.loads(body) == {"input_tokens": 4}
    _, _, body = await forwarded(upstream, "GET", "/v1/models?limit=5")
    assert [each["id"] for each in json.loads(body)["data"]] == ["tiny"]
    _, _, body = await forwarded(upstream, "GET", "/v1/models/other")
    assert json.loads(body)["id"] == "other"


async def test_a_stream_folds_to_the_message_that_comes_without_one(
    upstream: EngineUpstream,
) -> None:
    asked = asking("one two three", stream=True)
    _, headers, body = await forwarded(upstream, "POST", "/v1/messages", asked)
    assert headers["content-type"].startswith("text/event-stream")
    assert body.count(b"event: content_block_delta") == 3
    folded = Fold()
    assert folded.feed(body)
    assert folded.message is not None
    streamed = json.loads(folded.message)
    plain = json.loads(
        (await forwarded(upstream, "POST", "/v1/messages", asking("one two three")))[2]
    )
    for each in (streamed, plain):
        del each["id"], each["usage"]
    assert streamed == plain


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/messages", 405), ("POST", "/v1/models", 405), ("POST", "/v1/other", 404)],
)
async def test_what_is_not_there_is_answered_as_by_the_api(
    upstream: EngineUpstream, method: str, path: str, status: int
) -> None:
    found, _, body = await forwarded(upstream, method, path)
    assert found == status
    assert json.loads(body)["type"] == "error"


async def test_a_client_is_told_when_the_engine_dies(upstream: EngineUpstream) -> None:
    with pytest.raises(BadGateway):
        await forwarded(upstream, "POST", "/v1/messages", asking("die"))
    assert upstream._restarting is not None
    await upstream._restarting


async def test_a_process_without_the_model_says_so(model: Path) -> None:
    upstream = EngineUpstream("local", "tiny", None, ManualClock(), timeouts=USUAL)
    await upstream.start()
    status, _, body = await forwarded(upstream, "POST", "/v1/messages", asking("x"))
    assert status == Overloaded.status
    assert "held by worker processes" in json.loads(body)["error"]["message"]
    status, _, _ = await forwarded(upstream, "GET", "/v1/models")
    assert status == 200
    await upstream.close()
