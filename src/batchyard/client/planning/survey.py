"""Make a plan as good as can be known before anything is paid: earlier answers, counts, the cache.

Reads the runs of this user and asks the server of the run for token counts; what cannot be learned
leaves the plan as it was.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batchyard import wire
from batchyard.client.answers import ApiError, Unreachable
from batchyard.client.planning import plan as planning
from batchyard.client.planning.earlier import with_earlier
from batchyard.client.running import billing
from batchyard.client.running.local import HOSTED, is_hosted

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from batchyard.client.api import Api
    from batchyard.client.planning.plan import Plan
    from batchyard.client.running.journal import Config
    from batchyard.model import Billing


@dataclass(frozen=True, slots=True)
class _Server:
    """Whom to ask."""

    url: str
    key: str


def settled(
    plan: Plan, config: Config, out: Path, *, sample: int, api_key: str | None = None
) -> Plan:
    """Return the plan with what can be learned of its tokens, and the breakpoint that it asks for.

    Args:
        plan: as it was made.
        config: of the run: where the server is, and which runs are like it.
        out: the folder of the run.
        sample: how many requests to have counted; 0 for none.
        api_key: default `ANTHROPIC_API_KEY`.
    """
    plan = replace(with_earlier(plan, config, out), billing=billing.of_server(config))
    server = _server(config, api_key)
    if sample and server is not None:
        from batchyard.client.api import Api  # noqa: PLC0415 - the HTTP client, only when needed
        from batchyard.client.planning.counting import calibrated  # noqa: PLC0415

        api = Api(server.url, server.key, betas=config.betas)
        try:
            plan = calibrated(plan, api.count_tokens, sample)
            if plan.billing is None:
                plan = replace(plan, billing=asked_billing(plan.measures.models, api))
        finally:
            api.close()
    elif sample and not config.local:
        plan = replace(plan, notices=[*plan.notices, "token counts are estimates: no API key"])
    return planning.with_cache(plan)


def asked_billing(names: Iterable[str], api: Api) -> Billing | None:
    """Return how a yard would charge requests for some models; None when it does not tell."""
    message = {"max_tokens": 1, "messages": [{"role": "user", "content": "?"}]}
    requests = [
        {"custom_id": f"billing-{number}", "params": {"model": model, **message}}
        for number, model in enumerate(names)
    ]
    try:
        found = api.billing(wire.encode({"requests": requests}))
    except (ApiError, Unreachable):
        return None
    match found:
        case "standard" | "batch" | "simulated":
            return found
        case _:
            return None


def _server(config: Config, api_key: str | None) -> _Server | None:
    """Return who counts for this run; a local server is not started for it."""
    key = api_key or os.environ.get("ANTHROPIC_API_KEY")
    if not config.local:
        return _Server(config.base_url, key) if config.base_url and key else None
    if not is_hosted(config.upstreams):
        return None
    name = config.upstreams[0].partition("=")[0]
    own = os.environ.get(f"BATCHYARD_UPSTREAM_{name.upper().replace('-', '_')}_KEY")
    key = own or os.environ.get("ANTHROPIC_API_KEY")
    return _Server(f"https://{HOSTED}", key) if key else None
