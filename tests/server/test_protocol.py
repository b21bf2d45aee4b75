"""One connection: bounds on the head, order of answers, refusals, and what follows them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from batchyard import limits
from batchyard.server.protocol import ABORT, Protocol
from helpers_raw import (
    FIXED,
    Reply,
    exchange,
    exchange_in_time,
    head,
    one_reply,
    replies,
    reply_in_time,
)
from helpers_upstream import DEADLINE_S
from helpers_yard import BATCHES, HEADERS, Yard, poll, request

if TYPE_CHECKING:
    import http.client
    from collections.abc import Callable, Iterator

    from helpers_upstream import Upstream

LIST = f"{BATCHES}?limit=1"
GET = head(method="GET", target=LIST)
LAST = head("connection: close", method="GET", target=LIST)


@pytest.fixture(scope="module")
def quick(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """A yard that does not wait long and takes few connections.

    Between the opening of a connection and its first byte a busy machine may let more time pass.
    """
    bounds = {
        "limits:HEAD_TIMEOUT_S": 0.1,
        "limits:UNREAD_TIMEOUT_S": 0.1,
        "limits:CONNECTIONS_MAX": 5,
        "limits:BODY_WINDOW_S": 0.01,
        "limits:BODY_RATE_MIN": 1_000_000_000,
    }
    with Yard(tmp_path_factory.mktemp("quick") / "data", upstream.url, bounds=bounds) as yard:
        yield yard
        log = yard.read_log()
        assert "Traceback" not in log, log


# The head -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((f"x-a: {'y' * 15_000}",), 200),
        ((f"x-a: {'y' * 16_400}",), 431),
        ((f"x-a: {'y' * 300_000}",), 431),
        ((f"{'x' * 16_400}: y",), 431),
        (tuple(f"x-{n}: y" for n in range(96)), 200),
        (tuple(f"x-{n}: y" for n in range(97)), 431),
        (tuple("x: y" for _ in range(5_000)), 431),
    ],
    ids=["15 kB", "16.4 kB", "300 kB", "name", "100 fields", "101 fields", "5000 fields"],
)
def test_a_head_has_16_kib_and_100_fields(yard: Yard, lines: tuple[str, ...], status: int) -> None:
    reply = one_reply(yard.port, head("connection: close", *lines, method="GET", target=LIST))
    assert reply.status == status
    if status != 200:
        assert reply.error()["type"] == "invalid_request_error"
        assert reply.headers["connection"] == "close"


@pytest.mark.parametrize(("length", "status"), [(8_192, 200), (8_193, 414), (100_000, 414)])
def test_a_url_has_8_kib(yard: Yard, length: int, status: int) -> None:
    target = f"{LIST}&x=".ljust(length, "y")
    reply = one_reply(yard.port, head("connection: close", method="GET", target=target))
    assert reply.status == status


def test_a_head_that_comes_in_many_pieces_is_bounded_all_the_same(yard: Yard) -> None:
    start = GET.removesuffix(b"\r\n\r\n") + b"\r\nx-a: "
    assert one_reply(yard.port, start, *[b"y" * 1_000] * 400).status == 431


def test_a_head_that_does_not_end_is_408(quick: Yard) -> None:
    for part in (b"GET / HT", GET[:-2], b"\r\n\r\n"):
        reply = reply_in_time(quick.port, part)
        assert reply.status == 408
        assert "did not arrive within 0.1 s" in reply.error()["message"]


def test_a_second_head_that_does_not_end_is_408(quick: Yard) -> None:
    first, second = replies(exchange_in_time(quick.port, GET + GET[:-2]))
    assert (first.status, second.status) == (200, 408)


def test_a_connection_on_which_nothing_comes_is_closed_without_a_word(quick: Yard) -> None:
    assert exchange(quick.port) == b""


def answered(yard: Yard) -> http.client.HTTPConnection:
    """Return a connection that has had an answer, and stays open."""

    def tried() -> http.client.HTTPConnection | None:
        connection = yard.connect()
        with contextlib.suppress(ConnectionError):  # closed before it had asked
            connection.request("GET", LIST, headers=HEADERS)
            assert connection.getresponse().read()
            return connection
        connection.close()
        return None

    return poll(tried, lambda: "it always closes without a word")


def test_an_idle_connection_is_kept_after_an_answer(quick: Yard) -> None:
    """The deadline of 0.1 s for a head does not count while none has begun."""
    with closing(answered(quick)) as connection:
        own = connection.sock
        for _ in range(2):
            # Another connection that opens later is closed first: the deadline has passed.
            assert exchange(quick.port) == b""
            connection.request("GET", LIST, headers=HEADERS)
            assert connection.getresponse().read()
        assert connection.sock is own, "it was opened again"


@pytest.mark.parametrize(
    "name",
    [
        "anthropic-version", "anthropic-workspace-id", "authorization", "content-encoding",
        "content-type", "host", "idempotency-key", "x-api-key",
    ],
)  # fmt: skip
def test_a_header_that_decides_is_there_once(yard: Yard, name: str) -> None:
    have = {line.partition(":")[0]: line.partition(": ")[2] for line in FIXED}
    line = f"{name}: {have.get(name, 'x')}"
    again = (line,) if name in have else (line, line)
    reply = one_reply(yard.port, head(*again, method="GET"))
    assert reply.status == 400
    assert reply.error()["message"] == f"{name}: the header was sent twice"


def test_beta_values_may_come_in_several_headers(yard: Yard) -> None:
    lines = ("anthropic-beta: a-1", "anthropic-beta: b-2", "connection: close")
    assert one_reply(yard.port, head(*lines, method="GET")).status == 200


def test_blanks_around_a_value_are_no_part_of_it() -> None:
    """RFC 9110 section 5.5: SP and HTAB, and no other bytes."""
    seen: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(value for name, value in scope["headers"] if name == b"x-a")
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    values = ("b", " \tb \t", "b\xa0 ", "b \t c\t", " \t ", "")
    request = head("connection: close", *(f"x-a:{value}" for value in values), method="GET")
    asyncio.run(_served(app, lambda port: exchange(port, request)))
    assert seen == [b"b", b"b", b"b\xa0", b"b \t c", b"", b""]


def test_blanks_after_a_key_do_not_make_another(yard: Yard) -> None:
    batch = yard.create([request("blanks")])
    padded = [f"{line} \t" for line in FIXED]
    data = head(
        "connection: close \t", method="GET", target=f"{BATCHES}/{batch['id']}", fixed=padded
    )
    reply = one_reply(yard.port, data)
    assert (reply.status, json.loads(reply.body)["id"]) == (200, batch["id"])


def test_what_a_request_says_of_a_proxy_is_not_believed(yard: Yard) -> None:
    """Its address is 127.0.0.1, as that of a proxy on this machine would be."""
    batch = yard.create([request("proxied")])
    path = f"{BATCHES}/{batch['id']}"
    yard.wait_ended(batch["id"])
    said = {
        "forwarded": "for=192.0.2.1;host=evil.example;proto=https",
        "x-forwarded-for": "192.0.2.1",
        "x-forwarded-host": "evil.example",
        "x-forwarded-proto": "https",
    }
    assert yard.get(path, **said).json()["results_url"] == f"{yard.url}{path}/results"


def test_http_1_0_is_refused_since_a_cut_of_results_would_pass_for_their_end(yard: Yard) -> None:
    batch = yard.create([request("old")])
    path = f"{BATCHES}/{batch['id']}/results"
    yard.wait_ended(batch["id"])
    for lines in ((), ("connection: keep-alive",), ("connection: upgrade", "upgrade: h2c")):
        data = head(*lines, method="GET", target=path).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        reply = one_reply(yard.port, data)
        assert (reply.status, reply.error()["message"]) == (400, "HTTP/1.1 is needed")
        assert reply.headers["connection"] == "close"
        assert "transfer-encoding" not in reply.headers


# Requests in a row ----------------------------------------------------------------------------


def test_requests_in_a_row_are_answered_in_order(yard: Yard) -> None:
    unknown = head(method="GET", target="/unknown")
    found = replies(exchange(yard.port, GET + unknown + GET + LAST))
    assert [reply.status for reply in found] == [200, 404, 200, 200]


def test_a_refusal_comes_after_the_answers_to_earlier_requests(yard: Yard) -> None:
    found = replies(exchange(yard.port, GET + GET + b"no HTTP\r\n\r\n" + GET))
    assert [reply.status for reply in found] == [200, 200, 400]


def test_a_bad_body_is_refused_after_the_answers_to_earlier_requests(yard: Yard) -> None:
    bad = head("transfer-encoding: chunked") + b"2\r\n{}\r\nzz\r\n"
    for earlier in (1, 3):
        found = replies(exchange(yard.port, GET * earlier + bad))
        assert [reply.status for reply in found] == [200] * earlier + [400]


def test_a_body_that_nobody_reads_does_not_become_a_request(yard: Yard) -> None:
    smuggled = LAST
    request = head(f"content-length: {len(smuggled)}", target="/unknown") + smuggled
    found = replies(exchange(yard.port, request + LAST))
    assert [reply.status for reply in found] == [404, 200]


def test_a_body_that_nobody_reads_is_not_waited_for(quick: Yard) -> None:
    asked = head("content-length: 100", target="/unknown")
    assert reply_in_time(quick.port, asked).status == 404


def test_a_refused_request_that_announces_its_body_is_closed(yard: Yard) -> None:
    """Whether the body comes now is for the client to decide: the next byte means nothing."""
    lines = ("expect: 100-continue", "content-length: 2")
    reply = one_reply(yard.port, head(*lines, target="/unknown"))
    assert (reply.status, reply.headers["connection"]) == (404, "close")


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.3"])
def test_another_protocol_is_not_taken(yard: Yard, protocol: str) -> None:
    lines = (f"upgrade: {protocol}", "connection: Upgrade, HTTP2-Settings", "http2-settings: AAMA")
    body = b"{}"
    post = head(*lines, f"content-length: {len(body)}") + body
    found = replies(exchange(yard.port, head(*lines, method="GET", target=LIST) + post + LAST))
    assert [reply.status for reply in found] == [200, 400, 200]
    assert found[1].error()["message"] == "requests: Field required", "its body was read"


def test_trailers_are_no_headers(yard: Yard) -> None:
    fixed = [line for line in FIXED if "api-key" not in line]
    chunked = head("transfer-encoding: chunked", fixed=fixed) + b"2\r\n{}\r\n0\r\n"
    found = replies(exchange(yard.port, chunked + b"x-api-key: k\r\n\r\n" + LAST))
    assert [reply.status for reply in found] == [401, 200]
    flood = b"".join(b"x-%d: y\r\n" % n for n in range(5_000))
    received = exchange(yard.port, head("transfer-encoding: chunked") + b"2\r\n{}\r\n0\r\n" + flood)
    assert received == b"" or replies(received)[0].status in {400, 431}


def test_a_bad_chunk_ends_the_request(yard: Yard) -> None:
    reply = one_reply(yard.port, head("transfer-encoding: chunked") + b"2\r\n{}\r\nzz\r\n")
    assert reply.status == 400
    assert "chunk size" in reply.error()["message"]


# The body -------------------------------------------------------------------------------------


def test_a_body_that_comes_too_slowly_is_400(quick: Yard) -> None:
    """The bound is put so high that any client is slow."""

    def drip() -> bytes:
        with closing(socket.create_connection(("127.0.0.1", quick.port), DEADLINE_S)) as connection:
            connection.settimeout(0.02)
            received = b""
            with contextlib.suppress(ConnectionError):
                connection.sendall(head("transfer-encoding: chunked"))
                is_open = True
                while is_open and not received:
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        connection.sendall(b"1\r\n \r\n")
                    with contextlib.suppress(TimeoutError):
                        received = connection.recv(65_536)
                        is_open = bool(received)
                connection.settimeout(DEADLINE_S)
                while part := connection.recv(65_536):
                    received += part
            return received

    (reply,) = replies(poll(drip, lambda: "it always closes without a word"))
    assert (reply.status, reply.headers["connection"]) == (400, "close")
    error = reply.error()
    assert "too slowly" in error["message"]
    assert error["details"] == {"error_code": "request_body_timeout"}
    assert quick.files() == []


# Connections ----------------------------------------------------------------------------------


def test_the_newest_connection_is_refused_when_there_are_too_many(quick: Yard) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(closing(answered(quick)))
        reply = one_reply(quick.port)
        assert (reply.status, reply.error()["type"]) == (529, "overloaded_error")
        assert reply.headers["retry-after"] == "5"
        # Those that are open go on.
        connection.request("GET", LIST, headers=HEADERS)
        assert connection.getresponse().status == 200
    assert quick.read_log().count("more are refused") == 1


# What the application may do ------------------------------------------------------------------


async def _served(app: Any, client: Callable[[int], bytes]) -> bytes:
    """Serve an application to a client, which is given the port; return what it got."""
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=0)
    config.load()
    state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Protocol(config, state, {}), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        return await asyncio.to_thread(client, port)
    finally:
        server.close()
        for task in list(state.tasks):
            await task


async def _start(send: Any, length: int) -> None:
    headers = [(b"content-length", b"%d" % length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


def test_the_application_can_drop_the_connection() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"][ABORT]()

    assert asyncio.run(_served(app, lambda port: exchange(port, GET))) == b""


def test_a_connection_is_idle_again_after_a_body_that_nobody_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is closed as an idle one is, at once here, and not when the body would have been late."""
    monkeypatch.setattr(limits, "UNREAD_TIMEOUT_S", 10 * DEADLINE_S)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def client(port: int) -> bytes:
        with closing(socket.create_connection(("127.0.0.1", port), DEADLINE_S)) as connection:
            connection.sendall(head("content-length: 2"))
            received = b""
            while not received.endswith(b"\r\n\r\n"):
                received += connection.recv(65_536)
            connection.sendall(b"{}")
            return connection.recv(65_536)

    assert asyncio.run(_served(app, client)) == b""


def test_a_bad_body_under_a_begun_answer_cuts_the_answer() -> None:
    """A second answer would be read as a part of the first."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await _start(send, 8)
        while (await receive())["type"] != "http.disconnect":
            pass

    def client(port: int) -> bytes:
        with closing(socket.create_connection(("127.0.0.1", port), DEADLINE_S)) as connection:
            connection.sendall(head("transfer-encoding: chunked") + b"2\r\n{}\r\n")
            received = b""
            while not received.endswith(b"half"):
                received += connection.recv(65_536)
            connection.sendall(b"zz\r\n")
            with contextlib.suppress(ConnectionResetError):
                received += connection.recv(65_536)
            return received

    received = asyncio.run(_served(app, client))
    assert received.endswith(b"\r\n\r\nhalf")


def test_pieces_of_a_body_arrive_whole_and_in_order() -> None:
    bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        bodies.append(body)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    pieces = [b"%d," % n for n in range(50_000)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    request = head("transfer-encoding: chunked", "connection: close") + chunks + b"0\r\n\r\n"
    asyncio.run(_served(app, lambda port: exchange(port, request)))
    assert bodies == [b"".join(pieces)]


def test_a_refusal_has_the_frame_of_every_answer(yard: Yard) -> None:
    reply: Reply = one_reply(yard.port, b"no HTTP\r\n\r\n")
    other = yard.get("/unknown").headers
    for name in ("batchyard-version", "content-type"):
        assert reply.headers[name] == other[name]
    assert reply.headers["date"]
    assert json.loads(reply.body)["request_id"].startswith("req_01")
