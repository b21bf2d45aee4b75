"""Which operation a request is, in the words of a script, such as `create`."""

from __future__ import annotations

import re

_BATCH = r"/v1/messages/batches/[^/]+"
_OPERATIONS = (
    ("create", "POST", re.compile(r"/v1/messages/batches")),
    ("list", "GET", re.compile(r"/v1/messages/batches")),
    ("retrieve", "GET", re.compile(_BATCH)),
    ("delete", "DELETE", re.compile(_BATCH)),
    ("cancel", "POST", re.compile(rf"{_BATCH}/cancel")),
    ("results", "GET", re.compile(rf"{_BATCH}/results")),
    ("models", "GET", re.compile(r"/v1/models(/.+)?")),
    ("messages", "POST", re.compile(r"/v1/messages(/count_tokens)?")),
)


def operation(method: str, path: str) -> str | None:
    """Return the operation, or None for what a script does not touch."""
    for name, its_method, pattern in _OPERATIONS:
        if method == its_method and pattern.fullmatch(path):
            return name
    return None
