"""The only part that knows Ray: a cluster that is joined or started, its nodes, and its actors.

Ray places an actor where its CPUs and GPUs are free, spread over the nodes, tells when it has died,
and lets go of all actors when the process that started them has ended. Nothing else of it is used:
no object store, no state, no restarts of its own, which know no pause between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from batchyard import __version__
from batchyard.cluster.status import Actor, Node
from batchyard.cluster.worker import FAMILIES, ClusterWorker, Order
from batchyard.errors import ConfigError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchyard.cluster.fleet import Handle
    from batchyard.server.config import Config
    from batchyard.server.groups import Group

# Ray reports its use to its makers unless told not to; whoever wants that can say so.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise ConfigError(
        "workers on a Ray cluster need the extra: pip install 'batchyard[ray]'"
    ) from error

log = logging.getLogger(__name__)

LOCAL = "local"
_ANSWER_MAX_S = 10.0
_PLACE = "#keeper"
_places: list[Any] = []
_JOIN_TRIES = 4
"""Over `ray://`: the process that a cluster starts for each client at times dies of its start, for
it is forked while other threads use gRPC. Source: Ray's issue 63202."""


def connect(address: str, name: str) -> str:
    """Join a cluster, or start one on this machine; return its address.

    Args:
        address: `auto` for the one that this machine is part of (or `RAY_ADDRESS` names),
            `host:port` or `ray://host:port` for another, `local` to start one that ends with us.
        name: of the yard, whose workers see only each other.

    Raises:
        ConfigError: there is none, or it runs another version of Ray or Python.
    """
    _check_reachable(address)
    options: dict[str, Any] = {"namespace": f"batchyard-{name}", "log_to_driver": False}
    if address == LOCAL:
        options["include_dashboard"] = False
    try:
        context = _join(lambda: ray.init(address=address, logging_level=logging.WARNING, **options))
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _unusable(address, _reason(error)) from None
    info = getattr(context, "address_info", None) or {}
    return str(info.get("address") or address)


def _join(init: Callable[[], Any]) -> Any:
    """Join; again, a few times, where the cluster took us and then could not serve us.

    Raises:
        Exception: what the last try met.
    """
    for left in range(_JOIN_TRIES - 1, 0, -1):
        try:
            return init()
        except ConnectionAbortedError as error:
            why = shown(_reason(error), 300)
            log.warning("could not join the Ray cluster, %d tries left: %s", left, why)
    return init()


def _reason(error: Exception) -> str:
    """Return an error on one line; of what a server has met, the end of its traceback."""
    text = str(error)
    if isinstance(error, ConnectionAbortedError):
        text = text.strip().rpartition("\n")[2]
    return " ".join(text.split())


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself would end this process, after a minute."""
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_MAX_S).close()
    except (OSError, OverflowError) as error:
        raise _unusable(address, str(error)) from None


def _unusable(address: str, why: str) -> ConfigError:
    return ConfigError(
        f"Ray cluster {shown(address)}: {shown(why, 300)}; allowed are auto, local, host:port and "
        "ray://host:port"
    )


def disconnect() -> None:
    """Leave the cluster; one that `connect` started ends."""
    ray.shutdown()


def nodes() -> list[Node]:
    """Return the nodes of the cluster, those that have died last."""
    found = [
        Node(
            id=each["NodeID"],
            host=each["NodeManagerHostname"],
            is_alive=each["Alive"],
            resources={k: each["Resources"].get(k, 0.0) for k in ("CPU", "GPU")},
        )
        for each in ray.nodes()
    ]
    return sorted(found, key=lambda node: (not node.is_alive, node.host, node.id))


def names() -> list[str]:
    """Return the names of the workers of this yard."""
    return sorted(name for name in ray.util.list_named_actors() if name != _PLACE)


class _Place:
    """Who keeps a yard; it ends with the one that asked for it first."""

    def __init__(self) -> None:
        self._keeper: str | None = None

    def take(self, keeper: str) -> bool:
        self._keeper = self._keeper or keeper
        return self._keeper == keeper


async def take_place(keeper: str) -> bool:
    """Become the only process that keeps this yard, until it ends; False while there is another.

    Args:
        keeper: a name that no other process has.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": _PLACE, "get_if_exists": True, "num_cpus": 0, "max_restarts": 0}
    try:
        async with asyncio.timeout(_ANSWER_MAX_S):
            actor = (
                ray.remote(_Place)
                .options(**options, scheduling_strategy=here, enable_task_events=False)
                .remote()
            )
            _places[:] = [actor]  # it ends when nobody refers to it
            taken: bool = await actor.take.remote(keeper)
    except TimeoutError:  # it may be starting still
        return False
    except (RayError, ValueError):  # the one before ends just now
        taken = False
    if not taken:
        _places.clear()
    return taken


async def actors() -> list[Actor]:
    """Return the workers of this yard, by name."""
    return list(await asyncio.gather(*map(_look, names())))


async def _look(name: str) -> Actor:
    try:
        async with asyncio.timeout(_ANSWER_MAX_S):
            told = await ray.get_actor(name).where.remote()
    except (RayError, TimeoutError, ValueError):  # dead, without a place, or gone meanwhile
        return Actor(name=name, state="silent")
    return Actor(name=name, **told)


class _Actor(ClusterWorker):
    async def where(self) -> dict[str, object]:
        return await super().where() | {"node": ray.get_runtime_context().get_node_id()}


class RayEngine:
    """Starts workers on the cluster that this process has joined."""

    def __init__(self, config: Config, environment: Mapping[str, str]) -> None:
        """Prepare.

        Args:
            config: of the workers; each gets that of its group.
            environment: of this process, for the object store on nodes that have no keys for it.
        """
        self._config = config
        self._environment = {k: v for k, v in environment.items() if k.startswith(FAMILIES)}
        self._class: Any = ray.remote(_Actor)

    def start(self, group: Group, name: str) -> Handle:
        """Ask for a worker; see `fleet.Engine`."""
        order = Order(
            config=replace(self._config, only=frozenset(group.upstreams)),
            owner=name,
            version=__version__,
            environment=self._environment,
        )
        actor = self._class.options(
            name=name,
            num_cpus=group.cpus,
            num_gpus=group.gpus,
            scheduling_strategy="SPREAD",
            max_restarts=0,
            # A worker that has events to report exits at once when the head does not answer for a
            # while, with its calls in flight; one that has nothing to say to it lets them end.
            enable_task_events=False,
        ).remote(order)
        return _Handle(actor)


class _Handle:
    """A worker on the cluster; see `fleet.Handle`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._running: Any = actor.run.remote()

    async def ready(self) -> str | None:
        wrong: str | None = await self._actor.ready.remote()
        return wrong

    async def ended(self) -> str | None:
        why: str | None = await self._running
        return why

    async def leave(self) -> None:
        await self._actor.leave.remote()

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # it has ended, or the cluster has
            ray.kill(self._actor, no_restart=True)
