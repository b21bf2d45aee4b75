"""The budget of one run under way: what its shards can cost, and whether the next may be sent.

Remembers ceilings, which are read from create bodies; what it says follows from the journal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard import wire
from batchyard.client.planning.survey import asked_billing
from batchyard.client.problems import InputError
from batchyard.client.results import collect, receipt
from batchyard.client.running import billing, budget
from batchyard.client.running.journal import Phase
from batchyard.price import dollars

if TYPE_CHECKING:
    from batchyard.client.api import Api
    from batchyard.client.running.folder import Journal
    from batchyard.model import Billing


class Purse:
    """What the run may spend."""

    def __init__(self, writer: Journal, api: Api) -> None:
        self._writer = writer
        self._api = api
        self._ceilings: dict[tuple[int, Billing], int | None] = {}
        self._offered: Billing | None = None
        self._has_asked = False

    @property
    def limit(self) -> int | None:
        """Return the budget in micro-dollars, None when there is none."""
        return self._writer.state.terms.budget_micros

    @property
    def billing(self) -> Billing:
        """Return how the server charges: the dearer list for a yard that does not say it.

        Anybody else is taken to give the discount of a batch.
        """
        known = billing.known(self._writer.state)
        if known is not None:
            return known
        if not self._api.is_yard:
            return "batch"
        config = self._writer.state.config
        if not self._has_asked and config is not None and config.override is None:
            self._has_asked, self._offered = True, asked_billing([config.model], self._api)
        return self._offered or "standard"

    def ceiling(self, index: int) -> int | None:
        """Return what a shard can cost, None when that has no bound."""
        key = (index, self.billing)
        if key not in self._ceilings:
            body = self._writer.files.requests(index)
            self._ceilings[key] = budget.of_shard(body, key[1])
        return self._ceilings[key]

    def reserve(self, index: int) -> int | None:
        """Return what is to be set aside for a shard; None without a budget."""
        return None if self.limit is None else self.ceiling(index)

    def standing(self) -> budget.Standing:
        """Return what is spent and set aside."""
        return budget.standing(self._writer.state, lambda shard: self.ceiling(shard.index))

    def fits(self, index: int) -> bool:
        """Whether a shard may be sent as far as money goes."""
        if self.limit is None:
            return True
        ceiling = self.ceiling(index)
        return ceiling is not None and budget.fits(self.standing(), ceiling, self.limit)

    def check(self) -> None:
        """Refuse a budget that cannot be kept.

        Raises:
            InputError: a shard that is to be sent has no ceiling.
        """
        if self.limit is None:
            return
        for shard in self._writer.state.shards:
            if shard.phase is Phase.PLANNED and self.ceiling(shard.index) is None:
                raise InputError(
                    f"a budget of {dollars(self.limit)} cannot be kept: a request of shard "
                    f"{shard.index} has a model of unknown price, or tools that the server uses "
                    "without a bound; nothing more was sent. --no-budget sends it all the same"
                )

    @property
    def room(self) -> int | None:
        """Return what is left of the price that was approved; None when none was known.

        Nothing that is simulated has a price. Below zero when more was spent than was approved.
        """
        charges = self.billing
        if charges == "simulated":
            return 0
        approved = self._writer.state.approved
        if approved is None:
            return None
        now = self.standing()
        return approved[charges == "standard"] - now.spent - now.reserved

    def approved_with(self, micros: int | None) -> tuple[int, int] | None:
        """Return what is approved when `micros` more are; None when that is not known."""
        if micros is None:
            return None
        now = self.standing()
        total = now.spent + now.reserved + micros
        return total, total

    def ceiling_of(self, params: bytes) -> int | None:
        """Return what a request can cost, None when that has no bound."""
        return budget.ceiling(wire.decode(params), self.billing)

    def explain(self, index: int) -> str:
        """Return why nothing more is sent, and what goes on.

        Args:
            index: of the next shard.
        """
        state, files = self._writer.state, self._writer.files
        micros = [each or 0 for each in budget.ceilings(files.requests(index), self.billing)]
        spent = self.standing().spent
        left = sum(shard.requests for shard in state.shards if shard.phase is Phase.PLANNED)
        least = min(len(micros), budget.PIECE_REQUESTS_MIN)
        return (
            f"budget reached: {dollars(spent)} of {dollars(self.limit or 0)} is spent, {left:,} "
            f"requests are not sent, and the next {least:,} may cost "
            f"{dollars(sum(micros[:least]))}. What came is saved; `batchyard attach {files.out} "
            f"--budget USD` goes on with a larger one, {dollars(spent + sum(micros))} for a whole "
            "batch"
        )

    def cost(self, index: int) -> int | None:
        """Return what the answers of a shard cost, None when one of them does not tell."""
        config = self._writer.state.config
        assert config is not None
        total, charges = 0, self._writer.state.shards[index].billing
        for outcome in collect.read_outcomes(self._writer.files, index):
            micros = receipt.charged(outcome, config.model, charges)
            if micros is None:
                return None
            total += micros
        return total
