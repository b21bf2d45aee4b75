"""What an upstream says of its own limits in the headers of an answer. Pure.

- `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}`, where
  reset is the RFC 3339 time at which the bucket is full again. Source: the API's rate limits page.
- `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, where reset is how long that takes, as
  `6m0s` or `12ms`. Many gateways and other APIs send these.

Read strictly: a value that is not what it should be is as if it were not there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from batchyard import limits, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Kind = Literal["requests", "tokens", "input-tokens", "output-tokens"]
KINDS: tuple[Kind, ...] = ("requests", "tokens", "input-tokens", "output-tokens")
_OTHER_KINDS: tuple[Kind, ...] = ("requests", "tokens")

# The names are put together once: every answer is asked for them.
_NAMES: list[tuple[Kind, str, str, str]] = [
    *(
        (
            kind,
            f"anthropic-ratelimit-{kind}-remaining",
            f"anthropic-ratelimit-{kind}-limit",
            f"anthropic-ratelimit-{kind}-reset",
        )
        for kind in KINDS
    ),
    *(
        (
            kind,
            f"x-ratelimit-remaining-{kind}",
            f"x-ratelimit-limit-{kind}",
            f"x-ratelimit-reset-{kind}",
        )
        for kind in _OTHER_KINDS
    ),
]

_LOW = 5  # less than one in this many is left

_DURATION = re.compile(
    r"(?=.)(?:(\d{1,6})h)?(?:(\d{1,6})m(?!s))?(?:(\d{1,6}(?:\.\d{1,9})?)s)?"
    r"(?:(\d{1,9}(?:\.\d{1,9})?)ms)?",
    re.ASCII,
)
_SECONDS = (3_600.0, 60.0, 1.0, 0.001)  # of a unit of each group


@dataclass(frozen=True, slots=True)
class Hint:
    """A bucket of the upstream that is nearly empty."""

    kind: Kind
    refill: float | None
    """Units a second; None where the size of the bucket is not told."""
    remaining: int
    reset_s: float
    """Seconds until it is full, at most `limits.RETRY_AFTER_CAP_S`."""


def read(headers: Mapping[str, str], now_us: Callable[[], int]) -> list[Hint]:
    """Return the buckets that are nearly empty.

    Args:
        headers: of an answer, names in lower case.
        now_us: tells the wall time, where one is named.
    """
    found = []
    get = headers.get
    for kind, of_remaining, of_limit, of_reset in _NAMES:
        text = get(of_remaining)
        if text is None:
            continue
        remaining = _count(text)
        if remaining is None:
            continue
        limit = _count(get(of_limit))
        if remaining if limit is None else remaining * _LOW >= limit:
            continue
        reset_s = _seconds(get(of_reset), now_us)
        if reset_s is None or reset_s <= 0.0:
            continue
        refill = None if limit is None else (limit - remaining) / reset_s
        found.append(Hint(kind, refill, remaining, min(reset_s, limits.RETRY_AFTER_CAP_S)))
    return found


def _count(text: str | None) -> int | None:
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 15:
        return None
    return int(text)


def _seconds(text: str | None, now_us: Callable[[], int]) -> float | None:
    if text is None or len(text) > 40 or not text.isascii():
        return None
    if text.endswith("s"):
        return duration_s(text)
    try:
        return (wire.parse_rfc3339(text) - now_us()) / limits.SECOND_US
    except (ValueError, OverflowError):
        return None


def duration_s(text: str) -> float | None:
    """Return the seconds of a duration as `1h2m3.5s` or `12ms`, None for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    return sum(
        float(number) * unit
        for number, unit in zip(match.groups(), _SECONDS, strict=True)
        if number is not None
    )
