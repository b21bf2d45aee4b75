"""What runs on a Ray cluster, and what each worker has taken up: from Ray, and from the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard.clock import SystemClock
from batchyard.ledger.backlog import BacklogReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchyard.ledger.open_work import Backlog


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the cluster."""

    id: str
    host: str
    is_alive: bool
    resources: Mapping[str, float]
    """CPU and GPU, those in use included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """A worker that Ray knows of."""

    name: str
    state: str
    """starting, working, leaving; or silent: it has no place yet, or its node is gone."""
    node: str | None = None
    pid: int | None = None


async def status(address: str, name: str, ledger: str) -> dict[str, object]:
    """Return the nodes, the workers with what each works on, and what waits; ready for JSON.

    Args:
        address: of the Ray cluster, see `engine.connect`.
        name: of the yard on that cluster.
        ledger: URL of the database.

    Raises:
        ConfigError: the cluster or the ledger cannot be used.
        Overloaded: the database is away.
        StoreError: it cannot be reached.
    """
    from batchyard.cluster import engine  # noqa: PLC0415 - it needs Ray, the rest does not

    reader = BacklogReader(ledger, SystemClock())
    try:
        backlog = await reader.read()
        engine.connect(address, name)
        try:
            return described(engine.nodes(), await engine.actors(), backlog)
        finally:
            engine.disconnect()
    finally:
        await reader.close()


def described(nodes: list[Node], actors: list[Actor], backlog: Backlog) -> dict[str, object]:
    """Put it together. Pure.

    Workers that the ledger knows and this cluster does not, such as plain processes, come last.
    """
    hosts = {node.id: node.host for node in nodes}
    owners = dict.fromkeys(taken.owner for taken in backlog.taken)
    workers: list[dict[str, object]] = [
        {
            "name": actor.name,
            "group": actor.name.rpartition("-")[0],
            "state": actor.state,
            "node": actor.node,
            "host": hosts.get(actor.node or ""),
            "pid": actor.pid,
            "work": _work(backlog, actor.name),
        }
        for actor in actors
    ]
    known = {actor.name for actor in actors}
    return {
        "nodes": [
            {
                "id": node.id,
                "host": node.host,
                "alive": node.is_alive,
                "cpus": node.resources["CPU"],
                "gpus": node.resources["GPU"],
            }
            for node in nodes
        ],
        "workers": workers,
        "elsewhere": [
            {"owner": owner, "work": _work(backlog, owner)}
            for owner in owners
            if owner not in known
        ],
        "waiting": [
            {
                "pool": each.pool,
                "shards": each.shards,
                "requests": each.requests,
                "more": each.is_more,
            }
            for each in backlog.waiting
        ],
    }


def _work(backlog: Backlog, owner: str) -> list[dict[str, object]]:
    return [
        {
            "pool": taken.pool,
            "shards": taken.shards,
            "requests": taken.requests,
            "in_flight": taken.inflight,
        }
        for taken in backlog.taken
        if taken.owner == owner
    ]
