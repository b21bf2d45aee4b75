"""The same requests for other models: what each would cost, and whether it takes them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batchyard import models, validate, wire
from batchyard.client.planning import estimate, pricing
from batchyard.client.planning.plan import API_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchyard.client.planning.plan import Plan
    from batchyard.client.planning.pricing import Price


@dataclass(frozen=True, slots=True)
class Row:
    """One model.

    `batch` is the price as a batch, `synchronous` that of single calls; both are None when they are
    not known, and so are `output_cap` and `cache_minimum`, in tokens. `refused` counts the requests
    that it would not take, for the reason `why` first of all.
    """

    model: str
    input_tokens: int
    batch: Price | None
    output_cap: int | None
    cache_minimum: int | None
    refused: int = 0
    why: str = ""
    synchronous: Price | None = None


def compare(plan: Plan, names: Iterable[str]) -> list[Row]:
    """Return a row for the model of the plan and for each other one, in this order.

    Requests for which a row names a model of its own become requests for the one compared. The
    tokens of another model are those of the plan by what is known of its tokenizer; hits of the
    cache are not taken into account.
    """
    wanted = dict.fromkeys([plan.settings.model, *names])
    return [_row(plan, model) for model in wanted]


def _row(plan: Plan, model: str) -> Row:
    weights = estimate.rescaled(plan.basis.weights, plan.basis.model, model)
    basis = replace(plan.basis, model=model, weights=weights, cached_tokens=0, ttl=None)
    groups = plan.measures.chosen(range(len(plan.measures)), model).groups(basis)
    known = models.find(model)
    refused, why = _refused(plan, model)
    return Row(
        model=model,
        input_tokens=pricing.tokens(groups, basis).input,
        batch=pricing.cost(groups, basis, "batch"),
        output_cap=None if known is None else known.output_cap(plan.settings.betas),
        cache_minimum=None if known is None else known.cache_min,
        refused=refused,
        why=why,
        synchronous=pricing.cost(groups, basis, "standard"),
    )


def _refused(plan: Plan, model: str) -> tuple[int, str]:
    """Count the requests that would be refused, and return the reason of the first."""
    count, first = 0, ""
    head = b'{"model":' + wire.encode(model)
    for request, (_, own, _) in zip(plan.requests, plan.measures, strict=True):
        # The model comes first, whoever set it (`plan`): all behind it can stay encoded.
        params = head + request.params[len(b'{"model":' + wire.encode(own)) :]
        problem = validate.check(params, version=API_VERSION, betas=plan.settings.betas)
        if problem is not None:
            count += 1
            first = first or problem.message
    return count, first
