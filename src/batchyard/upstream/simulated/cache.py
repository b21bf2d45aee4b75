"""The prompt cache of the simulated model: which part of a prompt is read, and which written.

Knows digests, tokens and times. An entry is a prefix that ended at a breakpoint; it belongs to one
workspace and one model. Source for every rule: the guide on prompt caching.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard import models, wire
from batchyard.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.upstream.simulated.request import Block, Piece, Request

BREAKPOINTS_MAX = 4
LOOKBACK_BLOCKS = 20
CACHE_MIN_UNKNOWN = 1_024  # tokens, for models that are not in the table
ENTRIES_MAX = 100_000
TTL_S = {"5m": 300, "1h": 3_600}
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prompt as the cache sees it: after each block, its key and the tokens so far."""

    keys: Sequence[bytes]
    tokens: Sequence[int]
    breakpoints: Sequence[tuple[int, int]]
    """Position of the block and time to live in seconds, in order of position."""


@dataclass(frozen=True, slots=True)
class Use:
    """What one request takes from the cache and adds to it, in tokens."""

    read: int = 0
    write_5m: int = 0
    write_1h: int = 0
    writes: tuple[tuple[bytes, int, float], ...] = ()
    """Key, time to live and time of lapse of each entry to be made, in seconds."""


NOTHING = Use()


class PromptCache:
    """Entries that lapse, the least recently used ones dropped beyond a number."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._entries: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def use(self, prefix: Prefix, now_s: float) -> Use:
        """Return what a request that starts at `now_s` reads and writes; what it reads is renewed.

        Its writes are seen by nobody until they are given to `begin`.
        """
        hit = self._longest(prefix, now_s)
        read = prefix.tokens[hit] if hit >= 0 else 0
        for position, _ in prefix.breakpoints:
            if position <= hit:
                self._renew(prefix.keys[position], now_s)
        if hit >= 0:
            self._renew(prefix.keys[hit], now_s)
        later = [(at, ttl_s) for at, ttl_s in prefix.breakpoints if at > hit]
        if not later:
            return Use(read=read)
        # Breakpoints of one hour come first, so the hour covers what lies before the last of them.
        hour_end = max((prefix.tokens[at] for at, ttl_s in later if ttl_s > 300), default=read)
        return Use(
            read=read,
            write_1h=hour_end - read,
            write_5m=prefix.tokens[later[-1][0]] - hour_end,
            writes=tuple((prefix.keys[at], ttl_s, now_s + ttl_s) for at, ttl_s in later),
        )

    def begin(self, use: Use) -> None:
        """Make the writes of `use` readable: its answer begins."""
        for key, ttl_s, lapse_s in use.writes:
            old = self._entries.get(key)
            if old is None or old[1] < lapse_s:
                self._entries[key] = (ttl_s, lapse_s)
            self._entries.move_to_end(key)
        while len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)

    def _longest(self, prefix: Prefix, now_s: float) -> int:
        """Return the last position that has a live entry within reach of a breakpoint, or -1."""
        for position, _ in reversed(prefix.breakpoints):
            for at in range(position, max(position - LOOKBACK_BLOCKS, -1), -1):
                entry = self._entries.get(prefix.keys[at])
                if entry is not None and entry[1] > now_s:
                    return at
        return -1

    def _renew(self, key: bytes, now_s: float) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry[1] > now_s:
            self._entries[key] = (entry[0], max(entry[1], now_s + entry[0]))
            self._entries.move_to_end(key)


def prefix_of(request: Request, pieces: Sequence[Piece], workspace: str) -> Prefix | None:
    """Return the prompt as the cache sees it, or None when nothing of it is to be cached.

    Raises:
        InvalidRequest: too many breakpoints, or ones that contradict each other.
    """
    marked = _breakpoints(request, pieces)
    if not marked:
        return None
    model = models.find(request.model)
    minimum = CACHE_MIN_UNKNOWN if model is None else model.cache_min
    tokens = _running_totals(pieces)
    breakpoints = [(at, ttl_s) for at, ttl_s in marked if tokens[at] >= minimum]
    if not breakpoints:
        return None
    keys = _keys(request, pieces[: breakpoints[-1][0] + 1], workspace)
    return Prefix(keys, tokens, breakpoints)


def _breakpoints(request: Request, pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    marked: dict[int, int] = {}
    for at, piece in enumerate(pieces):
        block = piece.block
        if isinstance(block, dict) and block.get("cache_control") is not None:
            marked[at] = _ttl_s(block["cache_control"], piece.path)
    if request.cache_control is not None:
        _mark_automatically(marked, request.cache_control, pieces)
    if len(marked) > BREAKPOINTS_MAX:
        raise InvalidRequest(
            f"A maximum of {BREAKPOINTS_MAX} blocks with cache_control may be provided. "
            f"Found {len(marked)}."
        )
    shorter = False
    for at, ttl_s in sorted(marked.items()):
        if shorter and ttl_s > TTL_S["5m"]:
            raise InvalidRequest(
                f"{pieces[at].path}.cache_control.ttl: a ttl='1h' cache_control block must not "
                "come after a ttl='5m' cache_control block. Note that blocks are processed in the "
                "following order: `tools`, `system`, `messages`."
            )
        shorter = shorter or ttl_s == TTL_S["5m"]
    return sorted(marked.items())


def _mark_automatically(marked: dict[int, int], control: Block, pieces: Sequence[Piece]) -> None:
    """Put the breakpoint of a top-level `cache_control` on the last block that can bear one."""
    ttl_s = _ttl_s(control, "")
    for at in range(len(pieces) - 1, -1, -1):
        if _cacheable(pieces[at].block):
            break
    else:
        return
    if marked.get(at, ttl_s) != ttl_s:
        raise InvalidRequest(
            "cache_control: the last block already has a cache_control with a different ttl"
        )
    marked[at] = ttl_s


def _cacheable(block: Block | str) -> bool:
    if isinstance(block, str):
        return bool(block)
    kind = block.get("type")
    return kind not in {"thinking", "redacted_thinking"} and block.get("text") != ""


def _ttl_s(control: object, path: str) -> int:
    where = f"{path}.cache_control" if path else "cache_control"
    if not isinstance(control, dict):
        raise InvalidRequest(f"{where}: Input should be a valid dictionary")
    if control.get("type") != "ephemeral":
        raise InvalidRequest(f"{where}.type: Input should be 'ephemeral'")
    ttl = control.get("ttl") or "5m"
    if not isinstance(ttl, str) or ttl not in TTL_S:
        raise InvalidRequest(f"{where}.ttl: Input should be '5m' or '1h'")
    return TTL_S[ttl]


def _running_totals(pieces: Sequence[Piece]) -> list[int]:
    total = 0
    totals = []
    for piece in pieces:
        total += piece.tokens
        totals.append(total)
    return totals


def _keys(request: Request, pieces: Sequence[Piece], workspace: str) -> list[bytes]:
    """Chain a digest over the blocks, so that a key stands for everything before it too."""
    model = models.find(request.model)
    config = request.output_config
    root = (workspace, model.snapshot if model else request.model, config and config.format)
    key = _digest(b"", wire.encode(root))
    section = "tools"
    keys = []
    for piece in pieces:
        if piece.section != section:
            # What a change of these settings invalidates begins here. Only the section counts.
            if section == "tools":
                key = _digest(key, wire.encode(request.speed))
            if piece.section == "messages":
                key = _digest(key, wire.encode(_message_settings(request)))
            section = piece.section
        block = piece.block
        if isinstance(block, dict):
            bare = {name: value for name, value in block.items() if name != "cache_control"}
        else:
            bare = {"type": "text", "text": block}
        key = _digest(key, wire.encode((piece.section, piece.role, bare)))
        keys.append(key)
    return keys


def _message_settings(request: Request) -> tuple[object, ...]:
    config = request.output_config
    images = any(
        isinstance(turn.content, list)
        and any(block.get("type") == "image" for block in turn.content)
        for turn in request.messages
    )
    return (request.tool_choice, request.thinking, config and config.effort, images)


def _digest(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, key=key).digest()
