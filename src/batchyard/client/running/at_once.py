"""The last few documents one by one, at once, instead of as a batch that may take a day. Pure.

A yard of our own stands before the server of the run then and calls it synchronously, at the list
price; batches, journal and receipt stay what they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from batchyard.client.running import billing

if TYPE_CHECKING:
    from batchyard.client.running.journal import Config, State

FEW = 20  # documents for which it is offered
NAME = "now"  # so its key is `local.NOW_KEY`


def is_possible(state: State) -> bool:
    """Whether the server of a run takes single calls at another price than batches."""
    config = state.config
    if config is None or config.local or config.base_url is None:
        return False
    return billing.known(state) in {None, "batch"}  # a yard calls its upstreams at once as it is


def upstreams(config: Config) -> tuple[str, ...]:
    """Return the upstreams of the yard before the server of a run."""
    return (f"{NAME}={config.base_url}",)


def behind(config: Config) -> Config:
    """Return a run as it was before a yard stood before its server; others as they are."""
    name, _, url = (config.upstreams or ("",))[0].partition("=")
    if not config.local or name != NAME:
        return config
    return structs.replace(config, local=False, base_url=url, upstreams=())
