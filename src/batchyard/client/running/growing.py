"""How a run grows when all that was sent is collected: further rounds, and smaller batches.

A round sends again what can succeed, as far as the terms and the approved price allow it; a shard
that does not fit in the budget is cut, or waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard.client.results import again, classes
from batchyard.client.running import budget, folder, rounds
from batchyard.client.running.updates import Pace, Update

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchyard.client.planning.plan import Shard as PlanShard
    from batchyard.client.running import journal
    from batchyard.client.running.folder import Journal
    from batchyard.client.running.harvest import Harvest
    from batchyard.client.running.purse import Purse
    from batchyard.client.running.rounds import Round


class Growth:
    """Appends shards to one run; who calls it sends them."""

    def __init__(self, writer: Journal, *, pace: Pace, purse: Purse, harvest: Harvest) -> None:
        self._writer = writer
        self._files = writer.files
        self._pace = pace
        self._purse = purse
        self._harvest = harvest
        self._asked: frozenset[str] | None = None
        self._room: int | None = None
        self._noted: set[str] = set()

    def ask(self, also: Iterable[str], room: int | None) -> None:
        """Let the next round be one by hand, whatever was allowed before.

        Args:
            also: classes that are otherwise not sent again.
            room: micro-dollars that it may cost; None for whatever it costs.
        """
        self._asked, self._room = frozenset(also), room

    def start_round(self) -> bool:
        """Plan everything once more that can succeed; False when that is nothing."""
        state = self._writer.state
        asked, self._asked = self._asked, None
        by_hand = is_asked = asked is not None
        also = asked or frozenset()
        if not by_hand and state.classes.get(rounds.BILLING) and not self._is_untouched_import:
            also, is_asked = frozenset({rounds.BILLING}), True  # a person has come back: it is paid
        is_allowed = (
            state.finished_us is None
            and not self._files.cancel.exists()
            and state.automatic_rounds < state.terms.retries
        )
        wanted = rounds.REPEATABLE | also
        if not (is_asked or is_allowed) or (state.classes and wanted.isdisjoint(state.classes)):
            return False
        assert state.config is not None
        found = rounds.gather(
            self._files,
            state,
            again.Settings(betas=state.config.betas),
            requests_max=state.config.shard_requests,
            also=also,
            bound=self._bound(by_hand=by_hand),
        )
        for note in found.notes:
            if note not in self._noted:
                self._noted.add(note)
                self._pace.tell(Update(kind="notice", text=note))
        if not found.shards:
            return False
        approved = self._purse.approved_with(found.micros) if by_hand else None
        self._extend(
            found.shards, "retry", state.round + 1, found=found, by_hand=is_asked,
            approved=approved,
        )  # fmt: skip
        text = f"round {state.round + 1}: sent again, {classes.named(found.again)}"
        self._pace.tell(Update(kind="notice", text=text))
        return True

    def _bound(self, *, by_hand: bool) -> rounds.Bound:
        """Return what the next round may cost where something is charged once more."""
        if by_hand:
            return rounds.Bound(self._purse.ceiling_of, self._room, is_open=self._room is None)
        if self._purse.limit is not None:
            return rounds.Bound(self._purse.ceiling_of, None, is_open=True)  # the budget holds
        room = self._purse.room
        # A plan without a price was approved as it was; what was made elsewhere never was.
        is_open = room is None and not self._is_imported
        return rounds.Bound(self._purse.ceiling_of, room, is_open=is_open)

    @property
    def _is_imported(self) -> bool:
        config = self._writer.state.config
        return config is not None and config.imported is not None

    @property
    def _is_untouched_import(self) -> bool:
        """Whether all that is there was made elsewhere, so that nobody here approved of more."""
        return self._is_imported and not self._writer.state.round

    def cut(self, shard: journal.Shard) -> bool:
        """Cut a shard that does not fit in the budget; False when nothing of it fits."""
        limit, index = self._purse.limit, shard.index
        assert limit is not None
        body = self._files.requests(index)
        spent = self._purse.standing().spent
        micros = [each or 0 for each in budget.ceilings(body, self._purse.billing)]
        count = budget.piece(micros, limit - spent)
        if not count:
            return False
        entries = list(self._harvest.documents(index).values())
        self._extend(budget.cut(body, entries, count), shard.why, shard.round, replaces=(index,))
        text = f"{count:,} of {shard.requests:,} requests fit in the budget and go first"
        self._pace.tell(Update(kind="notice", text=text))
        return True

    def _extend(
        self,
        shards: Sequence[PlanShard],
        why: journal.Why,
        round_: int,
        *,
        replaces: tuple[int, ...] = (),
        found: Round | None = None,
        by_hand: bool = False,
        approved: tuple[int, int] | None = None,
    ) -> None:
        new = folder.extend(
            self._writer, shards, why, round_=round_, replaces=replaces,
            again=found.again if found else None, by_hand=by_hand, approved=approved,
        )  # fmt: skip
        for index in replaces:
            self._pace.tell(Update(kind="replaced", shard=index))
        for index in new:
            total = self._writer.state.shards[index].requests
            self._pace.tell(Update(kind="planned", shard=index, total=total))
