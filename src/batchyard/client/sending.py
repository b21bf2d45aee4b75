"""Make sure that a shard has exactly one batch, whatever happens to the create call.

The intent is in the journal before the call. An answer that is lost is resolved before anything
else is sent: by repeating the call where the server knows it again, else by its list of batches.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from batchyard import crash, limits
from batchyard.client import journal, reconcile
from batchyard.client.answers import ApiError, CreateUnknown, NotCreated, Unreachable
from batchyard.client.api import CREATE_ANSWER_TIMEOUT_S, UPLOAD_BYTES_PER_S_MIN
from batchyard.client.folder import idempotency_key
from batchyard.client.journal import Phase
from batchyard.client.problems import NeedsAttention, ServerRefuses
from batchyard.client.updates import Update

if TYPE_CHECKING:
    from batchyard.client.answers import Batch
    from batchyard.client.api import Api
    from batchyard.client.folder import Journal
    from batchyard.client.updates import Pace
    from batchyard.clock import Clock

GRACE_S = 120.0  # how long a created batch may stay out of the list; not documented
LOOK_INTERVAL_S = 5.0
CONNECT_ATTEMPTS = 6
NO_LIST = frozenset({404, 405, 501})
REFUSALS = frozenset({401, 402, 403})
_WAIT = frozenset({408, 409, 429})


class Sender:
    """Creates the batches of one run."""

    def __init__(
        self, writer: Journal, api: Api, *, clock: Clock, pace: Pace, grace_s: float
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            writer: the journal of a run that has started.
            api: the server of the run.
            clock: for times in the journal.
            pace: how to tell and wait.
            grace_s: how long after a lost answer a batch may appear in the list.
        """
        self._writer = writer
        self._files = writer.files
        self._api = api
        self._clock = clock
        self._pace = pace
        self._grace_s = grace_s
        self._asked_to_cancel: set[int] = set()

    def meet(self) -> None:
        """Make one harmless call, to learn who the server is before anything depends on it.

        Raises:
            ServerRefuses: it refuses or does not answer.
        """
        try:
            self._api.list_page(limit=1)
        except ApiError as error:
            if error.http_status not in NO_LIST:
                raise ServerRefuses(
                    f"{self._api.base_url} refuses: {error.message}; nothing was sent"
                ) from None
        except Unreachable as error:
            raise ServerRefuses(
                f"cannot reach {error.message}; nothing was sent, the same command tries again"
            ) from None

    def settle(self, index: int) -> None:
        """Bring a shard from any state before CREATED to CREATED or WITHDRAWN.

        Raises:
            Detached: the run was left on request.
            ServerRefuses: it was not sent, and no other would be taken.
            NeedsAttention: a person has to decide about this shard.
        """
        attempts = 0
        while True:
            shard = self._shard(index)
            if shard.phase is Phase.PLANNED:
                if self._files.cancel.exists():
                    self._writer.record(journal.Withdrawn(shard=index))
                    self._pace.tell(Update(kind="withdrawn", shard=index, total=shard.requests))
                    return
                attempts += 1
                self._send_first(index, attempts)
            elif shard.phase is Phase.INTENDED:
                if self._files.cancel.exists():
                    text = "canceled; first it has to be found out whether its batch exists"
                    self._pace.tell(Update(kind="notice", shard=index, text=text))
                self._resolve(index)
            else:
                self.heed_cancel(index)
                return

    def heed_cancel(self, index: int) -> None:
        """Cancel the batch of a shard, once, when the run is canceled; never fails."""
        shard = self._shard(index)
        if (
            shard.phase is not Phase.CREATED
            or index in self._asked_to_cancel
            or not self._files.cancel.exists()
        ):
            return
        assert shard.batch is not None
        try:
            self._api.cancel(shard.batch)
        except (ApiError, Unreachable) as error:
            is_refused = (
                isinstance(error, ApiError)
                and error.http_status < 500
                and error.http_status not in _WAIT
            )
            if is_refused:
                self._asked_to_cancel.add(index)
            text = f"{shard.batch} was not canceled: {error.message}"
            self._pace.tell(Update(kind="notice", shard=index, text=text))
        else:
            self._asked_to_cancel.add(index)

    def _send_first(self, index: int, attempt: int) -> None:
        """Make the create call of a shard of which no call is open."""
        shard = self._shard(index)
        self._check_body(index)
        crash.point("before_intent")
        self._writer.record(
            journal.Intent(shard=index, generation=shard.generation, key=self._key(index))
        )
        crash.point("after_intent")
        self._pace.tell(Update(kind="sending", shard=index, total=shard.requests))
        try:
            batch = self._api.create(self._files.requests(index), self._key(index))
        except NotCreated as error:
            self._writer.record(journal.NotCreated(shard=index, reason=error.message))
            text = f"shard {index} was not created: {error.message}"
            is_unreachable = error.http_status is None and attempt >= CONNECT_ATTEMPTS
            if is_unreachable or error.http_status in REFUSALS:
                raise ServerRefuses(text) from None
            if not error.may_retry:
                raise NeedsAttention(text) from None
            self._pace.back_off(
                index,
                self._shard(index).requests,
                attempt,
                error.retry_in_s,
                f"not created: {error.message}",
            )
        except CreateUnknown as error:
            self._pace.tell(Update(kind="notice", shard=index, text=f"no answer: {error.message}"))
        else:
            self._created(index, batch, adopted=False)

    def _resolve(self, index: int) -> None:
        """Find out what became of a create call whose answer is not known."""
        age_us = self._clock.now_us() - self._shard(index).intent_us
        if self._api.is_yard and age_us < limits.IDEMPOTENCY_WINDOW_US - limits.HOUR_US:
            self._send_again(index)
        else:
            self._reconcile(index)

    def _send_again(self, index: int) -> None:
        """Repeat the call with its key: the server answers with the first batch, if there is one.

        The intent stays open whatever fails here, because the first call may have succeeded.
        """
        self._check_body(index)
        attempt = 0
        while True:
            attempt += 1
            wish: float | None
            try:
                batch = self._api.create(self._files.requests(index), self._key(index))
            except NotCreated as error:
                if not error.may_retry:
                    raise NeedsAttention(
                        f"shard {index} may exist, and asking for it is refused: {error.message}"
                    ) from None
                wish, why = error.retry_in_s, error.message
            except CreateUnknown as error:
                wish, why = error.retry_in_s, error.message
            else:
                self._created(index, batch, adopted=False)
                return
            self._pace.back_off(
                index, self._shard(index).requests, attempt, wish, f"asking again: {why}"
            )

    def _reconcile(self, index: int) -> None:
        """Look for the batch in the server's list, until it is there or cannot be any more."""
        shard = self._shard(index)
        first_us = self._clock.now_us()
        timeout_s = CREATE_ANSWER_TIMEOUT_S + shard.bytes / UPLOAD_BYTES_PER_S_MIN
        given_up_us = min(first_us, shard.intent_us + int(timeout_s * limits.SECOND_US))
        # A proxy may pass the call on after it, or we, gave up. Until the end of the grace period
        # any batch of its size may be ours; the results tell whether it is.
        final_us = given_up_us + int(self._grace_s * limits.SECOND_US)
        while True:
            is_final = self._clock.now_us() >= final_us
            batches = self._list_since(index, shard.intent_us)
            if batches is not None:
                verdict = reconcile.judge(
                    batches,
                    requests=shard.requests,
                    known=self._writer.state.taken(index),
                    sent_us=shard.intent_us,
                    sent_until_us=final_us,
                    skew_us=self._api.skew_us or 0,
                    is_final=is_final,
                )
                match verdict.action:
                    case "adopt":
                        assert verdict.batch is not None
                        self._created(index, verdict.batch, adopted=True)
                        return
                    case "resend":
                        reason = "the list does not show it"
                        self._writer.record(journal.NotCreated(shard=index, reason=reason))
                        return
                    case "ask":
                        raise NeedsAttention(self._several(index, verdict.several))
                    case "wait":
                        pass
            self._pace.tell(
                Update(
                    kind="waiting", shard=index, total=shard.requests,
                    text="looking for the batch in the list", retry_in_s=LOOK_INTERVAL_S,
                )
            )  # fmt: skip
            self._pace.rest(LOOK_INTERVAL_S)

    def _list_since(self, index: int, sent_us: int) -> list[Batch] | None:
        """Return the batches since a call; None when the server could not be asked."""
        found: list[Batch] = []
        after: str | None = None
        try:
            while True:
                page = self._api.list_page(after_id=after)
                found += page.data
                skew_us = self._api.skew_us or 0
                is_past = any(
                    reconcile.is_older(batch, sent_us=sent_us, skew_us=skew_us)
                    for batch in page.data
                )
                if is_past or not page.has_more or not page.data:
                    return found
                after = page.data[-1].id
        except ApiError as error:
            if error.http_status in NO_LIST | REFUSALS:
                raise NeedsAttention(
                    f"shard {index} may or may not exist: its create call was not answered, and "
                    f"the list of batches is refused ({error.message}); look it up at the provider"
                ) from None
            self._pace.tell(Update(kind="notice", shard=index, text=error.message))
        except Unreachable as error:
            self._pace.tell(Update(kind="notice", shard=index, text=error.message))
        return None

    def _several(self, index: int, batches: tuple[str, ...]) -> str:
        return (
            f"shard {index}: the create call was not answered, and {len(batches)} batches of its "
            f"size were created at that time: {', '.join(batches)}. Delete those that are not "
            "yours once they have ended, then give the same command again"
        )

    def _created(self, index: int, batch: Batch, *, adopted: bool) -> None:
        crash.point("created_unrecorded")
        self._writer.record(journal.Created(shard=index, batch=batch.id, adopted=adopted))
        crash.point("created_recorded")
        how = "found in the list, confirmed by its results later" if adopted else ""
        total = self._shard(index).requests
        self._pace.tell(Update(kind="created", shard=index, batch=batch.id, total=total, text=how))

    def _check_body(self, index: int) -> None:
        """Refuse to send a body that is not the one that was planned."""
        path = self._files.requests(index)
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise NeedsAttention(f"{path} cannot be read: {error.strerror}") from None
        if digest != self._shard(index).sha256:
            raise NeedsAttention(f"{path} was changed since the run began; nothing was sent")

    def _shard(self, index: int) -> journal.Shard:
        return self._writer.state.shards[index]

    def _key(self, index: int) -> str:
        state = self._writer.state
        return idempotency_key(state.run, index, state.shards[index].generation)
