"""Finding what a model server would have to fetch."""

from __future__ import annotations

import json

import pytest

from batchyard import validate
from helpers_validate import BASE, said, text

URL = {"type": "url", "url": "http://169.254.169.254/latest"}
IMAGE = {"type": "image", "source": URL}
DOCUMENT = {"type": "document", "source": URL}


def named(**fields: object) -> str | None:
    return validate.names_url(json.dumps(BASE | fields).encode())


@pytest.mark.parametrize(
    ("messages", "path"),
    [
        ([said("user", text(), IMAGE)], "messages.0.content.1.source.url"),
        ([said("user", text()), said("user", DOCUMENT)], "messages.1.content.0.source.url"),
        (
            [said("user", {"type": "tool_result", "tool_use_id": "a", "content": [text(), IMAGE]})],
            "messages.0.content.0.content.1.source.url",
        ),
        (
            [said("user", {"type": "document", "source": {"type": "content", "content": [IMAGE]}})],
            "messages.0.content.0.source.content.0.source.url",
        ),
        ([said("user", {"type": "video", "source": URL})], "messages.0.content.0.source.url"),
        (
            [said("user", {"type": "image", "source": {"url": "http://a"}})],
            "messages.0.content.0.source.url",
        ),
        ([said("user", {"type": "image", "source": {"type": "url"}})],
         "messages.0.content.0.source.url"),
        ([said("user", IMAGE), said("user", IMAGE)], "messages.0.content.0.source.url"),
    ],
)  # fmt: skip
def test_the_first_source_that_is_a_url_is_named(messages: list[object], path: str) -> None:
    assert named(messages=messages) == path


@pytest.mark.parametrize(
    "block",
    [
        text('a source of type "url" and {"url": "http://a"}'),
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A"}},
        {"type": "image", "source": {"type": "file", "file_id": "url"}},
        {"type": "tool_use", "id": "a", "name": "get", "input": {"url": "http://a"}},
        {"type": "search_result", "source": "http://a", "title": "url", "content": []},
        {
            "type": "web_search_tool_result",
            "tool_use_id": "a",
            "content": [{"type": "web_search_result", "url": "http://a"}],
        },
    ],
)
def test_a_url_that_nobody_fetches_is_none(block: dict[str, object]) -> None:
    assert named(messages=[said("user", block)]) is None


def test_escapes_hide_nothing() -> None:
    raw = json.dumps(BASE | {"messages": [said("user", IMAGE)]}).encode()
    hidden = raw.replace(b'"url"', b'"\\u0075r\\u006C"')
    assert b'"url"' not in hidden
    assert validate.names_url(hidden) == "messages.0.content.0.source.url"
    assert validate.names_url(memoryview(hidden)) == "messages.0.content.0.source.url"


def test_deep_nesting_is_walked() -> None:
    block: dict[str, object] = IMAGE
    for _ in range(200):
        block = {"type": "tool_result", "content": [block]}
    found = named(messages=[said("user", block)])
    assert found is not None
    assert found.endswith(".source.url")


@pytest.mark.parametrize(
    "raw", [b"", b"{", b'{"url"', b'["url"]', b'{"messages": "url", "url": 1}', b'"url"']
)
def test_what_has_no_blocks_names_none(raw: bytes) -> None:
    assert validate.names_url(raw) is None
