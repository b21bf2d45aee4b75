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
from batchyard.dispatch.aside import PutBack, Refused
from batchyard.dispatch.limiter import Signal
from batchyard.errors import StoreError
from batchyard.upstream import Call, Failure, FailureKind, Reply

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from batchyard.clock import Clock
    from batchyard.dispatch.pool import Pool
    from batchyard.dispatch.shard import Request, ShardRun
    from batchyard.dispatch.window import Permit
    from batchyard.price import Usage
    from batchyard.upstream import Outcome, Upstream
    from batchyard.validate import Problem

log = logging.getLogger(__name__)

# A request that is refused again and again (it is larger than the whole limit, say) tells nothing
# of the others; its own waits are enough. Nor does one that fails again while others are taken. An
# upstream that has too much to do takes some and not others, so that is believed for longer.
_LIMITED_TRIES, _OVERLOADED_TRIES = 2, 4

_IN_SLOT_S = 0.25  # for a shorter wait a slot is not left

_FRESH_S = 0.05  # of the wall time that tells whether a batch has expired

_NO_RESULT = (retry.Again, retry.Pause)


class Caller:
    """Makes the calls of one worker."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self.accounts = Accounts()
        self.look_again: Callable[[], Awaitable[bool]] | None = None
        """Awaited before each call, where batches are canceled in another process; whether that may
        have taken time."""
        self.has_old_news: Callable[[], bool] = lambda: False
        """Whether a batch may have been canceled there, and this process has not looked since."""
        self._looked_s, self._not_before_us = float("-inf"), 0
        """When the wall time was looked at, and what it cannot have passed while that is fresh."""

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
        custom_id = request.custom_id
        account = self.accounts.of(shard.claim.batch)
        gate = pool.gate
        back = self._resume(pool, shard, request)
        while True:
            may_wait = back.tries or pool.pause_reason is not None or self.look_again is not None
            if may_wait and not await self._may_call(pool, shard, back):
                return
            if self._is_over(shard):
                shard.give_up(custom_id)
                return
            shard.sent += 1
            crash.point("call")
            pool.sent(request)
            account.calls += 1
            account.repeated += back.tries > 0
            permit = gate.start(request.params, request.max_tokens)
            try:
                outcome = await upstream.send(back.call)
            except BaseException:
                gate.end(permit, Signal.NOTHING)
                raise
            finally:
                shard.answered += 1
            action = self._judge(pool, permit, outcome, back)
            crash.point("called")
            back.tries += 1
            if type(action) is retry.Pause:
                action = self._refused(pool, outcome, action, permit, back)
            if isinstance(action, _NO_RESULT):
                if not action.is_sent:  # by then it was over, or nobody knew whether it was
                    account.unsent(is_repeated=back.tries > 1)
                    back.tries -= 1
                    # Over the connection that it waited for.
                    back.call = msgspec.structs.replace(back.call, anew=False)
                    continue
                account.failed(custom_id, back.tries, retry.reason(outcome), action.message)
                back.counted += action.counted
                back.failed = permit.number if back.failed is None else back.failed
                if back.counted < limits.ATTEMPTS_MAX:
                    back.call = _changed(back.call, outcome)
                    if not await self._before_again(pool, shard, back, outcome, action):
                        return
                    continue
                shard.fail(custom_id, action.type, action.message, None)
            else:
                _settle(pool, shard, request, action, permit.number)
            if back.tries > 1:
                account.over(custom_id)
            return

    def _resume(self, pool: Pool, shard: ShardRun, request: Request) -> PutBack:
        """Return the call to make, and what is known of earlier ones."""
        if shard.put_back:
            back = shard.put_back.pop(request.custom_id, None)
            if back is not None:
                return back
        claim = shard.claim
        call = Call(
            request.params,
            claim.version,
            claim.betas,
            claim.workspace,
            claim.user_profile,
            request.custom_id,
            partial(pool.begun, request) if request.marks else None,
            partial(self._may_send, shard),
            request.max_tokens,
        )
        return PutBack(request, call)

    def _is_fresh(self) -> bool:
        """Whether the wall time was looked at a moment ago, which costs more than to ask this."""
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s < _FRESH_S:
            return True
        self._looked_s = now_s
        self._not_before_us = self._clock.now_us() + round(_FRESH_S * limits.SECOND_US)
        return False

    def _is_over(self, shard: ShardRun) -> bool:
        """Whether no call may start any more. Its expiry ends a shard here, to the microsecond."""
        if shard.claim.expires_us > self._not_before_us and self._is_fresh():
            return shard.stopped.is_set()
        if not shard.stopped.is_set() and shard.claim.expires_us <= self._clock.now_us():
            shard.stop("expired", self._clock.monotonic_s() + limits.DRAIN_GRACE_S)
        return shard.stopped.is_set()

    def _may_send(self, shard: ShardRun) -> bool:
        """Whether a call still goes out that had to wait for its connection."""
        return not self.has_old_news() and not self._is_over(shard)

    async def _may_call(self, pool: Pool, shard: ShardRun, back: PutBack) -> bool:
        """Wait until a call may be made; false where the request is put back for later instead."""
        gate, now_s = pool.gate, self._clock.monotonic_s()
        breaker = gate.limiter.breaker
        if back.tries and breaker.until_s is not None and not gate.may_repeat:  # since it failed
            pool.set_aside(shard, back, max(breaker.until_s, now_s), breaker.reason)
            return False
        await self._before_call(pool, shard, back.tries)
        if pool.pause_reason is not None and pool.pausing.trying is not back.request:
            pool.set_aside(shard, back, now_s, "paused")
            return False
        return True

    async def _before_call(self, pool: Pool, shard: ShardRun, tries: int) -> None:
        """Wait until a call may be made, or made again: at the gate and, where need be, for news.

        While one waits for news the gate may close, so that is looked at last.
        """
        gate, may_wait = pool.gate, tries > 0
        while True:
            if self.look_again is not None:
                may_wait = await self.look_again() or may_wait
            if not may_wait or shard.stopped.is_set() or self._left_s(shard) <= 0.0:
                return
            if gate.may_repeat:
                return
            await gate.wait_again(shard.stopped)

    def _refused(
        self, pool: Pool, outcome: Outcome, action: retry.Pause, permit: Permit, back: PutBack
    ) -> retry.Again | retry.Pause:
        """Return what it means that a request was refused, and note it; may pause the pool."""
        number, pausing = permit.number, pool.pausing
        back.refused = refused = back.refused or Refused(number, number)
        of_request = action.type == "permission_error"
        if pausing.is_own(number, refused, speaks_of_request=of_request):
            back.refused = Refused(refused.first, number)
            return retry.own(action)
        if not pausing.is_borne(number):
            until_s = self._clock.monotonic_s() + limits.UPSTREAM_PAUSE_S
            assert pool.upstream is not None  # it has just answered
            reason = retry.why_paused(outcome, action, pool.upstream)
            pool.pause(reason, until_s, back.request, speaks_of_request=of_request)
        return action

    async def _before_again(
        self,
        pool: Pool,
        shard: ShardRun,
        back: PutBack,
        outcome: Outcome,
        action: retry.Again | retry.Pause,
    ) -> bool:
        """Take note of a try that failed, and see to it that the next one comes in time.

        Returns:
            Whether to try again now; not where the request has been put back for later.
        """
        request, limiter = back.request, pool.gate.limiter
        if action.reached:
            shard.note_try(request.custom_id, action.type, action.message)
        now_s = self._clock.monotonic_s()
        if isinstance(action, retry.Pause) or action.is_refused:
            until_s = now_s + limits.UPSTREAM_PAUSE_S
            pool.set_aside(shard, back, until_s, retry.reason(outcome))
            return False
        if action.at_once:
            pool.delayed(request)
            return True
        if action.counted:
            pool.answered()
        else:
            pool.refused(retry.told(outcome, action))
        if pool.trouble is not None or limiter.is_limited:
            pool.gate.tell(retry.told(outcome, action))
        left_s = self._left_s(shard)
        breaker_s = limiter.breaker.until_s
        delay = retry.delay_s(
            back.tries,
            action.retry_after_s,
            self._rng,
            left_s=left_s,
            is_gated=breaker_s is not None and not back.is_own,
        )
        wait_s = max(0.0, left_s) if delay is None else delay
        if breaker_s is not None:  # another one tries, or few would use up all their tries
            wait_s = max(wait_s, breaker_s - now_s)
        elif wait_s <= _IN_SLOT_S:
            pool.delayed(request)
            await self._wait(pool, shard, wait_s)
            return True
        pool.set_aside(shard, back, now_s + wait_s, retry.reason(outcome))
        return False

    def _judge(self, pool: Pool, permit: Permit, outcome: Outcome, back: PutBack) -> retry.Action:
        """Return what an outcome means; tell the gate, and note a failure of the request's own.

        Args:
            pool: of the request.
            permit: of the call.
            outcome: of it.
            back: what is known of earlier calls for the request.
        """
        gate = pool.gate
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
        are_others_taken = back.failed is not None and pool.pausing.newest_taken > back.failed
        is_own = _is_own(signal, back.tries, are_others_taken=are_others_taken)
        # Once may be chance; and when nothing works any more it may be that this time.
        tells = not is_own or (pool.is_broken() and not back.is_own)
        after = action.retry_after_s if isinstance(action, retry.Again) else None
        is_invalid = isinstance(action, retry.Fail) and retry.is_refusal(outcome)
        gate.end(
            permit,
            signal,
            retry_after_s=after,
            tells=tells,
            is_invalid=is_invalid,
            headers=headers,
        )
        back.is_own |= is_own
        return action

    def _left_s(self, shard: ShardRun) -> float:
        return (shard.claim.expires_us - self._clock.now_us()) / limits.SECOND_US

    async def _wait(self, pool: Pool, shard: ShardRun, seconds: float) -> None:
        pool.gate.rest()
        try:
            await wait_first(self._clock, shard.stopped, seconds)
        finally:
            pool.gate.go_on()


def _is_own(signal: Signal, tries: int, *, are_others_taken: bool) -> bool:
    """Whether a call that failed tells of its request only, after some tries of that."""
    match signal:
        case Signal.LIMITED:
            return tries >= (1 if are_others_taken else _LIMITED_TRIES)
        case Signal.OVERLOADED:
            return tries >= _OVERLOADED_TRIES and are_others_taken
        case Signal.FAILED | Signal.TIMEOUT:
            return are_others_taken
        case _:
            return False


def _changed(call: Call, outcome: Outcome) -> Call:
    """Return the next call after one that failed."""
    match outcome:
        case Failure(kind=FailureKind.STALE):
            return msgspec.structs.replace(call, anew=True)
        case Failure(kind=FailureKind.NO_STREAM, text=why):
            return msgspec.structs.replace(call, plain=why)
        case _:
            return call


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
        pool.declined(request)
        shard.fail(custom_id, action.type, action.message, action.request_id)
    else:
        assert type(action) is retry.Unsent
        shard.settle(custom_id, action.why, result.unsent(custom_id, action.why))


def _counted(usage: Usage) -> tuple[int, int]:
    """Return the tokens that count against limits: what is read from a cache does not.

    Source: the API's rate limits page.
    """
    return usage.input_tokens + usage.cache_write_tokens, usage.output_tokens
