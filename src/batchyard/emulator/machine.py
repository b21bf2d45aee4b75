"""The emulator's parts that can be turned and set while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard import wire
from batchyard.emulator import script as scripts
from batchyard.emulator.settling import settled
from batchyard.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from batchyard.emulator.clock import CallClock, TurnableClock
    from batchyard.emulator.faults import Faults
    from batchyard.emulator.model import ScriptedModel
    from batchyard.emulator.script import Script
    from batchyard.server.yard import Yard


class Machine:
    """Clock, script and account of a running emulator."""

    def __init__(self, clock: TurnableClock, calls: CallClock, model: ScriptedModel) -> None:
        self.clock = clock
        self._calls = calls
        self._model = model
        self._yard: Yard | None = None
        self._faults: Faults | None = None

    def join(self, yard: Yard, faults: Faults) -> None:
        """Take charge of a running yard."""
        self._yard = yard
        self._faults = faults
        faults.set_rules(self._model.script.calls)

    async def advance(self, duration: str | float) -> None:
        """Let time pass, until all that it brings about has happened.

        Args:
            duration: seconds, or such as `25h`, `90m`, `1h30m`.

        Raises:
            InvalidRequest: not a duration.
        """
        try:
            seconds = scripts.seconds_of(duration)
        except ValueError as error:
            raise InvalidRequest(f"advance: {error}") from None
        await self.clock.advance(seconds, self.settle, self._finest_s)

    def _finest_s(self) -> float | None:
        """Return a quarter of the shortest answer while others wait for its slot."""
        assert self._yard is not None
        shortest = self._calls.shortest_s
        return shortest / 4 if shortest is not None and self._yard.own_worker.has_unsent else None

    async def settle(self) -> None:
        """Wait until only the passing of time, or a client, can change anything."""
        assert self._yard is not None
        await settled(self._yard, self._model)

    def follow(self, script: Script) -> None:
        """Replace the script."""
        assert self._faults is not None
        self._model.script = script
        self._faults.set_rules(script.calls)

    def pay_in(self, *, requests: int | None = None, usd: float | None = None) -> None:
        """Pay into the account.

        Raises:
            InvalidRequest: the script says nothing of credit, or counts it otherwise.
        """
        try:
            self._model.add_credit(requests=requests, usd=usd)
        except (ValueError, ConfigError) as error:
            raise InvalidRequest(f"credit: {error}") from None

    def standing(self) -> dict[str, object]:
        """Return the time, the speed and the credit."""
        return {
            "type": "emulator",
            "now": wire.rfc3339(self.clock.now_us()),
            "passed_s": round(self.clock.monotonic_s(), 6),
            "speed": self.clock.speed,
            "credit_left": self._model.credit_left,
        }
