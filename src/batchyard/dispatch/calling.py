"""Bring one request to its result: validate, call, retry, settle.

The async shell around `validate` and `retry`, which decide. A request whose time has run out, or
whose shard was lost, has its call canceled from outside (`ShardRun.abandon`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from batchyard import crash, limits, result
from batchyard.clock import wait_first
from batchyard.dispatch import checking, retry
from batchyard.errors import StoreError
from batchyard.upstream import Call

if TYPE_CHECKING:
    import random

    from batchyard.clock import Clock
    from batchyard.dispatch.pool import Pool
    from batchyard.dispatch.shard import Request, ShardRun
    from batchyard.upstream import Upstream

log = logging.getLogger(__name__)


class Caller:
    """Makes the calls of one worker."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self.waiting = 0
        """Requests in flight that wait for time to pass, not for an answer."""

    async def run(self, pool: Pool, shard: ShardRun, request: Request) -> None:
        """Bring one request to its result.

        Raises:
            StoreError: the store failed.
            CancelledError: the worker leaves.
        """
        claim = shard.claim
        custom_id = request.custom_id
        problem = checking.check(
            request.params,
            pool.upstream,
            version=claim.version,
            betas=claim.betas,
            user_profile=claim.user_profile,
        )
        if problem is not None:
            shard.fail(custom_id, problem.type, problem.message, None)
            return
        assert pool.upstream is not None  # or there is a problem
        try:
            await self._call(pool, pool.upstream, shard, request)
        except StoreError:
            raise
        except asyncio.CancelledError:
            if custom_id in shard.inflight:
                raise
            # Only this call was given up: its result stands, and the slot goes on.
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
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
        )
        counted = tries = 0
        while True:
            if pool.pause_reason is not None:
                await self._while_paused(pool, shard)
            if shard.stopped.is_set():
                shard.give_up(custom_id)
                return
            crash.point("call")
            outcome = await upstream.send(call)
            crash.point("called")
            action = retry.decide(outcome, self._clock.now_us())
            tries += 1
            match action:
                case retry.Done(message):
                    pool.answered()
                    line = result.succeeded(custom_id, message.body)
                    shard.settle(custom_id, "succeeded", line, message.usage)
                    return
                case retry.Fail(error_type, text, request_id):
                    pool.answered()
                    shard.fail(custom_id, error_type, text, request_id)
                    return
                case retry.Unsent(why):
                    pool.answered()
                    shard.settle(custom_id, why, result.unsent(custom_id, why))
                    return
                case retry.Pause(error_type, text):
                    shard.note_try(custom_id, error_type, text)
                    pool.pause(text, self._clock.monotonic_s() + limits.UPSTREAM_PAUSE_S)
                case retry.Again():
                    if action.counted:
                        pool.answered()
                        counted += 1
                    else:
                        pool.refused(action.message)
                    if counted >= limits.ATTEMPTS_MAX:
                        shard.fail(custom_id, action.type, action.message, None)
                        return
                    if action.reached:
                        shard.note_try(custom_id, action.type, action.message)
                    delay = retry.backoff_s(tries, action.retry_after_s, self._rng)
                    await self._wait(shard, delay)

    async def _while_paused(self, pool: Pool, shard: ShardRun) -> None:
        while not shard.stopped.is_set():
            left = pool.paused_until_s - self._clock.monotonic_s()
            if left <= 0:
                return
            await self._wait(shard, left)

    async def _wait(self, shard: ShardRun, seconds: float) -> None:
        self.waiting += 1
        try:
            await wait_first(self._clock, shard.stopped, seconds)
        finally:
            self.waiting -= 1
