"""When the batches of a run are looked at, and what a look says: polls of one run under way.

A poll that fails never sends anything again: a failed look says nothing about the batch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.client.answers import ApiError, Unreachable
from batchyard.client.problems import NeedsAttention
from batchyard.client.results import receipt
from batchyard.client.running import journal
from batchyard.client.running.sending import REFUSALS, Sender
from batchyard.client.running.updates import Pace, Update, backoff

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchyard.client.answers import Batch, Progress
    from batchyard.client.api import Api
    from batchyard.client.running.folder import Journal
    from batchyard.clock import Clock

NEW_BATCH_404_S = 120.0
# A yard answers a poll from memory; anybody else is asked sparingly.
YARD_INTERVAL_S, YARD_INTERVAL_MAX_S = 0.2, 5.0
INTERVAL_S, INTERVAL_MAX_S = 2.0, 60.0
INTERVAL_GROWTH = 1.25
# A batch of 10,000 is not over in two seconds: the first look is later for a larger one.
INTERVAL_S_PER_REQUEST, INTERVAL_FIRST_MAX_S = 0.002, 15.0
# All that can be said of the time left where counts come at the end only.
# Source: the API's batch page: most batches end within an hour, all within 24.
TYPICAL = "mostly < 1 h, always < 24 h"
DOUBT_INTERVAL_S = 300.0  # between two looks for a batch that a lost answer may have left


@dataclass(slots=True)
class _Watch:
    """When a shard is looked at next, in monotonic seconds, and how often lately."""

    due_s: float
    interval_s: float
    failures: int = 0
    billing: str | None = None
    doubt_due_s: float = 0.0


class Watcher:
    """Looks at the batches of one run."""

    def __init__(
        self, writer: Journal, api: Api, *, clock: Clock, pace: Pace, sender: Sender
    ) -> None:
        self._writer = writer
        self._api = api
        self._clock = clock
        self._pace = pace
        self._sender = sender
        self._watches: dict[int, _Watch] = {}

    def is_due(self, index: int) -> bool:
        """Whether it is time to look at a shard."""
        return self._watch(index).due_s <= self._clock.monotonic_s()

    def left_s(self, indexes: Iterable[int]) -> float:
        """Return seconds until the first of some shards is due; 0 for none."""
        now = self._clock.monotonic_s()
        dues = [self._watches[index].due_s for index in indexes if index in self._watches]
        return max(0.0, min(dues, default=now) - now)

    def postpone(self, index: int, wish: float | None = None) -> float:
        """Look at a shard again after its interval, which grows; return the seconds.

        Args:
            index: of the shard.
            wish: seconds that the server asked for.
        """
        watch = self._watch(index)
        delay = watch.interval_s
        cap = YARD_INTERVAL_MAX_S if self._api.is_yard else INTERVAL_MAX_S
        watch.interval_s = min(cap, watch.interval_s * INTERVAL_GROWTH)
        if not self._api.is_yard:
            delay = max(delay, wish or 0.0)
            delay *= random.uniform(1.0, 1.1)  # noqa: S311 - jitter, not a secret
        watch.due_s = self._clock.monotonic_s() + delay
        return delay

    def poll(self, index: int) -> None:
        """Look at the batch of a shard, and record that it has ended.

        Raises:
            NeedsAttention: the server does not know it, or refuses to tell.
        """
        shard = self._shard(index)
        assert shard.batch is not None
        self._sender.heed_cancel(index)
        try:
            batch, wish = self._api.retrieve(shard.batch)
        except (ApiError, Unreachable) as error:
            self._failed(index, error)
            return
        self._watch(index).failures = 0
        self._look_for_older(index)
        if self._shard(index).batch != batch.id:
            return
        progress = self._progress(index, shard.batch)
        if batch.has_ended:
            self._ended(index, batch, progress)
        else:
            self._goes_on(index, batch, progress, wish)

    def _goes_on(
        self, index: int, batch: Batch, progress: Progress | None, wish: float | None
    ) -> None:
        done = progress.results if progress else batch.request_counts.done
        state = "" if batch.processing_status == "in_progress" else batch.processing_status
        paused = progress.paused if progress else {}
        if not state and not self._api.is_yard:
            state = TYPICAL
        notes = [state, *(f"{name} paused: {why}" for name, why in paused.items())]
        delay = self.postpone(index, wish)
        self._pace.tell(
            Update(
                kind="progress", shard=index, batch=batch.id, done=done,
                total=self._shard(index).requests, retry_in_s=delay,
                text="; ".join(filter(None, notes)),
            )
        )  # fmt: skip

    def _ended(self, index: int, batch: Batch, progress: Progress | None) -> None:
        # Only a yard says how it charges; anybody else is taken to give the discount of a batch.
        billing = self._watch(index).billing if self._api.is_yard else receipt.BATCH
        counts = batch.request_counts
        by_name = {
            "succeeded": counts.succeeded, "errored": counts.errored,
            "canceled": counts.canceled, "expired": counts.expired,
        }  # fmt: skip
        self._writer.record(
            journal.Ended(
                shard=index, counts=by_name, billing=billing, assumed=not self._api.is_yard,
                repeated_calls=progress.repeated_calls if progress else None,
            )
        )  # fmt: skip
        total = self._shard(index).requests
        self._pace.tell(
            Update(kind="ended", shard=index, batch=batch.id, done=counts.done, total=total)
        )

    def _look_for_older(self, index: int) -> None:
        """Now and then, look for a batch that a lost answer may have left at the server."""
        watch, now = self._watch(index), self._clock.monotonic_s()
        if self._shard(index).doubt_us is not None and watch.doubt_due_s <= now:
            watch.doubt_due_s = now + DOUBT_INTERVAL_S
            self._sender.look_for_older(index)

    def _progress(self, index: int, batch: str) -> Progress | None:
        """Return what a yard tells; nothing depends on it but what is shown and the billing."""
        try:
            progress = self._api.progress(batch)
        except (ApiError, Unreachable) as error:
            self._pace.tell(Update(kind="notice", shard=index, text=error.message))
            return None
        if progress is not None and progress.billing is not None:
            self._watch(index).billing = progress.billing
        return progress

    def _failed(self, index: int, error: ApiError | Unreachable) -> None:
        """Keep a shard whose poll failed, unless the server says that nothing else will come."""
        shard = self._shard(index)
        wish = None
        if isinstance(error, ApiError):
            wish = error.retry_in_s
            age_s = (self._clock.now_us() - shard.created_us) / limits.SECOND_US
            if error.http_status == 404 and age_s > NEW_BATCH_404_S:
                raise NeedsAttention(
                    f"shard {index}: {self._api.base_url} does not know batch {shard.batch}: is "
                    f"this the key and the address that it was created with? ({error.message})"
                ) from None
            if error.http_status in REFUSALS:
                raise NeedsAttention(f"the server refuses: {error.message}") from None
        watch = self._watch(index)
        watch.failures += 1
        delay = max(backoff(watch.failures), wish or 0.0)
        watch.due_s = self._clock.monotonic_s() + delay
        self._pace.tell(
            Update(
                kind="waiting", shard=index, batch=shard.batch, total=shard.requests,
                text=error.message, retry_in_s=delay,
            )
        )  # fmt: skip

    def _shard(self, index: int) -> journal.Shard:
        return self._writer.state.shards[index]

    def _watch(self, index: int) -> _Watch:
        if index not in self._watches:
            first = YARD_INTERVAL_S
            if not self._api.is_yard:
                more = self._shard(index).requests * INTERVAL_S_PER_REQUEST
                first = min(INTERVAL_FIRST_MAX_S, INTERVAL_S + more)
            self._watches[index] = _Watch(self._clock.monotonic_s(), first)
        return self._watches[index]
