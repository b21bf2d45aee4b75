"""Asking `validate` about requests that are written as differences from a valid one."""

from __future__ import annotations

import json

from batchyard import validate

OLD, NEW = "2023-06-01", "2026-10-21"
USER = {"role": "user", "content": "hi"}
BASE: dict[str, object] = {"model": "claude-haiku-4-5", "max_tokens": 5_000, "messages": [USER]}

# One of each generation: without thinking of its own, with it at will, and always thinking.
HAIKU_4_5, OPUS_4_6, OPUS_4_8, OPUS_5, OPUS_5_5, SONNET_5_5 = (
    f"claude-{name}"
    for name in ("haiku-4-5", "opus-4-6", "opus-4-8", "opus-5", "opus-5-5", "sonnet-5-5")
)


def problem(
    params: object, *, version: str = OLD, betas: tuple[str, ...] = (), strict: bool = False
) -> str | None:
    """Return the message of the problem, by both ways of the check, which must agree."""
    raw = params if isinstance(params, bytes) else json.dumps(params).encode()
    found = validate.check(raw, version=version, betas=betas, strict=strict)
    assert found == validate.examine(raw, version=version, betas=betas, strict=strict)
    if found is None:
        return None
    assert found.type == "invalid_request_error"
    return found.message


def changed(version: str = OLD, betas: tuple[str, ...] = (), **fields: object) -> str | None:
    """Return the problem of the valid request with `fields` set."""
    return problem(BASE | fields, version=version, betas=betas)


def said(role: str, *blocks: dict[str, object]) -> dict[str, object]:
    """Return a message of blocks."""
    return {"role": role, "content": list(blocks)}


def text(words: str = "x", **fields: object) -> dict[str, object]:
    """Return a text block."""
    return {"type": "text", "text": words} | fields
