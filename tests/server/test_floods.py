"""More than anybody wants: connections, bytes, interim replies, and results that go meanwhile."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import zlib
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batchyard import segments
from batchyard.checksum import BLOCK_BYTES, blocks_of
from batchyard.errors import BatchyardError
from batchyard.limits import MIB
from batchyard.model import Extent
from batchyard.segments.directory import DirectorySegments
from batchyard.server.byte_range import Span
from batchyard.server.results import ResultsResponse
from helpers_raw import head
from helpers_upstream import (
    DEADLINE_S,
    Upstream,
    follow_prompt,
    message,
    sse,
    streamed,
    text_of,
)
from helpers_yard import BATCHES, HEADERS, QUICK, Yard, answer_text, assert_answered, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from helpers_upstream import Exchange

WAIT = 3_600.0
"""Seconds: what must not end by itself within a test."""


def private_bytes(yard: Yard) -> int:
    """Return the memory of a yard that is its own, mapped files not among it."""
    return bytes_of(yard, "RssAnon")


def bytes_of(yard: Yard, what: str) -> int:
    """Return a figure that the kernel keeps of a yard's memory."""
    assert yard.process is not None
    status = Path(f"/proc/{yard.process.pid}/status").read_text("ascii")
    return int(status.partition(f"{what}:")[2].split()[0]) * 1_024


# Connections -----------------------------------------------------------------------------------


def test_hundreds_of_slow_clients_keep_nobody_from_being_answered(
    upstream: Upstream, tmp_path: Path
) -> None:
    """None of them is at its end before all that others want is done."""
    bounds = QUICK | {"limits:HEAD_TIMEOUT_S": WAIT, "limits:BODY_WINDOW_S": WAIT}
    stalls = (b"", b"POST /v1", head("content-length: 900000") + b'{"requests":[' + b" " * 9_000)
    with ExitStack() as stack:
        yard = stack.enter_context(Yard(tmp_path / "data", upstream.url, bounds=bounds))
        slow = []
        for n in range(500):
            connection = socket.create_connection(("127.0.0.1", yard.port), DEADLINE_S)
            slow.append(stack.enter_context(closing(connection)))
            connection.sendall(stalls[n % len(stalls)])
            if n % 100 == 99:
                assert yard.get(BATCHES).status == 200
                assert answer_text(yard.run([f"slow-{n}"])[f"slow-{n}"])
        for connection in slow:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)


class PoorYard(Yard):
    """A yard that may have 64 files and connections open."""

    def command(self) -> list[str]:
        return ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *super().command()]


def test_a_flood_of_connections_on_64_descriptors_is_survived(tmp_path: Path) -> None:
    bounds = QUICK | {"limits:HEAD_TIMEOUT_S": WAIT}  # none of the flood is closed as silent
    with Upstream() as upstream, PoorYard(tmp_path / "data", upstream.url, bounds=bounds) as yard:
        batch = yard.create([request(f"poor-{n}|hold:poor") for n in range(40)])
        upstream.wait_calls("poor-", 1)
        with ExitStack() as flood, closing(yard.connect()) as open_before:
            open_before.request("GET", BATCHES, headers=HEADERS)
            assert open_before.getresponse().read()
            for _ in range(200):
                connection = socket.create_connection(("127.0.0.1", yard.port), DEADLINE_S)
                flood.enter_context(closing(connection))
            assert yard.get(BATCHES).status == 529
            upstream.gate("poor").open()
            upstream.wait_calls("poor-", 40)
            open_before.request("GET", BATCHES, headers=HEADERS)
            assert open_before.getresponse().status == 200
        yard.wait_ended(batch["id"])
        assert len(yard.results(batch["id"])) == 40
        assert yard.run(["poor-again"])
        assert upstream.number("poor-") == 41, "a call was made twice"
        log = yard.read_log()
        assert yard.stop() == 0
    assert log.count("more are refused") == 1
    assert "Traceback" not in log
    assert len(log) < 10_000, "a tight loop"


# Memory ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lean(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """Return a yard that holds little of its batches in memory, as it sends them one by one."""
    with Yard(tmp_path_factory.mktemp("lean") / "data", upstream.url, slots=1) as yard:
        yard.create([request("lean|hold:lean")])
        upstream.wait_calls("lean", 1)
        yield yard


BODIES: dict[str, tuple[Sequence[str], bytes, int]] = {
    "one model, written as it comes": (("a",), b"", 200),
    "two models, written again in their order": (("a", "b"), b"", 200),
    "an odd body, looked at whole": (("a",), b',"extra":1', 400),
}


@pytest.mark.parametrize(("models", "more", "status"), BODIES.values(), ids=BODIES)
def test_the_memory_for_a_create_does_not_grow_with_its_body(
    lean: Yard, models: Sequence[str], more: bytes, status: int
) -> None:
    each = [
        json.dumps(request("memory|hold:lean", f"id-{n}", model=models[n % len(models)])).encode()
        for n in range(500)
    ]
    padded = b",".join(one.replace(b"memory", b"x" * 80_000) for one in each)
    body = b'{"requests":[' + padded + b"]" + more + b"}"
    assert len(body) > 40_000_000
    peak = 0

    def pieces() -> Iterator[bytes]:
        nonlocal peak
        for at in range(0, len(body), MIB):
            yield body[at : at + MIB]
            peak = max(peak, private_bytes(lean))

    before = private_bytes(lean)
    assert lean.request("POST", BATCHES, pieces()).status == status
    grown = max(peak, private_bytes(lean)) - before
    assert grown < len(body) / 2, f"{grown:,} bytes for a body of {len(body):,}"


TOKENS, STREAMS = 300_000, 8
PART = " part"
PIECES = 100


class Together:
    """Streams long answers, none of which ends before all have come that far."""

    def __init__(self) -> None:
        delta = {"type": "text_delta", "text": PART}
        event = sse({"type": "content_block_delta", "index": 0, "delta": delta})
        self._piece = event * (TOKENS // PIECES)
        self._left = STREAMS

    async def __call__(self, exchange: Exchange) -> None:
        start, block, text, *end = streamed(message(exchange.call.prompt), step=1_000)
        await exchange.begin_stream()
        await exchange.send_piece(start + block + text)
        if exchange.call.name.startswith("tokens"):
            for _ in range(PIECES):
                await exchange.send_piece(self._piece)
            self._left -= 1
            gate = exchange.upstream.gate("end")
            if not self._left:
                gate.open()
            await gate.wait()
        await exchange.send_piece(b"".join(end))
        await exchange.end_stream()


def test_long_answers_that_are_streamed_at_once_take_four_times_their_size(tmp_path: Path) -> None:
    """About, in the most memory that the process ever had; as the documentation says.

    It is 2.4 to 4.0 times, as the pieces happen to come and texts to be put together.
    """
    prompts = [f"tokens-{n}" for n in range(STREAMS)]
    with (
        Upstream(Together()) as upstream,
        Yard(tmp_path / "data", upstream.url, bounds=QUICK) as yard,
    ):
        yard.wait_ended(yard.create([request("first", max_tokens=TOKENS)])["id"])
        before = bytes_of(yard, "VmRSS")
        batch = yard.create([request(prompt, max_tokens=TOKENS) for prompt in prompts])
        yard.wait_ended(batch["id"])
        grown = bytes_of(yard, "VmHWM") - before
        results = yard.results(batch["id"])

    text = PART * TOKENS
    assert sorted(results) == prompts
    # A text that differs is not shown: it takes minutes to say where.
    wrong = [name for name in prompts if answer_text(results[name]) != text_of(name) + text]
    assert wrong == []
    assert set(upstream.counts.values()) == {1}
    assert grown < 5 * STREAMS * len(text), f"{grown:,} bytes for {STREAMS * len(text):,}"


# Replies of upstreams ---------------------------------------------------------------------------


async def send_bomb(exchange: Exchange, how: str, bomb: bytes) -> None:
    """Answer with what would be much larger."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    if how == "coded":
        coding = b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb)
        await exchange.send(head + coding + bomb)
    else:
        coding = b"transfer-encoding: gzip, chunked\r\n\r\n%x\r\n" % len(bomb)
        await exchange.send(head + coding + bomb + b"\r\n0\r\n\r\n")


async def bombs(exchange: Exchange) -> None:
    """Answer with what would be much larger, or endless."""
    name = exchange.call.name
    if name in {"coded", "transferred"}:
        await send_bomb(exchange, name, BOMB)
    elif name == "hints":
        while True:  # until the connection is closed
            await exchange.send(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 100)
    else:
        await follow_prompt(exchange)


BOMB = gzip.compress(b'{"type":"message"}' + b" " * (400 * MIB), 1)


@pytest.fixture(scope="module")
def bombed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    bounds = QUICK | {"limits:ATTEMPTS_MAX": 2}
    with (
        Upstream(bombs) as upstream,
        Yard(tmp_path_factory.mktemp("bombed") / "data", upstream.url, bounds=bounds) as yard,
    ):
        yard.run(["first"])
        yield yard


@pytest.mark.parametrize(
    ("how", "said"), [("coded", "coded with gzip"), ("transferred", "not a message")]
)
def test_a_compressed_reply_is_not_blown_up(bombed: Yard, how: str, said: str) -> None:
    """None was asked for, and none is read: to the yard it is no message."""
    before = private_bytes(bombed)
    results = bombed.run([how, f"{how}-beside"])
    assert results[how]["type"] == "errored"
    assert said in results[how]["error"]["error"]["message"]
    assert answer_text(results[f"{how}-beside"])
    assert private_bytes(bombed) - before < len(BOMB) + 8 * MIB


async def many_bombs(exchange: Exchange) -> None:
    """Answer with what would be 64 MiB each, all at once; some of it only once."""
    name, number = exchange.call.name, exchange.call.number
    if name.startswith("once") and number > 1:
        await follow_prompt(exchange)
        return
    if number == 1:
        await exchange.upstream.gate("lit").wait()
    await send_bomb(exchange, name.rpartition("-")[2], BOMB_64)


BOMB_64 = gzip.compress(b'{"type":"message"}' + b" " * (64 * MIB))


def test_a_hundred_compressed_replies_at_once_are_not_blown_up(tmp_path: Path) -> None:
    """The most memory that the process ever had, all that it maps among it."""
    names = [f"{n}-{how}" for n in range(25) for how in ("coded", "transferred")]
    bounds = QUICK | {"limits:ATTEMPTS_MAX": 2, "limits:WINDOW_START": 100}
    with (
        Upstream(many_bombs) as upstream,
        Yard(tmp_path / "data", upstream.url, bounds=bounds, slots=100) as yard,
    ):
        once, twice = [[f"{times}-{name}" for name in names] for times in ("once", "twice")]
        batch = yard.create([request(prompt) for prompt in (*once, *twice)])
        upstream.wait_calls("", 100)
        upstream.gate("lit").open()
        yard.wait_ended(batch["id"])
        results = yard.results(batch["id"])
        most = bytes_of(yard, "VmHWM")

    assert_answered({name: results.pop(name) for name in once}, once)
    found = {name: result["type"] for name, result in results.items()}
    assert found == dict.fromkeys(twice, "errored")
    assert set(upstream.counts.values()) == {2}
    assert most < 512 * MIB, f"{most:,} bytes"


def test_interim_replies_without_end_are_cut_off(bombed: Yard) -> None:
    before = private_bytes(bombed)
    results = bombed.run(["hints", "beside-hints"])
    assert "not HTTP" in results["hints"]["error"]["error"]["message"]
    assert answer_text(results["beside-hints"])
    assert bombed.post("/v1/messages", request("hints")["params"]).status == 502
    assert private_bytes(bombed) - before < 8 * MIB


# A name that nobody knows -----------------------------------------------------------------------


class LostYard(Yard):
    """A yard that does not find its upstream by name as long as a file is there."""

    @property
    def switch(self) -> Path:
        return self.data.with_name("unresolved")

    def command(self) -> list[str]:
        python, script, *rest = super().command()
        assert script.endswith("helpers_serve.py")
        program = str(Path(__file__).with_name("unresolved_serve.py"))
        return [python, program, str(self.switch), *rest]


def test_a_host_name_that_is_not_known_is_waited_for(upstream: Upstream, tmp_path: Path) -> None:
    url = f"http://upstream.invalid:{upstream.port}"
    yard = LostYard(tmp_path / "data", url, bounds=QUICK)
    yard.switch.touch()
    with yard:
        batch = yard.create([request("unresolved-1"), request("unresolved-2")])
        yard.wait_progress(batch["id"], lambda progress: (progress["calls"] or 0) >= 2)
        refused = yard.post("/v1/messages", request("x")["params"])
        assert refused.status == 502
        assert "Name or service not known" in refused.json()["error"]["message"]
        yard.switch.unlink()
        yard.wait_ended(batch["id"])
        results = yard.results(batch["id"])
        assert all(answer_text(each) for each in results.values())
    assert upstream.number("unresolved-") == 2


# Results that go while they are read --------------------------------------------------------------

BATCH = "msgbatch_01"


class Reader:
    """Takes an answer, and does something after so many of its parts."""

    def __init__(self, after: int, do: Callable[[], None]) -> None:
        self.body = b""
        self.is_whole = False
        self._after = after
        self._do = do

    async def __call__(self, message: Any) -> None:
        if message["type"] != "http.response.body":
            return
        self.body += message.get("body", b"")
        self.is_whole = not message.get("more_body", False)
        if self._after == 0:
            await asyncio.to_thread(self._do)
        self._after -= 1


async def never() -> Any:
    await asyncio.Event().wait()


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("kind", ["whole", "range", "gzip"])
def test_results_that_go_during_a_read_cut_it_and_nothing_else_comes(
    tmp_path: Path, after: int, kind: str
) -> None:
    """A delete and an archiving remove the same bytes."""
    store = DirectorySegments(tmp_path / "segments")
    store.put(segments.requests_name(BATCH), [b"x"])
    extents = []
    parts = [random.Random(n).randbytes(BLOCK_BYTES * 2 + n) for n in range(4)]
    for n, part in enumerate(parts):
        name = f"{segments.results_prefix(BATCH, n)}1.aa"
        appender = store.appender(name)
        appender.append([part])
        appender.close()
        extents.append(Extent(name, len(part), blocks_of([part])))
    body = b"".join(parts)
    span = Span(5, len(body) - 5) if kind == "range" else None
    reader = Reader(after, lambda: store.delete_batch(BATCH))
    answer = ResultsResponse(store, extents, BATCH, span, gzip=kind == "gzip")
    with pytest.raises(BatchyardError):
        asyncio.run(answer({"type": "http"}, never, reader))
    assert not reader.is_whole
    got = reader.body
    if kind == "gzip":
        got = zlib.decompressobj(31).decompress(got)
    assert got
    assert body[span.start if span else 0 :].startswith(got)


def test_a_delete_during_a_read_cuts_the_transfer(yard: Yard) -> None:
    padding = "x" * 20_000
    asked = [request(f"gone-{n}|message,{padding}", f"id-{n}") for n in range(900)]
    batch_id = yard.create(asked)["id"]
    yard.wait_ended(batch_id)
    path = f"{BATCHES}/{batch_id}/results"
    whole = yard.get(path).body
    with closing(socket.create_connection(("127.0.0.1", yard.port), DEADLINE_S)) as reader:
        reader.sendall(head(method="GET", target=path))
        answer = reader.makefile("rb")
        while answer.readline().strip():  # the head
            pass
        assert yard.request("DELETE", f"{BATCHES}/{batch_id}").status == 200
        got = b""
        while (size := answer.readline().strip()) and (part := answer.read(int(size, 16))):
            got += part
            answer.read(2)
        assert size == b"", "the last chunk came: the answer passes for a whole one"
    assert whole.startswith(got)
    assert len(got) < len(whole)
    assert yard.get(path).status == 404
    assert not any(batch_id in name for name in yard.files())
