"""Who waits for a permit: the async shell around a pool's limiter.

While nothing limits, a call passes without waiting and without a task. Otherwise calls queue here,
those that are repeated first, and one timer wakes the next when it may start. Gates that wait for
a ceiling which they share stand in line for it (`line.py`). Who waits leaves its part of the calls
that the process may make to others, and is woken when there is room again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from batchyard.dispatch import hints
from batchyard.dispatch.cap import Cap
from batchyard.dispatch.limiter import Limiter, Signal, Wait
from batchyard.dispatch.line import Line, Timer
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchyard.clock import Clock
    from batchyard.dispatch.ceilings import Ceiling, Ceilings
    from batchyard.dispatch.window import Permit

log = logging.getLogger(__name__)

_SAID_S = 60.0  # a limit that comes back sooner is not told of again
_IDLE_MAX = 1_000  # clients choose the names of models: do not remember for ever


class _Head(msgspec.Struct, gc=False):
    max_tokens: int = 0


_head = msgspec.json.Decoder(_Head)


class Gate:
    """Lets the calls of one pool through."""

    def __init__(
        self, name: str, limiter: Limiter, clock: Clock, cap: Cap, lines: Sequence[Line] = ()
    ) -> None:
        """Make one.

        Args:
            name: of the pool, for the log.
            limiter: decides.
            clock: of waits.
            cap: of the calls of the process.
            lines: for the ceilings of the limiter.
        """
        self.limiter = limiter
        self.waiting = 0
        """Slots that wait, for time or for an answer to another call."""
        self.wants_usage = bool(limiter.ceilings)
        """Whether it must know the tokens that calls use."""
        self._name = name
        self._clock, self._cap = clock, cap
        self._queue: deque[asyncio.Future[None]] = deque()
        self._repeated: deque[asyncio.Future[None]] = deque()
        self._timer = Timer(clock, self.pass_on)
        self._lines = tuple(lines)
        self._line: Line | None = None
        """In which it stands. It does until a call starts, or nobody waits here."""
        self._is_closed = False
        self._is_told = False
        self._said_s = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether a first call may start now."""
        cap = self._cap
        if self._repeated or cap.calls > cap.most:
            return False
        return self._lets_through

    @property
    def may_repeat(self) -> bool:
        """Whether a call may be repeated now."""
        return self._cap.calls <= self._cap.most and self._lets_through

    @property
    def lacks_call(self) -> bool:
        """Whether calls that may start wait here, as the process makes as many as it may."""
        return bool(self._repeated or self._queue) and self._lets_through

    @property
    def _lets_through(self) -> bool:
        if self._lines and self._line_before() is not None:
            return False
        return self.limiter.wait_s(self._clock.monotonic_s()) <= 0.0

    def rest(self) -> None:
        """Note that a slot begins to wait."""
        self.waiting += 1
        self._cap.rest()

    def go_on(self) -> None:
        """Note that a slot waits no more."""
        self.waiting -= 1
        self._cap.go_on()

    async def wait(self) -> None:
        """Wait until a first call may start, or the gate is closed.

        The caller starts one at once, or calls `pass_on`.
        """
        while not (self.is_open or self._is_closed):
            await self._in(self._queue, None)

    async def wait_again(self, stopped: asyncio.Event) -> None:
        """Wait until a call may be repeated, or `stopped` is set."""
        while not stopped.is_set() and not self.may_repeat:
            await self._in(self._repeated, stopped)
        if stopped.is_set():
            self.pass_on()

    async def _in(self, queue: deque[asyncio.Future[None]], stopped: asyncio.Event | None) -> None:
        future = asyncio.get_running_loop().create_future()
        queue.append(future)
        self.rest()
        self.pass_on()
        try:
            if stopped is None:
                await future
            else:
                stop = asyncio.ensure_future(stopped.wait())
                try:
                    await asyncio.wait((future, stop), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    stop.cancel()
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.pass_on()  # it was this one's turn
            raise
        finally:
            if not future.done() or future.cancelled():
                with contextlib.suppress(ValueError):  # it was passed over already
                    queue.remove(future)
                    self.go_on()
                if not (self._queue or self._repeated):
                    self._leave_line()

    def pass_on(self) -> None:
        """Wake the next when it may start, or see to it that a timer does.

        Of those who stand in line for the same ceilings, whose turn it is.
        """
        queue = self._repeated or self._queue
        if self._is_closed:
            self._wake(queue)
        elif queue:
            if self._find_place(queue):
                return  # whoever is woken passes on
        else:
            self._leave_line()
        for line in self._lines:
            line.go_on()

    def have_turn(self) -> None:
        """Wake the next, as it is the turn of this gate; else leave the line."""
        queue = self._repeated or self._queue
        if queue:  # else it has been woken, and is about to start
            self._find_place(queue)

    def _find_place(self, queue: deque[asyncio.Future[None]]) -> bool:
        """Wake the next if it may start; else stand in line, or set the timer.

        Returns whether one may start, though the process may make no more calls.
        """
        now_s = self._clock.monotonic_s()
        wait_s = self.limiter.wait_s(now_s)
        if wait_s <= 0.0:
            line = self._line_before()
            if line is None:
                if self._cap.left > 0:
                    self._wake(queue)
                return True
        else:
            line = next((each for each in self._lines if each.wait_s(now_s) >= wait_s), None)
        if line is not self._line and self._line is not None:
            self._line.leave(self)
        self._line = line
        if line is not None:
            line.join(self)
        else:
            self._timer.set(now_s, wait_s)
        return False

    def _line_before(self) -> Line | None:
        """Return a line in which another gate is before this one."""
        for line in self._lines:
            if not line.is_turn_of(self):
                return line
        return None

    def _leave_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.leave(self)
            line.go_on()

    def _wake(self, queue: deque[asyncio.Future[None]]) -> None:
        while queue:
            future = queue.popleft()
            self.go_on()
            if not future.done():  # or its call was given up
                future.set_result(None)
                return

    def close(self) -> None:
        """Let first calls through that wait: the worker leaves, and they find nothing to send."""
        self._is_closed = True
        self._timer.cancel()
        while self._queue:
            self._wake(self._queue)
        self._leave_line()

    # Calls ------------------------------------------------------------------------------------

    def start(self, params: bytes, max_tokens: int | None = None) -> Permit:
        """Note that a call starts now.

        Args:
            params: of the request.
            max_tokens: of it, where they are known.
        """
        limiter = self.limiter
        now_s = self._clock.monotonic_s()
        if limiter.ceilings:
            most = _max_tokens(params) if max_tokens is None else max_tokens
            permit = limiter.start(now_s, len(params), most)
        else:
            permit = limiter.start(now_s)
        if self._line is not None:
            self._line.took(self)
        if self._queue or self._repeated or self._lines:
            self.pass_on()
        return permit

    def end(
        self,
        permit: Permit,
        signal: Signal,
        *,
        retry_after_s: float | None = None,
        used: tuple[int, int] | None = None,
        tells: bool = True,
        is_invalid: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Take in what became of a call.

        Args:
            permit: of the call.
            signal: what it told.
            retry_after_s: what the upstream asked for, capped.
            used: input and output tokens that count against limits, where they are known.
            tells: whether a failure tells of others, too, not of its request only.
            is_invalid: whether it was refused for what it asked, so that no output came of it.
            headers: of the answer.
        """
        limiter = self.limiter
        now_s = self._clock.monotonic_s()
        limiter.end(permit, now_s, signal, retry_after_s, used, tells=tells, is_invalid=is_invalid)
        if headers is not None:
            for hint in hints.read(headers, self._clock.now_us):
                self.wants_usage |= hint.kind != "requests"
                limiter.hint(hint, now_s)
        if self._is_told:
            self._tell_recovery(now_s, signal)
        if self._queue or self._repeated:
            self.pass_on()
        else:  # others may have what this one gives back
            for line in self._lines:
                line.go_on()

    def tell(self, reason: str) -> None:
        """Say once in the log that calls of the pool wait; `end` says when they no longer do.

        Args:
            reason: what the upstream said.
        """
        if not self._is_told and self._clock.monotonic_s() - self._said_s >= _SAID_S:
            log.warning("waiting pool=%s: %s", shown(self._name), shown(reason, 300))
            self._is_told = True

    def _tell_recovery(self, now_s: float, signal: Signal) -> None:
        if signal is Signal.TAKEN and not self.limiter.is_limited:
            log.info("recovered pool=%s", shown(self._name))
            self._is_told = False
            self._said_s = now_s


def _max_tokens(params: bytes) -> int:
    try:
        return max(0, _head.decode(params).max_tokens)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


class Gates:
    """The gates of one worker, by pool."""

    def __init__(self, clock: Clock, ceilings: Ceilings, cap: Cap | None = None) -> None:
        """Make none yet.

        Args:
            clock: of waits.
            ceilings: configured limits.
            cap: of the calls of the process; None for the usual one.
        """
        self._clock, self._cap = clock, cap or Cap()
        self._ceilings = ceilings
        self._of: dict[str, Gate] = {}
        self._lines: dict[Ceiling, Line] = {}

    def of(self, pool: str, slots: int) -> Gate:
        """Return the gate of a pool, with what it has learned if that was not long ago.

        Args:
            pool: its name, `upstream/model`.
            slots: calls in flight over all workers, at most.
        """
        gate = self._of.get(pool)
        if gate is None:
            upstream, _, model = pool.partition("/")
            ceilings = self._ceilings.of_pool(upstream, model)
            lines = [self._line(ceiling) for ceiling in ceilings]
            gate = Gate(pool, Limiter(slots, ceilings), self._clock, self._cap, lines)
            self._of[pool] = gate
        return gate

    def _line(self, ceiling: Ceiling) -> Line:
        line = self._lines.get(ceiling)
        if line is None:
            line = self._lines[ceiling] = Line(ceiling, self._clock)
        return line

    def forget(self, pool: str) -> None:
        """Drop what is not worth remembering of a pool without work."""
        gate = self._of.get(pool)
        if gate is not None and (not gate.limiter.is_limited or len(self._of) > _IDLE_MAX):
            del self._of[pool]

    def waits(self, pool: str) -> list[Wait]:
        """Return why the calls of a pool wait at its gate."""
        gate = self._of.get(pool)
        return [] if gate is None else gate.limiter.waits(self._clock.monotonic_s())

    def rate_max(self, pool: str) -> float | None:
        """Return how many calls a second its upstream takes at most, where that is known."""
        gate = self._of.get(pool)
        return None if gate is None else gate.limiter.rate_max(self._clock.monotonic_s())

    def close(self) -> None:
        """Let everything through that waits: the worker leaves."""
        for gate in self._of.values():
            gate.close()
        for line in self._lines.values():
            line.close()
