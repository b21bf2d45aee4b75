"""Result lines: built around the upstream's own bytes, and read back after a crash.

A line is one JSON object and a LF: `{"custom_id":…,"result":{"type":…}}`. A succeeded line holds
the upstream's message unchanged but for `usage.service_tier`. No line holds a CR or LF before its
end, and none is empty: the official clients fail on both.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from batchyard import wire
from batchyard.price import Usage, read_usage

ResultType = Literal["succeeded", "errored", "canceled", "expired"]

# Source: the ErrorObject union of the official clients. Anything else is mapped to `api_error`.
ERROR_TYPES = frozenset(
    {
        "invalid_request_error",
        "authentication_error",
        "billing_error",
        "permission_error",
        "not_found_error",
        "rate_limit_error",
        "timeout_error",
        "api_error",
        "overloaded_error",
    }
)

# What an upstream may call the same thing.
_ALIASES = {"request_too_large": "invalid_request_error", "conflict_error": "api_error"}


class _Message(msgspec.Struct, gc=False):
    type: Literal["message"]
    content: msgspec.Raw
    stop_reason: str
    usage: msgspec.Raw


class Message(msgspec.Struct, gc=False, frozen=True):
    """An upstream's message that may become a result: its bytes, tier replaced, and its usage."""

    body: bytes
    usage: Usage


_message = msgspec.json.Decoder(_Message)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_BATCH = msgspec.Raw(b'"batch"')
_LIST = ord("[")


def read_message(body: bytes) -> Message:
    """Check that `body` is a finished message and mark it as run in a batch.

    Raises:
        ValueError: it is not UTF-8 JSON of a message with content, stop reason and usage.
    """
    if not body.isascii():
        body.decode()  # the decoder passes over strings it need not read, bad UTF-8 included
    try:
        message = _message.decode(body)
        usage = read_usage(message.usage)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if memoryview(message.content)[0] != _LIST:
        raise ValueError("content is not a list")
    return Message(_one_line(_batch_tier(body, bytes(message.usage))), usage)


def _batch_tier(body: bytes, usage: bytes) -> bytes:
    """Return `body` with `usage.service_tier` set to `batch`, every other value byte for byte."""
    new = _with_tier(usage)
    if new is None:
        new = wire.encode(_fields.decode(usage) | {"service_tier": _BATCH})
    elif body.endswith(b',"usage":%b}' % usage):
        # What stands before the last brace is the last member of the message itself: no key or
        # string can end like this, since there is no escape in it.
        return b"%b%b}" % (body[: -len(usage) - 1], new)
    start = body.rfind(usage)
    if body.find(usage) == start:
        return body[:start] + new + body[start + len(usage) :]
    # The same object stands in the content too (a tool input can be anything).
    return wire.encode(_fields.decode(body) | {"usage": msgspec.Raw(new)})


class _Tiered(msgspec.Struct, gc=False):
    service_tier: str | None = None


_tiered = msgspec.json.Decoder(_Tiered)


def _with_tier(usage: bytes) -> bytes | None:
    """Return `usage` with its tier replaced in its text; None when it is not plain to see where.

    Without an escape in it, a key that is there is there in letters, and a quote ends a string.
    """
    if b"\\" in usage:
        return None
    named = usage.count(b'"service_tier"')
    if not named:
        return b'%b,"service_tier":"batch"}' % usage[:-1] if b'"' in usage else None
    if named > 1:
        return None
    try:
        tier = _tiered.decode(usage).service_tier
    except msgspec.ValidationError:
        return None
    member = b'"service_tier":"%b"' % (tier or "").encode()
    return usage.replace(member, b'"service_tier":"batch"') if member in usage else None


def _one_line(body: bytes) -> bytes:
    if b"\n" in body or b"\r" in body:
        # Line ends inside strings are always escaped, so these are white space between tokens.
        return body.replace(b"\n", b" ").replace(b"\r", b" ")
    return body


def succeeded(custom_id: str, message: bytes) -> bytes:
    """Return the line of a finished message."""
    return b'{"custom_id":"%b","result":{"type":"succeeded","message":%b}}\n' % (
        custom_id.encode(),
        message,
    )


def errored(
    custom_id: str, error_type: str, message: str, *, request_id: str | None = None
) -> bytes:
    """Return the line of a request that failed for good.

    Args:
        custom_id: the request.
        error_type: mapped into the types that the clients know.
        message: one sentence for people.
        request_id: of the call, None when there was none.
    """
    error = {
        "details": {"error_visibility": "user_facing"},
        "type": error_type if error_type in ERROR_TYPES else _ALIASES.get(error_type, "api_error"),
        "message": message,
    }
    body = {"type": "error", "error": error, "request_id": request_id}
    return b'{"custom_id":"%b","result":{"type":"errored","error":%b}}\n' % (
        custom_id.encode(),
        wire.encode(body),
    )


def unsent(custom_id: str, why: Literal["canceled", "expired"]) -> bytes:
    """Return the line of a request that was never answered."""
    return b'{"custom_id":"%b","result":{"type":"%b"}}\n' % (custom_id.encode(), why.encode())


class _ReadMessage(msgspec.Struct, gc=False):
    usage: msgspec.Raw


class _ReadResult(msgspec.Struct, gc=False):
    type: ResultType
    message: _ReadMessage | None = None


class _Line(msgspec.Struct, gc=False):
    custom_id: str
    result: _ReadResult


_line = msgspec.json.Decoder(_Line)


def read_line(line: bytes) -> tuple[str, ResultType, Usage]:
    """Read back the id, type and usage of a line that we wrote.

    Raises:
        ValueError: the line is torn or not ours.
    """
    if not line.isascii():
        line.decode()  # as in `read_message`
    try:
        parsed = _line.decode(line)
        message = parsed.result.message
        usage = Usage() if message is None else read_usage(message.usage)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return parsed.custom_id, parsed.result.type, usage
