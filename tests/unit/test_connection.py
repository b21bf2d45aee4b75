"""One connection to an upstream: framing, bounds, and when another request may follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits
from batchyard.upstream import Failure, FailureKind
from batchyard.upstream.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
CLOSED = b"HTTP/1.1 200 OK\r\n\r\nok"


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.unsent = 0
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, parts: Any) -> None:
        self.written += b"".join(parts)

    def get_extra_info(self, _name: str) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class Heard:
    """An exchange that keeps what it is told."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[bytes, bytes] = {}
        self.body = b""
        self.ended: Failure | bool | None = None

    def begin(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        assert not self.status
        self.status, self.headers = status, headers

    def feed(self, data: bytes) -> None:
        assert self.ended is None
        self.body += data

    def end(self, failure: Failure | None) -> None:
        assert self.ended is None
        self.ended = failure or True


class Side:
    """A connection, its wire, and how often it was given back."""

    def __init__(self) -> None:
        self.given_back = 0
        self.held: list[Callable[[], None]] | None = None
        """What is to be done soon; None if that is at once."""
        self.wire = Wire()
        self.connection = Connection(self._count, self._soon, lambda _: None)
        self.connection.connection_made(self.wire)  # type: ignore[arg-type]

    def _count(self, _connection: Connection) -> None:
        self.given_back += 1

    def _soon(self, call: Callable[[], None]) -> None:
        if self.held is None:
            call()
        else:
            self.held.append(call)

    def go_on(self) -> None:
        """Let happen what was to be done soon."""
        held, self.held = self.held or [], None
        for call in held:
            call()

    def ask(self, *pieces: bytes, then_close: bool = False) -> Heard:
        heard = Heard()
        self.connection.send(b"POST / HTTP/1.1\r\n\r\n", b"body", heard)
        for piece in pieces:
            self.connection.data_received(piece)
        if then_close:
            self.connection.connection_lost(None)
        return heard


@pytest.mark.parametrize("reply", [OK, CHUNKED])
@given(st.data())
def test_a_reply_is_the_same_wherever_the_network_cuts_it(
    reply: bytes, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(reply) - 1))))
    pieces = [reply[a:b] for a, b in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
    side = Side()

    for _ in range(2):
        heard = side.ask(*pieces)
        assert (heard.status, heard.body, heard.ended) == (200, b"ok", True)

    assert side.given_back == 2
    assert side.wire.written == b"POST / HTTP/1.1\r\n\r\nbody" * 2


def test_a_request_is_sent_a_moment_later_unless_it_was_given_up() -> None:
    side = Side()
    side.held = []
    heard = side.ask()
    assert not side.wire.written
    side.go_on()
    assert side.wire.written == b"POST / HTTP/1.1\r\n\r\nbody"
    side.connection.data_received(OK)
    assert (heard.body, side.given_back) == (b"ok", 1)

    side.held = []
    given_up = side.ask()
    side.connection.drop(given_up)
    side.go_on()
    assert side.wire.written == b"POST / HTTP/1.1\r\n\r\nbody"
    assert side.wire.aborted


@pytest.mark.parametrize("is_used", [False, True])
def test_a_reply_that_comes_before_its_request_was_sent_is_none(is_used: bool) -> None:
    side = Side()
    if is_used:
        side.ask(OK)
    given_back, written = side.given_back, side.wire.written
    side.held = []
    heard = side.ask(OK)
    side.go_on()

    assert isinstance(heard.ended, Failure)
    assert heard.ended.kind is (FailureKind.STALE if is_used else FailureKind.BROKEN)
    assert heard.status == 0
    assert side.wire.aborted
    assert (side.given_back, side.wire.written) == (given_back, written)


def test_a_connection_whose_server_waited_too_long_carries_nothing_more() -> None:
    """The reply to the request may still come, and would be taken for that to the next one."""
    side = Side()
    heard = side.ask(OK.replace(b"200 OK", b"408 Request Timeout"))

    assert (heard.status, heard.ended) == (408, True)
    assert side.wire.aborted
    assert not side.given_back


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    side = Side()

    heard = side.ask(CLOSED)
    assert heard.ended is None
    side.connection.connection_lost(None)

    assert (heard.body, heard.ended) == (b"ok", True)
    assert not side.given_back


@pytest.mark.parametrize("reply", [OK[:-1], CHUNKED[:-5], b"", b"HTTP/1.1 200"])
def test_a_reply_that_is_cut_is_no_reply(reply: bytes) -> None:
    heard = Side().ask(*([reply] if reply else []), then_close=True)

    assert isinstance(heard.ended, Failure)
    assert heard.ended.kind is FailureKind.BROKEN
    assert "closed" in heard.ended.text


@pytest.mark.parametrize(
    ("earlier", "piece", "kind"),
    [
        (1, b"", FailureKind.STALE),
        (2, b"", FailureKind.STALE),
        (0, b"", FailureKind.BROKEN),
        (1, b"H", FailureKind.BROKEN),
        (1, b"HTTP/1.1 100 Continue\r\n\r\n", FailureKind.BROKEN),
        (1, OK[:-1], FailureKind.BROKEN),
    ],
)
@pytest.mark.parametrize("error", [None, ConnectionResetError("reset")], ids=["closed", "reset"])
def test_only_a_used_connection_that_ends_without_a_byte_was_stale(
    earlier: int, piece: bytes, kind: FailureKind, error: Exception | None
) -> None:
    side = Side()
    for _ in range(earlier):
        assert side.ask(OK).ended is True

    heard = side.ask(*([piece] if piece else []))
    side.connection.connection_lost(error)

    assert isinstance(heard.ended, Failure)
    assert heard.ended.kind is kind


def test_interim_replies_are_passed_over() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    side = Side()

    heard = side.ask(b"HTTP/1.1 100 Continue\r\n\r\n" + interim + OK)

    assert (heard.status, heard.body, heard.ended) == (200, b"ok", True)
    assert b"link" not in heard.headers
    assert side.given_back == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20,
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_ends_the_connection(reply: bytes) -> None:
    side = Side()

    heard = side.ask(reply)

    assert isinstance(heard.ended, Failure)
    assert heard.ended.kind is FailureKind.BROKEN
    assert side.wire.aborted


@pytest.mark.parametrize(
    "endless", [b"x-a: " + b"b" * 1_000 + b"\r\n", b"b" * 1_000], ids=["headers", "one header"]
)
def test_an_endless_head_is_cut_off(endless: bytes) -> None:
    side = Side()
    heard = side.ask(b"HTTP/1.1 200 OK\r\nx: ")

    fed = 0
    while heard.ended is None and fed < 2 * limits.UPSTREAM_HEAD_BYTES_MAX:
        side.connection.data_received(endless)
        fed += len(endless)

    assert isinstance(heard.ended, Failure)
    assert "head of the reply is over" in heard.ended.text


@pytest.mark.parametrize(
    "reply",
    [
        OK + b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother",
        OK + b"garbage",
        OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
def test_nothing_follows_a_reply_after_which_something_is_odd(reply: bytes) -> None:
    side = Side()

    heard = side.ask(reply)

    assert (heard.body, heard.ended) == (b"ok", True)
    assert not side.given_back
    assert side.wire.aborted


def test_nothing_follows_while_the_request_is_not_out_yet() -> None:
    side = Side()
    side.wire.unsent = 1

    assert side.ask(OK).ended is True
    assert not side.given_back
    assert side.wire.aborted


def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    side = Side()
    side.ask(OK)

    side.connection.data_received(OK)

    assert side.wire.aborted


def test_dropping_an_exchange_closes_its_connection_and_no_other() -> None:
    side = Side()
    first = side.ask(OK)
    second = side.ask(OK[:20])

    side.connection.drop(first)
    assert not side.wire.aborted
    side.connection.drop(second)

    assert side.wire.aborted
    assert second.ended is None


def test_a_connection_that_reads_nothing_is_not_used_again() -> None:
    side = Side()
    heard = side.ask()
    side.connection.pause()

    side.connection.data_received(OK)

    assert heard.ended is True
    assert not side.given_back


def test_trailers_are_bounded_and_say_nothing() -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n"
    heard = Side().ask(head + b"retry-after: 9\r\n\r\n")
    assert heard.ended is True
    assert b"retry-after" not in heard.headers

    side = Side()
    flooded = side.ask(head)
    for _ in range(1_000):
        if flooded.ended is None:
            side.connection.data_received(b"x-a: " + b"b" * 1_000 + b"\r\n")
    assert isinstance(flooded.ended, Failure)
    assert "trailers of the reply are over" in flooded.ended.text


def test_a_long_body_is_no_flood_of_trailers() -> None:
    side = Side()
    heard = side.ask(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    for _ in range(1_000):
        side.connection.data_received(b"b" * 1_000)

    assert heard.ended is True
    assert len(heard.body) == 1_000_000


def test_a_status_that_is_none_is_not_http() -> None:
    heard = Side().ask(b"HTTP/1.1 000 Odd\r\ncontent-length: 0\r\n\r\n")

    assert isinstance(heard.ended, Failure)
    assert heard.ended.kind is FailureKind.BROKEN
