"""Run an emulator: a yard, with the scripted model, the turnable clock and the layers around it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchyard.emulator.clock import SPEED_MAX, CallClock, TurnableClock
from batchyard.emulator.control import Control
from batchyard.emulator.faults import Faults
from batchyard.emulator.fixtures import Fixtures, OneWorkspace, make_batch
from batchyard.emulator.machine import Machine
from batchyard.emulator.model import ScriptedModel
from batchyard.emulator.script import Script
from batchyard.errors import ConfigError, shown
from batchyard.limits import QUEUED_REQUESTS_DEFAULT, REQUESTS_PER_MINUTE_DEFAULT
from batchyard.server import app, assemble
from batchyard.server.config import Config, UpstreamConfig
from batchyard.server.run import listen, run, url_of
from batchyard.upstream.simulated import Settings, Simulated

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.types import ASGIApp

_NAME = "simulated"
_FLUSH_S = 0.001  # nobody waits for answers to gather
_COUNT_MAX = 10**15
_CLOSE_S = 5  # a test that ends need not wait for the answers that it has made hang
LATENCY_MAX_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """What to emulate."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 0
    speed: float = 1.0
    seed: int | None = None
    """None takes the script's, or 0."""
    latency: float = 0.0
    """Seconds that an answer takes, typically; single ones lie up to a half below or above."""
    words: int = 180
    slots: int = 64
    """Requests that are answered at once, for each model."""
    script: Script = field(default_factory=Script)
    fixtures: bool = False
    requests_per_minute: int = REQUESTS_PER_MINUTE_DEFAULT
    queued_requests: int = QUEUED_REQUESTS_DEFAULT
    models: Path | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: one is out of its range.
        """
        _number("latency", self.latency, 0, LATENCY_MAX_S)
        _number("speed", self.speed, 1e-6, SPEED_MAX)
        _whole("words", self.words, 1, 100_000)
        _whole("slots", self.slots, 1, 100_000)
        _whole("requests_per_minute", self.requests_per_minute, 1, _COUNT_MAX)
        _whole("queued_requests", self.queued_requests, 1, _COUNT_MAX)
        if self.seed is not None:
            _whole("seed", self.seed, 0, 2**63 - 1)


def _number(name: str, value: object, least: float, most: float) -> None:
    if not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigError(f"{name} {shown(value)}: a number from {least:,} to {most:,} is allowed")


def _whole(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(
            f"{name} {shown(value)}: a whole number from {least} to {most} is allowed"
        )


async def emulate(
    what: Emulation, *, leaving: asyncio.Event, tell: Callable[[str, Machine], None]
) -> None:
    """Run an emulator until `leaving` is set. The caller holds the lock on the data directory.

    Args:
        what: to emulate.
        leaving: set by whoever ends it.
        tell: called once, when requests are answered, with the URL.

    Raises:
        ConfigError: the data or the address cannot be used.
        ExceptionGroup: the store failed.
    """
    clock = TurnableClock()
    clock.set_speed(what.speed)
    seed = (what.script.seed or 0) if what.seed is None else what.seed
    settings = Settings(
        latency=what.latency, jitter=0.5 if what.latency else 0.0, words=what.words, seed=seed
    )
    # The batch of the fixtures is made before the script holds.
    begin = Script() if what.fixtures else what.script
    calls = CallClock(clock)
    model = ScriptedModel(Simulated(_NAME, settings, calls), begin, clock=calls, seed=seed)
    machine = Machine(clock, calls, model)
    listener = listen(what.host, what.port)
    keys = OneWorkspace() if what.fixtures else None
    async with assemble.opened(
        _config(what), clock, upstreams={_NAME: model}, keys=keys, flush_s=_FLUSH_S
    ) as yard:

        def layer(routes: ASGIApp) -> ASGIApp:
            faults = Faults(Fixtures(routes) if what.fixtures else routes, clock, model)
            machine.join(yard, faults)
            return Control(faults, machine)

        application = app.build(yard, layer)
        started = asyncio.Event()

        async def prepare() -> None:
            await started.wait()
            if what.fixtures:
                await make_batch(yard)
                machine.follow(what.script)
            tell(url_of(listener), machine)
            await leaving.wait()
            clock.set_speed(SPEED_MAX)  # nobody waits for calls in flight

        async with asyncio.TaskGroup() as group:
            preparing = group.create_task(prepare())
            await run(
                yard, application, listener, leaving=leaving, tell=started.set, close_s=_CLOSE_S
            )
            preparing.cancel()


def _config(what: Emulation) -> Config:
    return Config(
        host=what.host,
        port=what.port,
        data=what.data,
        public_url=None,
        allowed_hosts=frozenset(),
        requests_per_minute=what.requests_per_minute,
        queued_requests=what.queued_requests,
        models=what.models,
        upstreams=(UpstreamConfig(name=_NAME, url="simulated:", slots=what.slots),),
    )
