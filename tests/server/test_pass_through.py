"""What passes straight through to the upstream: messages, token counts, models."""

from __future__ import annotations

import gzip
import http.client
import json
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from helpers_upstream import SSE, Upstream, message, refuse
from helpers_yard import HEADERS, KEY, QUICK, Yard, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers_upstream import Exchange


def params(prompt: str, **more: object) -> object:
    return request(prompt, **more)["params"]


def test_a_message_passes_unchanged(yard: Yard, upstream: Upstream) -> None:
    body = json.dumps(params("sync-1"), indent=2).encode()
    headers = HEADERS | {"anthropic-beta": "one-1", "anthropic-version": "2026-10-21"}
    answer = yard.post("/v1/messages", body, headers)
    assert answer.status == 200
    assert answer.body == message("sync-1")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["request-id"].startswith("req_01")
    assert answer.headers["upstream-request-id"] == "req_upstream"
    (call,) = [call for call in upstream.calls if call.name == "sync-1"]
    assert call.body == body
    assert call.headers["anthropic-version"] == "2026-10-21"
    assert call.headers["anthropic-beta"] == "one-1"
    assert KEY not in str(call.headers)


def test_an_error_of_the_upstream_passes_with_its_headers(yard: Yard) -> None:
    answer = yard.post("/v1/messages", params("sync-2|429:7"))
    assert answer.status == 429
    assert answer.headers["retry-after"] == "7"
    assert answer.json()["error"] == {"type": "rate_limit_error", "message": "scripted 429"}


def test_an_error_of_the_upstream_has_one_request_id_in_head_and_body(yard: Yard) -> None:
    """Ours; the upstream's is beside it in the head."""
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        answer = yard.post(path, params("sync-8|404"))
        assert answer.status == 404
        assert answer.json() == {
            "type": "error",
            "error": {"type": "not_found_error", "message": "scripted 404"},
            "request_id": answer.headers["request-id"],
        }
        assert answer.headers["request-id"].startswith("req_01")
        assert answer.headers["upstream-request-id"] == "req_upstream"


PASSED_ON = [
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/scripted"),
]


async def want_another_key(exchange: Exchange) -> None:
    """Refuse every call as a server of the dialect does."""
    await refuse(exchange, 401, "")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, "No key for upstream up: set BATCHYARD_UPSTREAM_UP_KEY for the yard"),
        ("sk-up-wrong", "Upstream up refuses the key of the yard"),
    ],
)
def test_a_401_of_the_upstream_is_not_told_of_the_key_of_the_client(
    tmp_path: Path, key: str | None, message: str
) -> None:
    """Official clients raise AuthenticationError at 401, and people change the wrong key."""
    environment = {} if key is None else {"BATCHYARD_UPSTREAM_UP_KEY": key}
    with (
        Upstream(want_another_key) as upstream,
        Yard(tmp_path / "data", upstream.url, bounds=QUICK, environment=environment) as yard,
    ):
        for method, path in PASSED_ON:
            body = json.dumps(params("sync-10")).encode() if method == "POST" else None
            answer = yard.request(method, path, body)
            assert answer.status == 502
            assert answer.json() == {
                "type": "error",
                "error": {"type": "api_error", "message": f"{message} (HTTP 401)"},
                "request_id": answer.headers["request-id"],
            }
            assert answer.headers["x-should-retry"] == "false"
            assert answer.headers["upstream-request-id"] == "req_upstream"


def envelope(message: str) -> bytes:
    """Return an error whose details no decoder gives back as they were."""
    return (
        b'{"type": "error", "error": {"message": "%b", "at":1.10, "n": 12345678901234567890123 },'
        b' "request_id": "req_up"}' % message.encode()
    )


async def answer_odd_errors(exchange: Exchange) -> None:
    """Answer with an odd body, in two pieces, of a type: both in the prompt."""
    name, _, content_type = exchange.call.prompt.partition("|")
    body = ODD[name]
    head = f"HTTP/1.1 500 Scripted\r\ncontent-type: {content_type}\r\n"
    if name == "coded":
        head += "content-encoding: gzip\r\n"
    await exchange.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:20])
    await exchange.send(body[20:])


MOST = 64 << 10
ODD = {
    "details": envelope("x"),
    "largest": envelope("x" * (MOST - len(envelope("")))),
    "larger": envelope("x" * (MOST + 1 - len(envelope("")))),
    "no envelope": b'{"error": "out of memory", "request_id": "req_up"}',
    "no object": b'["type", "error", "request_id"]',
    "no JSON": b'{"type": "error", "error": {}, "request_id": "req_up"',
    "empty": b"",
    "coded": gzip.compress(envelope("x")),
}


@pytest.fixture(scope="module")
def odd_yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    data = tmp_path_factory.mktemp("odd") / "data"
    with Upstream(answer_odd_errors) as upstream, Yard(data, upstream.url, bounds=QUICK) as yard:
        yield yard


@pytest.mark.parametrize("name", ["details", "largest"])
def test_an_error_of_the_upstream_changes_in_its_request_id_only(odd_yard: Yard, name: str) -> None:
    answer = odd_yard.post("/v1/messages", params(f"{name}|application/json; charset=utf-8"))
    assert answer.json()["request_id"] == answer.headers["request-id"]
    error = ODD[name].partition(b'"error": ')[2].partition(b', "request_id"')[0]
    assert error in answer.body


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        *((name, "application/json") for name in ODD if name not in {"details", "largest"}),
        ("details", "text/plain"),
    ],
)
def test_what_is_no_error_of_the_api_passes_byte_for_byte(
    odd_yard: Yard, name: str, content_type: str
) -> None:
    answer = odd_yard.post("/v1/messages", params(f"{name}|{content_type}"))
    assert (answer.status, answer.body) == (500, ODD[name])
    assert answer.headers["content-type"] == content_type
    assert (answer.headers["content-encoding"] == "gzip") == (name == "coded")


def test_a_stream_passes_piece_by_piece(yard: Yard, upstream: Upstream) -> None:
    """The first event is read while the upstream still holds the others back."""
    with closing(yard.connect()) as connection:
        body = json.dumps(params("sync-3|sse:stream", stream=True))
        connection.request("POST", "/v1/messages", body, HEADERS)
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream"
        first = response.read(len(SSE[0]))
        upstream.gate("stream").open()
        assert [first, response.read()] == [SSE[0], SSE[1] + SSE[2]]


def test_a_stream_that_breaks_off_is_noticed(shared_yard: Yard) -> None:
    with closing(shared_yard.connect()) as connection:
        body = json.dumps(params("sync-4|ssecut", stream=True))
        connection.request("POST", "/v1/messages", body, HEADERS)
        response = connection.getresponse()
        with pytest.raises(http.client.IncompleteRead):
            response.read()


def test_a_client_that_vanishes_ends_the_call_upstream(yard: Yard, upstream: Upstream) -> None:
    """So that tokens which nobody reads are not paid for."""
    with closing(yard.connect()) as connection:
        body = json.dumps(params("sync-5|sse:never", stream=True))
        connection.request("POST", "/v1/messages", body, HEADERS)
        with closing(connection.getresponse()) as response:
            assert response.read(len(SSE[0])) == SSE[0]
    upstream.wait_until(
        lambda: "sync-5" not in upstream.in_flight, "the upstream sees that the client has gone"
    )


def test_an_upstream_that_does_not_answer_is_502(yard: Yard) -> None:
    for fault in ("close", "reset", "garbage"):
        answer = yard.post("/v1/messages", params(f"sync-6|{fault}"))
        assert answer.status == 502
        body = answer.json()
        assert body["error"]["type"] == "api_error"
        assert body["request_id"] == answer.headers["request-id"]


def test_count_tokens_passes(yard: Yard, upstream: Upstream) -> None:
    answer = yard.post("/v1/messages/count_tokens?beta=true", params("sync-7"))
    assert (answer.status, answer.json()) == (200, {"input_tokens": 42})
    (call,) = [call for call in upstream.calls if call.name == "sync-7"]
    assert call.path == "/v1/messages/count_tokens?beta=true"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models?limit=5", "/v1/models/org/m%2F1?x=%20"])
def test_models_pass(yard: Yard, upstream: Upstream, path: str) -> None:
    answer = yard.get(path)
    assert answer.status == 200
    assert answer.json()["data"] == [{"id": "m", "type": "model"}]
    assert upstream.calls[-1].method == "GET"
    assert upstream.calls[-1].path == path


@pytest.mark.parametrize("path", ["../messages/batches", "a/../../secrets", "%2e%2e/x", "a//b"])
def test_a_models_path_leads_nowhere_else(yard: Yard, upstream: Upstream, path: str) -> None:
    """The call would carry the yard's own key."""
    before = len(upstream.calls)
    answer = yard.get(f"/v1/models/{path}")
    assert (answer.status, answer.json()["error"]["type"]) == (404, "not_found_error")
    assert len(upstream.calls) == before


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{", 400), (b"[]", 400), (b"{}", 400), (b'{"model":1}', 400), (b"\xff", 400)],
)
def test_a_body_without_a_model_is_refused_here(yard: Yard, body: bytes, status: int) -> None:
    answer = yard.post("/v1/messages", body)
    assert answer.status == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/batches"])
def test_a_malformed_beta_is_refused_in_the_words_of_the_api(yard: Yard, path: str) -> None:
    answer = yard.post(path, params("sync-9"), HEADERS | {"anthropic-beta": "one-1, not a beta!"})
    assert answer.status == 400
    assert answer.json()["error"] == {
        "type": "invalid_request_error",
        "message": "Unexpected value(s) `not a beta!` for the `anthropic-beta` header. Please "
        "consult our documentation at platform.claude.com/docs or try again without the header.",
    }
