"""Calls to an upstream over loopback: what is closed when, and what is never sent."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from batchyard import limits
from batchyard.upstream import Failure, FailureKind, Reply, http
from batchyard.upstream.http import Clients, HttpClient
from helpers_ports import Port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

pytestmark = pytest.mark.anyio
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    tasks = set()

    async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    server = await asyncio.start_server(handled, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{port}"
    finally:
        server.close()
        await asyncio.gather(*tasks)


@contextlib.asynccontextmanager
async def calling(url: str, timeout_s: float = 30.0) -> AsyncIterator[HttpClient]:
    client = HttpClient(url, {}, timeout_s=timeout_s)
    try:
        yield client
    finally:
        await client.close()


async def test_a_call_that_is_given_up_has_its_connection_closed_at_once() -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        asked.set()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        closed.set()

    async with serving(silent) as url, calling(url) as client:
        task = asyncio.create_task(client.post(client.head("POST", "/", {}), b"body"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(20):
            await closed.wait()


async def test_a_call_that_takes_too_long_is_a_timeout_and_is_closed() -> None:
    closed = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        closed.set()

    async with serving(silent) as url, calling(url, timeout_s=0.2) as client:
        outcome = await client.post(client.head("POST", "/", {}), b"body")
        assert outcome == Failure(FailureKind.TIMEOUT, "the whole call took over 0.2 s")
        async with asyncio.timeout(20):
            await closed.wait()


@pytest.fixture
def _long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no connection grow old, or be closed late, because this process was stopped."""
    monkeypatch.setattr(limits, "UPSTREAM_IDLE_CONNECTION_S", 3_600.0)
    monkeypatch.setattr(limits, "UPSTREAM_STALE_S", 3_600.0)


@pytest.mark.usefixtures("_long")
async def test_calls_in_a_row_share_a_connection_and_calls_at_once_do_not() -> None:
    connections = 0
    both = asyncio.Barrier(2)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while data := await reader.readuntil(b"body"):
            if b"/both" in data:
                await both.wait()
            writer.write(OK)

    async with serving(serve) as url, calling(url) as client:
        one, two = client.head("POST", "/one", {}), client.head("POST", "/both", {})
        for _ in range(3):
            assert await client.post(one, b"body") == Reply(200, b"ok")
        assert connections == 1
        assert await asyncio.gather(client.post(two, b"body"), client.post(two, b"body"))
        assert connections == 2


@pytest.mark.usefixtures("_long")
async def test_a_call_over_a_used_connection_that_had_been_closed_is_made_anew() -> None:
    """The server reads a second request and closes: as if it had closed before it came."""
    heard = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"body"))
        writer.write(OK)
        await reader.readuntil(b"body")

    async with serving(serve) as url, calling(url) as client:
        head = client.head("POST", "/", {})
        assert await client.post(head, b"body") == Reply(200, b"ok")
        outcome = await client.post(head, b"body")
        assert isinstance(outcome, Failure)
        assert outcome.kind is FailureKind.STALE
        assert await client.post(head, b"body") == Reply(200, b"ok")
        assert await client.post(head, b"body", anew=True) == Reply(200, b"ok")
    assert len(heard) == 3


@pytest.mark.usefixtures("_long")
async def test_a_used_connection_that_is_closed_late_was_not_stale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "UPSTREAM_STALE_S", 0.0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        writer.write(OK)
        await reader.readuntil(b"body")

    async with serving(serve) as url, calling(url) as client:
        head = client.head("POST", "/", {})
        await client.post(head, b"body")
        outcome = await client.post(head, b"body")
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.BROKEN


async def test_what_nobody_wants_any_more_is_not_sent() -> None:
    heard = b""

    async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard += await reader.read()

    async with serving(serve) as url, calling(url) as client:
        outcome = await client.post(client.head("POST", "/", {}), b"body", wanted=lambda: False)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.UNWANTED
    assert not heard


@pytest.mark.usefixtures("_long")
async def test_who_need_not_wait_for_a_connection_is_not_asked_again_whether_to_send() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"body")
            writer.write(OK)

    asked = 0

    def wanted() -> bool:
        nonlocal asked
        asked += 1
        return True

    async with serving(serve) as url, calling(url) as client:
        for _ in range(2):
            outcome = await client.post(client.head("POST", "/", {}), b"body", wanted=wanted)
            assert isinstance(outcome, Reply)
    assert asked == 1


async def test_a_key_that_an_error_echoes_is_taken_out() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        writer.write(b"HTTP/1.1 401 No\r\ncontent-length: 17\r\n\r\nbad key sk-SECRET")

    async with serving(serve) as url:
        client = HttpClient(url, {"x-api-key": "sk-SECRET"}, timeout_s=9, secret="sk-SECRET")
        outcome = await client.post(client.head("POST", "/", {}), b"body")
        await client.close()

    assert isinstance(outcome, Reply)
    assert outcome.body == b"bad key ***"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_answer_in_a_coding_that_was_not_asked_for_is_none_and_says_so(
    is_streamed: bool,
) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-encoding: %b\r\n"
    kind = b"text/event-stream" if is_streamed else b"application/json"
    codings = iter([b"gzip", b"Identity"])
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"body"))
        writer.write(head % (kind, next(codings)) + b"content-length: 2\r\n\r\nok")

    async with serving(serve) as url, calling(url) as client:
        call = client.head("POST", "/", {})
        coded = await client.post(call, b"body", is_streamed=is_streamed)
        plain = await client.post(call, b"body", anew=True)

    assert all(b"accept-encoding: identity\r\n" in each for each in asked)
    assert isinstance(coded, Failure)
    assert coded == Failure(
        FailureKind.BROKEN, "its answer is coded with gzip, which was not asked for"
    )
    assert isinstance(plain, Reply)
    assert plain.body == b"ok"


async def test_a_server_that_is_not_there_was_sent_nothing() -> None:
    with Port() as nobody:
        async with calling(nobody.url) as client:
            outcome = await client.post(client.head("POST", "/", {}), b"body")

    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.CONNECT


async def test_a_large_body_arrives_whole() -> None:
    body = bytes(range(256)) * 50_000

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        got = await reader.readexactly(len(body))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(got), got))
        await writer.drain()

    async with serving(echo) as url, calling(url) as client:
        assert await client.post(client.head("POST", "/", {}), body) == Reply(200, body)


async def test_unused_connections_are_closed_where_one_more_would_be_too_many() -> None:
    """The oldest of whoever has most of them; those in use stay."""
    open_ones, gate = [0, 0], asyncio.Event()

    def answering(which: int) -> Handler:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            open_ones[which] += 1
            with contextlib.suppress(asyncio.IncompleteReadError):
                while True:
                    await reader.readuntil(b"body")
                    await gate.wait()
                    writer.write(OK)
            open_ones[which] -= 1

        return answer

    async def call(client: HttpClient, number: int) -> None:
        head = client.head("POST", "/", {})
        calls = (client.post(head, b"body") for _ in range(number))
        assert await asyncio.gather(*calls) == [Reply(200, b"ok")] * number

    async with (
        serving(answering(0)) as first_url,
        serving(answering(1)) as second_url,
        calling(first_url) as first,
        calling(second_url) as second,
    ):
        clients = Clients(3)
        first.share(clients)
        second.share(clients)
        gate.set()
        await call(first, 3)
        assert (first.unused, second.unused) == (3, 0)
        await call(second, 2)
        assert (first.unused, second.unused) == (1, 2)
        await call(first, 1)  # it has one
        assert (first.unused, second.unused) == (1, 2)
        gate.clear()
        waiting = asyncio.create_task(call(second, 3))
        while second.connections < 3:
            await asyncio.sleep(0)
        assert first.connections == 0
        gate.set()
        await waiting
        while open_ones != [0, 3]:
            await asyncio.sleep(0)


async def test_calls_that_are_passed_on_count_and_their_connections_grow_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal closed
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"body")
                writer.write(OK)
        closed += 1

    async def pass_on(client: HttpClient) -> None:
        head = client.head("POST", "/", {})
        async with client.stream(head, b"body") as passed:
            assert client.connections == 1
            assert b"".join([piece async for piece in passed.chunks()]) == b"ok"

    monkeypatch.setattr(http, "_SWEEP_S", 0.01)
    async with serving(answer) as url, calling(url) as client:
        client.share(Clients(1))
        await pass_on(client)
        assert (client.connections, client.unused) == (1, 1)
        monkeypatch.setattr(limits, "UPSTREAM_IDLE_CONNECTION_S", 0)
        while not closed:
            await asyncio.sleep(0)
        assert client.connections == 0


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "a\0b"])
def test_no_header_can_hold_another(value: str) -> None:
    client = HttpClient("http://127.0.0.1:1", {}, timeout_s=1)

    with pytest.raises(ValueError, match="line end"):
        client.head("POST", "/", {"anthropic-beta": value})
    with pytest.raises(ValueError, match="not a path"):
        client.head("GET", "/v1/models?x=1 HTTP/1.1", {})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a certificate of 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "upstream")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + built.public_bytes(serialization.Encoding.PEM)
    )
    return path


async def test_a_certificate_is_verified(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    sent = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        sent += await reader.readuntil(b"body")
        writer.write(OK)
        await writer.drain()

    async with serving(serve, tls) as url:
        async with calling(url) as client:
            outcome = await client.post(client.head("POST", "/", {}), b"body")
            assert isinstance(outcome, Failure)
            assert outcome.kind is FailureKind.CONNECT
            assert "CERTIFICATE_VERIFY_FAILED" in outcome.text
            assert not sent
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with calling(url) as client:
            assert await client.post(client.head("POST", "/", {}), b"body") == Reply(200, b"ok")
    assert sent.endswith(b"body")
