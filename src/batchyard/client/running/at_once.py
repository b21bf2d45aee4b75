"""The last few documents one by one, at once, instead of as a batch that may take a day.

A yard of our own stands before the server of the run then and calls it synchronously, at the list
price; batches, journal and receipt stay what they are. When they are done, the run is at its server
again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from batchyard import crash
from batchyard.client.running import billing, journal
from batchyard.client.running.local import BEHIND

if TYPE_CHECKING:
    from batchyard.client.running.folder import Journal
    from batchyard.client.running.journal import Config, State

FEW = 20  # documents for which it is offered


def is_possible(state: State) -> bool:
    """Whether the server of a run takes single calls at another price than batches."""
    config = state.config
    if config is None or config.local or config.base_url is None:
        return False
    return billing.known(state) in {None, "batch"}  # a yard calls its upstreams at once as it is


def upstreams(config: Config) -> tuple[str, ...]:
    """Return the upstreams of the yard before the server of a run."""
    return (f"{BEHIND}={config.base_url}",)


def is_on(config: Config) -> bool:
    """Whether a yard stands before the server of a run."""
    return config.local and bool(config.upstreams) and _first(config)[0] == BEHIND


def behind(config: Config) -> Config:
    """Return a run as it was before a yard stood before its server; others as they are."""
    if not is_on(config):
        return config
    return structs.replace(config, local=False, base_url=_first(config)[1], upstreams=())


def go_back(writer: Journal) -> None:
    """Let a run be at its server again, where it was before a yard stood before it."""
    config = writer.state.config
    if config is not None and is_on(config):
        writer.record(journal.Moved(base_url=behind(config).base_url))
        crash.point("moved")


def _first(config: Config) -> tuple[str, str]:
    name, _, url = config.upstreams[0].partition("=")
    return name, url
