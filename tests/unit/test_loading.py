"""What is told of the requests of a shard before one is sent."""

from __future__ import annotations

import json

import pytest

from batchyard import limits
from batchyard.dispatch.loading import requests_of
from batchyard.dispatch.shard import Request

VERSION = "2023-06-01"
TEXT = "x" * 20_000


def params(**fields: object) -> bytes:
    whole = {"model": "m", "max_tokens": 7, "messages": [{"role": "user", "content": "Hi"}]}
    return json.dumps(whole | fields).encode()


def load(data: bytes) -> Request:
    (found,) = requests_of([("id", data)], VERSION, "w")
    return found


def test_an_ordinary_request_needs_no_further_look() -> None:
    data = params(system="Be brief.", temperature=0.5)
    assert load(data) == Request("id", data, (), 7)


def marked(control: object) -> bytes:
    return params(system=[{"type": "text", "text": TEXT, "cache_control": control}])


def test_an_ordinary_request_with_a_mark_has_both() -> None:
    found = load(marked({"type": "ephemeral"}))
    assert found.max_tokens == 7
    assert len(found.marks) == 1
    assert found.marks[0].key.startswith(b"w/")


@pytest.mark.parametrize(
    "data",
    [
        params(stream=True),
        params(max_tokens=0),
        params(messages=[]),
        params(messages=[{"role": "user", "content": ""}]),
        params(messages=[{"role": "user", "content": None}]),
        params(messages=[{"role": "user", "content": [{"type": "text", "text": ""}]}]),
        params(messages=[{"role": "user", "content": [{"type": "text", "text": 1}]}]),
        params(messages=[{"role": "user", "content": []}]),
        params(messages=[{"role": "assistant", "content": "Hi"}]),
        params(system=7),
        params(system=[{"type": "text", "text": ""}]),
        params(temperature=2),
        params(tools=[]),
        params(cache_control={"type": "ephemeral"}),
        marked({"type": "forever"}),
        b"{}",
        b"[",
        rb'{"model":"m","max_tokens":7,"messages":[{"role":"user","content":"\ud800"}]}',
    ],
)
def test_whatever_is_not_ordinary_is_left_to_be_examined(data: bytes) -> None:
    assert load(data).max_tokens is None


def test_a_mark_of_a_request_that_has_to_be_examined_is_found() -> None:
    found = load(params(system=TEXT, cache_control={"type": "ephemeral"}))
    assert found.max_tokens is None
    assert len(found.marks) == 1


def test_a_request_that_is_too_large_has_to_be_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MESSAGE_BODY_BYTES_MAX", len(params()) - 1)
    assert load(params()).max_tokens is None
