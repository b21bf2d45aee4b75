"""`status --cache`: what prompt caching has done for a batch, for people or as JSON."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from batchyard.cli import render

if TYPE_CHECKING:
    from batchyard.client.cache_report import CacheGroup, CacheReport

_ANY_KEY = "any"


def show(batch_id: str, base_url: str | None, *, as_json: bool) -> None:
    """Print the cache report of an ended batch.

    Raises:
        InputError: the address or the key is missing or wrong, or the server is not a batchyard.
        ApiError, Unreachable: the report could not be read.
    """
    import msgspec  # noqa: PLC0415 - so that other commands start quickly

    from batchyard.client.answers import ApiError  # noqa: PLC0415
    from batchyard.client.api import Api  # noqa: PLC0415
    from batchyard.client.problems import InputError  # noqa: PLC0415

    api = Api(base_url, key_for(base_url))
    try:
        report = api.cache_report(batch_id)
    except ApiError as error:
        if api.is_yard:
            raise
        raise InputError(
            f"{api.base_url} is not a batchyard server, and no other tells what caches did: "
            f"{error.message}"
        ) from None
    finally:
        api.close()
    if as_json:
        render.emit(msgspec.to_builtins(report))
        return
    for line in lines(report):
        render.say(line)


def key_for(base_url: str | None) -> str | None:
    """Return a key for servers of this machine, where any will do; None takes the usual one."""
    if os.environ.get("ANTHROPIC_API_KEY"):
        return None
    host = urlsplit(base_url or os.environ.get("ANTHROPIC_BASE_URL", "")).hostname or ""
    try:
        is_here = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = False
    return _ANY_KEY if is_here else None


def lines(report: CacheReport) -> list[str]:
    """Return the report for people."""
    tokens = report.tokens
    made = [
        f"{report.id}: {report.requests:,} requests, {report.marked:,} with cache_control",
        f"  cacheable  {tokens.cacheable:>13,} tokens",
        f"  read       {tokens.read:>13,} tokens   {_share(report.hit_rate)}",
        f"  written    {tokens.written_5m:>13,} tokens for 5 minutes",
        f"  written    {tokens.written_1h:>13,} tokens for 1 hour",
        f"  saved      {_saved(report.saved_micros):>13} {_against(report.billing)}",
    ]
    if report.groups:
        made.append("  requests      hits  hit rate      saved  model, lifetime, one of them")
    for group in report.groups:
        made += _group(group)
    if report.has_more:
        made.append(f"  these are the {len(report.groups)} largest groups; there are more")
    return made


def _group(group: CacheGroup) -> list[str]:
    counts = f"{group.requests:>8,}  {group.hits:>8,}  {_share(group.hit_rate):>8}"
    what = f"{group.model}, {group.ttl}, {group.example}"
    made = [f"  {counts}  {_saved(group.saved_micros):>9}  {what}"]
    if group.explanation is not None:
        made.append(f"            no hit: {group.explanation}")
    return made


def _share(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"


def _saved(micros: int | None) -> str:
    from batchyard.price import dollars  # noqa: PLC0415

    return "unknown" if micros is None else dollars(micros)


def _against(billing: str) -> str:
    words = "against no caching"
    if billing == "standard":
        return f"{words}, at list prices"
    if billing == "batch":
        return f"{words}, at batch prices"
    return f"{words}, if these calls had cost batch prices; they cost nothing"
