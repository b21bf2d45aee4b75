"""A pilot: a few documents of a run are sent first, and tell what the rest will be like.

They are spread over the inputs and are part of the run: what they gave is not sent again. Pure, but
for reading the outcomes of collected shards.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from msgspec import structs

from batchyard.client.planning import plan as planning
from batchyard.client.results import receipt
from batchyard.client.running import rounds
from batchyard.client.running.journal import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchyard import price
    from batchyard.client.planning.plan import Plan, Request
    from batchyard.client.results.collect import Outcome
    from batchyard.client.running.folder import Files
    from batchyard.client.running.journal import Shard, State, Why
    from batchyard.client.running.rounds import Last

# With nobody to ask, the rest follows a pilot of which no more than this failed.
FAILURES_PERCENT_MAX = 10
ANSWERS_SHOWN = 3
_BINS = (100, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000)


def size(plan: Plan, count: int) -> int:
    """Return how many requests a pilot has; none when nothing would be left for after it."""
    return count if 0 < count < len(plan.requests) else 0


def split(plan: Plan, count: int) -> tuple[Plan, list[Why | None]]:
    """Return the plan with `count` requests in shards of their own, first, and why each is."""
    requests = plan.requests
    if not size(plan, count):
        return plan, [None] * len(plan.shards)
    chosen = {number * len(requests) // count for number in range(count)}
    first = [request for at, request in enumerate(requests) if at in chosen]
    rest = [request for at, request in enumerate(requests) if at not in chosen]
    shards: list[planning.Shard] = []
    reasons: list[Why | None] = []
    groups: tuple[tuple[list[Request], Why], ...] = ((first, "pilot"), (rest, "rest"))
    for group, why in groups:
        packed = planning.pack(group, plan.settings.shard_requests)
        shards += [replace(shard, index=len(shards) + at) for at, shard in enumerate(packed)]
        reasons += [why] * len(packed)
    return replace(plan, shards=shards), reasons


@dataclass(frozen=True, slots=True)
class Findings:
    """What a pilot showed.

    `lengths` are the output tokens of its answers. `paid_micros` is what it cost, `rest_micros`
    what the rest will cost if it is like it, both None when that is not known. If `is_simulated`,
    nothing is charged for either, and they are what batches at list prices would cost.
    """

    documents: int
    left: int
    classes: Mapping[str, int]
    lengths: Sequence[int] = field(repr=False)
    answers: Sequence[Last] = field(repr=False)
    paid_micros: int | None
    rest_micros: int | None
    is_simulated: bool = False

    @property
    def failed(self) -> int:
        """Return how many documents have no whole report."""
        return self.documents - self.classes.get("succeeded", 0)

    @property
    def is_good(self) -> bool:
        """Whether the rest may follow without a person looking."""
        return self.failed * 100 <= self.documents * FAILURES_PERCENT_MAX

    def histogram(self) -> list[tuple[str, int]]:
        """Count the answers by length: the upper bound of each bin that is not empty, in words."""
        bins: Counter[int] = Counter()
        for length in self.lengths:
            bins[sum(length > bound for bound in _BINS)] += 1
        names = [f"to {bound:,}" for bound in _BINS] + [f"over {_BINS[-1]:,}"]
        return [(names[number], bins[number]) for number in sorted(bins)]


def findings(files: Files, state: State) -> Findings:
    """Return what the pilot of a run showed, once it is collected."""
    assert state.config is not None
    made = [shard for shard in state.shards if shard.phase is not Phase.REPLACED]
    pilots = [shard for shard in made if shard.why == "pilot"]
    latest = max((shard.round for shard in pilots), default=0)  # a rerun can have one of its own
    # A pilot of everything has no rest: it is the run.
    pilot = [shard for shard in pilots if shard.round == latest] or made
    lasts = list(rounds.last_outcomes(files, state, only=pilot.__contains__))
    outcomes = [last.outcome for last in lasts]
    answered = [o for o in outcomes if o.is_answered and o.usage is not None]
    held = [shard for shard in state.shards if state.is_held(shard)]
    is_simulated = any(shard.billing == receipt.SIMULATED for shard in pilot)
    paid = [shard.cost_micros for shard in pilot]
    if is_simulated:
        paid = [receipt.cost(outcome, state.config.model, "batch") for outcome in answered]
    return Findings(
        documents=len(outcomes),
        left=sum(shard.requests for shard in held),
        classes=Counter(str(outcome.class_) for outcome in outcomes),
        lengths=[o.usage.output_tokens for o in answered if o.usage is not None],
        answers=[each for each in lasts if each.outcome.is_saved and each.outcome.same_as is None][
            :ANSWERS_SHOWN
        ],
        paid_micros=None if None in paid else sum(each or 0 for each in paid),
        rest_micros=_rest(answered, pilot, held, state.config.model),
        is_simulated=is_simulated,
    )


def _rest(
    answered: Sequence[Outcome], pilot: Sequence[Shard], held: Sequence[Shard], model: str
) -> int | None:
    """Return the price of the held shards: that of the answers, prompts scaled by their bytes.

    Each answer is taken at the price of its own model and usage, with what it read from a cache,
    wrote to it, and searched.
    """
    if not answered:
        return None
    is_batch = pilot[0].billing in {receipt.BATCH, receipt.SIMULATED}
    tier: price.Tier = "batch" if is_batch else "standard"
    prompts = others = 0
    for outcome in answered:
        assert outcome.usage is not None
        usage = structs.replace(outcome.usage, output_tokens=0, web_searches=0)
        prompt = receipt.cost(structs.replace(outcome, usage=usage), model, tier)
        whole = receipt.cost(outcome, model, tier)
        if prompt is None or whole is None:
            return None
        prompts, others = prompts + prompt, others + whole - prompt
    sent_bytes, left_bytes = (sum(shard.bytes for shard in some) for some in (pilot, held))
    left = sum(shard.requests for shard in held)
    # The pilot's answers are taken to be of all its bytes: a failed request had a prompt as well.
    return prompts * left_bytes // max(1, sent_bytes) + others * left // len(answered)
