"""JSON that was cut off: as much of it as is certain, closed.

When a model reaches its token limit inside the input of a tool, the text ends anywhere. The message
still is an answer, so its input is what had come whole by then. Pure.
"""

from __future__ import annotations

import re

from batchyard import limits

_TOKEN = re.compile(rb'\s*(?:("(?:[^"\\]|\\.)*+")|([\[\]{},:])|([^\s\[\]{},:"]++))', re.DOTALL)
# What may be left: a string or word that goes on, with the key before it, or a key alone.
_REST = re.compile(
    rb"""\s*,?\s*
    (?: "(?:[^"\\]|\\.)*+"\s* (?: :\s* )? )?+
    (?: "(?:[^"\\]|\\.)*+\\? | [-+.0-9A-Za-z]*+ ) \s*""",
    re.DOTALL | re.VERBOSE,
)
_LENGTH_MAX = 2 * limits.MIB  # a second of work; a model writes no more in 300,000 tokens
_CLOSING = {b"{": b"}", b"[": b"]"}


def closed(text: bytes) -> bytes:
    """Return the longest part of `text` that is certain, with what it left open closed.

    A string or number at the very end is dropped, and the key that waits for a value: it might
    have gone on. The values that stay keep their bytes. Official clients read such a text alike,
    but keep a number at the end.

        {"a": 1, "b": [true, {"c": 12   gives   {"a": 1, "b": [true, {}]}

    Args:
        text: the beginning of a JSON object.

    Raises:
        ValueError: it is too long or nested too deeply, or so wrong that it is seen here. What
            comes back of text that is wrong in other ways is not JSON.
    """
    if len(text) > _LENGTH_MAX:
        raise ValueError(f"it is cut off, and longer than {_LENGTH_MAX} bytes")
    if not text.lstrip().startswith(b"{"):
        raise ValueError("it is not an object")
    open_: list[bytes] = []  # what closes each object and list that is open, innermost last
    sure = 0
    is_key = False
    at = 0
    while token := _TOKEN.match(text, at):  # none at a string without its end
        at = token.end()
        _, mark, word = token.groups()
        if mark in _CLOSING:
            open_.append(_CLOSING[mark])
            if len(open_) > limits.PARAMS_DEPTH_MAX:
                raise ValueError(f"nested deeper than {limits.PARAMS_DEPTH_MAX} levels")
            is_key = mark == b"{"
        elif mark in {b"}", b"]"}:
            if open_:
                open_.pop()
        elif mark == b",":
            is_key = open_[-1:] == [b"}"]
            continue
        elif mark == b":":
            is_key = False
            continue
        elif is_key or (word and at == len(text)):
            continue
        sure = at  # what was opened or closed last; what follows opens and closes nothing
    if not _REST.fullmatch(text, sure):
        raise ValueError("it is not the beginning of JSON")
    return text[:sure] + b"".join(reversed(open_)) if sure else b"{}"
