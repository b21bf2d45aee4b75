"""Bring one request to its result: validate, call, retry, settle.

The async shell around `validate` and `retry`, which decide. A request whose time has run out, or
whose shard was lost, has its call canceled from outside (`ShardRun.abandon`).
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from batchyard import crash, limits, result
from batchyard.clock import wait_first
from batchyard.dispatch import checking, retry
from batchyard.dispatch.accounts import Accounts
from batchyard.dispatch.limiter import Signal
from batchyard.errors import StoreError
from batchyard.upstream import Call, Reply

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from batchyard.clock import Clock
    from batchyard.dispatch.gate import Gate
    from batchyard.dispatch.pool import Pool
    from batchyard.dispatch.shard import Request, ShardRun
    from batchyard.dispatch.window import Permit
    from batchyard.price import Usage
    from batchyard.upstream import Outcome, Upstream
    from batchyard.validate import Problem

log = logging.getLogger(__name__)

# A request that is refused again and again (it is larger than the whole limit, say) tells nothing
# of the others; its own waits are enough.
_TELLING_TRIES = 2

_NO_RESULT = (retry.Again, retry.Pause)


class Caller:
    """Makes the calls of one worker."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self.accounts = Accounts()
        self.look_again: Callable[[], Awaitable[None]] | None = None
        """Awaited before each call, where batches are canceled in another process."""
        self.waiting = 0
        """Requests in flight that wait for time to pass, not for an answer."""

    async def run(self, pool: Pool, shard: ShardRun, request: Request) -> None:
        """Bring one request to its result.

        Raises:
            StoreError: the store failed.
            CancelledError: the worker leaves.
        """
        custom_id = request.custom_id
        upstream = pool.upstream
        if request.max_tokens is None or upstream is None:
            problem = _check(upstream, shard, request)
            if problem is not None:
                shard.fail(custom_id, problem.type, problem.message, None)
                return
            assert upstream is not None  # or there is a problem
        try:
            await self._call(pool, upstream, shard, request)
        except StoreError:
            raise
        except asyncio.CancelledError:
            if custom_id in shard.inflight:
                raise
            # Only this call was given up: its result stands, and the slot goes on. Unless the
            # worker ended it in the same moment: two cancels arrive as one.
            task = asyncio.current_task()
            assert task is not None
            if task.uncancel() > 0:
                raise
        except Exception:
            # A defect of ours that one request brings out must not stop the others.
            log.exception("defect at shard=%s/%d", *shard.key)
            shard.fail(custom_id, "api_error", "Internal server error", None)

    async def _call(
        self, pool: Pool, upstream: Upstream, shard: ShardRun, request: Request
    ) -> None:
        claim = shard.claim
        custom_id = request.custom_id
        call = Call(
            request.params,
            claim.version,
            claim.betas,
            claim.workspace,
            claim.user_profile,
            custom_id,
            partial(pool.begun, request) if request.marks else None,
            shard.goes_on,
            request.max_tokens,
        )
        account = self.accounts.of(claim.batch)
        gate = pool.gate
        counted = tries = 0
        refused: int | None = None
        while True:
            if tries or pool.pause_reason is not None or self.look_again is not None:
                await self._before_call(pool, shard, request, tries)
            if shard.stopped.is_set():
                shard.give_up(custom_id)
                return
            shard.has_called = True
            crash.point("call")
            pool.sent(request)
            account.calls += 1
            if tries:
                account.repeated += 1
            permit = gate.start(request.params, request.max_tokens)
            try:
                outcome = await upstream.send(call)
            except BaseException:
                gate.end(permit, Signal.NOTHING)
                raise
            action = self._judge(gate, permit, outcome, tries)
            crash.point("called")
            tries += 1
            if type(action) is retry.Pause:
                refused = permit.number if refused is None else refused
                if pool.newest_taken > refused:  # others were taken since
                    action = retry.own(action)
            if isinstance(action, _NO_RESULT):
                account.failed(custom_id, tries, retry.reason(outcome), action.message)
                counted += isinstance(action, retry.Again) and action.counted
                if counted < limits.ATTEMPTS_MAX:
                    if isinstance(action, retry.Again) and action.at_once:
                        call = msgspec.structs.replace(call, anew=True)
                    await self._before_again(pool, shard, request, outcome, action, tries)
                    continue
                shard.fail(custom_id, action.type, action.message, None)
            else:
                _settle(pool, shard, request, action, permit.number)
            if tries > 1:
                account.over(custom_id)
            return

    async def _before_call(self, pool: Pool, shard: ShardRun, request: Request, tries: int) -> None:
        if tries or pool.pause_reason is not None:
            await self._until_allowed(pool, shard, request, tries)
        if self.look_again is not None:
            await self.look_again()

    async def _before_again(
        self,
        pool: Pool,
        shard: ShardRun,
        request: Request,
        outcome: Outcome,
        action: retry.Again | retry.Pause,
        tries: int,
    ) -> None:
        """Take note of a try that failed, and wait as long as the next one has to."""
        if isinstance(action, retry.Pause):
            shard.note_try(request.custom_id, action.type, action.message)
            pool.delayed(request, 0.0)  # nobody may send now, so nobody waits for it
            until_s = self._clock.monotonic_s() + limits.UPSTREAM_PAUSE_S
            pool.pause(retry.told(outcome, action), until_s, request)
            return
        if action.reached:
            shard.note_try(request.custom_id, action.type, action.message)
        if action.at_once:
            pool.delayed(request, 0.0)
            return
        if action.counted and not action.is_refused:
            pool.answered()
        elif not action.counted:
            pool.refused(retry.told(outcome, action))
        if pool.trouble is not None or pool.gate.limiter.is_limited:
            pool.gate.tell(retry.told(outcome, action))
        left_s = self._left_s(shard)
        delay = retry.delay_s(
            tries,
            action.retry_after_s,
            self._rng,
            left_s=left_s,
            is_gated=pool.gate.limiter.breaker.until_s is not None,
        )
        wait_s = max(0.0, left_s) if delay is None else delay
        pool.delayed(request, wait_s)
        custom_id = request.custom_id
        until_s = self._clock.monotonic_s() + wait_s
        shard.retrying[custom_id] = until_s, retry.reason(outcome)
        try:
            if action.retry_after_s is None or not pool.may_step_aside:
                await self._wait(shard, wait_s)
                return
            # It was told to wait and the others were not: they may have its slot.
            await self._aside(pool, self._wait(shard, wait_s))
        finally:
            shard.retrying.pop(custom_id, None)

    async def _aside(self, pool: Pool, waiting: Awaitable[None]) -> None:
        """Wait without a slot."""
        pool.aside += 1
        try:
            pool.on_release(pool)
            await waiting
        finally:
            pool.aside -= 1

    def _judge(self, gate: Gate, permit: Permit, outcome: Outcome, tries: int) -> retry.Action:
        """Return what an outcome means after some `tries`, and tell the gate."""
        if type(outcome) is Reply and outcome.status == 200:
            action = retry.decide(outcome, 0)
        else:  # only a refusal may hold a date
            action = retry.decide(outcome, self._clock.now_us())
        headers = getattr(outcome, "headers", None)
        if type(action) is retry.Done:
            used = _counted(action.message.usage) if gate.wants_usage else None
            gate.end(permit, Signal.TAKEN, used=used, headers=headers)
            return action
        signal = retry.signal(outcome, action)
        if signal is Signal.LIMITED and tries >= _TELLING_TRIES:
            signal = Signal.NOTHING
        after = action.retry_after_s if isinstance(action, retry.Again) else None
        gate.end(permit, signal, retry_after_s=after, headers=headers)
        return action

    async def _until_allowed(
        self, pool: Pool, shard: ShardRun, request: Request, tries: int
    ) -> None:
        """Wait until a call may be made, or made again, before the batch expires."""
        pausing = pool.pausing
        while not shard.stopped.is_set():
            if self._left_s(shard) <= 0.0:
                # Nothing is sent again after the expiry, which the worker notices in a moment.
                await self._wait(shard, limits.RENEW_INTERVAL_S)
                continue
            if not pool.gate.may_repeat:
                await pool.gate.wait_again(shard.stopped)
                continue
            now_s = self._clock.monotonic_s()
            left_s = pausing.wait_s(request, now_s, was_refused=tries > 0)
            if left_s <= 0.0:
                return
            waiting = self._wait(shard, left_s, pausing.changed)
            if tries and pool.may_step_aside:
                await self._aside(pool, waiting)  # for those of which nothing is known yet
            else:
                await waiting

    def _left_s(self, shard: ShardRun) -> float:
        return (shard.claim.expires_us - self._clock.now_us()) / limits.SECOND_US

    async def _wait(self, shard: ShardRun, seconds: float, *or_: asyncio.Event) -> None:
        self.waiting += 1
        try:
            await wait_first(self._clock, shard.stopped, seconds, *or_)
        finally:
            self.waiting -= 1


def _check(upstream: Upstream | None, shard: ShardRun, request: Request) -> Problem | None:
    claim = shard.claim
    return checking.check(
        request.params,
        upstream,
        version=claim.version,
        betas=claim.betas,
        user_profile=claim.user_profile,
    )


def _settle(
    pool: Pool,
    shard: ShardRun,
    request: Request,
    action: retry.Done | retry.Fail | retry.Unsent,
    number: int,
) -> None:
    """Record the result of a request, which came by this call."""
    pool.answered(number)
    custom_id = request.custom_id
    if type(action) is retry.Done:
        pool.begun(request)
        message = action.message
        line = result.succeeded(custom_id, message.body)
        shard.settle(custom_id, "succeeded", line, message.usage)
    elif type(action) is retry.Fail:
        shard.fail(custom_id, action.type, action.message, action.request_id)
    else:
        assert type(action) is retry.Unsent
        shard.settle(custom_id, action.why, result.unsent(custom_id, action.why))


def _counted(usage: Usage) -> tuple[int, int]:
    """Return the tokens that count against limits: what is read from a cache does not.

    Source: the API's rate limits page.
    """
    return usage.input_tokens + usage.cache_write_tokens, usage.output_tokens
