"""Keeps the workers of every group: starts them, replaces those that died, lets go of the rest.

It decides nothing about work: a worker claims what it can, whoever started it. So whatever this
process gets wrong, or misses, costs time and no result.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from batchyard import ids, limits
from batchyard.clock import wait_first
from batchyard.cluster.scaling import Scaler, useful
from batchyard.errors import ConfigError, Overloaded, shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batchyard.clock import Clock
    from batchyard.dispatch.routes import Routes
    from batchyard.ledger.open_work import Backlog
    from batchyard.server.groups import Group

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 2.0
"""How often the open work is read."""
LEAVE_MAX_S = limits.DRAIN_GRACE_S + 25.0
"""For a worker to end in order; then it is killed, which loses nothing."""
LEAVE_UNSEEN_S = 10.0
"""The same for one that was never ready: it may have no place yet, and then it hears nothing."""
DISBAND_MAX_S = LEAVE_MAX_S + 10.0
"""For all to end; those of which nothing is heard then, killed as they are, are left alone."""

_SAME_S = 0.001
"""Moments that are nearer to each other are the same."""


class Handle(Protocol):
    """A worker that was started."""

    async def ready(self) -> str | None:
        """Wait until it works; return what is wrong with the settings, if that is why it does not.

        Raises:
            Exception: it died, or its node did.
        """

    async def ended(self) -> str | None:
        """Wait until it has ended; return why, None if it was told to leave.

        Raises:
            Exception: it died, or its node did, or neither answers.
        """

    async def leave(self) -> None:
        """Tell it to let its calls end, and end.

        Raises:
            Exception: it is dead.
        """

    def kill(self) -> None:
        """Make sure that it has ended."""


class Engine(Protocol):
    """What places and runs workers."""

    def start(self, group: Group, name: str) -> Handle:
        """Ask for a worker; it may take any time to find a place."""


@dataclass(slots=True, eq=False)
class Member:
    """A worker of a group."""

    name: str
    handle: Handle
    losses_before: int
    """Losses of its team before it was started."""
    worked: bool = False
    """Whether it was ever ready."""
    leaving: asyncio.Task[None] | None = None
    """What tells it to leave, if it has to."""


@dataclass(slots=True, eq=False)
class Team:
    """The workers of a group."""

    group: Group
    scaler: Scaler
    members: list[Member] = field(default_factory=list)
    """In the order in which they were asked for."""
    pause_s: float = 0.0
    """Before another one is started after one died; grows while they die young."""
    not_before_s: float = 0.0
    losses: int = 0
    """Events in which workers died: those that die with one node are one."""
    lost_s: float = 0.0
    """When the last one was."""

    @property
    def staying(self) -> list[Member]:
        """Return those that are not leaving."""
        return [member for member in self.members if member.leaving is None]

    def note_death(self, member: Member, lived_s: float, now_s: float) -> None:
        """Put off the next start, unless this one died of what others have died of just now."""
        recently = now_s - self.lost_s <= limits.WORKER_RESTART_MAX_S
        if member.losses_before < self.losses and recently:
            return
        self.losses += 1
        self.lost_s = now_s
        if lived_s > limits.WORKER_RESTART_MAX_S:
            self.pause_s = 0.0
        self.not_before_s = now_s + self.pause_s
        longer_s = max(2 * self.pause_s, limits.WORKER_RESTART_S)
        self.pause_s = min(longer_s, limits.WORKER_RESTART_MAX_S)


class Fleet:
    """All workers of a cluster."""

    def __init__(
        self,
        engine: Engine,
        groups: tuple[Group, ...],
        routes: Routes,
        clock: Clock,
        look: Callable[[], Awaitable[Backlog]],
    ) -> None:
        """Describe it; nothing is started yet.

        Args:
            engine: what runs workers.
            groups: of workers.
            routes: which pool belongs to which upstream.
            clock: of waits.
            look: returns the open work; may raise Overloaded when the ledger is away.
        """
        self._engine = engine
        self._teams = [Team(group, Scaler(group)) for group in groups]
        self._groups = groups
        self._routes = routes
        self._clock = clock
        self._look = look
        self._useful = {group.name: 0 for group in groups}
        self._leaving = asyncio.Event()
        self._changed = asyncio.Event()
        self._attending: set[asyncio.Task[None]] = set()
        self._is_away = False
        self._has_worked = False
        self._unusable: str | None = None

    def leave(self) -> None:
        """Let all workers end; `run` returns when they have."""
        self._leaving.set()
        self._changed.set()

    def sizes(self) -> dict[str, int]:
        """Return how many workers of each group stay, by its name."""
        return {team.group.name: len(team.staying) for team in self._teams}

    async def run(self) -> None:
        """Keep the workers until `leave` is called, and until they have ended then.

        Raises:
            ConfigError: a worker cannot use the settings, and none ever could.
            StoreError: the ledger cannot be read.
        """
        try:
            while not self._leaving.is_set():
                self._changed.clear()
                await self._read()
                if self._unusable is not None:
                    raise ConfigError(self._unusable)
                for team in self._teams:
                    self._fit(team)
                await wait_first(self._clock, self._changed, self._pause_s())
        finally:
            await self._disband()

    def _pause_s(self) -> float:
        """Return until when nothing is to be done, unless something changes."""
        now_s = self._clock.monotonic_s()
        waits = (team.not_before_s - now_s for team in self._teams)
        return min([LOOK_INTERVAL_S, *(wait_s for wait_s in waits if wait_s > _SAME_S)])

    async def _read(self) -> None:
        try:
            backlog = await self._look()
        except Overloaded:
            if not self._is_away:
                log.warning("the ledger is away: the number of workers stays as it is")
            self._is_away = True
            return
        self._is_away = False
        self._useful = useful(self._groups, backlog, self._routes)

    def _fit(self, team: Team) -> None:
        """Start workers, or let some leave."""
        group, now_s = team.group, self._clock.monotonic_s()
        wanted = team.scaler.wanted(self._useful[group.name], now_s)
        staying = team.staying
        if len(staying) < wanted and now_s >= team.not_before_s - _SAME_S:
            log.info("group=%s workers %d -> %d", group.name, len(staying), wanted)
            for _ in range(wanted - len(staying)):
                self._start(team)
        elif len(staying) > wanted:
            log.info("group=%s workers %d -> %d", group.name, len(staying), wanted)
            for member in staying[wanted:]:  # the last ones: they may not even have a place yet
                self._dismiss(member)

    def _start(self, team: Team) -> None:
        name = f"{team.group.name}-{ids.nonce()}"
        member = Member(name, self._engine.start(team.group, name), team.losses)
        team.members.append(member)
        task = asyncio.create_task(self._attend(team, member))
        self._attending.add(task)
        task.add_done_callback(self._attending.discard)

    def _dismiss(self, member: Member) -> None:
        member.leaving = asyncio.create_task(self._send_off(member))

    async def _attend(self, team: Team, member: Member) -> None:
        """Wait for the end of a worker; see to it that there can be another one."""
        began_s = self._clock.monotonic_s()
        why: str | None
        try:
            wrong = await member.handle.ready()
            if wrong is None:
                member.worked = self._has_worked = True
                log.info("working worker=%s", member.name)
            elif not self._has_worked:
                self._unusable = wrong
            why = await member.handle.ended() or wrong
        except Exception as error:  # noqa: BLE001 - whatever it was, it is over with this worker
            why = f"{type(error).__name__}: {error}"
        # It may be out of reach rather than dead; a worker that goes on all the same is fenced.
        member.handle.kill()
        team.members.remove(member)
        if member.leaving is not None:
            member.leaving.cancel()
        if why is None or member.leaving is not None:
            log.info("left worker=%s", member.name)
        else:
            now_s = self._clock.monotonic_s()
            team.note_death(member, now_s - began_s, now_s)
            log.warning(
                "ended worker=%s: %s; another one starts in %.1f s",
                member.name, shown(why.partition("\n")[0], 300),
                max(0.0, team.not_before_s - now_s),
            )  # fmt: skip
        self._changed.set()

    async def _send_off(self, member: Member) -> None:
        """Tell a worker to leave, and end it when it takes too long; `_attend` sees it end."""
        telling = asyncio.ensure_future(self._tell(member))
        try:
            await self._clock.sleep(LEAVE_MAX_S if member.worked else LEAVE_UNSEEN_S)
        finally:
            telling.cancel()
        log.warning("killed worker=%s: it did not leave in time", member.name)
        member.handle.kill()

    async def _tell(self, member: Member) -> None:
        with contextlib.suppress(Exception):
            await member.handle.leave()

    async def _disband(self) -> None:
        """Let all workers leave, and wait for their ends, but not for ever."""
        staying = [member for team in self._teams for member in team.staying]
        if staying:
            log.info("leaving: %d workers let their calls end", len(staying))
        for member in staying:
            self._dismiss(member)
        end_s = self._clock.monotonic_s() + DISBAND_MAX_S
        while names := [member.name for team in self._teams for member in team.members]:
            left_s = end_s - self._clock.monotonic_s()
            if left_s <= _SAME_S:  # their cluster is gone, say
                log.error("%d workers do not tell their end: %s", len(names), ", ".join(names))
                break
            self._changed.clear()
            await wait_first(self._clock, self._changed, left_s)
        for task in self._attending:
            task.cancel()
