"""The loop of a run: send every shard, wait, download, save; from wherever the journal says.

Blocking, one thread. Everything that it decides is in the journal before it is done, so it may be
killed at any point and called again. It never sends a shard twice unless it is certain that the
first call made no batch, or the server recognises the repetition.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard import crash, limits
from batchyard.client import collect, journal, receipt
from batchyard.client.answers import ApiError, Unreachable
from batchyard.client.journal import Phase
from batchyard.client.outputs import Tree
from batchyard.client.problems import NeedsAttention, ServerRefuses
from batchyard.client.sending import GRACE_S, REFUSALS, Sender
from batchyard.client.updates import Pace, Update, backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchyard.client.answers import Progress
    from batchyard.client.api import Api
    from batchyard.client.folder import DocumentEntry, Journal
    from batchyard.clock import Clock

NEW_BATCH_404_S = 120.0
DOWNLOADS_MAX = 3
# A yard answers a poll from memory; anybody else is asked sparingly.
YARD_INTERVAL_S, YARD_INTERVAL_MAX_S = 0.2, 5.0
INTERVAL_S, INTERVAL_MAX_S = 2.0, 60.0
INTERVAL_GROWTH = 1.25


@dataclass(slots=True)
class _Watch:
    """When a shard is looked at next, in monotonic seconds, and how often lately."""

    due_s: float
    interval_s: float
    failures: int = 0
    billing: str | None = None


class Pipeline:
    """A run under way, held by the owner of its lock."""

    def __init__(
        self,
        writer: Journal,
        api: Api,
        *,
        clock: Clock,
        pause: Callable[[float], bool],
        tell: Callable[[Update], None],
        grace_s: float = GRACE_S,
    ) -> None:
        """Prepare to go on.

        Args:
            writer: the journal of a run that has started.
            api: the server of the run.
            clock: for times in the journal and for what is due.
            pause: waits for seconds; returns True when the run is to be left.
            tell: gets everything that a screen may show, from this thread.
            grace_s: how long after a lost answer a batch may appear in the list.
        """
        self._writer = writer
        self._files = writer.files
        self._api = api
        self._clock = clock
        self._pace = Pace(pause, tell)
        self._sender = Sender(writer, api, clock=clock, pace=self._pace, grace_s=grace_s)
        self._tree = Tree(writer.files.out)
        self._watches: dict[int, _Watch] = {}
        self._stuck: dict[int, str] = {}
        self._entries: dict[int, dict[str, DocumentEntry]] = {}

    def run(self) -> receipt.Receipt:
        """Go on to the end.

        Raises:
            Detached: the run was left on request.
            NeedsAttention: a person has to decide; everything that could be saved is.
        """
        self.submit()
        while not self.is_done:
            if not list(self.advance()):
                self.wait()
        return self.finish()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left that waiting could bring."""
        return all(s.is_settled or s.index in self._stuck for s in self._writer.state.shards)

    def submit(self) -> None:
        """Make sure that every shard has its batch, except for those that cannot have one.

        They do not keep the others from being waited for and saved; `finish` names them. Whatever
        was stuck before is tried again.

        Raises:
            Detached: the run was left on request.
            ServerRefuses: before anything is sent, when nothing can be.
        """
        self._stuck.clear()
        if any(s.phase in {Phase.PLANNED, Phase.INTENDED} for s in self._writer.state.shards):
            self._sender.meet()
        refusal: str | None = None
        for index in range(len(self._writer.state.shards)):
            if refusal is not None and self._shard(index).phase is Phase.PLANNED:
                self._stuck[index] = refusal
                continue
            try:
                self._sender.settle(index)
            except ServerRefuses as error:
                self._stuck[index] = refusal = error.message
            except NeedsAttention as error:
                self._stuck[index] = error.message

    def advance(self) -> Iterator[int]:
        """Look at everything that is due, without waiting; yield each shard as it is collected.

        Looks no further than it is iterated. A shard that cannot go on is left for `finish`.

        Raises:
            Detached: the run was left on request.
        """
        for index in range(len(self._writer.state.shards)):
            shard = self._shard(index)
            if shard.is_settled or index in self._stuck:
                continue
            if shard.phase is Phase.CREATED and not self._is_due(index):
                continue
            try:
                self._look(index)
            except NeedsAttention as error:
                self._stuck[index] = error.message
            if self._shard(index).is_settled:
                yield index

    def wait(self) -> None:
        """Wait until something is due.

        Raises:
            Detached: the run was left on request.
        """
        now = self._clock.monotonic_s()
        dues = [self._watches[i].due_s for i in self._open() if i in self._watches]
        self._pace.rest(max(0.0, min(dues, default=now) - now))

    def finish(self) -> receipt.Receipt:
        """Write the receipt and the list of errors.

        Raises:
            NeedsAttention: a shard could not be brought to its end.
        """
        if self._stuck:
            # One cause may keep many shards.
            raise NeedsAttention("\n".join(dict.fromkeys(self._stuck.values())))
        done = receipt.write(self._files, self._writer.state, self._clock.now_us())
        crash.point("receipt_written")
        if self._writer.state.finished_us is None:
            self._writer.record(journal.Finished())
        return done

    # Waiting

    def _look(self, index: int) -> None:
        """Bring a shard one or more steps further, if the server lets it."""
        shard = self._shard(index)
        if shard.phase in {Phase.PLANNED, Phase.INTENDED}:
            self._sender.settle(index)
        if self._shard(index).phase is Phase.CREATED:
            self._poll(index)
        if self._shard(index).phase is Phase.ENDED:
            self._download(index)
        if self._shard(index).phase is Phase.DOWNLOADED:
            self._collect(index)
        if self._shard(index).phase is Phase.WITHDRAWN:
            collect.withdraw(self._files, index, self._documents(index).values())
            canceled = {"canceled": self._shard(index).requests}
            self._writer.record(journal.Collected(shard=index, classes=canceled))

    def _poll(self, index: int) -> None:
        shard = self._shard(index)
        assert shard.batch is not None
        self._sender.heed_cancel(index)
        try:
            batch, wish = self._api.retrieve(shard.batch)
        except (ApiError, Unreachable) as error:
            self._poll_failed(index, error)
            return
        watch = self._watch(index)
        watch.failures = 0
        progress = self._progress(index, shard.batch)
        if not batch.has_ended:
            done = progress.results if progress else batch.request_counts.done
            state = "" if batch.processing_status == "in_progress" else batch.processing_status
            paused = progress.paused if progress else {}
            notes = [state, *(f"{name} paused: {why}" for name, why in paused.items())]
            delay = self._next_interval(index, wish)
            self._pace.tell(
                Update(
                    kind="progress", shard=index, batch=batch.id, done=done,
                    total=shard.requests, retry_in_s=delay,
                    text="; ".join(filter(None, notes)),
                )
            )  # fmt: skip
            return
        # Only a yard says how it charges; anybody else is taken to give the discount of a batch.
        billing = watch.billing if self._api.is_yard else receipt.BATCH
        counts = batch.request_counts
        by_name = {
            "succeeded": counts.succeeded, "errored": counts.errored,
            "canceled": counts.canceled, "expired": counts.expired,
        }  # fmt: skip
        self._writer.record(
            journal.Ended(
                shard=index, counts=by_name, billing=billing, assumed=not self._api.is_yard
            )
        )
        self._pace.tell(
            Update(
                kind="ended", shard=index, batch=batch.id, done=counts.done, total=shard.requests
            )
        )

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

    def _poll_failed(self, index: int, error: ApiError | Unreachable) -> None:
        """Keep a shard whose poll failed: a failed look says nothing about the batch."""
        shard = self._shard(index)
        wish = None
        if isinstance(error, ApiError):
            wish = error.retry_in_s
            age_s = (self._clock.now_us() - shard.created_us) / limits.SECOND_US
            if error.http_status == 404 and age_s > NEW_BATCH_404_S:
                self._stuck[index] = (
                    f"shard {index}: {self._api.base_url} does not know batch {shard.batch}: is "
                    f"this the key and the address that it was created with? ({error.message})"
                )
                return
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

    # Saving

    def _download(self, index: int) -> None:
        shard = self._shard(index)
        assert shard.batch is not None
        target = self._files.results(index)
        short = failures = size = 0
        while True:
            wish = None
            try:
                size = self._api.download_results(shard.batch, target)
            except ApiError as error:
                if error.http_status == 404 or error.http_status in REFUSALS:
                    self._stuck[index] = (
                        f"shard {index}: the results of {shard.batch} are not available: "
                        f"{error.message}"
                    )
                    return
                wish, why = error.retry_in_s, error.message
            except Unreachable as error:
                why = error.message
            else:
                if collect.is_whole(target, shard.requests) or short + 1 == DOWNLOADS_MAX:
                    break
                # Some servers end a cut answer like a whole one; lines are counted instead.
                short, why = short + 1, "the results are not complete"
            failures += 1
            self._pace.back_off(index, shard.requests, failures, wish, f"downloading again: {why}")
        self._writer.record(journal.Downloaded(shard=index, bytes=size))
        crash.point("downloaded_recorded")

    def _collect(self, index: int) -> None:
        shard = self._shard(index)
        entries = self._documents(index)
        if shard.adopted and not collect.has_any(self._files.results(index), entries):
            assert shard.batch is not None
            self._writer.record(journal.Disowned(shard=index, batch=shard.batch))
            text = f"batch {shard.batch} holds none of our documents; looking again"
            self._pace.tell(Update(kind="notice", shard=index, text=text))
            self._sender.settle(index)
            return

        def saved(count: int) -> None:
            self._pace.tell(
                Update(kind="saving", shard=index, batch=shard.batch, done=count,
                       total=shard.requests)
            )  # fmt: skip
            self._pace.rest(0.0)

        summary = collect.collect(self._files, self._tree, index, entries, saved=saved)
        crash.point("outcomes_written")
        classes = {str(name): count for name, count in summary.classes.items()}
        self._writer.record(journal.Collected(shard=index, classes=classes))
        self._pace.tell(
            Update(
                kind="collected", shard=index, batch=shard.batch, done=summary.saved,
                total=shard.requests, text=summary.oddities,
            )
        )  # fmt: skip
        self._entries.pop(index, None)

    # Small things

    def _shard(self, index: int) -> journal.Shard:
        return self._writer.state.shards[index]

    def _open(self) -> list[int]:
        shards = self._writer.state.shards
        return [s.index for s in shards if not s.is_settled and s.index not in self._stuck]

    def _documents(self, index: int) -> dict[str, DocumentEntry]:
        if index not in self._entries:
            self._entries = {}
            for entry in self._files.read_documents():
                self._entries.setdefault(entry.shard, {})[entry.custom_id] = entry
        return self._entries[index]

    def _watch(self, index: int) -> _Watch:
        if index not in self._watches:
            first = YARD_INTERVAL_S if self._api.is_yard else INTERVAL_S
            self._watches[index] = _Watch(self._clock.monotonic_s(), first)
        return self._watches[index]

    def _is_due(self, index: int) -> bool:
        return self._watch(index).due_s <= self._clock.monotonic_s()

    def _next_interval(self, index: int, wish: float | None) -> float:
        watch = self._watch(index)
        delay = watch.interval_s
        cap = YARD_INTERVAL_MAX_S if self._api.is_yard else INTERVAL_MAX_S
        watch.interval_s = min(cap, watch.interval_s * INTERVAL_GROWTH)
        if not self._api.is_yard:
            delay = max(delay, min(wish or 0.0, INTERVAL_MAX_S))
            delay *= random.uniform(1.0, 1.1)  # noqa: S311 - jitter, not a secret
        watch.due_s = self._clock.monotonic_s() + delay
        return delay
