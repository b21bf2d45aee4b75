"""How the server of a run charges: what it said, what its address tells, what is taken for granted.

A batch costs half the list price (`batch`), the list price (`standard`, a yard that calls a
synchronous API) or nothing (`simulated`). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from batchyard.client.running.local import HOSTED, is_simulated

if TYPE_CHECKING:
    from batchyard.client.running.journal import Config, State
    from batchyard.model import Billing


def of_server(config: Config) -> Billing | None:
    """Return how the server of a run charges, as far as its address tells."""
    if config.local:
        return "simulated" if is_simulated(config.upstreams) else "standard"
    return "batch" if urlsplit(config.base_url or "").hostname == HOSTED else None


def known(state: State, config: Config | None = None) -> Billing | None:
    """Return how the server of a run charges, None as long as nobody has said it.

    What it said with a batch of the run counts most. What another server said, where the run was
    before, does not count.

    Args:
        state: of the run.
        config: names the server; None for the one where the run is.
    """
    config = config or state.config
    if config is None:
        return None
    for shard in reversed(state.shards):
        if shard.server == config.base_url and not shard.billing_assumed:
            match shard.billing:
                case None:
                    continue
                case "batch" | "simulated" as said:
                    return said
                case _:
                    return "standard"
    return of_server(config)


def presumed(state: State) -> Billing:
    """Return how the server of a run charges, or what its receipt takes for granted.

    That is the discount of a batch, and the list price for a yard that did not say with a batch of
    the run how it charges.
    """
    found = known(state)
    if found is not None:
        return found
    server = None if state.config is None else state.config.base_url
    is_silent_yard = any(
        shard.server == server and not shard.billing_assumed for shard in state.shards
    )
    return "standard" if is_silent_yard else "batch"
