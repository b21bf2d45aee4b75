"""A worker as an actor of a Ray cluster: `serve --role worker`, told to leave by a call.

Runs in a process of its own on whichever node Ray has chosen, in which batchyard is installed. It
has no state that outlives it, so Ray need not restore it; another one is started in its place.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard import __version__, limits
from batchyard.clock import SystemClock
from batchyard.errors import ConfigError, StoreError
from batchyard.server import run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchyard.server.config import Config

log = logging.getLogger(__name__)

# What object stores read their keys, region and endpoint from.
FAMILIES = ("AWS_", "GOOGLE_", "AZURE_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a worker is told at its start."""

    config: Config
    owner: str
    """Its name in the ledger, and as an actor."""
    version: str
    """Of the program that sends this."""
    environment: Mapping[str, str]
    """Variables of the launcher that the object store needs, for nodes that have none."""


class ClusterWorker:
    """The actor. Its methods are called by `engine.py`, over Ray."""

    def __init__(self, order: Order) -> None:
        """Prepare; `run` works.

        Args:
            order: what it is told.
        """
        os.umask(0o077)
        gc.set_threshold(limits.GC_THRESHOLD, 10, 10)
        logging.basicConfig(
            level=logging.INFO,
            format=f"%(asctime)s %(levelname)s %(name)s[{os.getpid()}] %(message)s",
        )
        self._order = order
        self._leaving = asyncio.Event()
        self._begun = asyncio.Event()
        self._parent = os.getppid()
        self._wrong: str | None = None

    async def run(self) -> str | None:
        """Work until told to leave; return why it ended otherwise."""
        watching = asyncio.create_task(self._watch_node())
        try:
            _check_version(self._order.version)
            lend(self._order.environment, os.environ)
            config, owner = self._order.config, self._order.owner
            await run.work_until(self._leaving, config, owner, self._announce)
        except ConfigError as error:
            self._wrong = error.message
            return self._wrong
        except Exception as error:
            failure = store_failure(error)
            if failure is None:
                raise
            return f"the store failed: {failure}"
        finally:
            watching.cancel()
            self._begun.set()
            if os.getppid() != self._parent:
                os._exit(0)  # nobody else would end it
        return None

    async def _watch_node(self) -> None:
        """Leave when the process of Ray that started this one has ended: nobody can say so then.

        Ray itself ends such a process, too, but later (a minute and more, measured with Ray 2.60
        after its head was killed), and not in order.
        """
        clock = SystemClock()
        while os.getppid() == self._parent:
            await clock.sleep(limits.RENEW_INTERVAL_S)
        log.warning("the node has ended: calls in flight may end")
        self._leaving.set()

    async def ready(self) -> str | None:
        """Wait until it works; return what is wrong with the settings, if that is why not."""
        await self._begun.wait()
        return self._wrong

    async def leave(self) -> None:
        """Let `run` end when the calls in flight have ended, or after a while."""
        self._leaving.set()

    async def where(self) -> dict[str, object]:
        """Return the process it runs in, and whether it works or leaves."""
        if self._leaving.is_set():
            state = "leaving"
        else:
            state = "working" if self._begun.is_set() else "starting"
        return {"pid": os.getpid(), "state": state}

    def _announce(self, hello: dict[str, object]) -> None:
        log.info("working owner=%s", hello["owner"])
        self._begun.set()


def _check_version(theirs: str) -> None:
    if theirs != __version__:
        raise ConfigError(
            f"batchyard {__version__} is installed on a node, and {theirs} is what starts the "
            "workers; install the same on all"
        )


def lend(ours: Mapping[str, str], environment: dict[str, str] | os._Environ[str]) -> None:
    """Set the variables of each family of which a node has none.

    All or none of them: the keys of one place do not fit the endpoint or the role of another.
    """
    for family in FAMILIES:
        if not any(name.startswith(family) for name in environment):
            environment.update({k: v for k, v in ours.items() if k.startswith(family)})


def store_failure(error: Exception) -> Exception | None:
    """Return the failure of the store that ended a worker, alone or in a group."""
    if isinstance(error, ExceptionGroup):
        return next(filter(None, map(store_failure, error.exceptions)), None)
    return error if isinstance(error, StoreError) else None
