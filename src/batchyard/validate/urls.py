"""Find sources that a model server would have to fetch.

A server that fetches what a request names can be made to read from networks that the client cannot
reach, so the operator decides which upstreams may be sent such requests.
"""

from __future__ import annotations

from typing import Any

from batchyard.validate.decide import decode

# Any letter can be written as an escape, o as `\u006f`; all of those begin like this.
_ESCAPED = b"\\u00"


def names_url(params: bytes | memoryview) -> str | None:
    """Return the path of the first `source` that is a URL, as `messages.0.content.1.source.url`.

    Looks at blocks of any type in messages and system prompt, those inside tool results included.
    None when there is none, or when `params` are not JSON.
    """
    raw = bytes(params)
    if b'"source"' not in raw and (b"\\" not in raw or _ESCAPED not in raw):
        return None
    try:
        fields = decode(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    # A stack instead of a recursion: requests may be nested as deeply as JSON is read.
    stack: list[tuple[str, Any]] = [
        (name, fields[name]) for name in ("messages", "system") if name in fields
    ]
    while stack:
        path, value = stack.pop()
        if isinstance(value, list):
            stack += [(f"{path}.{at}", each) for at, each in enumerate(value)][::-1]
        elif isinstance(value, dict):
            source = value.get("source")
            if isinstance(source, dict):
                if source.get("type") == "url" or isinstance(source.get("url"), str):
                    return f"{path}.source.url"
                stack.append((f"{path}.source.content", source.get("content")))
            stack.append((f"{path}.content", value.get("content")))
    return None
