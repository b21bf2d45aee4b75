"""The cache report of one batch: which requests share a prefix, and what became of it.

Memory is bounded by the number of requests of a batch, not by their bytes. Blocks: a thread runs
it, a piece at a time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from batchyard import models, price, result, segments
from batchyard.checksum import BLOCK_BYTES
from batchyard.dispatch.ending import read_manifest
from batchyard.dispatch.prefix import Reader
from batchyard.errors import DamagedError
from batchyard.price import Usage
from batchyard.segments.requests import stream_records
from batchyard.server.results import read_block

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batchyard.dispatch.prefix import Prefix
    from batchyard.model import Billing
    from batchyard.segments import Segments

GROUPS_MAX = 100
_BYTES_PER_TOKEN = 3  # fewer for nearly every text, so that "too short" is said with care

Reason = Literal[
    "alone", "breakpoint_on_varying_block", "messages_differ", "never_read", "no_answers",
    "not_cached", "system_differs", "too_short", "tools_differ",
]  # fmt: skip

_WORDS: dict[Reason, str] = {
    "alone": "no other request of the batch has a cache_control",
    "breakpoint_on_varying_block": "the block with the last cache_control is different in each "
    "request; set one at the end of what they share",
    "messages_differ": "the messages differ before the last cache_control; set one at the end of "
    "what they share",
    "never_read": "more than one request wrote the prefix and none read it: the calls went to "
    "different caches, or the entry lapsed between them",
    "no_answers": "none of these requests succeeded",
    "not_cached": "the upstream reports no cache tokens: it does not cache, or the prefix is too "
    "short for it",
    "system_differs": "the system prompt differs before the last cache_control",
    "tools_differ": "the tools differ, and they stand before everything else",
}


@dataclass(slots=True)
class Sums:
    """Sums over the usage of succeeded requests. Tokens, but for the first three and the last."""

    succeeded: int = 0
    hits: int = 0
    writes: int = 0
    read: int = 0
    written_5m: int = 0
    written_1h: int = 0
    saved_micros: int | None = 0
    """Against the same calls without caching; None when a price is not known."""

    @property
    def cacheable(self) -> int:
        """Return the tokens that were read or written."""
        return self.read + self.written_5m + self.written_1h

    def add(self, usage: Usage, saved_micros: int | None) -> None:
        """Count one request."""
        self.succeeded += 1
        self.hits += usage.cache_read_tokens > 0
        self.writes += usage.cache_write_tokens > 0
        self.read += usage.cache_read_tokens
        self.written_5m += usage.cache_write_5m_tokens
        self.written_1h += usage.cache_write_1h_tokens
        if saved_micros is None or self.saved_micros is None:
            self.saved_micros = None
        else:
            self.saved_micros += saved_micros

    def object(self) -> dict[str, object]:
        """Return them as the wire has them."""
        return {
            "succeeded": self.succeeded,
            "hits": self.hits,
            "writes": self.writes,
            "tokens": {
                "cacheable": self.cacheable,
                "read": self.read,
                "written_5m": self.written_5m,
                "written_1h": self.written_1h,
            },
            "hit_rate": round(self.read / self.cacheable, 4) if self.cacheable else None,
            "saved_micros": self.saved_micros,
        }


@dataclass(slots=True)
class _Group:
    """Requests that share a prefix, or for one reason share none."""

    key: bytes
    model: str
    ttl_s: int
    size: int
    example: str
    reason: Reason | None
    requests: int = 0
    sums: Sums = field(default_factory=Sums)


class Report:
    """What is known so far."""

    def __init__(self, batch_id: str, requests: int, billing: Billing) -> None:
        self._batch_id = batch_id
        self._requests = requests
        self._billing = billing
        self._tier: price.Tier = "standard" if billing == "standard" else "batch"
        self._shared: Counter[bytes] = Counter()  # how often each key comes, whatever it is of
        self._groups: dict[tuple[Reason | None, bytes], _Group] = {}
        self._group_of: dict[str, _Group] = {}
        self._all = Sums()

    def steps(self, store: Segments) -> Iterator[bool]:
        """Do the work; yields True after every piece.

        Raises:
            DamagedError, StoreError: something cannot be read.
        """
        for records in self._records(store):
            self._count(records)
            yield True
        for records in self._records(store):
            self._allot(records)
            yield True
        for lines in _lines(store, self._batch_id):
            self._add(lines)
            yield True

    def _records(self, store: Segments) -> Iterator[list[tuple[str, Prefix | None]]]:
        name = segments.requests_name(self._batch_id)
        reader = Reader()
        pieces = stream_records(lambda at, length: store.read(name, at, length), store.size(name))
        for records in pieces:
            yield [(custom_id, reader.read(params)) for custom_id, params in records]

    def _count(self, records: Sequence[tuple[str, Prefix | None]]) -> None:
        for _, prefix in records:
            if prefix is not None:
                self._shared.update(mark.key for mark in prefix.marks)
                self._shared.update((b"parent" + prefix.parent, b"all"))
                self._shared.update((b"tools" + prefix.tools, b"system" + prefix.system))

    def _allot(self, records: Sequence[tuple[str, Prefix | None]]) -> None:
        for custom_id, prefix in records:
            if prefix is None:
                continue
            shared = [mark for mark in prefix.marks if self._shared[mark.key] > 1]
            mark = shared[-1] if shared else prefix.marks[-1]
            reason = None if shared else self._why_alone(prefix)
            key = mark.key
            if reason is not None:
                key = prefix.parent if self._shared[b"parent" + prefix.parent] > 1 else b""
                key += prefix.model.encode()
            group = self._groups.get((reason, key))
            if group is None:
                group = _Group(mark.key, prefix.model, mark.ttl_s, mark.size, custom_id, reason)
                self._groups[reason, key] = group
            group.requests += 1
            self._group_of[custom_id] = group

    def _why_alone(self, prefix: Prefix) -> Reason:
        """Return why no other request has any of the prefixes of this one."""
        if self._shared[b"all"] == 1:
            return "alone"
        is_tools_own = bool(prefix.tools) and self._shared[b"tools" + prefix.tools] == 1
        is_system_own = bool(prefix.system) and self._shared[b"system" + prefix.system] == 1
        if is_tools_own and not is_system_own:
            return "tools_differ"
        if self._shared[b"parent" + prefix.parent] > 1 and prefix.section == "messages":
            return "breakpoint_on_varying_block"
        if is_system_own:
            return "system_differs"
        return "tools_differ" if is_tools_own else "messages_differ"

    def _add(self, lines: Sequence[tuple[str, result.ResultType, Usage]]) -> None:
        for custom_id, kind, usage in lines:
            if kind != "succeeded":
                continue
            group = self._group_of.get(custom_id)
            if group is None:
                if usage.cache_read_tokens or usage.cache_write_tokens:
                    self._all.add(usage, None)  # cached without having been asked to
                continue
            saved = self._saved(group.model, usage)
            self._all.add(usage, saved)
            group.sums.add(usage, saved)

    def _saved(self, model: str, usage: Usage) -> int | None:
        """Return what the cache took off the price of one request, in micro-dollars."""
        if usage.prompt_tokens == usage.input_tokens:
            return 0
        without = Usage(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.output_tokens,
            web_searches=usage.web_searches,
            us=usage.us,
        )
        paid = price.cost_micros(model, usage, self._tier)
        full = price.cost_micros(model, without, self._tier)
        return None if paid is None or full is None else full - paid

    def object(self) -> dict[str, object]:
        """Return the report as the wire has it, the largest groups first."""
        groups = sorted(self._groups.values(), key=lambda group: -group.requests)
        return {
            "id": self._batch_id,
            "type": "message_batch_cache",
            "billing": self._billing,
            "requests": self._requests,
            "marked": len(self._group_of),
            **self._all.object(),
            "groups": [_object(group) for group in groups[:GROUPS_MAX]],
            "has_more": len(groups) > GROUPS_MAX,
        }


def _object(group: _Group) -> dict[str, object]:
    reason = group.reason if group.sums.read == 0 else None
    if reason is None and group.sums.read == 0:
        reason = _why_unread(group)
    return {
        "prefix": group.key.hex(),
        "model": group.model,
        "ttl": "1h" if group.ttl_s > 300 else "5m",
        "prefix_bytes": group.size,
        "example": group.example,
        "requests": group.requests,
        **group.sums.object(),
        "reason": reason,
        "explanation": None if reason is None else _explanation(group, reason),
    }


def _why_unread(group: _Group) -> Reason | None:
    """Return why a prefix that several requests have was never read."""
    sums = group.sums
    if not sums.succeeded:
        return "no_answers"
    if sums.cacheable:
        return "never_read" if sums.writes > 1 else None  # there was one answer, which wrote
    model = models.find(group.model)
    if model is not None and group.size // _BYTES_PER_TOKEN < model.cache_min:
        return "too_short"
    return "not_cached"


def _explanation(group: _Group, reason: Reason) -> str:
    if reason != "too_short":
        return _WORDS[reason]
    model = models.find(group.model)
    assert model is not None  # or it would not be known to be too short
    return (
        f"the prefix has {group.size:,} bytes, some {group.size // 4:,} tokens; "
        f"{group.model} caches from {model.cache_min:,}"
    )


def _lines(store: Segments, batch_id: str) -> Iterator[list[tuple[str, result.ResultType, Usage]]]:
    """Yield the result lines, some at a time.

    Raises:
        DamagedError: one is not what was written.
    """
    for extent in read_manifest(store, batch_id):
        rest: list[bytes] = []
        for offset in range(0, extent.length, BLOCK_BYTES):
            *whole, last = read_block(store, extent, offset).split(b"\n")
            if whole:
                whole[0] = b"".join([*rest, whole[0]])
                rest = []
            rest.append(last)
            try:
                yield [result.read_line(line) for line in whole]
            except ValueError as error:
                raise DamagedError(f"segment {extent.segment} holds damaged lines") from error
