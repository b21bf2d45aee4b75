"""What a point says about an answer: it holds, it differs, or it could not be asked.

Pure. Nothing here trusts an answer to have any shape: a missing part is a value of its own.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from batchyard.probe.http import Request

if TYPE_CHECKING:
    from batchyard.probe.http import Exchange

_TEXT_CHARS = 300
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.(?P<fraction>\d+))?(?:Z|[+-]\d\d:\d\d)")


class Differs(Exception):
    """The server answers otherwise than the contract says."""

    def __init__(self, expected: str, got: str, shows: Exchange | Request) -> None:
        """Note a difference.

        Args:
            expected: what the contract says.
            got: what came instead.
            shows: the call, or the request, that shows it.
        """
        self.expected = expected
        self.got = got
        self.request = shows if isinstance(shows, Request) else shows.request
        super().__init__(f"expected {expected}, got {got}")


class NotRun(Exception):
    """The point could not be asked; the text says why."""


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING = _Missing()


def at(value: object, *path: str | int) -> Any:
    """Return the part of a JSON value at `path`, `MISSING` where there is none."""
    for step in path:
        is_there = step in value if isinstance(value, dict) else _has(value, step)
        if not is_there:
            return MISSING
        value = value[step]  # type: ignore[index]
    return value


def _has(value: object, step: str | int) -> bool:
    return isinstance(value, list) and isinstance(step, int) and -len(value) <= step < len(value)


def text(value: object) -> str:
    """Return a value for people, cut to some hundred characters."""
    if isinstance(value, _Missing):
        return repr(value)
    if value is None:
        shown = "null"
    elif isinstance(value, str):
        shown = value
    elif isinstance(value, bytes):
        shown = repr(value)[1:]
    else:
        shown = json.dumps(value, ensure_ascii=False, default=repr)
    return shown if len(shown) <= _TEXT_CHARS else shown[: _TEXT_CHARS - 1] + "…"


def answer(exchange: Exchange) -> str:
    """Return a whole answer for people, in one line."""
    body = exchange.json()
    kind, message = at(body, "error", "type"), at(body, "error", "message")
    if isinstance(kind, str) and isinstance(message, str):
        return text(f"{exchange.status} {kind}: {message}")
    rest = exchange.body[:_TEXT_CHARS].decode("utf-8", "replace").strip()
    return text(f"{exchange.status} {rest}".strip())


def expect(holds: object, expected: str, got: object, shows: Exchange | Request) -> None:
    """Raise `Differs` unless `holds`."""
    if not holds:
        raise Differs(expected, text(got), shows)


def expect_header(exchange: Exchange, name: str, expected: str | None) -> None:
    """Raise `Differs` unless a header is this, or is not there when `expected` is None."""
    value = exchange.header(name)
    shown = f"no {name}" if value is None else f"{name}: {value}"
    words = f"no {name}" if expected is None else f"{name}: {expected}"
    expect(value == expected, words, shown, exchange)


def ok(exchange: Exchange) -> dict[str, Any]:
    """Return the object of a 200.

    Raises:
        Differs: another status, or no JSON object.
    """
    body = exchange.json()
    if exchange.status != 200 or not isinstance(body, dict):
        raise Differs("200 and a JSON object", answer(exchange), exchange)
    return body


def refused(
    exchange: Exchange,
    status: int,
    kind: str,
    message: str | None = None,
    *,
    begins: str | None = None,
) -> None:
    """Raise `Differs` unless the answer is this error.

    Args:
        exchange: the call.
        status: of HTTP.
        kind: `error.type`.
        message: the exact `error.message`, when one is known.
        begins: what the message begins with, when only that is known.
    """
    body = exchange.json()
    said = at(body, "error", "message")
    is_right = (
        exchange.status == status
        and at(body, "error", "type") == kind
        and (message is None or said == message)
        and (begins is None or (isinstance(said, str) and said.startswith(begins)))
    )
    words = message if begins is None else f"{begins}…"
    expected = f"{status} {kind}" + (f": {words}" if words else "")
    expect(is_right, expected, answer(exchange), exchange)


def moment(value: object) -> datetime | None:
    """Return an RFC 3339 time, None when it is none."""
    if not isinstance(value, str) or _RFC3339.fullmatch(value) is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def has_microseconds(value: object) -> bool:
    """Whether this is an RFC 3339 time with six digits after the second."""
    match = _RFC3339.fullmatch(value) if isinstance(value, str) else None
    return match is not None and len(match["fraction"] or "") == 6


DAY = timedelta(hours=24)


def is_count(value: object) -> bool:
    """Whether this is an integer that counts something."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
