"""What a run cost, from the `usage` of its answers and nothing else.

Every answer is priced by itself and rounded to the micro-dollar; sums are of whole micro-dollars.
So the documents of a run cost together exactly what the run cost. A document that was sent again
costs what all its tries cost; one that shares the request of another costs nothing.

The basis is how the server charges: `batch` at half price, `standard` when a yard calls a
synchronous API, `simulated` when nothing was charged. An unknown model, or an answer that does not
tell its usage, makes the sum unknown, never smaller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batchyard import models, price, wire
from batchyard.client.results.collect import Outcome, read_outcomes
from batchyard.client.results.outputs import RECEIPT_FILE
from batchyard.client.running import durable
from batchyard.client.running.journal import Phase, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from batchyard.client.running.folder import Files
    from batchyard.client.running.journal import State

BATCH, STANDARD, SIMULATED = "batch", "standard", "simulated"


class ModelSums(msgspec.Struct, kw_only=True):
    """Usage and money of one model; the money is that of `Receipt`."""

    answers: int = 0
    answers_without_usage: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0
    web_searches: int = 0
    paid_micros: int | None = 0
    synchronous_micros: int | None = 0
    list_batch_micros: int | None = 0
    list_synchronous_micros: int | None = 0

    def add(self, outcome: Outcome, model_id: str, billing: str | None) -> None:
        """Add one answer to a request for `model_id`."""
        batch, synchronous = (cost(outcome, model_id, tier) for tier in ("batch", "standard"))
        is_free = billing == SIMULATED
        self.paid_micros = _plus(self.paid_micros, charged(outcome, model_id, billing))
        self.synchronous_micros = _plus(self.synchronous_micros, 0 if is_free else synchronous)
        self.list_batch_micros = _plus(self.list_batch_micros, batch)
        self.list_synchronous_micros = _plus(self.list_synchronous_micros, synchronous)
        self.answers += 1
        usage = outcome.usage
        if usage is None:
            self.answers_without_usage += 1
            return
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.cache_write_5m_tokens += usage.cache_write_5m_tokens
        self.cache_write_1h_tokens += usage.cache_write_1h_tokens
        self.cache_read_tokens += usage.cache_read_tokens
        self.web_searches += usage.web_searches


class Receipt(msgspec.Struct, kw_only=True, frozen=True):
    """The content of `receipt.json`. Money is in micro-dollars, None when it is not known.

    `paid_micros` is what was charged, `synchronous_micros` what the same answers would have cost
    without batches, `saved_micros` the difference; all three are 0 for what was simulated. The
    `list_` amounts are what all answers cost at list prices, whoever gave them. `saved` counts the
    documents with a report file, also one that was cut short; `classes` tells them apart.
    `waits_for` is what keeps documents from being sent, for the first time (`not_sent`) or again;
    None when the run is over.
    `requests` is how many were sent and collected: fewer than documents where some share one, more
    where some were sent again. `cache_share` is the part of all prompt tokens that was read from a
    cache, None without prompts. `prices` names the table of prices: its date and a digest.
    `basis_source` is `server` when the server said how it charges, `assumed` when it did not say:
    then it is taken for a batch service at half price, or for a yard at the full one.
    `repeated_calls` are the calls of upstreams beyond one for each request, which a yard counts
    while it runs; None for other servers, and when a yard does not know.
    """

    run: str
    basis: str
    basis_source: str
    documents: int
    waits_for: Wait | None = None
    requests: int = 0
    repeated_calls: int | None = None
    saved: int
    classes: dict[str, int]
    cache_share: float | None = None
    models: dict[str, ModelSums]
    paid_micros: int | None
    synchronous_micros: int | None
    saved_micros: int | None
    list_batch_micros: int | None
    list_synchronous_micros: int | None
    prices_as_of: str
    prices: str = ""
    batches: list[str]
    started_at: str
    finished_at: str

    @property
    def is_complete(self) -> bool:
        """Whether every document has a whole report."""
        return self.classes.get("succeeded", 0) == self.documents

    def __str__(self) -> str:
        """Return what a person wants to know: the counts, then the money."""
        counts = " · ".join(f"{count:,} {name}" for name, count in self.classes.items())
        documents = "1 document" if self.documents == 1 else f"{self.documents:,} documents"
        return f"{documents}: {counts or 'nothing sent'}\n{money_line(self)}"


def cost(outcome: Outcome, model_id: str, tier: price.Tier) -> int | None:
    """Return the list price of one answer in micro-dollars; 0 when nothing was answered.

    None when the price, or the usage of an answer, is not known.
    """
    if outcome.usage is None:
        return None if outcome.is_answered else 0
    # The answer names the snapshot that ran; an upstream of one's own may name anything.
    name = outcome.model if outcome.model and models.find(outcome.model) else model_id
    return price.cost_micros(name, outcome.usage, tier)


def charged(outcome: Outcome, model_id: str, billing: str | None) -> int | None:
    """Return what one document cost; without word from the server the dearer price list applies."""
    if billing == SIMULATED:
        return 0
    return cost(outcome, model_id, "batch" if billing == BATCH else "standard")


def make(
    state: State,
    outcomes: Iterable[tuple[int, Outcome]],
    finished_us: int,
    *,
    is_last: Callable[[int, str], bool] = lambda _shard, _key: True,
    unsent: int = 0,
) -> Receipt:
    """Sum up a run.

    Args:
        state: of the journal.
        outcomes: of all requests, with the index of their shard.
        finished_us: microseconds since 1970.
        is_last: whether the outcome in a shard is the last word on a document; the others cost
            what they cost, and count for nothing else.
        unsent: documents that were never sent, which count as `not_sent`.
    """
    assert state.config is not None
    requested = state.config.model
    sums: dict[str, ModelSums] = {}
    classes: dict[str, int] = {}
    saved = requests = 0
    for index, outcome in outcomes:
        requests += outcome.same_as is None and state.shards[index].batch is not None
        if is_last(index, outcome.key):
            saved += outcome.is_saved
            classes[outcome.class_] = classes.get(outcome.class_, 0) + 1
        if outcome.is_answered:
            billing = state.shards[index].billing
            entry = sums.setdefault(outcome.model or requested, ModelSums())
            entry.add(outcome, requested, billing)
    if unsent:
        classes["not_sent"] = unsent
    return _summed(state, sums, classes, (requests, saved), finished_us)


def _summed(
    state: State,
    sums: dict[str, ModelSums],
    classes: Mapping[str, int],
    counts: tuple[int, int],
    finished_us: int,
) -> Receipt:
    """Return the receipt of sums by model, of documents by class, and of requests and reports."""
    requests, saved = counts
    paid = _total(entry.paid_micros for entry in sums.values())
    synchronous = _total(entry.synchronous_micros for entry in sums.values())
    used = [shard for shard in state.shards if shard.batch]
    is_assumed = any(shard.billing is None or shard.billing_assumed for shard in used)
    return Receipt(
        run=state.run,
        basis="+".join(sorted({shard.billing or STANDARD for shard in used})) or "none",
        basis_source="assumed" if is_assumed else "server",
        documents=sum(classes.values()),
        waits_for=state.waits_for,
        requests=requests,
        repeated_calls=_total(shard.repeated_calls for shard in used) if used else None,
        saved=saved,
        classes=dict(sorted(classes.items())),
        cache_share=_cache_share(sums.values()),
        models=sums,
        paid_micros=paid,
        synchronous_micros=synchronous,
        saved_micros=None if paid is None or synchronous is None else synchronous - paid,
        list_batch_micros=_total(entry.list_batch_micros for entry in sums.values()),
        list_synchronous_micros=_total(entry.list_synchronous_micros for entry in sums.values()),
        prices_as_of=models.table().as_of,
        prices=price.version(),
        batches=[shard.batch for shard in state.shards if shard.batch],
        started_at=wire.rfc3339(state.started_us),
        finished_at=wire.rfc3339(finished_us),
    )


def write(files: Files, state: State, finished_us: int) -> Receipt:
    """Write `receipt.json`, and everything else that a run has when all is collected."""
    from batchyard.client.results import closing, finals  # noqa: PLC0415 - only where a run ends

    assert state.config is not None
    requested = state.config.model
    found = finals.repeats(files, state)
    spent: dict[str, int | None] = {}

    def charge(shard: int, outcome: Outcome) -> int | None:
        return charged(outcome, requested, state.shards[shard].billing)

    def outcomes() -> Iterator[tuple[int, Outcome]]:
        for index, outcome in all_outcomes(files, state):
            if not found.is_last(index, outcome.key):
                spent[outcome.key] = _plus(spent.get(outcome.key, 0), charge(index, outcome))
            yield index, outcome

    waits_for = state.waits_for
    unsent = 0 if waits_for is None else sum(1 for _ in finals.unsent(files, state))
    receipt = make(state, outcomes(), finished_us, is_last=found.is_last, unsent=unsent)
    closing.write(files, state, found, charge=charge, spent=spent, waits_for=waits_for)
    text = msgspec.json.format(wire.encode(receipt), indent=2)
    durable.write(files.out / RECEIPT_FILE, [text, b"\n"])
    return receipt


def refreshed(files: Files, state: State) -> Receipt:
    """Return the receipt of a finished run, after writing what of its files is not there."""
    from batchyard.client.results import closing  # noqa: PLC0415 - only where a run ends

    assert state.finished_us is not None
    if closing.is_written(files, state):
        done = read(files)
        if done is not None and done.finished_at == wire.rfc3339(state.finished_us):
            return done
    return write(files, state, state.finished_us)


def standing(files: Files, state: State) -> Receipt | None:
    """Return the receipt of a run that is finished, or stopped and is as it was then; else None."""
    done = read(files)
    if done is None or done.run != state.run:
        return None
    if state.finished_us is not None:
        return done
    batches = [shard.batch for shard in state.shards if shard.batch]
    is_as_then = done.waits_for == state.waits_for and done.batches == batches
    return done if state.waits_for is not None and is_as_then else None


def read(files: Files) -> Receipt | None:
    """Return the receipt in the folder, None when there is none or it is not ours."""
    try:
        return msgspec.json.decode((files.out / RECEIPT_FILE).read_bytes(), type=Receipt)
    except (OSError, msgspec.DecodeError):
        return None


def all_outcomes(files: Files, state: State) -> Iterator[tuple[int, Outcome]]:
    """Yield what became of the documents of collected shards, with the index of the shard."""
    for shard in state.shards:
        if shard.phase is Phase.COLLECTED:
            for outcome in read_outcomes(files, shard.index):
                yield shard.index, outcome


def money_line(receipt: Receipt) -> str:
    """Return the last line of a run."""
    is_simulated = receipt.basis == SIMULATED
    paid = receipt.list_batch_micros if is_simulated else receipt.paid_micros
    synchronous = receipt.list_synchronous_micros if is_simulated else receipt.synchronous_micros
    if paid is None or synchronous is None:
        line = _unknown_line(receipt)
        return f"simulated, nothing was charged; {line}" if is_simulated else line
    saved = synchronous - paid
    percent = (2_000 * saved + synchronous) // (2 * synchronous) if synchronous else 0
    was = "would have " if is_simulated else ""
    line = (
        f"{was}paid {price.dollars(paid)}    synchronous would have been "
        f"{price.dollars(synchronous)}    {was}saved {price.dollars(saved)} "
        f"({percent // 10}.{percent % 10} %)"
    )
    match receipt.basis:
        case "simulated":
            return f"simulated, nothing was charged; at list prices: {line}"
        case "standard":
            return f"{line}: the yard called a synchronous API, which has no batch discount"
        case "none" | "batch":
            return line
        case _:
            return f"{line} ({receipt.basis})"


def _unknown_line(receipt: Receipt) -> str:
    """Return what is known when the money is not, and why it is not."""
    silent = sum(s.answers_without_usage for s in receipt.models.values())
    names = ", ".join(
        name
        for name, s in receipt.models.items()
        if s.list_batch_micros is None and not s.answers_without_usage
    )
    why = [f"price unknown ({names})"] if names else []
    if silent:
        why.append(f"cost unknown: {silent:,} answers do not tell their usage")
    tokens_in = sum(s.input_tokens for s in receipt.models.values())
    tokens_out = sum(s.output_tokens for s in receipt.models.values())
    why += [f"input {tokens_in:,} tokens", f"output {tokens_out:,} tokens"]
    return "    ".join(why)


def _cache_share(sums: Iterable[ModelSums]) -> float | None:
    read = prompt = 0
    for each in sums:
        written = each.cache_write_5m_tokens + each.cache_write_1h_tokens
        read += each.cache_read_tokens
        prompt += each.input_tokens + written + each.cache_read_tokens
    return round(read / prompt, 4) if prompt else None


def _total(amounts: Iterable[int | None]) -> int | None:
    total: int | None = 0
    for amount in amounts:
        total = _plus(total, amount)
    return total


def _plus(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
