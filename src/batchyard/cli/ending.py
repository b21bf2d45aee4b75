"""The last screen of a run as lines: what came of it, why not all of it, and what to do. Pure.

Nine thousand equal errors are one line. What models and documents say is escaped by who prints it;
here it is brought to one line each, so that no answer can look like a line of ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard import price
from batchyard.client.results.classes import SAVED, WORDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchyard.client.results.collect import Outcome
    from batchyard.client.results.receipt import Receipt
    from batchyard.client.running.offers import Offer

# What can be done about each; `{command}` sends again what can succeed, `{retry}` is it in quotes.
NEXT = {
    "truncated": "{retry} sends them again with a larger limit{price}",
    "paused": "{retry} lets the model go on where it paused{price}",
    "refused": "the same request would be refused again: change the document or the prompt",
    "empty": "the same request may be answered so again: change the prompt",
    "invalid": "{retry} shows the model what is wrong{price}; or make the schema clearer",
    "needs_fix": "edit the template, then `{command} --with-change`; or change the documents, then "
    "the same command sends them anew",
    "billing": "pay the account, then the same command goes on",
    "retryable": "{retry} sends the same once more",
    "expired": "{retry} sends the same once more, in smaller batches",
    "canceled": "nothing, as was asked for; `{command} --canceled` sends them after all",
    "missing": "{retry} sends the same once more",
}
# The same for those that are not worth another try any more.
_OVER = {
    "truncated": "at the model's cap, or as they are: ask for less, or split the documents",
    "paused": "continued often enough: change the prompt",
    "invalid": "asked often enough: make the schema or the prompt clearer",
}
# The same where only answers are known, and not what was asked.
_ASK = "the same `batchyard import` with `--requests FILE` makes it possible to send them again"
# What those wait for that were never sent.
_WAITS = {
    "budget": "attach the run with a larger `--budget USD`, or with `--no-budget`",
    "billing": "pay the account, then attach the run",
    "pilot": "attach the run with `--approve`",
}
_CAUSES_SHOWN = 8
_CAUSES_KEPT = 1_000
_REASON_CHARS_MAX = 300
_KEY_CHARS_MAX = 120
_REQUEST_ID = re.compile(r" \(request [^)]*\)")
_VARIES = re.compile(r"\d+|'[^']{30,}'|\"[^\"]{30,}\"")


@dataclass(slots=True)
class _Cause:
    """Equal failures: how many, and the first of them."""

    kind: str
    reason: str
    key: str
    count: int = 0


def lines(
    name: str,
    receipt: Receipt,
    failures: Iterable[Outcome],
    *,
    errors: str,
    retry: str | None = "batchyard retry",
    offer: Offer | None = None,
) -> list[str]:
    """Return how a run ended: the counts, then the causes with a sample and the next step of each.

    Args:
        name: of the run.
        receipt: of the run.
        failures: the last word on every document that is not answered in full.
        errors: the file that lists them.
        retry: the command that sends again what can succeed; None where the requests are not known.
        offer: what that would send and cost; None when it is not known.
    """
    found = [headline(name, receipt)]
    causes, others = _causes(failures)
    kinds: dict[str, list[_Cause]] = {}
    ranked = sorted(causes, key=lambda cause: -cause.count)
    for cause in ranked:
        kinds.setdefault(cause.kind, []).append(cause)
    room = max(0, _CAUSES_SHOWN - len(kinds))  # beside one of each class
    for kind, group in kinds.items():
        kinds[kind], room = group[: 1 + room], max(0, room + 1 - len(group))
    for kind, group in kinds.items():
        for cause in group:
            found.append(f"  {cause.count:,} {WORDS.get(kind, kind)}: {cause.reason}")
            more = f" and {cause.count - 1:,} more" if cause.count > 1 else ""
            found.append(f"    {cause.key}{more}")
        if kind == "not_sent" and receipt.waits_for is not None:
            found.append(f"    next: {_WAITS[receipt.waits_for]}")
        if kind in NEXT:
            found.append(f"    next: {_next(kind, retry, offer)}")
    hidden = len(causes) - sum(map(len, kinds.values()))
    if hidden:
        beyond = f"{hidden:,} more causes"
        found.append(
            f"  … and {beyond}" + (f", {others:,} documents with others" if others else "")
        )
    if causes:
        found.append(f"  all of them: {errors}")
    return found


def _next(kind: str, retry: str | None, offer: Offer | None) -> str:
    """Return the next step for a class, with what it may cost where that was paid before."""
    if retry is None:
        return _ASK if "{" in NEXT[kind] else NEXT[kind]
    if offer is not None and kind in _OVER and not offer.again.get(kind):
        return _OVER[kind]
    price_of = ""
    if offer is not None:
        micros = offer.prices.get(kind, 0)
        price_of = ", at a price not known" if micros is None else f", at most {_dollars(micros)}"
    return NEXT[kind].format(retry=f"`{retry}`", command=retry, price=price_of)


def at_once(retry: str, offer: Offer) -> str:
    """Return how the last few may be had without a batch, and for how much."""
    count = sum(offer.again.values())
    cost = "at a price not known" if offer.micros is None else f"at most {_dollars(offer.micros)}"
    left, them = ("one is", "it") if count == 1 else (f"{count} are", "them")
    return f"  {left} left: `{retry} --now` asks for {them} at once, at the list price, {cost}"


def headline(name: str, receipt: Receipt) -> str:
    """Return the counts of a run in one line; they add up to its documents."""
    counts = {
        kind: f"{count:,} {WORDS.get(kind, kind)}"
        for kind, count in receipt.classes.items()
        if kind != "succeeded"
    }
    partly = [text for kind, text in counts.items() if kind in SAVED]
    others = [text for kind, text in counts.items() if kind not in SAVED]
    saved = f"{receipt.saved:,} saved" + (f" ({', '.join(partly)})" if partly else "")
    return f"done {name}   {' · '.join([saved, *others])}"


def money_rows(receipt: Receipt) -> list[tuple[str, str]]:
    """Return what was sent and used, as labelled lines."""
    rows = []
    if receipt.requests and receipt.requests != receipt.documents:
        documents = "1 document" if receipt.documents == 1 else f"{receipt.documents:,} documents"
        rows.append(("requests", f"{receipt.requests:,} for {documents}"))
    if receipt.repeated_calls is not None:
        rows.append(("repeated calls", f"{receipt.repeated_calls:,}"))
    sums = receipt.models
    if sums:
        rows.append(("tokens", _tokens(receipt)))
    if receipt.cache_share is not None and any(
        each.cache_read_tokens or each.cache_write_5m_tokens or each.cache_write_1h_tokens
        for each in sums.values()
    ):
        rows.append(("cache", _cache(receipt)))
    searches = sum(each.web_searches for each in sums.values())
    if searches:
        rows.append(("web searches", f"{searches:,}"))
    if len(sums) > 1:
        for model, each in sums.items():
            answers = "1 answer" if each.answers == 1 else f"{each.answers:,} answers"
            rows.append((model, f"{answers}, {_dollars(each.paid_micros)}"))
    return rows


def _tokens(receipt: Receipt) -> str:
    sums = receipt.models.values()
    given = sum(each.input_tokens for each in sums)
    got = sum(each.output_tokens for each in sums)
    return f"input {given:,} · output {got:,}"


def _cache(receipt: Receipt) -> str:
    sums = receipt.models.values()
    read = sum(each.cache_read_tokens for each in sums)
    short = sum(each.cache_write_5m_tokens for each in sums)
    long = sum(each.cache_write_1h_tokens for each in sums)
    share = 100 * (receipt.cache_share or 0.0)
    return f"{share:.1f} % of the prompts · read {read:,} · written 5 m {short:,}, 1 h {long:,}"


def _dollars(micros: int | None) -> str:
    return "cost unknown" if micros is None else price.dollars(micros)


def _causes(failures: Iterable[Outcome]) -> tuple[list[_Cause], int]:
    """Group failures that are equal but for numbers and long quotations.

    Returns:
        The groups, and how many documents are in none because there are too many causes.
    """
    causes: dict[tuple[str, str], _Cause] = {}
    others = 0
    for outcome in failures:
        reason = _REQUEST_ID.sub("", outcome.reason or outcome.type)
        same = "did not validate" if "did not validate" in reason else _VARIES.sub("#", reason)
        cause = causes.get((outcome.class_, same))
        if cause is None:
            if len(causes) == _CAUSES_KEPT:
                others += 1
                continue
            cause = _Cause(
                outcome.class_,
                one_line(outcome.reason or outcome.type, _REASON_CHARS_MAX),
                one_line(outcome.key, _KEY_CHARS_MAX),
            )
            causes[outcome.class_, same] = cause
        cause.count += 1
    return list(causes.values()), others


def one_line(text: str, chars_max: int) -> str:
    """Return a text of others as one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"
