"""Make sure that a shard has exactly one batch, whatever happens to the create call.

The intent is in the journal before the call. An answer that is lost is resolved before anything
else is sent: by repeating the call where the server knows it again, else by its list of batches.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from batchyard import crash, limits
from batchyard.client.answers import ApiError, CreateUnknown, NotCreated, Unreachable
from batchyard.client.api import CREATE_ANSWER_TIMEOUT_S, UPLOAD_BYTES_PER_S_MIN
from batchyard.client.problems import NeedsAttention, ServerRefuses
from batchyard.client.running import journal, reconcile, tags
from batchyard.client.running.folder import idempotency_key
from batchyard.client.running.journal import Phase
from batchyard.client.running.updates import Update

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchyard.client.answers import Batch
    from batchyard.client.api import Api
    from batchyard.client.running.folder import Journal
    from batchyard.client.running.updates import Pace
    from batchyard.clock import Clock

GRACE_S = 120.0  # how long a created batch may stay out of the list; not documented
LOOK_INTERVAL_S = 5.0
CONNECT_ATTEMPTS = 6
NO_LIST = frozenset({404, 405, 501})
REFUSALS = frozenset({401, 402, 403})
_WAIT = frozenset({408, 409, 429})


class _Id(msgspec.Struct, gc=False):
    custom_id: str


_id = msgspec.json.Decoder(_Id)


class Sender:
    """Creates the batches of one run."""

    def __init__(
        self,
        writer: Journal,
        api: Api,
        *,
        clock: Clock,
        pace: Pace,
        grace_s: float,
        ceiling: Callable[[int], int | None] = lambda _: None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            writer: the journal of a run that has started.
            api: the server of the run.
            clock: for times in the journal.
            pace: how to tell and wait.
            grace_s: how long after a lost answer a batch may appear in the list.
            ceiling: what a shard may cost, when there is a budget.
        """
        self._ceiling = ceiling
        self._foreign: dict[int, set[str]] = {}
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

    def settle(self, index: int) -> bool:
        """Bring a shard from any state before CREATED to CREATED or WITHDRAWN.

        False when it is not known yet which batch at the server is its own, and only time tells.

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
                    return True
                attempts += 1
                self._send_first(index, attempts)
            elif shard.phase is Phase.INTENDED:
                if self._files.cancel.exists():
                    text = "canceled; first it has to be found out whether its batch exists"
                    self._pace.tell(Update(kind="notice", shard=index, text=text))
                if not self._resolve(index):
                    return False
            else:
                self.heed_cancel(index)
                return True

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
        if self._cancel(index, shard.batch):
            self._asked_to_cancel.add(index)

    def heed_duplicates(self, index: int) -> None:
        """Cancel, once more in this process, batches of the shard that are not kept."""
        for batch in self._shard(index).duplicates:
            self._cancel(index, batch)

    def _cancel(self, index: int, batch: str) -> bool:
        """Cancel a batch; False when it is worth asking again."""
        try:
            self._api.cancel(batch)
        except (ApiError, Unreachable) as error:
            text = f"{batch} was not canceled: {error.message}"
            self._pace.tell(Update(kind="notice", shard=index, text=text))
            return (
                isinstance(error, ApiError)
                and error.http_status < 500
                and error.http_status not in _WAIT
            )
        return True

    def _send_first(self, index: int, attempt: int) -> None:
        """Make the create call of a shard of which no call is open."""
        shard = self._shard(index)
        self._check_body(index)
        crash.point("before_intent")
        self._writer.record(
            journal.Intent(
                shard=index, generation=shard.generation, key=self._key(index),
                ceiling_micros=self._ceiling(index),
            )
        )  # fmt: skip
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

    def _resolve(self, index: int) -> bool:
        """Find out what became of a create call whose answer is not known; False if undecided."""
        age_us = self._clock.now_us() - self._shard(index).intent_us
        if self._api.is_yard and age_us < limits.IDEMPOTENCY_WINDOW_US - limits.HOUR_US:
            self._send_again(index)
            return True
        if self._policy == "fail":
            raise NeedsAttention(
                f"shard {index} may or may not exist: its create call was not answered. Look it "
                "up at the provider, or go on with --on-orphan wait, adopt or resubmit"
            )
        return self._reconcile(index)

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

    def _reconcile(self, index: int) -> bool:
        """Look for the batch in the server's list, until it is there or cannot be any more."""
        shard = self._shard(index)
        first_us = self._clock.now_us()
        timeout_s = CREATE_ANSWER_TIMEOUT_S + shard.bytes / UPLOAD_BYTES_PER_S_MIN
        given_up_us = min(first_us, shard.intent_us + int(timeout_s * limits.SECOND_US))
        # A proxy may pass the call on after it, or we, gave up. Until the end of the grace period
        # any batch of its size may be ours; the results tell whether it is.
        final_us = given_up_us + int(self._grace_s * limits.SECOND_US)
        while True:
            is_final = self._clock.now_us() >= final_us or self._policy == "resubmit"
            batches = self._list_since(index, shard.intent_us)
            if batches is not None:
                verdict = reconcile.judge(
                    batches,
                    requests=shard.requests,
                    known=self._writer.state.taken(index) | self._foreign.get(index, set()),
                    sent_us=shard.intent_us,
                    sent_until_us=final_us,
                    skew_us=self._api.skew_us or 0,
                    is_final=is_final,
                )
                match verdict.action:
                    case "adopt":
                        assert verdict.batch is not None
                        self._created(index, verdict.batch, adopted=True)
                        return True
                    case "resend":
                        self._guess(index, "the list does not show it")
                        return True
                    case "several":
                        return self._choose(index, verdict.several)
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

    def _choose(self, index: int, batches: tuple[Batch, ...]) -> bool:
        """Find ours among batches of its size and time, oldest first; False if undecided.

        The ids of the requests show only in the results, so one that has not ended cannot be told.
        """
        if self._policy == "resubmit":
            self._guess(index, f"{len(batches)} batches could be it")
            return True
        if self._policy == "adopt":
            self._created(index, batches[0], adopted=True)
            return True
        for batch in batches:
            if not batch.has_ended:
                continue
            is_ours = self._is_ours(index, batch)
            if is_ours:
                self._created(index, batch, adopted=True)
                return True
            if is_ours is False:
                self._foreign.setdefault(index, set()).add(batch.id)
                return self._reconcile(index)
        names = ", ".join(batch.id for batch in batches)
        text = (
            f"the create call was not answered, and {len(batches)} batches of its size were created"
            f" at that time: {names}; the results will tell which is ours (--on-orphan adopt or"
            " resubmit does not wait)"
        )
        self._pace.tell(
            Update(kind="waiting", shard=index, total=self._shard(index).requests, text=text)
        )
        return False

    def _is_ours(self, index: int, batch: Batch) -> bool | None:
        """Whether the results of a batch are those of the shard; None if not known.

        The first of them tells mostly; where ids are equal, the one with the mark does.
        """
        entries = self._files.read_documents(len(self._writer.state.shards))
        ids = {tags.plain(e.custom_id): e.custom_id for e in entries if e.shard == index}
        results = self._files.state / f"candidate-{index:03}.jsonl"
        try:
            line = self._api.first_result(batch.id)
            custom_id = None if line is None else _id.decode(line).custom_id
            if custom_id is None or tags.plain(custom_id) not in ids:
                return False
            self._api.download_results(batch.id, results)
            return tags.confirms(results, set(ids.values()))
        except (ApiError, Unreachable) as error:
            self._pace.tell(Update(kind="notice", shard=index, text=error.message))
            return None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        finally:
            results.unlink(missing_ok=True)

    def look_for_older(self, index: int) -> None:
        """Look whether a create call that was given up has made a batch after all; never fails.

        When it has, and has ended, it is kept, because it is paid; the later one is canceled.
        """
        shard = self._shard(index)
        if shard.doubt_us is None or shard.batch is None or self._api.is_yard:
            return
        try:
            batches = self._list_since(index, shard.doubt_us) or []
        except NeedsAttention:
            return
        known = self._writer.state.taken(index) | self._foreign.setdefault(index, set())
        skew_us = self._api.skew_us or 0
        for batch in reversed(batches):
            fits = (
                batch.id not in known
                and batch.id != shard.batch
                and batch.has_ended
                and batch.request_counts.total == shard.requests
                and batch.created_us <= shard.created_us + skew_us + reconcile.SKEW_TOLERANCE_US
                and not reconcile.is_older(batch, sent_us=shard.doubt_us, skew_us=skew_us)
            )
            if not fits:
                continue
            is_ours = self._is_ours(index, batch)
            if not is_ours:
                if is_ours is False:  # where its results did not come, it is looked at again
                    self._foreign[index].add(batch.id)
                continue
            kept, given_up = (batch.id, shard.batch)
            if shard.phase is not Phase.CREATED:  # it has ended as well: there is nothing to save
                kept, given_up = (shard.batch, batch.id)
            text = f"{kept} and {given_up} are both of this shard; {kept} is kept"
            self._pace.tell(Update(kind="notice", shard=index, text=text))
            self._writer.record(journal.Duplicate(shard=index, batch=given_up))
            if kept == batch.id:
                self._cancel(index, given_up)
                self._writer.record(journal.Disowned(shard=index, batch=given_up))
                self._created(index, batch, adopted=True)
            return

    def _guess(self, index: int, reason: str) -> None:
        self._writer.record(journal.NotCreated(shard=index, reason=reason, guessed=True))

    @property
    def _policy(self) -> journal.OrphanPolicy:
        return self._writer.state.terms.on_orphan

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
