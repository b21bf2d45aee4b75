"""The wire client: what a failed create means, and transfers that are whole or absent."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchyard.client.answers import (
    RETRY_AFTER_CAP_S,
    ApiError,
    CreateUnknown,
    NotCreated,
    Unreachable,
    retry_after,
)
from batchyard.client.api import Api
from batchyard.client.problems import InputError
from client.fake_api import FakeApi

Peer = Callable[[socket.socket], None]


@contextlib.contextmanager
def peer(behave: Peer) -> Iterator[str]:
    """A server that takes one connection and does with it what a test says."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                behave(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # closing alone does not wake who waits in accept
    listener.close()
    thread.join()


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65_536)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
    while len(body) < length:
        body += connection.recv(65_536)
    return head + b"\r\n\r\n" + body


def answer(connection: socket.socket, status: str, body: bytes = b"", head: str = "") -> None:
    connection.sendall(
        f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode() + body
    )


def create(url: str, body: Path) -> None:
    Api(url, "key", pause=lambda _: True).create(body, "idempotency")


@pytest.fixture
def body(tmp_path: Path) -> Path:
    path = tmp_path / "body.json"
    path.write_bytes(b'{"requests":[]}')
    return path


@pytest.fixture
def large_body(tmp_path: Path) -> Path:
    path = tmp_path / "large.json"
    path.write_bytes(b" " * 20_000_000)
    return path


def test_nobody_listening_means_not_created(body: Path):
    with peer(lambda _: None) as url:
        pass

    with pytest.raises(NotCreated, match="refused") as caught:
        create(url, body)

    assert caught.value.may_retry


def test_a_body_that_was_not_sent_whole_means_not_created(large_body: Path):
    def reset(connection: socket.socket) -> None:
        connection.recv(1_000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with peer(reset) as url, pytest.raises(NotCreated):
        create(url, large_body)


@pytest.mark.parametrize("ending", ["close", "reset", "half"])
def test_no_answer_to_a_whole_body_means_unknown(body: Path, ending: str):
    def behave(connection: socket.socket) -> None:
        read_all(connection)
        if ending == "half":
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
        elif ending == "reset":
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    with peer(behave) as url, pytest.raises(CreateUnknown):
        create(url, body)


@pytest.mark.parametrize("status", ["408", "500", "502", "503", "504", "529"])
def test_an_answer_that_a_proxy_may_have_given_means_unknown(body: Path, status: str):
    def behave(connection: socket.socket) -> None:
        read_all(connection)
        answer(connection, f"{status} No", b"<html>sorry</html>", "retry-after: 7\r\n")

    with peer(behave) as url, pytest.raises(CreateUnknown) as caught:
        create(url, body)

    assert caught.value.retry_in_s == 7


ERROR = b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}'


@pytest.mark.parametrize(
    ("status", "may_retry"),
    [("400", False), ("401", False), ("403", False), ("413", False), ("429", True), ("529", True)],
)
def test_a_refusal_of_the_api_means_not_created(body: Path, status: str, may_retry: bool):
    def behave(connection: socket.socket) -> None:
        read_all(connection)
        answer(connection, f"{status} No", ERROR, "retry-after: 3\r\n")

    with (
        peer(behave) as url,
        pytest.raises(NotCreated, match=f"{status} overloaded_error") as caught,
    ):
        create(url, body)

    assert (caught.value.may_retry, caught.value.retry_in_s) == (may_retry, 3)


@pytest.mark.parametrize("wish", ["nan", "inf", "1_0", "soon", "-5"])
def test_a_wish_to_wait_that_is_no_number_is_none(body: Path, wish: str):
    def behave(connection: socket.socket) -> None:
        read_all(connection)
        answer(connection, "429 No", ERROR, f"retry-after: {wish}\r\nretry-after-ms: {wish}\r\n")

    with peer(behave) as url, pytest.raises(NotCreated) as caught:
        create(url, body)

    assert caught.value.retry_in_s is None


def test_milliseconds_go_before_seconds_and_nobody_waits_for_days(body: Path):
    assert retry_after("1500", "7", 0) == 1.5
    assert retry_after(None, "Thu, 01 Jan 1970 00:01:00 GMT", 0) == 60
    assert retry_after(None, "9999999", 0) == RETRY_AFTER_CAP_S


def test_a_limit_that_will_not_pass_is_not_waited_for(body: Path):
    def behave(connection: socket.socket) -> None:
        read_all(connection)
        answer(connection, "429 No", ERROR, "x-should-retry: false\r\n")

    with peer(behave) as url, pytest.raises(NotCreated) as caught:
        create(url, body)

    assert not caught.value.may_retry


def test_a_redirect_is_not_followed(body: Path):
    def behave(connection: socket.socket) -> None:
        read_all(connection)
        answer(connection, "307 Elsewhere", b"", "location: http://203.0.113.1/\r\n")

    with peer(behave) as url, pytest.raises(NotCreated, match="the key does not follow"):
        create(url, body)


def test_the_create_call_carries_length_key_and_version(body: Path):
    seen: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        seen.append(read_all(connection))

    with peer(behave) as url, pytest.raises(CreateUnknown):
        create(url, body)

    head, _, sent = seen[0].partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert sent == body.read_bytes()
    assert "transfer-encoding" not in head.decode().lower()
    for line in ("content-length: 15", "idempotency-key: idempotency", "x-api-key: key",
                 "anthropic-version: 2023-06-01", "content-type: application/json"):  # fmt: skip
        assert line in lines


def test_reads_are_repeated_and_wait_as_long_as_the_server_wishes(server: FakeApi):
    waits: list[float] = []
    server.fail("list", 500, "drop", 503)

    Api(server.url, "k", pause=lambda s: bool(waits.append(s))).list_page()

    assert len(waits) == 3
    assert waits == sorted(waits)


def test_reads_that_are_refused_are_not_repeated(server: FakeApi):
    server.fail("list", 403)

    with pytest.raises(ApiError, match="403 api_error: fault 403"):
        Api(server.url, "k", pause=lambda _: False).list_page()

    assert len(server.calls) == 1


def test_a_server_that_is_not_the_api_is_named(tmp_path: Path):
    def behave(connection: socket.socket) -> None:
        connection.recv(65_536)
        answer(connection, "200 OK", b"<html>")

    with peer(behave) as url, pytest.raises(Unreachable, match="not the API"):
        Api(url, "k", pause=lambda _: True).list_page()


def test_a_cut_transfer_never_becomes_a_file(server: FakeApi, tmp_path: Path):
    batch = server.accept([{"custom_id": "a", "params": {"model": "m"}}])
    server.fail("results", "cut")
    target = tmp_path / "results.jsonl"
    api = Api(server.url, "k")

    with pytest.raises(Unreachable):
        api.download_results(batch.id, target)

    assert not target.exists()
    assert api.download_results(batch.id, target) == target.stat().st_size


def test_only_a_yard_is_asked_for_progress(server: FakeApi):
    batch = server.accept([{"custom_id": "a", "params": {"model": "m"}}])
    api = Api(server.url, "k")
    api.list_page()
    assert api.progress(batch.id) is None

    server.is_yard, server.billing = True, "batch"
    api.list_page()

    assert api.is_yard
    progress = api.progress(batch.id)
    assert progress is not None
    assert progress.billing == "batch"


def test_the_clock_of_the_server_is_known_from_its_answers(server: FakeApi):
    api = Api(server.url, "k", now_us=lambda: int(server.now.timestamp() * 1e6) - 90_000_000)

    api.list_page()

    assert api.skew_us == 90_000_000


@pytest.mark.parametrize(
    "url", ["ftp://x", "localhost:1", "http://", "http://u:p@h", "http://h?a=b"]
)
def test_an_address_that_is_not_one_is_refused(url: str):
    with pytest.raises(InputError, match="base URL"):
        Api(url, "k")
