"""Priming: which requests may be sent, so that a prompt cache is written once and then read.

An entry of a cache can be read only when the answer to the request that writes it has begun. So of
the requests that share a prefix one, the primer, is sent first, and the others wait until its
answer begins, until it fails, or for a bounded time. After the time to live of the entry, counted
from its last use, one request primes again. Pure: times are parameters, in seconds of a clock that
never goes back.

Source of the rules about entries: the guide on prompt caching.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from batchyard import limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.dispatch.prefix import Mark

_NEVER = float("inf")
_DECLINED_MAX = 3  # primers of one prefix that are refused, until the others wait for none


class Marked(Protocol):
    """A request with the prefixes that it shares with others."""

    @property
    def marks(self) -> Sequence[Mark]:
        """Return them, the shortest first."""


@dataclass(slots=True)
class _Entry:
    """What is known of one entry of the cache."""

    primer: Marked | None
    """The request whose answer it waits for; None when it can be read."""
    ttl_s: int
    since_s: float
    """When the primer was sent."""
    until_s: float
    """Until when the others wait, or the entry can be read."""


class Priming:
    """The entries of one pool's cache, as far as can be told from here."""

    def __init__(self, entries_max: int = limits.PRIMED_PREFIXES_MAX) -> None:
        """Make one.

        Args:
            entries_max: of the prefixes beyond so many, those not used for longest are forgotten,
                and primed again when they come.
        """
        self._entries_max = entries_max
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._waited_for: dict[bytes, _Entry] = {}
        self._declined: Counter[bytes] = Counter()
        """How many primers in a row were refused; of those that a further one may follow."""

    def __len__(self) -> int:
        return len(self._entries)

    def admit(self, request: Marked, now_s: float) -> bytes | None:
        """Return None when a request may be sent now, else the key of the prefix it waits for.

        One that may be sent primes whatever is not in the cache, and renews what is.
        """
        for mark in request.marks:
            if mark.key in self._waited_for:
                return mark.key
        for mark in request.marks:
            entry = self._entries.get(mark.key)
            if entry is None or entry.until_s <= now_s:
                entry = _Entry(request, mark.ttl_s, now_s, _NEVER)
                self._entries[mark.key] = self._waited_for[mark.key] = entry
            else:
                entry.until_s = max(entry.until_s, _lapse_s(entry, now_s))
            self._entries.move_to_end(mark.key)
        self._forget()
        return None

    def sent(self, request: Marked, now_s: float) -> None:
        """Note that a request is sent now: from here its answer is waited for."""
        for mark in request.marks:
            entry = self._primed_by(request, mark)
            if entry is not None:
                entry.since_s = now_s
                entry.until_s = now_s + limits.PRIMER_ANSWER_S

    def begun(self, request: Marked) -> list[bytes]:
        """Note that the answer to a request begins; return the keys that may be read from now."""
        keys = []
        for mark in request.marks:
            if self._primed_by(request, mark) is not None:
                self._presume(mark.key)
                keys.append(mark.key)
        return keys

    def delayed(self, request: Marked) -> None:
        """Note that a request failed and is sent again in a moment, for which the others wait."""
        for mark in request.marks:
            entry = self._primed_by(request, mark)
            if entry is not None:
                entry.until_s = _NEVER

    def declined(self, request: Marked) -> list[bytes]:
        """Note that the upstream would not do what a request asks for.

        Returns:
            The keys for which nobody waits any longer: what some primers in a row were refused
            may be refused to all, one after the other.
        """
        keys = []
        for mark in request.marks:
            entry = self._primed_by(request, mark)
            if entry is None:
                continue
            if len(self._declined) > self._entries_max:
                self._declined.clear()
            self._declined[mark.key] += 1
            if self._declined[mark.key] >= _DECLINED_MAX:
                self._presume(mark.key)
                keys.append(mark.key)
        return keys

    def left(self, request: Marked) -> list[bytes]:
        """Note that a request is over; return the keys that another one has to prime instead."""
        keys = []
        for mark in request.marks:
            if self._primed_by(request, mark) is not None:
                del self._entries[mark.key]
                del self._waited_for[mark.key]
                keys.append(mark.key)
        return keys

    def is_primed(self, key: bytes) -> bool:
        """Whether a request that is on its way writes this prefix."""
        return key in self._waited_for

    def overdue(self, now_s: float) -> list[bytes]:
        """Return the keys whose primer has been out for so long that nobody waits for it longer.

        An entry is written before the first word of the answer. An upstream that does not stream
        shows no sign of it.
        """
        keys = [key for key, entry in self._waited_for.items() if entry.until_s <= now_s]
        for key in keys:
            self._presume(key)
        return keys

    def _primed_by(self, request: Marked, mark: Mark) -> _Entry | None:
        entry = self._waited_for.get(mark.key)
        return entry if entry is not None and entry.primer is request else None

    def _presume(self, key: bytes) -> None:
        entry = self._waited_for.pop(key)
        del self._declined[key]
        entry.primer = None
        entry.until_s = _lapse_s(entry, entry.since_s)

    def _forget(self) -> None:
        while len(self._entries) > self._entries_max:
            key, entry = self._entries.popitem(last=False)
            if entry.primer is not None:  # its number is bounded by the requests in flight
                self._entries[key] = entry
                return


def _lapse_s(entry: _Entry, used_s: float) -> float:
    return used_s + entry.ttl_s - limits.CACHE_LAPSE_MARGIN_S
