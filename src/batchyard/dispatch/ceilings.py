"""Limits that people have written down: requests and tokens a minute. Pure.

Each is a bucket that fills continuously, as the hosted API's do, and holds what a second brings, at
least one. So any minute has at most the ceiling plus one second of it, or plus one request where
that is more. Tokens are charged by an estimate when a call starts and corrected by its `usage`.
Several workers divide each ceiling (`sharing.py`): a part of it is a smaller bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BURST_S = 1.0
_NEVER = float("-inf")
_ANSWER = float("inf")  # wait for a part of the ceiling, not for time


@dataclass(frozen=True, slots=True)
class Limit:
    """What one table of the settings says. None is no limit."""

    models: tuple[str, ...]
    """Patterns of the models that share it."""
    requests: int | None = None
    """A minute, as the others."""
    input_tokens: int | None = None
    output_tokens: int | None = None


class Bucket:
    """An amount a minute."""

    def __init__(self, name: str, per_minute: int) -> None:
        self.name = name
        self.per_minute = per_minute
        self.part = 1.0
        """Of the amount, what this process has."""
        self._rate = per_minute / 60.0
        self._capacity = max(1.0, self._rate * _BURST_S)
        self._level = self._capacity
        self._at_s = _NEVER

    def divide(self, part: float, now_s: float) -> None:
        """Have another part from now on. What is in the bucket stays, as far as there is room."""
        self._fill(now_s)
        self.part = part
        self._rate = self.per_minute / 60.0 * part
        self._capacity = max(1.0, self._rate * _BURST_S)
        self._level = min(self._level, self._capacity)

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until something may be charged, 0.0 for now, inf without a part."""
        if not self._rate:
            return _ANSWER
        if self._level < self._capacity:
            self._fill(now_s)
        return 0.0 if self._level >= 1.0 else (1.0 - self._level) / self._rate

    def charge(self, now_s: float, amount: float) -> None:
        """Take an amount out; a negative one gives back. The level may become negative."""
        self._fill(now_s)
        self._level = min(self._capacity, self._level - amount)

    def _fill(self, now_s: float) -> None:
        if self._at_s != _NEVER:
            gained = (now_s - self._at_s) * self._rate
            self._level = min(self._capacity, self._level + gained)
        self._at_s = now_s


class Ceiling:
    """The buckets of one table, which all pools of its models share."""

    def __init__(self, limit: Limit, name: str = "") -> None:
        self.name = name
        """That no pool has: by it several workers divide the ceiling."""
        self.models = limit.models
        self.requests = _bucket("requests_per_minute", limit.requests)
        self.input = _bucket("input_tokens_per_minute", limit.input_tokens)
        self.output = _bucket("output_tokens_per_minute", limit.output_tokens)
        self.buckets = tuple(b for b in (self.requests, self.input, self.output) if b is not None)

    def divide(self, part: float, now_s: float) -> None:
        """Have another part of it from now on; 1.0 at first."""
        for bucket in self.buckets:
            if bucket.part != part:
                bucket.divide(part, now_s)

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until a call may start, 0.0 for now, inf without a part."""
        return max(bucket.wait_s(now_s) for bucket in self.buckets)

    def binding(self, now_s: float) -> tuple[Bucket, float] | None:
        """Return the bucket that holds calls back longest, and for how many seconds."""
        waits = [(bucket.wait_s(now_s), bucket) for bucket in self.buckets]
        wait, bucket = max(waits, key=lambda each: each[0])
        return (bucket, wait) if wait > 0.0 else None

    def charge(self, now_s: float, requests: float, tokens: tuple[float, float]) -> None:
        """Take out what a call uses, or with negative amounts give back what it did not."""
        if self.requests is not None and requests:
            self.requests.charge(now_s, requests)
        if self.input is not None:
            self.input.charge(now_s, tokens[0])
        if self.output is not None:
            self.output.charge(now_s, tokens[1])


def _bucket(name: str, per_minute: int | None) -> Bucket | None:
    return None if per_minute is None else Bucket(name, per_minute)


class Ceilings:
    """The ceilings of all upstreams."""

    def __init__(self, limits: Mapping[str, Sequence[Limit]] | None = None) -> None:
        """Make them.

        Args:
            limits: by name of the upstream.
        """
        self._of = {
            upstream: [Ceiling(each, f"#limit/{upstream}/{n}") for n, each in enumerate(some)]
            for upstream, some in (limits or {}).items()
        }

    def of_pool(self, upstream: str, model: str) -> tuple[Ceiling, ...]:
        """Return what holds for a pool.

        Args:
            upstream: its name.
            model: of the pool; `*` stands for many, for which all ceilings of the upstream hold.
        """
        return tuple(
            ceiling
            for ceiling in self._of.get(upstream, ())
            if model == "*" or any(fnmatchcase(model, pattern) for pattern in ceiling.models)
        )


class Estimate:
    """What a call of one pool will use, from what earlier ones used."""

    _SHARE = 1.0 / 16.0
    _TOKENS_PER_BYTE = 0.3
    """At first: English text has about 0.25, other texts more."""

    def __init__(self) -> None:
        self._per_byte = self._TOKENS_PER_BYTE
        self.input = 0.0
        """Tokens of a call, on average so far."""
        self.output: float | None = None

    def tokens(self, size: int, output_max: int) -> tuple[float, float]:
        """Return the input and output tokens of a request.

        Args:
            size: of the request in bytes.
            output_max: its `max_tokens`.
        """
        output = output_max if self.output is None else min(self.output, output_max)
        return size * self._per_byte, output

    def learn(self, size: int, used: tuple[int, int]) -> None:
        """Take in what a call used: input tokens that count, and output tokens."""
        share = self._SHARE
        if size:
            self._per_byte += (used[0] / size - self._per_byte) * share
        self.input += (used[0] - self.input) * (share if self.input else 1.0)
        output = self.output
        self.output = used[1] if output is None else output + (used[1] - output) * share
