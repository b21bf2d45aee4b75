"""A streamed answer, folded back into the message that the endpoint would have sent at once.

Pure: bytes of a stream in, bytes of a message out. Text is joined as it is written, escapes and
all, and the input of a tool is spliced in as the model wrote it, so nothing is decoded and encoded
again. What cannot be folded for certain is an error, never a message that lacks something.

Source: the guide on streaming, and how official clients put the events together: counts of
`message_delta` are totals and replace those of `message_start`, null replaces nothing, a signature
is set once, and a `fallback` block names the model that answered.
"""

from __future__ import annotations

import json
from typing import Final

import msgspec

from batchyard import limits, wire
from batchyard.upstream import cut_json
from batchyard.upstream.events import EventParser, StreamTooLarge

_Raw = msgspec.Raw
_NONE: Final = _Raw(b"null")
_ABSENT: Final = _Raw(b"")
_EMPTY: Final = _Raw(b"{}")


class StreamBroken(Exception):
    """The stream is not one message, whole and in order. The text says where."""


class UnknownDelta(Exception):
    """A block changes in a way that is not known here. The text names block and delta."""


class _Delta(msgspec.Struct, gc=False):
    type: str = ""
    text: _Raw = _NONE
    thinking: _Raw = _NONE
    partial_json: _Raw = _NONE
    signature: _Raw = _NONE
    citation: _Raw = _NONE
    content: _Raw = _ABSENT
    encrypted_content: _Raw = _ABSENT


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    index: int = -1
    delta: _Delta | None = None


class _Named(msgspec.Struct, gc=False):
    type: str = ""


class _MessageStart(msgspec.Struct, gc=False):
    message: dict[str, _Raw]


class _BlockStart(msgspec.Struct, gc=False):
    content_block: _Raw


class _To(msgspec.Struct, gc=False):
    model: _Raw


class _Fallback(msgspec.Struct, gc=False):
    to: _To


_event = msgspec.json.Decoder(_Event)
_named = msgspec.json.Decoder(_Named)
_message_start = msgspec.json.Decoder(_MessageStart)
_block_start = msgspec.json.Decoder(_BlockStart)
_fallback = msgspec.json.Decoder(_Fallback)
_fields = msgspec.json.Decoder(dict[str, _Raw])
_value = msgspec.json.Decoder(_Raw)
_string = msgspec.json.Decoder(str)

_KNOWN = frozenset(
    {
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    }
)
# Deltas whose string is added to that of the block: key in the delta, key in the block.
_JOINED = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "input_json_delta": ("partial_json", "input"),
}
# Blocks that may change in a key that their start does not show.
_TEXT, _THINKING, _COMPACTION = "text", "thinking", "compaction"
_TOOL_USE = "tool_use"  # `server_tool_use` and `mcp_tool_use` too
# With these a tool's input may end anywhere.
_CUT_OFF = frozenset({"max_tokens", "model_context_window_exceeded", "refusal"})

# Source: the API's errors page.
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class _Block:
    """One block of the content, as far as it has come."""

    __slots__ = ("cut_input", "fields", "is_open", "joined", "raw", "type")

    def __init__(self, raw: bytes) -> None:
        self.type = _named.decode(raw).type
        self.raw = raw
        """The block as it began; when it has been closed, as it is."""
        self.fields: dict[str, _Raw] | None = None  # read when the first delta comes
        self.joined: dict[str, bytearray] = {}
        """By key of the block: the inside of a string, or for citations, of a list."""
        self.is_open = True
        self.cut_input: bytes | None = None
        """A tool's input that is no JSON, because it may have been cut off."""

    def changes(self, key: str, delta: str, kind: str) -> dict[str, _Raw]:
        """Return the fields, of which a delta will change `key`.

        Raises:
            UnknownDelta: this block has no such key, and is not of the kind that may.
        """
        if self.fields is None:
            self.fields = _fields.decode(self.raw)
        if key not in self.fields and not self.type.endswith(kind):
            raise UnknownDelta(f"{delta} in a block of type {self.type[:100]!r}")
        return self.fields

    def close(self) -> None:
        """Put the pieces together.

        Raises:
            StreamBroken: a value that was to go on is not of its type.
        """
        self.is_open = False
        if self.fields is None:
            if not self.type.endswith(_TOOL_USE):
                return
            self.fields = _fields.decode(self.raw)
        for key, joined in self.joined.items():
            if key == "input":
                self._close_input(joined)
            elif key == "citations":
                begun = _inside(self.fields.get(key, _NONE), b"[]")
                comma = b"," if begun.strip() else b""
                self.fields[key] = _Raw(b"".join((b"[", begun, comma, joined, b"]")))
            else:
                begun = _inside(self.fields.get(key, _NONE), b'""')
                self.fields[key] = _Raw(b"".join((b'"', begun, joined, b'"')))
        if self.type.endswith(_TOOL_USE):
            self.fields.setdefault("input", _EMPTY)
        self.raw = wire.encode(self.fields)
        self.fields = None
        self.joined = {}

    def _close_input(self, joined: bytearray) -> None:
        assert self.fields is not None
        text = _string.decode(b"".join((b'"', joined, b'"'))).encode().strip()
        if not text:
            return  # what the block began with stands
        try:
            self.fields["input"] = _value.decode(text)
        except (msgspec.DecodeError, RecursionError):
            self.cut_input = text

    def close_cut_input(self) -> None:
        """Take what is certain of an input that was cut off.

        Raises:
            ValueError: nothing can be made of it.
        """
        assert self.cut_input is not None
        fields = _fields.decode(self.raw)
        fields["input"] = _value.decode(cut_json.closed(self.cut_input))
        self.raw = wire.encode(fields)
        self.cut_input = None


class Fold:
    """One streamed answer."""

    def __init__(
        self,
        *,
        message_bytes_max: int = limits.UPSTREAM_REPLY_BYTES_MAX,
        stream_bytes_max: int = limits.UPSTREAM_STREAM_BYTES_MAX,
    ) -> None:
        """Make one.

        Args:
            message_bytes_max: of what is kept, and of one event.
            stream_bytes_max: of all that comes.
        """
        self._message_max = message_bytes_max
        self._stream_max = stream_bytes_max
        self._parser = EventParser(message_bytes_max)
        self._message: dict[str, _Raw] = {}
        self._usage: dict[str, _Raw] = {}
        self._blocks: list[_Block] = []
        self._kept = 0
        self.received = 0
        """Bytes that came."""
        self.begun = False
        """Whether the message has begun."""
        self.error: bytes | None = None
        """The body of the error in which the stream ended."""
        self.message: bytes | None = None
        """The message, once it is whole."""

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes of the stream; return whether it has come to its end.

        Raises:
            StreamBroken: no message can come of it.
            StreamTooLarge: it is larger than we read.
            UnknownDelta: it holds something that cannot be folded.
        """
        if self.has_ended:
            return True
        self.received += len(chunk)
        if self.received > self._stream_max:
            raise StreamTooLarge(f"a stream over {self._stream_max} bytes")
        try:
            for name, data in self._parser.feed(chunk):
                self._take(name, data)
                if self.has_ended:
                    return True
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StreamBroken(f"an event that cannot be read: {error}") from None
        return False

    @property
    def has_ended(self) -> bool:
        """Whether message or error is there."""
        return self.error is not None or self.message is not None

    def _take(self, name: bytes, data: bytes) -> None:
        if not data or name == b"ping":
            return
        if name == b"error":
            self.error = data
            return
        event = _read(data)
        if event is None:
            return
        match event.type:
            case "content_block_delta":
                self._on_delta(event)
            case "content_block_start":
                self._on_block_start(event.index, data)
            case "content_block_stop":
                self._open_block(event).close()
            case "message_start":
                self._on_message_start(data)
            case "message_delta":
                self._on_message_delta(data)
            case "message_stop":
                self._on_message_stop()
            case _:
                self.error = data

    def _keep(self, number: int) -> None:
        self._kept += number
        if self._kept > self._message_max:
            raise StreamTooLarge(f"a message over {self._message_max} bytes")

    def _on_message_start(self, data: bytes) -> None:
        if self.begun:
            raise StreamBroken("a second message_start")
        self._keep(len(data))
        message = _message_start.decode(data).message
        if _inside(message.get("content", _NONE), b"[]").strip():
            raise StreamBroken("a message_start that has content")
        usage = message.get("usage", _NONE)
        self._usage = {} if usage == _NONE else _fields.decode(usage)
        self._message = message
        self.begun = True

    def _on_block_start(self, index: int, data: bytes) -> None:
        self._must_go_on("content_block_start")
        if index != len(self._blocks):
            raise StreamBroken(f"block {index} where {len(self._blocks)} comes next")
        if index >= limits.UPSTREAM_BLOCKS_MAX:
            raise StreamTooLarge(f"over {limits.UPSTREAM_BLOCKS_MAX} blocks")
        self._keep(len(data))
        block = _Block(bytes(_block_start.decode(data).content_block))
        if block.type == "fallback":
            self._message["model"] = _fallback.decode(block.raw).to.model
        self._blocks.append(block)

    def _open_block(self, event: _Event) -> _Block:
        self._must_go_on(event.type)
        if not 0 <= event.index < len(self._blocks) or not self._blocks[event.index].is_open:
            raise StreamBroken(f"{event.type} for block {event.index}, which is not open")
        return self._blocks[event.index]

    def _must_go_on(self, what: str) -> None:
        if not self.begun:
            raise StreamBroken(f"{what} before message_start")
        if self._message.get("stop_reason", _NONE) != _NONE:
            raise StreamBroken(f"{what} after the stop reason")

    def _on_delta(self, event: _Event) -> None:
        block = self._open_block(event)
        delta = event.delta or _Delta()
        joined = _JOINED.get(delta.type)
        if joined is not None:
            source, key = joined
            kind = _TOOL_USE if key == "input" else key
            literal = bytes(getattr(delta, source))
            if literal[:1] != b'"':
                raise StreamBroken(f"a {delta.type} without its {source}")
            self._append(block, delta.type, key, kind, literal[1:-1])
            return
        match delta.type:
            case "signature_delta":
                self._set(block, delta.type, _THINKING, {"signature": delta.signature})
            case "citations_delta":
                more = bytes(delta.citation)
                comma = b"," if block.joined.get("citations") else b""
                self._append(block, delta.type, "citations", _TEXT, comma + more)
            case "compaction_delta":
                found = {
                    "content": delta.content,
                    "encrypted_content": delta.encrypted_content,
                }
                given = {key: value for key, value in found.items() if value != _ABSENT}
                self._set(block, delta.type, _COMPACTION, given)
            case _:
                raise UnknownDelta(f"{delta.type[:100]!r} in a block of type {block.type[:100]!r}")

    def _append(self, block: _Block, delta: str, key: str, kind: str, more: bytes) -> None:
        buffer = block.joined.get(key)
        if buffer is None:
            block.changes(key, delta, kind)
            buffer = block.joined[key] = bytearray()
        # A buffer for each key, not a list of pieces: a piece costs 40 bytes beside its own.
        buffer += more
        self._keep(len(more))

    def _set(self, block: _Block, delta: str, kind: str, values: dict[str, _Raw]) -> None:
        for key, value in values.items():
            self._keep(len(bytes(value)))
            block.changes(key, delta, kind)[key] = _Raw(bytes(value))

    def _on_message_delta(self, data: bytes) -> None:
        if not self.begun:
            raise StreamBroken("message_delta before message_start")
        self._keep(len(data))
        event = _fields.decode(data)
        _update(self._usage, event.pop("usage", _NONE))
        _update(self._message, event.pop("delta", _NONE))
        # What stands beside them is said of the whole message, such as `context_management`.
        del event["type"]
        self._message.update({key: value for key, value in event.items() if value != _NONE})

    def _on_message_stop(self) -> None:
        if not self.begun:
            raise StreamBroken("message_stop before message_start")
        stop_reason = self._message.get("stop_reason", _NONE)
        if stop_reason == _NONE:
            raise StreamBroken("message_stop without a stop reason")
        for index, block in enumerate(self._blocks):
            if block.is_open:
                raise StreamBroken(f"message_stop while block {index} is open")
            if block.cut_input is not None:
                self._close_cut(index, block, bytes(stop_reason))
        # A key that is there keeps its place.
        self._message["content"] = _Raw(b"[%b]" % b",".join(b.raw for b in self._blocks))
        if self._usage:
            self._message["usage"] = _Raw(wire.encode(self._usage))
        self._blocks = []
        self.message = wire.encode(self._message)
        self._message = {}

    def _close_cut(self, index: int, block: _Block, stop_reason: bytes) -> None:
        reason = wire.decode(stop_reason)
        if reason not in _CUT_OFF or index != len(self._blocks) - 1:
            raise StreamBroken(f"the input of block {index} is not JSON")
        try:
            block.close_cut_input()
        except ValueError as error:
            raise StreamBroken(f"the input of block {index} is not JSON: {error}") from None


def status_of(error: bytes) -> int:
    """Return the status with which a call would have ended that ended in this error instead.

    Args:
        error: the data of an `error` event.
    """
    try:
        found = wire.decode(error)["error"]["type"]
        return _STATUS_OF_TYPE.get(found, 500)
    except (ValueError, TypeError, LookupError):
        return 500


def _read(data: bytes) -> _Event | None:
    """Read an event; None for one that means nothing to us.

    Raises:
        DecodeError: not JSON, or not of the shape of its type.
    """
    try:
        event = _event.decode(data)
    except msgspec.DecodeError as error:
        halves = _read_halves(data)
        if halves is not None:
            return halves
        if _named.decode(data).type in _KNOWN:
            raise error from None
        return None
    return event if event.type in _KNOWN else None


def _read_halves(data: bytes) -> _Event | None:
    """Read a delta whose text ends or begins within a character; None when it is not that.

    A server that cuts text by UTF-16 units sends one half of a surrogate pair in each of two
    deltas. Neither is a string, but together, as they are written, they are.
    """
    if b"\\ud" not in data.lower():
        return None
    try:
        event = json.loads(data)
        delta = {
            key: _Raw(json.dumps(value).encode())
            for key, value in event["delta"].items()
            if key in {"text", "thinking", "partial_json"} and isinstance(value, str)
        }
        if event["type"] != "content_block_delta":
            return None
        return _Event(event["type"], int(event["index"]), _Delta(event["delta"]["type"], **delta))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _inside(value: _Raw, ends: bytes) -> bytes:
    """Return what is between the two `ends` of a string or list; nothing for null.

    Raises:
        StreamBroken: it is something else.
    """
    text = bytes(value)
    if text == b"null":
        return b""
    if text[:1] != ends[:1]:
        raise StreamBroken(f"{text[:20]!r} where a string or list was to go on")
    return text[1:-1]


def _update(fields: dict[str, _Raw], given: _Raw) -> None:
    """Take over what an object says. Null says nothing, unless there was nothing either."""
    if given == _NONE:
        return
    for key, value in _fields.decode(given).items():
        if value != _NONE or key not in fields:
            fields[key] = value
