"""From a batch that has ended to what is on disk: results as received, reports, outcomes.

What is recorded is on disk before; doing it again after a crash gives the same files.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from batchyard import crash
from batchyard.client.answers import ApiError, Unreachable
from batchyard.client.problems import NeedsAttention
from batchyard.client.results import closing, collect
from batchyard.client.results.outputs import Tree
from batchyard.client.running import journal, rounds, tags
from batchyard.client.running.sending import REFUSALS
from batchyard.client.running.updates import Pace, Update

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchyard.client.api import Api
    from batchyard.client.results.collect import Outcome
    from batchyard.client.results.schema import Schema
    from batchyard.client.running.folder import DocumentEntry, Journal
    from batchyard.client.running.purse import Purse

DOWNLOADS_MAX = 3
_TOLD_ONE_BY_ONE = 50  # documents


class Harvest:
    """Saves the answers of one run."""

    def __init__(
        self, writer: Journal, api: Api, *, pace: Pace, purse: Purse, schema: Schema | None
    ) -> None:
        self._writer = writer
        self._files = writer.files
        self._api = api
        self._pace = pace
        self._purse = purse
        self._schema = schema
        self._tree = Tree(writer.files.out)
        self._spans: dict[int, tuple[int, int]] = {}

    def download(self, index: int) -> None:
        """Put the results of a shard on disk as received, again while they are not complete.

        Raises:
            Detached: the run was left on request.
            NeedsAttention: the server does not give them.
        """
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
                    raise NeedsAttention(
                        f"shard {index}: the results of {shard.batch} are not available: "
                        f"{error.message}"
                    ) from None
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

    def collect(self, index: int) -> Mapping[str, int] | None:
        """Write reports and outcomes of a shard; return how many documents became what.

        None when its batch turned out to be somebody else's: it was given back.

        Raises:
            Detached: the run was left on request.
            NeedsAttention: a report cannot be written.
        """
        shard = self._shard(index)
        entries = self.documents(index)
        if shard.adopted and not tags.confirms(self._files.results(index), entries):
            assert shard.batch is not None
            self._writer.record(journal.Disowned(shard=index, batch=shard.batch))
            text = f"batch {shard.batch} is of another run; looking again"
            self._pace.tell(Update(kind="notice", shard=index, text=text))
            return None

        def saved(count: int) -> None:
            if count > _TOLD_ONE_BY_ONE and count % _TOLD_ONE_BY_ONE:
                return  # to tell, and to look whether to stop, takes longer than to write
            self._pace.tell(
                Update(kind="saving", shard=index, batch=shard.batch, done=count,
                       total=shard.requests)
            )  # fmt: skip
            self._pace.rest(0.0)

        tree = self._tree if closing.has_files(self._writer.state) else None
        summary = collect.collect(
            self._files, tree, index, entries, saved=saved, schema=self._schema,
            is_again=shard.round > 0, earlier=lambda: self._earlier(index, entries),
        )  # fmt: skip
        crash.point("outcomes_written")
        classes = {str(name): count for name, count in summary.classes.items()}
        cost = self._purse.cost(index)
        self._writer.record(journal.Collected(shard=index, classes=classes, cost_micros=cost))
        crash.point("collected_recorded")
        self._pace.tell(
            Update(
                kind="collected", shard=index, batch=shard.batch, done=summary.saved,
                total=summary.documents, text=summary.oddities,
            )
        )  # fmt: skip
        return classes

    def withdraw(self, index: int) -> None:
        """Write the outcomes of a shard that was canceled before it was sent."""
        entries = self.documents(index)
        summary = collect.withdraw(
            self._files,
            index,
            itertools.chain(*entries.values()),
            self._earlier(index, entries),
        )
        classes = {str(name): count for name, count in summary.classes.items()}
        self._writer.record(journal.Collected(shard=index, classes=classes, cost_micros=0))

    def _earlier(
        self, index: int, entries: Mapping[str, Sequence[DocumentEntry]]
    ) -> dict[str, tuple[int, Outcome]]:
        """Return, by key, the answers that the documents of a repetition had before."""
        state = self._writer.state
        if state.shards[index].why != "retry":
            return {}
        keys = {entry.key for entry in itertools.chain(*entries.values())}
        answered = rounds.last_outcomes(
            self._files, state, only=lambda s: not rounds.PAID_AGAIN.isdisjoint(s.classes)
        )
        return {
            last.outcome.key: (last.shard, last.outcome)
            for last in answered
            if last.outcome.class_ in rounds.PAID_AGAIN and last.outcome.key in keys
        }

    def documents(self, index: int) -> dict[str, list[DocumentEntry]]:
        """Return the documents of one shard by custom id; only those are in memory."""
        if index not in self._spans:
            self._spans = self._files.spans(len(self._writer.state.shards))
        found: dict[str, list[DocumentEntry]] = {}
        for entry in self._files.read_span(self._spans[index]):
            found.setdefault(entry.custom_id, []).append(entry)
        return found

    def _shard(self, index: int) -> journal.Shard:
        return self._writer.state.shards[index]
