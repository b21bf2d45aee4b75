"""Ask the server how many tokens some requests have, and set the plan right with the answer.

The call is free, and nothing depends on it: whatever goes wrong, the estimate stays, and a notice
says why.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from batchyard import wire
from batchyard.client.answers import ApiError, Unreachable
from batchyard.client.planning import plan as planning
from batchyard.client.planning import sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchyard.client.planning.plan import Plan, Request

IN_FLIGHT = 8
# Larger ones, with their files in them, are not uploaded twice only to be counted.
REQUEST_BYTES_MAX = 4_000_000
# What the call takes; the rest of a request does not change how many tokens go in.
_COUNTED = frozenset(
    {
        "cache_control", "context_management", "mcp_servers", "messages", "model", "output_config",
        "speed", "system", "thinking", "tool_choice", "tools",
    }
)  # fmt: skip

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class _Sample:
    """True tokens by index of the request, and why it is not more."""

    counted: dict[int, int]
    stopped: str = ""


def calibrated(plan: Plan, count: Callable[[bytes], int], sample: int) -> Plan:
    """Return the plan with tokens and prices that follow from a counted sample.

    Args:
        plan: of any requests.
        count: returns the tokens of the body of one count call; raises ApiError or Unreachable.
        sample: how many requests to count, about; 0 for none.
    """
    requests = plan.requests
    main = [
        index
        for index, (_, model, _) in enumerate(plan.measures)
        if model == plan.settings.model and len(requests[index].body) <= REQUEST_BYTES_MAX
    ]
    if sample <= 0 or not main:
        return plan
    weights = plan.basis.weights
    sizes = [plan.measures.sizes[index] for index in main]
    drawn = sampling.draw([weights.tokens(each) for each in sizes], sample, _seed(requests))
    found = _ask([requests[main[index]] for index in drawn.indexes], count)
    counted = [
        (sizes[index], found.counted[at], chance)
        for at, (index, chance) in enumerate(zip(drawn.indexes, drawn.chances, strict=True))
        if at in found.counted
    ]
    measures = plan.measures
    if len(counted) == len(main):  # nothing has to be inferred: the sum of the counts is the total
        measures = measures.with_counted({main[at]: found.counted[at] for at in found.counted})
    share = len(counted) / len(drawn.indexes)
    if share < 1:  # those that were not answered were as likely to be drawn
        counted = [(counts, true, chance * share) for counts, true, chance in counted]
    fit = sampling.calibrate(counted, sizes, weights)
    notices = [*plan.notices]
    if found.stopped:
        what = f"{len(counted)} requests were counted" if fit else "token counts are estimates"
        notices.append(f"{what}: {found.stopped}")
    if fit is None:
        return replace(plan, notices=notices)
    basis = replace(
        plan.basis,
        weights=fit.weights,
        spread_percent=_spread(plan, fit, main),
        sampled=fit.counted,
    )
    return planning.repriced(replace(plan, notices=notices, measures=measures), basis)


def _spread(plan: Plan, fit: sampling.Calibration, main: Sequence[int]) -> float:
    """Return the interval of the total: what was not sampled from is as uncertain as before."""
    if len(main) == len(plan.measures):
        return fit.spread_percent
    sizes = [fit.weights.tokens(each) for each in plan.measures.sizes]
    sampled = sum(sizes[index] for index in main)
    rest = sum(sizes) - sampled
    return (fit.spread_percent * sampled + plan.basis.spread_percent * rest) / (sampled + rest)


def _seed(requests: Sequence[Request]) -> int:
    """Return a number that is the same for the same requests."""
    joined = "".join(request.digest for request in requests[:: max(1, len(requests) // 1_000)])
    return int.from_bytes(hashlib.sha256(joined.encode()).digest()[:8], "big")


def _body(request: Request) -> bytes:
    fields = _fields.decode(request.params)
    return wire.encode({name: value for name, value in fields.items() if name in _COUNTED})


def _ask(requests: Sequence[Request], count: Callable[[bytes], int]) -> _Sample:
    """Count until all are counted or the server does not want to; the first call is alone."""
    counted: dict[int, int] = {}
    stopped = ""

    def one(at: int) -> tuple[int, int | None, str]:
        if stopped:
            return at, None, ""
        try:
            return at, count(_body(requests[at])), ""
        except ApiError as error:
            # One request may be refused for itself; anything else will not get better by asking.
            is_own = error.http_status in {400, 413}
            return at, None, "" if is_own and counted else f"count_tokens: {error.message}"
        except Unreachable as error:
            return at, None, f"cannot reach {error.message}"

    _, tokens, stopped = one(0)
    if tokens is not None:
        counted[0] = tokens
    if stopped:
        return _Sample(counted, stopped)
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        for at, tokens, why in pool.map(one, range(1, len(requests))):
            if tokens is not None:
                counted[at] = tokens
            stopped = stopped or why
    return _Sample(counted, stopped)
