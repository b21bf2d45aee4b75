"""The loop of a run: send every shard, wait, download, save; from wherever the journal says.

Blocking, one thread. Everything that it decides is in the journal before it is done, so it may be
killed at any point and called again. It never sends a shard twice unless it is certain that the
first call made no batch, or the server recognises the repetition.

When everything that was sent is collected, the run grows by what can still succeed (`rounds`), as
long as its terms allow it; what does not fit in the budget waits, or is cut (`budget`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard import crash
from batchyard.client.problems import BudgetReached, NeedsAttention, Paused, ServerRefuses
from batchyard.client.results import deleting, receipt
from batchyard.client.results.schema import stored
from batchyard.client.running import at_once, journal, rounds
from batchyard.client.running.growing import Growth
from batchyard.client.running.harvest import Harvest
from batchyard.client.running.journal import Phase
from batchyard.client.running.purse import Purse
from batchyard.client.running.sending import GRACE_S, Sender
from batchyard.client.running.updates import Pace, Update
from batchyard.client.running.watching import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from batchyard.client.api import Api
    from batchyard.client.results.schema import Schema
    from batchyard.client.running.folder import Journal
    from batchyard.clock import Clock


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
        schema: Schema | None = None,
        before: Api | None = None,
    ) -> None:
        """Prepare to go on.

        Args:
            writer: the journal of a run that has started.
            api: the server of the run.
            clock: for times in the journal and for what is due.
            pause: waits for seconds; returns True when the run is to be left.
            tell: gets everything that a screen may show, from this thread.
            grace_s: how long after a lost answer a batch may appear in the list.
            schema: what answers have to look like; without it, what the journal says.
            before: the server that `api`, a yard of our own, stands before.

        Raises:
            InputError: the journal has a schema, and there is nothing to check it with.
        """
        self._writer = writer
        self._files = writer.files
        self._api = api
        self._behind = before
        self._server = self._server_of_now()
        self._clock = clock
        self._pace = Pace(pause, tell)
        self._purse = Purse(writer, api)
        self._sender = Sender(
            writer, api, clock=clock, pace=self._pace, grace_s=grace_s, ceiling=self._purse.reserve
        )
        self._watcher = Watcher(writer, api, clock=clock, pace=self._pace, sender=self._sender)
        self._harvest = Harvest(
            writer, api, pace=self._pace, purse=self._purse,
            schema=schema or stored(writer.state.config),
        )  # fmt: skip
        self._growth = Growth(writer, pace=self._pace, purse=self._purse, harvest=self._harvest)
        self._stuck: dict[int, str] = {}
        self._refusal: str | None = None
        self._is_unpaid = self._is_over = self._has_met = False
        self._too_dear: str | None = None

    def run(self) -> receipt.Receipt:
        """Go on to the end, or to where the rest waits until the pilot was looked at.

        Raises:
            Detached: the run was left on request.
            Paused: it goes on when somebody pays, or allows more; everything that came is saved.
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
        return self._is_over and not self._open()

    @property
    def has_moved(self) -> bool:
        """Whether the run is at another server by now than the one that is connected."""
        return self._server != self._server_of_now()

    def _server_of_now(self) -> tuple[str | None, tuple[str, ...]]:
        config = self._writer.state.config
        return (None, ()) if config is None else (config.base_url, config.upstreams)

    @property
    def is_held(self) -> bool:
        """Whether the pilot is collected and the rest waits until somebody has looked at it."""
        state = self._writer.state
        return self.is_done and any(map(state.is_held, state.shards))

    def approve(self) -> None:
        """Let the rest follow the pilot."""
        self._writer.record(journal.Approved())
        crash.point("approved")
        self._is_over = False

    def repeat(self, also: Iterable[str] = (), *, room: int | None = None) -> None:
        """Start a further round when all shards are collected, whatever was allowed before.

        Args:
            also: classes that are otherwise not sent again: canceled, billing.
            room: micro-dollars that the round may cost; None for whatever it costs.
        """
        self._growth.ask(also, room)
        self._is_over = False

    def submit(self) -> None:
        """Make sure that every shard has its batch, except for those that cannot have one.

        They do not keep the others from being waited for and saved; `finish` names them. Whatever
        was stuck before is tried again.

        Raises:
            Detached: the run was left on request.
            InputError: there is a budget, and what is to be sent has no price.
            ServerRefuses: before anything is sent, when nothing can be.
        """
        self._stuck.clear()
        self._refusal = self._too_dear = None
        self._is_over = self._is_unpaid = False
        if any(s.phase in {Phase.PLANNED, Phase.INTENDED} for s in self._writer.state.shards):
            self._meet()
        for shard in self._writer.state.shards:
            self._sender.heed_duplicates(shard.index)
        for index in range(len(self._writer.state.shards)):
            self._send(index)

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
            if shard.phase in {Phase.CREATED, Phase.INTENDED} and not self._watcher.is_due(index):
                continue
            try:
                self._look(index)
            except NeedsAttention as error:
                self._stuck[index] = error.message
            if self._shard(index).is_settled:
                yield index
        if not self._open() and not self._is_over:
            self._grow()

    def wait(self) -> None:
        """Wait until something is due.

        Raises:
            Detached: the run was left on request.
        """
        self._pace.rest(self._watcher.left_s(self._open()))

    def finish(self) -> receipt.Receipt:
        """Write the receipt and the list of errors.

        Raises:
            Paused: what is left waits for money.
            NeedsAttention: a shard could not be brought to its end.
        """
        if self._stuck:
            # One cause may keep many shards.
            raise NeedsAttention("\n".join(dict.fromkeys(self._stuck.values())))
        done = receipt.write(self._files, self._writer.state, self._clock.now_us())
        crash.point("receipt_written")
        if self._is_unpaid:
            count = self._writer.state.classes.get(rounds.BILLING, 0)
            raise Paused(
                f"billing: {count:,} of {done.documents:,} documents were not answered for want of "
                "credit, and nothing more was sent; when the account is paid, the same command "
                f"goes on, or `batchyard retry {self._files.out}`"
            )
        if self._too_dear is not None:
            raise BudgetReached(self._too_dear)
        if self._writer.state.finished_us is None and not self.is_held:
            lost = [s.index for s in self._writer.state.shards if not s.is_settled]
            if lost:
                raise NeedsAttention(f"shards {lost} are not collected; the same command goes on")
            if self._writer.state.saving.delete:
                apis = (self._api, self._behind)
                deleting.delete_copies(self._writer, apis, self._pace.tell)
            at_once.go_back(self._writer)
            self._writer.record(journal.Finished())
        return done

    # Sending

    def _meet(self) -> None:
        """Get to know the server, and refuse what cannot be kept within the budget."""
        if not self._has_met:
            self._sender.meet()
            self._has_met = True
        self._purse.check()

    def _send(self, index: int) -> None:
        """Send a shard unless something speaks against it; find the batch of one that was sent."""
        shard = self._shard(index)
        if shard.phase is Phase.PLANNED and not self._files.cancel.exists():
            if self._refusal is not None:
                self._stuck[index] = self._refusal
                return
            if self._is_unpaid or self._writer.state.is_held(shard) or not self._purse.fits(index):
                return
        try:
            if not self._sender.settle(index):
                self._watcher.postpone(index)
        except ServerRefuses as error:
            self._stuck[index] = self._refusal = error.message
        except NeedsAttention as error:
            self._stuck[index] = error.message

    def _grow(self) -> None:
        """Go further when nothing is under way any more; notice when the run is over."""
        state = self._writer.state
        unsent = [s for s in state.shards if s.phase is Phase.PLANNED and not state.is_held(s)]
        if self._stuck or self._is_unpaid:
            self._is_over = True
        elif unsent:
            self._is_over = not self._send_piece(unsent[0])
        elif any(map(state.is_held, state.shards)):
            self._is_over = True
        else:
            self._is_over = not self._growth.start_round()
            if not self._is_over:
                self._send_planned()

    def _send_planned(self) -> None:
        self._meet()
        for shard in self._writer.state.shards:
            if shard.phase is Phase.PLANNED:
                self._send(shard.index)

    def _send_piece(self, shard: journal.Shard) -> bool:
        """Send of a shard as much as fits in the budget; False when that is nothing."""
        if self._purse.fits(shard.index):
            self._send(shard.index)
            return True
        if self._growth.cut(shard):
            self._send_planned()
            return True
        self._too_dear = self._purse.explain(shard.index)
        return False

    # Waiting and saving

    def _look(self, index: int) -> None:
        """Bring a shard one or more steps further, if the server lets it."""
        if self._shard(index).phase in {Phase.PLANNED, Phase.INTENDED}:
            self._send(index)
        if self._shard(index).phase is Phase.CREATED:
            self._watcher.poll(index)
        if self._shard(index).phase is Phase.ENDED:
            self._harvest.download(index)
        if self._shard(index).phase is Phase.DOWNLOADED:
            classes = self._harvest.collect(index)
            if classes is None:
                self._send(index)
            elif rounds.BILLING in classes:
                self._is_unpaid = True
        if self._shard(index).phase is Phase.WITHDRAWN:
            self._harvest.withdraw(index)

    def _shard(self, index: int) -> journal.Shard:
        return self._writer.state.shards[index]

    def _open(self) -> list[int]:
        """Return the shards that are under way; those that wait to be sent are not."""
        return [
            s.index
            for s in self._writer.state.shards
            if (s.is_at_server or s.phase is Phase.WITHDRAWN) and s.index not in self._stuck
        ]
