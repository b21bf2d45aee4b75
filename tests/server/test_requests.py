"""What is refused, how, and that nothing of it stays: heads, bodies, limits."""

from __future__ import annotations

import contextlib
import json
import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from helpers_upstream import DEADLINE_S
from helpers_yard import BATCHES, HEADERS, KEY, Answer, Yard, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers_upstream import Upstream

GOOD = json.dumps({"requests": [request("good")]}).encode()


def error_of(answer: Answer) -> dict[str, Any]:
    body = answer.json()
    assert list(body) == ["type", "error", "request_id"]
    assert body["request_id"] == answer.headers["request-id"]
    error: dict[str, Any] = body["error"]
    return error


def without(name: str, **more: str) -> dict[str, str]:
    headers = {key: value for key, value in HEADERS.items() if key != name}
    return headers | {key.replace("_", "-"): value for key, value in more.items()}


# Heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        HEADERS,
        without("x-api-key", authorization=f"Bearer {KEY}"),
        without("x-api-key", authorization=f"bearer  {KEY}"),
        HEADERS | {"authorization": f"Bearer {KEY}"},
        without("anthropic-version", anthropic_version="2026-10-21"),
        without("anthropic-version", anthropic_version="2023-01-01"),
        without("content-type"),
        without("content-type", content_type="application/json; charset=utf-8"),
        without("content-type", content_type='Application/JSON;charset="UTF-8"'),
        HEADERS | {"anthropic-beta": "string"},
        HEADERS | {"anthropic-beta": "output-300k-2026-03-24, other-2026-01-01"},
        HEADERS | {"accept": "application/binary"},
        HEADERS | {"anthropic-workspace-id": "wrkspc_011CZkZaBF1tNoB5wlCeusgy"},
        HEADERS | {"anthropic-user-profile-id": "anthropic-user-profile-id"},
        HEADERS | {"content-encoding": "identity"},
    ],
)
def test_both_generations_of_heads_are_accepted(yard: Yard, headers: dict[str, str]) -> None:
    answer = yard.post(BATCHES, GOOD, headers)
    assert answer.status == 200, answer.body


@pytest.mark.parametrize(
    ("headers", "status", "text"),
    [
        (without("x-api-key"), 401, "x-api-key header is required"),
        (without("x-api-key", x_api_key=""), 401, "x-api-key header is required"),
        (without("x-api-key", authorization="Basic abc"), 401, "x-api-key header is required"),
        (without("x-api-key") | {"x_api_key": KEY}, 401, "x-api-key header is required"),
        (HEADERS | {"authorization": "Bearer other"}, 401, "different keys"),
        (without("x-api-key", x_api_key="k" * 513), 401, "API key is invalid"),
        (without("anthropic-version"), 400, "anthropic-version: header is required"),
        (without("anthropic-version", anthropic_version="2099-01-01"), 400, "not a known version"),
        (without("anthropic-version", anthropic_version=""), 400, "not a known version"),
        (HEADERS | {"anthropic-beta": "a b"}, 400, "anthropic-beta"),
        (HEADERS | {"anthropic-beta": "x" * 129}, 400, "anthropic-beta"),
        (HEADERS | {"anthropic-beta": ",".join(f"b{n}" for n in range(33))}, 400, "anthropic-beta"),
        (HEADERS | {"content-encoding": "gzip"}, 400, "content-encoding"),
        (without("content-type", content_type="text/plain"), 400, "content-type"),
        (without("content-type", content_type="application/json;charset=utf-16"), 400, "charset"),
        (without("content-type", content_type="multipart/form-data"), 400, "content-type"),
        (HEADERS | {"origin": "http://evil.example"}, 403, "web pages"),
        (HEADERS | {"origin": "null"}, 403, "web pages"),
    ],
)
def test_bad_heads_are_refused(yard: Yard, headers: dict[str, str], status: int, text: str) -> None:
    before = len(yard.get(f"{BATCHES}?limit=1000").json()["data"])
    answer = yard.post(BATCHES, GOOD, headers)
    assert answer.status == status
    error = error_of(answer)
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"}
    assert error["type"] == kinds[status]
    assert text in error["message"]
    assert KEY not in answer.body.decode()
    assert before == len(yard.get(f"{BATCHES}?limit=1000").json()["data"])


@pytest.mark.parametrize("path", [BATCHES, f"{BATCHES}/x", f"{BATCHES}/x/results", "/v1/models"])
def test_every_endpoint_wants_a_key_and_a_version(yard: Yard, path: str) -> None:
    assert yard.request("GET", path, headers={"anthropic-version": "2023-06-01"}).status == 401
    assert yard.request("GET", path, headers={"x-api-key": KEY}).status == 400


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "",
        "[",
    ],
)
def test_a_foreign_host_is_refused(yard: Yard, host: str) -> None:
    answer = yard.get(BATCHES, host=host)
    assert answer.status == 400
    assert error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8787"])
def test_loopback_names_are_hosts_and_stand_in_results_url(yard: Yard, host: str) -> None:
    batch_id = yard.create([request("host")])["id"]
    yard.wait_ended(batch_id)
    answer = yard.get(f"{BATCHES}/{batch_id}", host=host)
    assert answer.json()["results_url"] == f"http://{host}{BATCHES}/{batch_id}/results"


def test_a_browser_may_not_post_but_a_get_needs_no_origin_check(yard: Yard) -> None:
    assert yard.get(BATCHES, origin="http://evil.example").status == 200
    assert yard.request("DELETE", f"{BATCHES}/x", headers=HEADERS | {"origin": "x"}).status == 403


# Raw bytes ------------------------------------------------------------------------------------


def exchange(yard: Yard, data: bytes) -> bytes:
    """Send bytes and return all that comes until the yard closes."""
    with closing(socket.create_connection(("127.0.0.1", yard.port), DEADLINE_S)) as connection:
        # A body that is refused unread breaks the pipe; the answer is there all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65_536):
                received += part
        return received


def head(*lines: str, method: str = "POST") -> bytes:
    fixed = (f"{method} {BATCHES} HTTP/1.1", "host: 127.0.0.1", f"x-api-key: {KEY}")
    return "\r\n".join([*fixed, "anthropic-version: 2023-06-01", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    "data",
    [
        head("content-length: 5", "content-length: 6", "connection: close") + b"hello!",
        head("content-length: 5", "transfer-encoding: chunked", "connection: close") + b"0\r\n\r\n",
        head("content-length: -1", "connection: close"),
        head("content-length: +3", "connection: close") + b"abc",
        head("transfer-encoding: xchunked", "connection: close") + b"0\r\n\r\n",
        head("host: other", "content-length: 0", "connection: close"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_ambiguous_framing_is_never_accepted(yard: Yard, data: bytes) -> None:
    received = exchange(yard, data)
    assert received == b"" or received.startswith(b"HTTP/1.1 400 ")


def test_a_declared_length_over_the_cap_is_refused_before_the_body(yard: Yard) -> None:
    """Not one byte of the body is sent, and `100 Continue` is not given."""
    declared = f"content-length: {256 * 1024 * 1024 + 1}"
    received = exchange(yard, head(declared, "expect: 100-continue"))
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in received.lower()
    body = json.loads(received.partition(b"\r\n\r\n")[2])
    assert body["error"]["type"] == "request_too_large"


def test_expect_continue_is_answered(yard: Yard) -> None:
    lines = (f"content-length: {len(GOOD)}", "expect: 100-continue", "connection: close")
    received = exchange(yard, head(*lines) + GOOD)
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


def test_a_body_that_ends_early_leaves_nothing(bad_yard: Yard) -> None:
    for cut in (0, 1, len(GOOD) // 2, len(GOOD) - 1):
        address = ("127.0.0.1", bad_yard.port)
        with closing(socket.create_connection(address, DEADLINE_S)) as connection:
            connection.sendall(head(f"content-length: {len(GOOD)}") + GOOD[:cut])
    assert bad_yard.get(BATCHES).json()["data"] == []
    assert bad_yard.files() == []


# Bodies ---------------------------------------------------------------------------------------


def entry(**fields: object) -> bytes:
    return json.dumps({"requests": [request("fine"), fields]}).encode()


PARAMS = request("x")["params"]
JSON = "The request body is not valid JSON: "
BAD_BODIES = {
    "empty": (b"", JSON),
    "cut": (GOOD[:-1], JSON),
    "two documents": (GOOD + GOOD, JSON),
    "trailing comma": (GOOD[:-2] + b",]}", JSON),
    "comment": (b"/* */" + GOOD, JSON),
    "not utf-8": (GOOD.replace(b"good", b"\xff\xfe"), JSON),
    "cut utf-8": (GOOD[:-2] + b"\xe2\x82", JSON),
    "utf-16": (GOOD.decode().encode("utf-16"), JSON),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, JSON),
    "control character": (GOOD.replace(b"good", b"go\x01od"), JSON),
    "lone surrogate": (GOOD.replace(b"good", rb"\ud800"), JSON),
    "NaN": (GOOD.replace(b"100", b"NaN"), JSON),
    "deep": (b'{"requests":' + b"[" * 500_000, JSON),
    "list": (b"[]", "Input should be a valid dictionary"),
    "string": (b'"requests"', "Input should be a valid dictionary"),
    "no requests": (b"{}", "requests: Field required"),
    "extra key": (b'{"requests":[],"model":"m"}', "model: Extra inputs are not permitted"),
    "null requests": (b'{"requests":null}', "requests: Input should be a valid list"),
    "object requests": (b'{"requests":{}}', "requests: Input should be a valid list"),
    "no request": (
        b'{"requests":[]}',
        "requests: List should have at least 1 item after validation, not 0",
    ),
    "request is text": (b'{"requests":["x"]}', "requests.0: Input should be a valid dictionary"),
    "no id": (entry(params=PARAMS), "requests.1.custom_id: Field required"),
    "number id": (entry(custom_id=1, params=PARAMS), "requests.1.custom_id: Input should be"),
    "empty id": (
        entry(custom_id="", params=PARAMS),
        "requests.1.custom_id: String should have at least 1 character",
    ),
    "long id": (
        entry(custom_id="x" * 65, params=PARAMS),
        "requests.1.custom_id: String should have at most 64 characters",
    ),
    "space in id": (
        entry(custom_id="a b", params=PARAMS),
        "requests.1.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'",
    ),
    "line end in id": (
        entry(custom_id="ab\n", params=PARAMS),
        "requests.1.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'",
    ),
    "two ids in one": (
        entry(custom_id="a\nb", params=PARAMS),
        "requests.1.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'",
    ),
    "other digits in id": (
        entry(custom_id="٣", params=PARAMS),
        "requests.1.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'",
    ),
    "slash in id": (
        entry(custom_id="../x", params=PARAMS),
        "requests.1.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'",
    ),
    "repeated id": (
        entry(custom_id="fine", params=PARAMS),
        "requests: custom_id's must be unique within a batch. Duplicate custom_id found: fine",
    ),
    "no params": (entry(custom_id="x"), "requests.1.params: Field required"),
    "null params": (
        entry(custom_id="x", params=None),
        "requests.1.params: Input should be a valid dictionary",
    ),
    "list params": (
        entry(custom_id="x", params=[]),
        "requests.1.params: Input should be a valid dictionary",
    ),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_body_is_400_and_leaves_nothing(bad_yard: Yard, case: str) -> None:
    body, text = BAD_BODIES[case]
    answer = bad_yard.post(BATCHES, body)
    assert answer.status == 400, answer.body
    error = error_of(answer)
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(text)
    assert bad_yard.files() == []
    assert bad_yard.get(BATCHES).json()["data"] == []


@pytest.fixture(scope="module")
def bad_yard(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """A yard that never accepts a batch, with a small cap on bodies."""
    data = tmp_path_factory.mktemp("bad") / "data"
    bounds = {
        "limits:BATCH_BODY_BYTES_MAX": 1 << 20,
        "limits:BATCH_REQUESTS_MAX": 1_000,
        "limits:MESSAGE_BODY_BYTES_MAX": 1 << 16,
        "limits:UNREAD_TIMEOUT_S": 1.0,
    }
    with Yard(data, upstream.url, bounds=bounds) as yard:
        yield yard
        log = yard.read_log()
        assert "Traceback" not in log, log


def test_a_chunked_body_over_the_cap_is_413(bad_yard: Yard) -> None:
    chunked = head("transfer-encoding: chunked")
    piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    received = exchange(bad_yard, chunked + piece * 17)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["type"] == "request_too_large"
    assert bad_yard.files() == []


def test_a_chunked_body_at_the_cap_is_read(bad_yard: Yard) -> None:
    chunked = head("transfer-encoding: chunked", "connection: close")
    piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    received = exchange(bad_yard, chunked + piece * 16 + b"0\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400 ")


def test_the_cap_is_on_each_kind_of_body(bad_yard: Yard) -> None:
    assert bad_yard.post(BATCHES, b" " * ((1 << 20) + 1)).status == 413
    assert bad_yard.post("/v1/messages", b" " * ((1 << 16) + 1)).status == 413
    assert bad_yard.post("/v1/messages", b" " * (1 << 16)).status == 400


def test_too_many_requests_in_one_batch_are_400(bad_yard: Yard) -> None:
    many = {"requests": [{"custom_id": f"n{n}", "params": {}} for n in range(1_001)]}
    error = error_of(bad_yard.post(BATCHES, many))
    assert error["message"] == (
        "requests: List should have at most 1000 items after validation, not 1001"
    )


def test_a_body_that_stops_is_400(upstream: Upstream, tmp_path: Path) -> None:
    bounds = {"server.guard:BODY_IDLE_S": 0.2}
    with Yard(tmp_path / "data", upstream.url, bounds=bounds) as yard:
        received = exchange(yard, head("content-length: 100", "connection: close") + b"{")
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"stopped" in received


# Per request ----------------------------------------------------------------------------------


UNSUPPORTED = {
    "stream": ({"stream": True}, "`stream=True` is not supported in the Message Batches API"),
    "speed": ({"speed": "fast"}, "`speed` is not supported in the Message Batches API"),
    "store": ({"store": False}, "`store` is not supported in the Message Batches API"),
    "thread": (
        {"previous_thread_event_id": "x"},
        "`previous_thread_event_id` is not supported in the Message Batches API",
    ),
    "cache": ({"cache_hint": 1}, "`cache_hint` is not supported in the Message Batches API"),
    "context": ({"context_hint": {}}, "`context_hint` is not supported in the Message Batches API"),
    "preview": (
        {"research_preview_2026_02": "active"},
        "`research_preview_2026_02` is not supported in the Message Batches API",
    ),
    "zero": ({"max_tokens": 0}, "max_tokens: must be greater than or equal to 1"),
    "true": ({"max_tokens": True}, "max_tokens: Input should be a valid integer"),
    "model": ({"model": None}, "model: Input should be a valid string"),
    "messages": ({"messages": "hi"}, "messages: Input should be a valid list"),
    "cap": ({"model": "claude-haiku-4-5", "max_tokens": 9_999_999}, "max_tokens: 9999999 > 64000"),
}


def test_bad_params_are_errored_at_the_end_without_a_call(yard: Yard, upstream: Upstream) -> None:
    entries = [
        request(f"params-{name}", name, **params) for name, (params, _) in UNSUPPORTED.items()
    ]
    fine = {"speed": "standard", "stream": False, "x_unknown": [1], "temperature": 1}
    batch = yard.create([*entries, request("params-fine", "fine", **fine)])
    ended = yard.wait_ended(batch["id"])
    results = yard.results(batch["id"])

    assert ended["request_counts"]["errored"] == len(UNSUPPORTED)
    assert results.pop("fine")["type"] == "succeeded"
    for name, result in results.items():
        assert list(result) == ["type", "error"]
        assert result["type"] == "errored"
        error = result["error"]
        assert (error["type"], error["request_id"]) == ("error", None)
        assert error["error"]["type"] == "invalid_request_error"
        assert error["error"]["message"].startswith(UNSUPPORTED[name][1]), name
    assert upstream.number("params-") == 1


def test_sampling_parameters_depend_on_the_version_of_the_create_call(yard: Yard) -> None:
    headers = {"anthropic-version": "2026-10-21"}
    batch = yard.create([request("sampling", temperature=1)], **headers)
    yard.wait_ended(batch["id"])
    result = yard.results(batch["id"])["sampling"]
    assert result["error"]["error"]["message"] == "temperature: Extra inputs are not permitted"


def test_params_reach_the_upstream_byte_for_byte(yard: Yard, upstream: Upstream) -> None:
    params = (
        '{ "model":"scripted","max_tokens" : 100,\n "x": [1.0, 1e2, 18446744073709551616],'
        '"messages":[{"role":"user","content":"bytes-1"}], "é": "\\u00e9\\u2028" }'
    ).encode()
    body = b'{"requests":[{"custom_id":"bytes-1","params":' + params + b"}]}"
    headers = HEADERS | {"anthropic-beta": "one-1,two-2", "x-secret": "not passed on"}
    batch_id = yard.post(BATCHES, body, headers).json()["id"]
    yard.wait_ended(batch_id)
    (call,) = [call for call in upstream.calls if call.name == "bytes-1"]
    assert call.body == params
    assert call.path == "/v1/messages"
    assert call.headers["anthropic-version"] == "2023-06-01"
    assert call.headers["anthropic-beta"] == "one-1,two-2"
    assert call.headers["content-type"] == "application/json"
    assert KEY not in str(call.headers), "the client's key was sent to the upstream"
    assert "x-secret" not in call.headers
