"""What passes straight through to the upstream: messages, token counts, models."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from helpers_upstream import SSE, message
from helpers_yard import HEADERS, KEY, Yard, request

if TYPE_CHECKING:
    from helpers_upstream import Upstream


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
