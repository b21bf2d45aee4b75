"""Prefix keys: which requests share the part of their prompt that is to be cached.

The key of a prefix is a digest over the blocks of the prompt in cache order (tools, system,
messages), chained block by block, up to one that has a `cache_control`: equal keys mean that one
request can read what another has written. Keys are taken from the bytes that the client sent, of
which only the marks themselves and white space between the members of a block do not count; so
requests that mean the same in different bytes have different keys, which costs a cache hit and
nothing else. Whatever cannot be read has no key. Pure.

Source of order, lifetimes and what invalidates a prefix: the guide on prompt caching.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from batchyard import limits, models, wire
from batchyard.checksum import crc32

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from batchyard.wire import Entry

MARK = b"cache_control"
_SIGN = b'_control"'  # found in half the time, and there is no mark without it

BREAKPOINTS_MAX = 4
Section = Literal["tools", "system", "messages"]
_SECTIONS: dict[bytes, Section] = {b"t": "tools", b"s": "system", b"m": "messages"}
_TTL_S = {"5m": 300, "1h": 3_600}
_DIGEST_BYTES = 16
_ORDER_BYTES = 4  # of each digest of the chain: enough to bring equal prefixes together
_ORDER_BLOCKS = 64  # beyond so many blocks, only equal prefixes stand together
_MEMO_BYTES = 4 * limits.MIB
_SEEN_MAX = 16_384
_UNCACHEABLE = ("thinking", "redacted_thinking")
# A prefix is not primed when it cannot reach the minimum of its model even if every 3 bytes were 2
# tokens and the request had tools, for which the API adds instructions of its own.
_TOKENS_PER_BYTE = (2, 3)
_ADDED_TOKENS = 350


class Mark(NamedTuple):
    """A prefix that ends at a `cache_control`."""

    key: bytes
    ttl_s: int
    size: int
    """Its bytes, as the client sent them."""


class Prefix(NamedTuple):
    """What of one request is to be cached."""

    model: str
    order: bytes
    """Sorts longer common prefixes nearer to each other; equal for equal last marks."""
    marks: tuple[Mark, ...]
    """In the order of the prompt, at least one. Requests with the same last one are a group."""
    section: Section
    """Where the last mark stands."""
    parent: bytes
    """Key of all that stands before the block of the last mark."""
    tools: bytes
    """Key of the tools alone, empty where there are none."""
    system: bytes
    """Key of the system prompt alone, empty where there is none."""


class _Turn(msgspec.Struct, gc=False):
    role: str = ""
    content: str | list[msgspec.Raw] = ""


_NOTHING = msgspec.Raw(b"")


class _Prompt(msgspec.Struct, gc=False):
    model: str = ""
    tools: msgspec.Raw = _NOTHING
    system: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    cache_control: msgspec.Raw = _NOTHING
    output_config: msgspec.Raw = _NOTHING
    thinking: msgspec.Raw = _NOTHING
    tool_choice: msgspec.Raw = _NOTHING
    speed: msgspec.Raw = _NOTHING


class _Control(msgspec.Struct, gc=False):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Kind(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None


class _Config(msgspec.Struct, gc=False):
    format: msgspec.Raw = _NOTHING
    effort: msgspec.Raw = _NOTHING


_NO_CONFIG = _Config()
_prompt = msgspec.json.Decoder(_Prompt)
_tools = msgspec.json.Decoder(list[msgspec.Raw] | None)
_system = msgspec.json.Decoder(str | list[msgspec.Raw] | None)
_messages = msgspec.json.Decoder(list[_Turn])
_control = msgspec.json.Decoder(_Control | None)
_kind = msgspec.json.Decoder(_Kind)
_config = msgspec.json.Decoder(_Config | None)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

_MARK_ENDS_BLOCK = re.compile(rb',\s*"cache_control"\s*:\s*(\{[^{}]*\})\s*\}')

_Part = tuple[bytes, str | msgspec.Raw]
"""A block with the section and role that it stands in."""
_Block = tuple[bytes, int, int]
"""Digest without the mark, time to live of the mark or 0, bytes."""


class Reader:
    """Reads prefixes, and remembers what it has seen: the same ones come again and again."""

    def __init__(self) -> None:
        self._prefixes: dict[_Head, Prefix] = {}
        self._blocks: dict[bytes, _Block] = {}
        self._held = 0
        self._seen: set[int] = set()

    def read(self, params: bytes) -> Prefix | None:
        """Return what of a request is to be cached; None when nothing is, or it cannot be read."""
        if _SIGN not in params:
            return None
        try:
            prompt = _prompt.decode(params)
            head = _head(prompt)
            if head is None:
                return self._read(prompt)
            found = self._prefixes.get(head)
            if found is None:
                found = self._read(prompt)
                if found is not None and self._recurs(hash(head), sum(map(len, head))):
                    self._prefixes[head] = found
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _MalformedError):
            return None
        return found

    def _recurs(self, number: int, size: int) -> bool:
        """Whether to remember something of `size` bytes: it comes for the second time."""
        if number not in self._seen:
            if len(self._seen) >= _SEEN_MAX:
                self._seen.clear()
            self._seen.add(number)
            return False
        self._held += size
        if self._held > _MEMO_BYTES:
            self._prefixes.clear()
            self._blocks.clear()
            self._held = size
        return True

    def _read(self, prompt: _Prompt) -> Prefix | None:
        parts = list(_parts(prompt))
        top = None
        if prompt.cache_control is not _NOTHING:
            top = _control.decode(prompt.cache_control)
        last, block_read = self._last(parts, automatic=top is not None)
        if block_read is None:
            return None
        config = _NO_CONFIG
        if prompt.output_config is not _NOTHING:
            config = _config.decode(prompt.output_config) or config
        key = parent = _root_key(prompt.model, bytes(config.format))
        order = [key[:_ORDER_BYTES]]
        marks = []
        size, in_messages = 0, False
        for index, (where, block) in enumerate(parts[: last + 1]):
            if not in_messages and where[:1] == b"m":  # what changes the messages only
                in_messages = True
                key = _settings_key(key, prompt, config)
            digest, ttl_s, length = block_read if index == last else self._block(block)
            parent = key
            key = _digest(key, digest, where)
            size += length
            if index < _ORDER_BLOCKS:
                order.append(key[:_ORDER_BYTES])
            if index == last and top is not None:
                ttl_s = _TTL_S[top.ttl or "5m"]
            if ttl_s:
                marks.append(Mark(key, ttl_s, size))
        if len(marks) > BREAKPOINTS_MAX:
            return None  # refused by every endpoint
        order.append(key)
        return Prefix(
            prompt.model,
            b"".join(order),
            tuple(marks),
            _SECTIONS[parts[last][0][:1]],
            parent,
            self._alone(parts, b"t"),
            self._alone(parts, b"s"),
        )

    def _last(self, parts: Sequence[_Part], *, automatic: bool) -> tuple[int, _Block | None]:
        """Return position and content of the block with the last mark, None when there is none."""
        for index in range(len(parts) - 1, -1, -1):
            where, block = parts[index]
            if automatic and where[:1] == b"m":
                if _is_cacheable(block):
                    return index, self._block(block)
            elif not isinstance(block, str):
                found = self._block(block)
                if found[1]:
                    return index, found
        return -1, None

    def _alone(self, parts: Sequence[_Part], section: bytes) -> bytes:
        key = b""
        for where, block in parts:
            if where[:1] == section:
                key = _digest(key, self._block(block)[0])
        return key

    def _block(self, block: str | msgspec.Raw) -> _Block:
        if isinstance(block, str):
            data = wire.encode({"type": "text", "text": block})
        else:
            data = bytes(block)
        found = self._blocks.get(data)
        if found is None:
            found = _read_block(data)
            if self._recurs(hash(data), len(data)):
                self._blocks[data] = found
        return found


class _MalformedError(ValueError):
    pass


_Head = tuple[str, bytes, bytes, bytes, bytes]
"""Model, tools, system, messages up to the last mark, and other settings."""


def _head(prompt: _Prompt) -> _Head | None:
    """Return the bytes that the prefix depends on, or None.

    They can be seen without taking the prompt apart where there is no mark in the messages, or the
    last one ends its block.
    """
    if prompt.cache_control is not _NOTHING:
        return None
    messages = bytes(prompt.messages)
    at = messages.rfind(MARK)
    settings = b""
    if at < 0:
        messages = b""
    else:
        end = _MARK_ENDS_BLOCK.match(messages, messages.rfind(b",", 0, at))
        if end is None:
            return None
        messages = messages[: end.end()]
        for each in (prompt.tool_choice, prompt.thinking, prompt.speed):
            settings += bytes(each) + b","
    if prompt.output_config is not _NOTHING:
        settings += bytes(prompt.output_config)
    tools = b"" if prompt.tools is _NOTHING else bytes(prompt.tools)
    return prompt.model, tools, bytes(prompt.system), messages, settings


def _parts(prompt: _Prompt) -> Iterator[_Part]:
    """Yield the blocks of a prompt in cache order."""
    if prompt.tools is not _NOTHING:
        for tool in _tools.decode(prompt.tools) or ():
            yield b"t", tool
    if prompt.system is not _NOTHING:
        system = _system.decode(prompt.system) or ()
        for block in (system,) if isinstance(system, str) else system:
            yield b"s", block
    for turn in _messages.decode(prompt.messages):
        where = b"m" + turn.role.encode()
        content = turn.content
        for block in (content,) if isinstance(content, str) else content:
            yield where, block


def _is_cacheable(block: str | msgspec.Raw) -> bool:
    if isinstance(block, str):
        return bool(block)
    kind = _kind.decode(block)
    return kind.type not in _UNCACHEABLE and kind.text != ""


def _read_block(data: bytes) -> _Block:
    if data[:1] != b"{":
        raise _MalformedError
    at = data.rfind(MARK)
    if at < 0:
        return _digest(data), 0, len(data)
    end = _MARK_ENDS_BLOCK.match(data, data.rfind(b",", 0, at))
    if end is not None and end.end() == len(data):
        control = _control.decode(end[1])
        bare = data[: end.start()] + b"}"
    else:
        fields = _fields.decode(data)
        control = _control.decode(fields.pop("cache_control", b"null"))
        bare = wire.encode(fields)
    return _digest(bare), 0 if control is None else _TTL_S[control.ttl or "5m"], len(data)


@lru_cache(maxsize=64)
def _root_key(model: str, answer_format: bytes) -> bytes:
    return _digest(wire.encode(model), answer_format)


def _settings_key(key: bytes, prompt: _Prompt, config: _Config) -> bytes:
    """Go on from `key` to the messages, with what invalidates those and not what stands before."""
    choice, thinking, effort, speed = (
        prompt.tool_choice,
        prompt.thinking,
        config.effort,
        prompt.speed,
    )
    if choice is thinking is effort is speed:  # nothing of it is there
        return key
    return _digest(key, b"\0".join(map(bytes, (choice, thinking, effort, speed))))


def _digest(*parts: bytes | msgspec.Raw) -> bytes:
    # All parts but the last are of fixed length, or JSON, which tells its own end.
    return hashlib.sha256(b"".join(parts)).digest()[:_DIGEST_BYTES]


def order_keys(entries: Iterable[Entry]) -> list[bytes]:
    """Return by what each request is ordered; see `order_key`."""
    return [order_key(bytes(entry.params)) for entry in entries]


def order_key(params: bytes) -> bytes:
    """Return by what a request is ordered within its batch: empty for one without a mark.

    It brings together what shares the bytes up to a mark, longer common prefixes nearer. It decides
    about the order alone, so it may be cheaper than the keys of the prefixes and know less: a
    checksum that two prefixes share, or a mark where none can be, costs nothing.
    """
    if _SIGN not in params:
        return b""
    try:
        prompt = _prompt.decode(params)
        head = _head(prompt)
        if head is not None and bytes(prompt.messages)[:1] == b"[":
            found = _chained(head)
            if found is not None:
                return found
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return b""
    prefix = Reader().read(params)
    return b"" if prefix is None else prefix.order


def are_in_order(keys: Sequence[bytes]) -> bool:
    """Whether requests with these keys may as well stay as they arrived.

    They may when all share the same, or when no two share more than all do: such as a document of
    its own in each, below instructions of all.
    """
    different = set(keys)
    if len(different) == 1:
        return True
    return len(different) == len(keys) and len({key[:-_ORDER_BYTES] for key in keys}) == 1


def _chained(head: _Head) -> bytes | None:
    """Return checksums up to each mark, each going on from the last; None when in doubt."""
    model, tools, system, messages, settings = head
    if tools[:1] not in {b"", b"["}:
        return None
    crc, order = crc32(model.encode()), []
    marks = last = 0
    for section in (tools, system, settings, messages):
        start = 0
        while True:
            at = section.find(MARK, start)
            if at < 0:
                break
            end = _MARK_ENDS_BLOCK.match(section, max(0, section.rfind(b",", 0, at)))
            if end is None or end.start() < start or not _is_control(end[1]):
                return None
            crc = crc32(section[start : end.start()], crc)
            order.append(crc)
            marks, last = marks + 1, len(order)
            start = end.end()
        crc = crc32(section[start:], crc)
        order.append(crc)
    if not 0 < marks <= BREAKPOINTS_MAX:
        return None
    return b"".join(number.to_bytes(_ORDER_BYTES, "big") for number in order[:last])


@lru_cache(maxsize=64)
def _is_control(text: bytes) -> bool:
    try:
        return _control.decode(text) is not None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def shared_marks(prefix: Prefix | None, workspace: str) -> tuple[Mark, ...]:
    """Return the prefixes of a request that a cache may keep, under keys of the workspace.

    Those that are surely too short for their model are left out: no request could read them.
    """
    if prefix is None:
        return ()
    model = models.find(prefix.model)
    least = 0 if model is None else model.cache_min
    tokens, per = _TOKENS_PER_BYTE
    return tuple(
        Mark(workspace.encode() + b"/" + mark.key, mark.ttl_s, mark.size)
        for mark in prefix.marks
        if mark.size * tokens // per + _ADDED_TOKENS >= least
    )
