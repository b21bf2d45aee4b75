"""What a run may still spend: ceilings are reserved before a shard is sent, and released after.

A batch cannot be stopped in the middle without waste, so the only limit that holds is one that is
kept before sending: spent + reserved + the ceiling of the next shard stays within the budget. All
amounts are integer micro-dollars. Pure, but for reading the create bodies of shards.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchyard import price, wire
from batchyard.client.planning import estimate, plan, server_tools
from batchyard.client.problems import BudgetReached, InputError
from batchyard.client.running.journal import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from batchyard.client.running.journal import Shard, State
    from batchyard.model import Billing

# An image costs at most about this, a page of a PDF file its text and its picture.
# Source: the API's vision and PDF pages.
_IMAGE_TOKENS = 1_600
_PAGE_TOKENS, _PAGE_BASE64_CHARS = 2_500, 8_000
# What is sent around the texts of a request.
_FRAME_TOKENS = 20
# A shard that does not fit is cut, but not into crumbs: each takes as long as a whole batch.
PIECE_REQUESTS_MIN = 10


@dataclass(frozen=True, slots=True)
class Standing:
    """What was charged, and what is set aside for batches under way."""

    spent: int
    reserved: int


def ceiling(params: dict[str, Any], billing: Billing) -> int | None:
    """Return what one request can cost, in micro-dollars; None when there is no bound.

    The output is taken in full, the input as estimated with its spread, and nothing as read from
    a cache. Unknown prices, and tools that the server may run, have no bound.
    """
    if billing == "simulated":
        return 0
    if server_tools.unbounded(params):
        return None
    model, texts, media, ttls = str(params.get("model")), list[str](), [0], set[str]()
    for part in ("system", "tools", "messages", "output_config", "output_format"):
        _walk(params.get(part), texts, media, ttls)
    _walk({key: params.get(key) for key in ("cache_control",)}, texts, media, ttls)
    tokens = estimate.tokens("\n".join(texts), model) + media[0] + _FRAME_TOKENS
    tokens = -(-tokens * round(100 + estimate.SPREAD_PERCENT) // 100)
    usage = price.Usage(
        input_tokens=0 if ttls else tokens,
        cache_write_5m_tokens=tokens if ttls == {"5m"} else 0,
        cache_write_1h_tokens=tokens if "1h" in ttls else 0,
        output_tokens=int(params.get("max_tokens") or 0),
        us=params.get("inference_geo") == "us",
    )
    return price.cost_micros(model, usage, billing)


def ceilings(body: Path, billing: Billing) -> Iterator[int | None]:
    """Yield the ceiling of each request in a create body."""
    with body.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for entry in wire.split(memoryview(view)):
        yield ceiling(wire.decode(bytes(entry.params)), billing)


def of_shard(body: Path, billing: Billing) -> int | None:
    """Return the ceiling of a shard; None when one of its requests has none."""
    total = 0
    for micros in ceilings(body, billing):
        if micros is None:
            return None
        total += micros
    return total


def standing(state: State, ceiling_of: Callable[[Shard], int | None]) -> Standing:
    """Return what is spent and reserved; what a batch did cost is unknown counts as its ceiling.

    Args:
        state: of the run.
        ceiling_of: for shards that were sent when there was no budget.
    """
    spent = reserved = 0
    for shard in state.shards:
        if shard.phase is Phase.COLLECTED and shard.batch:
            known = shard.cost_micros
            spent += known if known is not None else _reserve(shard, ceiling_of)
        elif shard.is_at_server:
            reserved += _reserve(shard, ceiling_of)
    return Standing(spent, reserved)


def _reserve(shard: Shard, ceiling_of: Callable[[Shard], int | None]) -> int:
    micros = shard.ceiling_micros
    if micros is None:
        micros = ceiling_of(shard)
    return micros or 0


def fits(now: Standing, next_micros: int, budget: int) -> bool:
    """Whether a shard may be sent."""
    return now.spent + now.reserved + next_micros <= budget


def piece(micros: Sequence[int], room: int) -> int:
    """Return how many of the first requests of a shard fit in `room`; 0 for none worth a batch."""
    count = total = 0
    for each in micros:
        if total + each > room:
            break
        total, count = total + each, count + 1
    least = min(PIECE_REQUESTS_MIN, max(1, len(micros) // 2))
    return count if count >= least else 0


def cut(body: Path, entries: Sequence[Any], count: int) -> list[plan.Shard]:
    """Return the first `count` requests of a shard as one, and the others as another.

    Args:
        body: the create body.
        entries: of the documents of each of its requests, in the same order.
        count: at least 1 and less than all.
    """
    with body.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    requests = [
        plan.request_of(
            owners,
            sent.custom_id,
            b'{"custom_id":"%b","params":%b}' % (sent.custom_id.encode(), bytes(sent.params)),
        )
        for owners, sent in zip(entries, wire.split(memoryview(view)), strict=True)
    ]
    first = plan.pack(requests[:count], count)
    return [*first, *plan.pack(requests[count:], len(requests))]


def check(approved: plan.Plan, limit: int, billing: Billing | None, *, spent: int = 0) -> None:
    """Refuse a budget that cannot be kept, or that lets nothing be sent; writes nothing.

    Args:
        approved: what would be sent, in this order.
        limit: the budget in micro-dollars.
        billing: how the server charges; None as long as it is not known: it may be half price.
        spent: what earlier rounds of the run have cost.

    Raises:
        InputError: a price is not known, or a tool has no bound.
        BudgetReached: not even the first requests fit.
    """
    shards = approved.shards
    if billing == "simulated" or not shards:
        return
    first = shards[0].requests
    # Only rows with parameters of their own can differ in their tools.
    judged = approved.requests if approved.settings.override is not None else first[:1]
    if approved.batch is None or any(map(_is_unbounded, judged)):
        raise InputError(
            f"a budget of {price.dollars(limit)} cannot be kept: a request has a model of unknown "
            "price, or tools that the server uses without a bound; nothing was sent. --no-budget "
            "sends it all the same"
        )
    count = min(PIECE_REQUESTS_MIN, max(1, len(first) // 2))
    least = _sum(first[:count], billing or "batch")
    if spent + least > limit:
        before = f", and {price.dollars(spent)} is spent" if spent else ""
        all_of_it = _sum(approved.requests, billing or "standard")
        raise BudgetReached(
            f"nothing was sent: the first {count:,} requests may cost {price.dollars(least)}, the "
            f"budget is {price.dollars(limit)}{before}; "
            f"--budget {_amount(spent + all_of_it)} is enough for all"
        )


def _is_unbounded(request: plan.Request) -> bool:
    return bool(server_tools.unbounded(wire.decode(request.params)))


def _sum(requests: Sequence[plan.Request], billing: Billing) -> int:
    """Return the ceiling of requests that have one."""
    return sum(ceiling(wire.decode(request.params), billing) or 0 for request in requests)


def _amount(micros: int) -> str:
    """Return dollars as they are typed, in whole cents, not less."""
    cents = -(-micros // 10_000)
    return f"{cents // 100}.{cents % 100:02}"


def parse(text: str) -> int | None:
    """Return the micro-dollars of an amount such as `40`, `$12.50`; None for `none`, no limit.

    Raises:
        InputError: it is not an amount above zero, or is finer than a micro-dollar.
    """
    from decimal import Decimal, InvalidOperation  # noqa: PLC0415 - once

    if text.strip().lower() == "none":
        return None
    try:
        micros = Decimal(text.strip().removeprefix("$").replace(",", "")) * 1_000_000
    except InvalidOperation:
        micros = Decimal(0)
    if not micros.is_finite() or micros <= 0 or micros != int(micros):
        raise InputError(
            f"--budget is {text!r}; it is an amount in dollars above zero, such as 40 or "
            "12.50, or none"
        )
    return int(micros)


def _walk(value: object, texts: list[str], media: list[int], ttls: set[str]) -> None:
    """Gather the texts of a value, the tokens of its media, and how long it is to be cached."""
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, list):
        for each in value:
            _walk(each, texts, media, ttls)
    elif isinstance(value, dict):
        if value.get("type") == "base64" and isinstance(value.get("data"), str):
            media[0] += _media_tokens(str(value.get("media_type")), len(value["data"]))
            return
        control = value.get("cache_control")
        if isinstance(control, dict):
            ttls.add(str(control.get("ttl") or "5m"))
        for key, each in value.items():
            texts.append(key)
            if key != "cache_control":
                _walk(each, texts, media, ttls)


def _media_tokens(media_type: str, chars: int) -> int:
    if media_type.startswith("image/"):
        return _IMAGE_TOKENS
    return max(1, -(-chars // _PAGE_BASE64_CHARS)) * _PAGE_TOKENS
