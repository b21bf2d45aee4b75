"""Which upstream a model runs on, and which requests share a pool of slots.

A pool is one model of one upstream, written `upstream/model`, so that a slow or limited one never
holds the others. Pure: no upstream is called here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import msgspec

from batchyard import limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.wire import Entry

UNROUTED = "/"
"""The pool of requests that no upstream takes: they become `errored` without a call."""


@dataclass(frozen=True, slots=True)
class Route:
    """Models by pattern (`claude-*`), and the name of the upstream that serves them."""

    upstream: str
    patterns: tuple[str, ...] = ("*",)


class _Head(msgspec.Struct, gc=False):
    model: str = ""


_head = msgspec.json.Decoder(_Head)


class Routes:
    """The routing table: the first route whose pattern fits a model has it."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = tuple(routes)
        self._names = frozenset(route.upstream for route in routes)

    def upstream_for(self, model: str) -> str | None:
        """Return the name of the upstream for a model, None when no route fits."""
        for route in self._routes:
            if any(fnmatchcase(model, pattern) for pattern in route.patterns):
                return route.upstream
        return None

    def upstream_of_pool(self, pool: str) -> str | None:
        """Return the upstream of a pool; where it was removed meanwhile, the model's new one."""
        name, _, model = pool.partition("/")
        if name in self._names:
            return name
        return self.upstream_for(model) if name else None

    def pools(self, entries: Sequence[Entry]) -> list[str]:
        """Return the pool of each request; see `pools_of`."""
        return self.pools_of([_model_of(entry.params) for entry in entries])

    def pools_of(self, models: Sequence[str]) -> list[str]:
        """Return the pool of each request, by its model; empty for one that is none.

        Models beyond the `BATCH_POOLS_MAX` most frequent ones of the batch share one pool of
        their upstream, so that no batch can make more than a few.
        """
        frequent = {m for m, _ in Counter(models).most_common(limits.BATCH_POOLS_MAX)}
        pool_of = {model: self._pool(model, own=model in frequent) for model in set(models)}
        return [pool_of[model] for model in models]

    def _pool(self, model: str, *, own: bool) -> str:
        upstream = self.upstream_for(model) if model else None
        if upstream is None:
            return UNROUTED
        return f"{upstream}/{model if own else '*'}"


def _model_of(params: msgspec.Raw) -> str:
    """Return the model, or nothing when it is missing or too odd to route by."""
    try:
        model = _head.decode(params).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return routable(model)


def routable(model: object) -> str:
    """Return a model of decoded params; empty when it is missing or too odd to route by."""
    if isinstance(model, str) and len(model) <= limits.MODEL_CHARS_MAX and "\0" not in model:
        return model  # PostgreSQL has no text with U+0000
    return ""


def dispatch_order(pools: Sequence[str], keys: Sequence[bytes] | None = None) -> list[int]:
    """Return the indexes of the requests in dispatch order.

    By pool, then by prefix key, so that what shares a prompt cache stands together, then as they
    arrived. Those without a key come last in their pool: they fill the slots while the others wait
    for their caches to be written.

    Args:
        pools: of each request.
        keys: of each request, empty for those that cache nothing (`prefix.order_keys`).
    """
    order = list(range(len(pools)))
    if keys is not None and any(keys):
        order.sort(key=keys.__getitem__)
        order.sort(key=lambda index: not keys[index])
    if len(set(pools)) > 1:
        order.sort(key=pools.__getitem__)  # stable
    return order
