"""Calls with a large `max_tokens`: streamed, folded, timed out; the results look the same."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anthropic
import msgspec
import pytest

from batchyard import limits
from batchyard.result import read_message
from batchyard.upstream import Call, Failure, FailureKind, Reply
from batchyard.upstream.http import StreamTimeouts
from batchyard.upstream.messages import MessagesUpstream, as_stream
from helpers_upstream import Exchange, Upstream, error, follow_prompt, message, sse, streamed
from helpers_yard import QUICK, Yard, assert_answered, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from batchyard.upstream import Outcome

pytestmark = pytest.mark.anyio

LONG = 20_000
SHORT = StreamTimeouts(first_byte_s=0.2, idle_s=0.2, whole_s=600)
TRIES = 5
"""Of what fails only where a busy machine stops this process at a certain moment."""


def params(prompt: str = "long", **fields: Any) -> bytes:
    return json.dumps(request(prompt, max_tokens=LONG)["params"] | fields).encode()  # type: ignore[operator]


def call(body: bytes | None = None, begun: Callable[[], None] | None = None) -> Call:
    return Call(params() if body is None else body, "2023-06-01", ("b-1", "b-2"), "w", begun=begun)


@asynccontextmanager
async def calling(url: str, **settings: Any) -> AsyncIterator[MessagesUpstream]:
    upstream = MessagesUpstream("up", url, "sk-up", **settings)
    try:
        yield upstream
    finally:
        await upstream.close()


async def send_as_told(upstream: MessagesUpstream, made: Call) -> Outcome:
    """Make a call, and again without a stream where it says that there can be none."""
    outcome = await upstream.send(made)
    if isinstance(outcome, Failure) and outcome.kind is FailureKind.NO_STREAM:
        outcome = await upstream.send(msgspec.structs.replace(made, plain=outcome.text))
    return outcome


async def send_to(
    script: Callable[[Exchange], Awaitable[None]], body: bytes | None = None, **settings: Any
) -> Outcome:
    """Make one call to an upstream that answers as scripted."""
    with Upstream(script) as server:
        async with calling(server.url, **settings) as upstream:
            return await upstream.send(call(body))


def stream_of(*events: bytes) -> Callable[[Exchange], Awaitable[None]]:
    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for event in events:
            await exchange.send_piece(event)
        await exchange.end_stream()

    return script


WHOLE = message("long")
EVENTS = streamed(WHOLE)


# What is asked for ------------------------------------------------------------------------------


def test_only_a_max_tokens_above_the_bound_asks_for_a_stream() -> None:
    for above, asks in ((LONG, False), (LONG - 1, True), (0, True), (LONG + 1, False)):
        assert (as_stream(params(), above) is not None) == asks
    assert as_stream(params(max_tokens=float(LONG)), LONG - 1) is not None
    for wrong in ("20000", None, True, [1], {"max_tokens": LONG}):
        assert as_stream(params(max_tokens=wrong), 0) is None
    nested = {"metadata": {"max_tokens": LONG}, "max_tokens": 1}
    for body in (b"{}", b"", b"[]", b'{"max_tokens":9', json.dumps(nested).encode()):
        assert as_stream(body, 10) is None


def test_nothing_but_the_stream_is_added() -> None:
    body = b' {"a": 1e2, "s": "}\\u00e9 ", "max_tokens": 20000 , "b":[ {} ]\n} \n'
    assert as_stream(body, 0) == body.rpartition(b"}")[0] + b',"stream":true}'
    for false in (b"false", b"null", b" false "):
        body = b'{"a": 1e2, "stream":%b, "max_tokens":20000, "b":[ {"stream": false} ]}' % false
        asked = as_stream(body, 0)
        assert asked == b'{"a":1e2,"stream":true,"max_tokens":20000,"b":[ {"stream": false} ]}'


async def test_a_call_is_streamed_with_the_headers_of_any_other() -> None:
    with Upstream() as server:
        async with calling(server.url) as upstream:
            for tokens in (100, 8_192, 8_193, 300_000):
                await upstream.send(call(params("long|stream", max_tokens=tokens)))
        asked = [json.loads(made.body).get("stream") for made in server.calls]
        assert asked == [None, None, True, True]
        for made in server.calls:
            assert made.headers["anthropic-beta"] == "b-1,b-2"
            assert made.headers["anthropic-version"] == "2023-06-01"
            assert made.headers["x-api-key"] == "sk-up"
            assert made.headers["content-length"] == str(len(made.body))


async def test_streams_can_be_had_always_and_never() -> None:
    for above, asked in ((0, True), (None, None)):
        with Upstream() as server:
            async with calling(server.url, stream_above_tokens=above) as upstream:
                outcome = await upstream.send(call(params("long|stream", max_tokens=1)))
                assert isinstance(outcome, Reply)
            assert json.loads(server.calls[0].body).get("stream") == asked


# What comes of it -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_an_answer_is_the_same_streamed_or_not(size: int) -> None:
    joined = b"".join(EVENTS)
    script = stream_of(*(joined[at : at + size] for at in range(0, len(joined), size)))
    outcome = await send_to(script)
    assert isinstance(outcome, Reply)
    assert outcome.status == 200
    assert json.loads(outcome.body) == json.loads(WHOLE)
    assert list(json.loads(outcome.body)) == list(json.loads(WHOLE))
    read_message(outcome.body)


async def test_calls_that_are_streamed_share_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UPSTREAM_IDLE_CONNECTION_S", 3_600.0)
    with Upstream() as server:
        async with calling(server.url) as upstream:
            for _ in range(5):
                outcome = await upstream.send(call(params("long|stream")))
                assert isinstance(outcome, Reply)
        assert server.connections == 1


async def test_a_message_is_whole_though_its_connection_stays_open_or_breaks() -> None:
    async def broken(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.send_piece(b"".join(EVENTS))
        exchange.close()

    async def busy(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.send_piece(b"".join(EVENTS))
        await exchange.upstream.gate("never").wait()

    for script in (broken, busy):
        outcome = await send_to(script)
        assert isinstance(outcome, Reply)
        assert json.loads(outcome.body) == json.loads(WHOLE)


async def test_the_caller_is_told_when_the_answer_begins() -> None:
    told: list[int] = []

    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.send_piece(b": waiting\n\n" + sse({"type": "ping"}))
        await exchange.upstream.gate("begin").wait()
        await exchange.send_piece(EVENTS[0])
        await exchange.upstream.gate("end").wait()
        for event in EVENTS[1:]:
            await exchange.send_piece(event)
        await exchange.end_stream()

    with Upstream(script) as server:
        begun = asyncio.Event()

        def note() -> None:
            told.append(1)
            begun.set()

        async with calling(server.url) as upstream:
            task = asyncio.create_task(upstream.send(call(begun=note)))
            await asyncio.to_thread(server.wait_calls, "long", 1)
            assert told == []
            server.gate("begin").open()
            await asyncio.wait_for(begun.wait(), 30)
            assert not task.done()
            server.gate("end").open()
            assert isinstance(await task, Reply)
    assert told == [1]


@pytest.mark.parametrize(
    ("prompt", "times"), [("a|message", 1), ("a|stream", 1), ("a|529", 0), ("a|streamerror:x", 1)]
)
@pytest.mark.parametrize("tokens", [100, LONG])
async def test_the_caller_is_told_once_whatever_the_upstream_does(
    prompt: str, times: int, tokens: int
) -> None:
    told: list[int] = []
    with Upstream() as server:
        async with calling(server.url) as upstream:
            made = call(params(prompt, max_tokens=tokens), lambda: told.append(1))
            await upstream.send(made)
    if tokens == LONG or "streamerror" not in prompt:
        assert len(told) == times


HEADERS = (
    "Retry-After: 7",
    "Anthropic-RateLimit-Requests-Remaining: 3",
    "x-ratelimit-remaining-tokens: 5",
    "x-ratelimit-remaining-tokens: 6",
    "x-other: 1",
)
SAID = {
    "retry-after": "7",
    "anthropic-ratelimit-requests-remaining": "3",
    "x-ratelimit-remaining-tokens": "5",
}


@pytest.mark.parametrize("status", [200, 429, 500])
@pytest.mark.parametrize("tokens", [100, LONG])
async def test_what_the_upstream_says_of_its_limits_comes_with_the_reply(
    status: int, tokens: int
) -> None:
    async def script(exchange: Exchange) -> None:
        if json.loads(exchange.call.body).get("stream") and status == 200:
            await exchange.begin_stream(*HEADERS)
            await exchange.send_piece(b"".join(EVENTS))
            await exchange.end_stream()
        else:
            await exchange.reply(status, WHOLE, headers=HEADERS)

    outcome = await send_to(script, params(max_tokens=tokens))
    assert isinstance(outcome, Reply)
    assert outcome.status == status
    assert outcome.headers == SAID
    assert outcome.retry_after == (None if status == 200 else "7")


async def test_headers_that_are_no_text_say_nothing() -> None:
    async def script(exchange: Exchange) -> None:
        raw = ("retry-after: \xff\xfe", "x-ratelimit-a: 1", "anthropic-ratelimit-b: \xe9")
        head = [b"HTTP/1.1 429 No", b"content-length: 2", *(h.encode("latin-1") for h in raw)]
        await exchange.send(b"\r\n".join([*head, b"", b"{}"]))

    outcome = await send_to(script)
    assert outcome == Reply(429, b"{}", None, None, {"x-ratelimit-a": "1"})
    with Upstream() as server:
        async with calling(server.url) as upstream:
            outcome = await upstream.send(call(params("a|message", max_tokens=1)))
    assert isinstance(outcome, Reply)
    assert outcome.headers is None


# What goes wrong --------------------------------------------------------------------------------


async def silent(exchange: Exchange) -> None:
    await exchange.upstream.gate("never").wait()


async def head_only(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await silent(exchange)


async def half(exchange: Exchange) -> None:
    """Half a plain answer."""
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
    await silent(exchange)


async def begins(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.send_piece(b"".join(EVENTS[:3]))
    await silent(exchange)


async def pings(exchange: Exchange) -> None:
    await exchange.begin_stream()
    while True:
        await exchange.send_piece(sse({"type": "ping"}))
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("script", "timeouts", "text"),
    [
        (silent, SHORT, "no first byte in 0.2 s"),
        (head_only, SHORT, "no first byte in 0.2 s"),
        (half, StreamTimeouts(idle_s=0.2), "its answer stopped half-way"),
        (begins, StreamTimeouts(idle_s=0.2), "nothing more came for 0.2 s, after "),
        (pings, StreamTimeouts(whole_s=0.5), "the whole call took over 0.5 s"),
        (silent, StreamTimeouts(whole_s=0.2), "the whole call took over 0.2 s"),
    ],
)
async def test_each_time_out_says_which_it_was(
    script: Callable[[Exchange], Awaitable[None]], timeouts: StreamTimeouts, text: str
) -> None:
    outcome = await send_to(script, stream_timeouts=timeouts)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.TIMEOUT
    assert outcome.text.startswith(text)


async def test_a_plain_call_has_its_own_time() -> None:
    outcome = await send_to(silent, params(max_tokens=1), timeout_s=0.2, stream_timeouts=SHORT)
    assert outcome == Failure(FailureKind.TIMEOUT, "the whole call took over 0.2 s")


async def test_pings_keep_a_call_alive() -> None:
    """Each gap is far below the bound, and all of them together are above it."""

    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for _ in range(30):
            await exchange.send_piece(b": still here\n")
            await asyncio.sleep(0.05)
        await exchange.send_piece(b"\n" + b"".join(EVENTS))
        await exchange.end_stream()

    for _ in range(TRIES):  # this process may itself be stopped for longer than the bound
        outcome = await send_to(script, stream_timeouts=StreamTimeouts(idle_s=1.0))
        if isinstance(outcome, Reply):
            break
    assert isinstance(outcome, Reply)


@pytest.mark.parametrize("number", range(len(streamed(message("a"), step=30))))
async def test_a_stream_that_ends_early_is_no_answer(number: int) -> None:
    events = streamed(message("a"), step=30)

    async def cut(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.send_piece(b"".join(events[:number]) or b"\n")
        exchange.close()

    for script in (cut, stream_of(b"".join(events[:number]) or b"\n")):
        outcome = await send_to(script)
        assert isinstance(outcome, Failure)
        assert outcome.kind is FailureKind.BROKEN


@pytest.mark.parametrize(
    ("events", "kind", "text"),
    [
        ([EVENTS[0], EVENTS[0]], FailureKind.BROKEN, "not a message: a second message_start"),
        ([b"data: {\n\n"], FailureKind.BROKEN, "not a message: an event that cannot be read"),
        ([b"<html>", b"\n\n"], FailureKind.BROKEN, "ended before its message did"),
        ([WHOLE], FailureKind.BROKEN, "ended before its message did"),
    ],
)
async def test_a_stream_that_is_no_message_is_a_failure(
    events: list[bytes], kind: FailureKind, text: str
) -> None:
    outcome = await send_to(stream_of(*events))
    assert isinstance(outcome, Failure)
    assert outcome.kind is kind
    assert text in outcome.text


async def test_a_stream_without_end_is_given_up() -> None:
    """A line of 70 MB; the bound is that of every reply."""

    async def script(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for _ in range(70):
            await exchange.send_piece(b"x" * 1_000_000)
        await silent(exchange)

    outcome = await send_to(script)
    assert outcome == Failure(FailureKind.TOO_LARGE, "one event over 67108864 bytes")


@pytest.mark.parametrize(
    ("error_type", "status"),
    [("overloaded_error", 529), ("rate_limit_error", 429), ("api_error", 500)],
)
async def test_an_error_inside_a_stream_counts_as_its_status(error_type: str, status: int) -> None:
    with Upstream() as server:
        async with calling(server.url) as upstream:
            outcome = await upstream.send(call(params(f"a|streamerror:{error_type}")))
    body = error(error_type, f"scripted {error_type}")
    assert outcome == Reply(status, body, request_id="req_upstream")


async def test_a_call_that_is_given_up_is_closed_at_once() -> None:
    begun = asyncio.Event()
    with Upstream(begins) as server:
        async with calling(server.url) as upstream:
            task = asyncio.create_task(upstream.send(call(begun=begun.set)))
            await asyncio.wait_for(begun.wait(), 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # While the client lives on: nothing else closes the connection.
            await asyncio.to_thread(server.wait_until, lambda: server.abandoned == 1, "closed")


async def test_a_call_that_is_given_up_before_its_answer_is_closed_with_its_first_byte() -> None:
    """The library lives on with it; its read time-out ends it, not that of the whole call."""
    with Upstream(silent) as server:
        async with calling(server.url, stream_timeouts=SHORT) as upstream:
            for number in range(1, TRIES + 1):
                task = asyncio.create_task(upstream.send(call()))
                await asyncio.to_thread(server.wait_calls, "long", number)
                if task.cancel():  # else its time was over before it was known to have come
                    break
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(server.wait_until, lambda: not server.in_flight, "closed")


async def test_what_times_out_or_fails_is_closed() -> None:
    """Long before the time of the whole call is over."""
    for script in (begins, silent, stream_of(EVENTS[0], EVENTS[0])):
        with Upstream(script) as server:
            async with calling(server.url, stream_timeouts=SHORT) as upstream:
                assert isinstance(await upstream.send(call()), Failure)
                await asyncio.to_thread(
                    server.wait_until, lambda: not server.in_flight, "the connection is closed"
                )


# Upstreams that do not stream -------------------------------------------------------------------


async def test_an_upstream_that_answers_without_a_stream_is_taken_at_its_word() -> None:
    for prompt, status in (("a|plain", 200), ("a|message", 200), ("a|529", 529), ("a|html", 502)):
        with Upstream() as server:
            async with calling(server.url) as upstream:
                outcome = await upstream.send(call(params(prompt)))
            assert isinstance(outcome, Reply)
            assert outcome.status == status
            if status == 200:
                assert outcome.body == message(prompt)
            assert len(server.calls) == 1


REFUSALS = [
    "Streaming is not supported",
    "`stream=True` is not supported for this model.",
    "stream: unsupported value",
    "This model does not support streaming",
    "streaming isn't available",
    "Streaming responses are not implemented yet",
]


@pytest.mark.parametrize("text", REFUSALS)
async def test_an_upstream_that_refuses_streams_is_called_without(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(exchange: Exchange) -> None:
        if json.loads(exchange.call.body).get("stream"):
            await exchange.reply(400, error("invalid_request_error", text))
        else:
            await exchange.reply(200, WHOLE)

    with Upstream(script) as server:
        async with calling(server.url) as upstream:
            for _ in range(3):
                outcome = await send_as_told(upstream, call())
                assert outcome == Reply(200, WHOLE)
        streams = [json.loads(made.body).get("stream") for made in server.calls]
        assert streams == [True, None, None, None]
        assert server.calls[-1].body == params()
    assert [record.getMessage() for record in caplog.records if "up" in record.getMessage()] == [
        "upstream=up does not stream: no call asks for it any more"
    ]


async def test_a_request_that_is_wrong_for_another_reason_turns_no_streams_off() -> None:
    """Its text speaks of streams, but it fails without one too."""
    refusal = error("invalid_request_error", "messages.0: stream of images is not supported")

    async def script(exchange: Exchange) -> None:
        if exchange.call.name == "bad":
            await exchange.reply(400, refusal)
        else:
            await follow_prompt(exchange)

    with Upstream(script) as server:
        async with calling(server.url) as upstream:
            for _ in range(2):
                outcome = await send_as_told(upstream, call(params("bad")))
                assert isinstance(outcome, Reply)
                assert (outcome.status, outcome.body) == (400, refusal)
            assert isinstance(await upstream.send(call(params("good|stream"))), Reply)
            assert isinstance(await upstream.send(call(params("other|400"))), Reply)
        streams = [json.loads(made.body).get("stream") for made in server.calls]
        assert streams == [True, None, True, None, True, True]


async def test_a_stream_that_cannot_be_folded_is_asked_for_again_as_a_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once: requests of its kind are asked for as a whole from then on, others are not."""
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "new_delta"}}

    async def script(exchange: Exchange) -> None:
        if json.loads(exchange.call.body).get("stream"):
            await stream_of(*EVENTS[:2], sse(delta))(exchange)
        else:
            await exchange.reply(200, WHOLE)

    with Upstream(script) as server:
        async with calling(server.url) as upstream:
            for _ in range(2):
                assert await send_as_told(upstream, call()) == Reply(200, WHOLE)
            other = json.loads(params()) | {"thinking": {"type": "adaptive"}}
            assert isinstance(await upstream.send(call(json.dumps(other).encode())), Failure)
        streams = [json.loads(made.body).get("stream") for made in server.calls]
        assert streams == [True, None, None, True]
    said = [record.getMessage() for record in caplog.records if "new_delta" in record.getMessage()]
    assert len(said) == 2, "once for each kind"


# The whole way ----------------------------------------------------------------------------------


def test_a_batch_of_long_answers_has_the_results_of_a_plain_one(
    yard: Yard, upstream: Upstream
) -> None:
    prompts = [
        "long-1|stream",
        "long-2|stream:0,stream:3,stream:9,stream",
        "long-3|streamerror:overloaded_error,streamerror:api_error,stream",
        "long-4|message",
    ]
    batch = yard.create([request(prompt, max_tokens=LONG) for prompt in prompts])
    ended = yard.wait_ended(batch["id"])
    assert ended["request_counts"]["succeeded"] == len(prompts)
    results = yard.results(batch["id"])
    assert_answered(results, prompts)
    plain = json.loads(message("long-1|stream"))
    plain["usage"]["service_tier"] = "batch"
    assert results["long-1"]["message"] == plain
    names = ("long-1", "long-2", "long-3", "long-4")
    assert [upstream.counts[name] for name in names] == [1, 4, 3, 1]


def test_a_stream_that_always_breaks_off_is_errored(yard: Yard) -> None:
    batch = yard.create([request("broken-1|stream:4", max_tokens=LONG)])
    yard.wait_ended(batch["id"])
    found = yard.results(batch["id"])["broken-1"]["error"]["error"]
    assert found["type"] == "api_error"
    assert "the stream ended before its message did, after" in found["message"]


def test_the_settings_of_streams_reach_the_upstream(tmp_path: Path) -> None:
    """`slots` makes the helper write a file, to which the others are added."""
    with Upstream() as server:
        yard = Yard(tmp_path / "data", server.url, bounds=QUICK, slots=4)
        yard.command()
        config = tmp_path / "data.toml"
        lines = "stream_above_tokens = 0\nfirst_byte_timeout = 1\nidle_timeout = 1\ntimeout = 60\n"
        command = [*yard.command()]
        config.write_text(config.read_text() + lines)
        yard.command = lambda: command  # type: ignore[method-assign]
        with yard:
            prompts = ["short-1|stream"]
            assert_answered(yard.run(prompts), prompts)
            assert json.loads(server.calls[0].body)["stream"] is True


# Against others ---------------------------------------------------------------------------------

SIMULATED = [
    {},
    {"thinking": {"type": "enabled", "budget_tokens": 1_024}, "model": "claude-haiku-4-5"},
    {"tools": [{"type": "web_search_20260318", "name": "web_search"}]},
    {
        "tools": [
            {
                "name": "look",
                "input_schema": {
                    "type": "object",
                    "properties": {"n": {"type": "number"}, "s": {"type": "string"}},
                    "required": ["n", "s"],
                },
            }
        ],
        "tool_choice": {"type": "any"},
        "model": "claude-haiku-4-5",
    },
    {"stop_sequences": ["e"]},
]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    data = tmp_path_factory.mktemp("simulated") / "data"
    with Yard(data, "simulated:?latency=0") as yard:
        yield yard


@pytest.mark.parametrize("fields", SIMULATED, ids=lambda fields: ",".join(fields) or "text")
async def test_a_yard_behind_a_yard_gives_the_same_streamed_or_not(
    simulated: Yard, fields: dict[str, Any]
) -> None:
    body = params("Describe gears.", **({"model": "claude-opus-5-5"} | fields))
    found = []
    for above in (0, None):
        async with calling(simulated.url, stream_above_tokens=above) as upstream:
            outcome = await upstream.send(call(body))
            assert isinstance(outcome, Reply)
            assert outcome.status == 200, outcome.body
            found.append(json.loads(outcome.body))
    streamed_, plain = found
    assert streamed_["content"] == plain["content"]
    assert set(streamed_) == set(plain)
    for name in ("stop_reason", "stop_sequence", "stop_details", "model", "role", "type"):
        assert streamed_[name] == plain[name]
    assert streamed_["usage"]["output_tokens"] == plain["usage"]["output_tokens"]
    assert set(streamed_["usage"]) == set(plain["usage"])


@pytest.mark.parametrize("fields", SIMULATED, ids=lambda fields: ",".join(fields) or "text")
async def test_the_official_client_folds_the_same_stream_to_the_same_message(
    simulated: Yard, fields: dict[str, Any]
) -> None:
    """The stream is recorded and played to both."""
    asked = json.loads(params("Describe gears.")) | {"model": "claude-opus-5-5"} | fields
    stream = simulated.post("/v1/messages", asked | {"stream": True}).body
    with Upstream(stream_of(stream)) as server:
        client = anthropic.Anthropic(base_url=server.url, api_key="k", max_retries=0)
        with client, client.messages.stream(**asked) as events:
            theirs = events.get_final_message().to_dict(mode="json")
        async with calling(server.url) as upstream:
            outcome = await upstream.send(call(json.dumps(asked).encode()))
    assert isinstance(outcome, Reply)
    assert _without_null(json.loads(outcome.body)) == _without_null(theirs)


def _without_null(value: Any) -> Any:
    """Leave out what is null: the client's types fill in what was not said."""
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value
