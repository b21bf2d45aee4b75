"""Points about what happens to a batch: validation of its requests, lifecycle, rate limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard import models
from batchyard.probe import check
from batchyard.probe.batches import OVER_CAP, UNKNOWN_MODEL, status_of
from batchyard.probe.check import NotRun, at, expect, is_count, moment, ok
from batchyard.probe.http import NoAnswer
from batchyard.probe.points import Need, Section, Source
from batchyard.probe.reading import COUNTS
from batchyard.probe.results import TYPES

if TYPE_CHECKING:
    from batchyard.probe.batches import Specimen
    from batchyard.probe.http import Exchange
    from batchyard.probe.session import Session

DOCUMENTED, OBSERVED, RECOMMENDED = Source.DOCUMENTED, Source.OBSERVED, Source.RECOMMENDED

VALIDATION = Section("6.1", "validation of each request")
LIFECYCLE = Section("6.2", "lifecycle")
RATES = Section("6.3", "rate limits")

_RATE = "anthropic-ratelimit-requests"


def _errored(
    specimen: Specimen,
    custom_id: str,
    message: str | None = None,
    kind: str = "invalid_request_error",
) -> None:
    """Expect that a request is errored with this type, and this text if one is given."""
    result = specimen.result(custom_id)
    got = [at(result, "error", "error", name) for name in ("type", "message")]
    is_right = (
        at(result, "type") == "errored" and got[0] == kind and message in {None, check.text(got[1])}
    )
    expected = f"errored {kind}" + (f": {message}" if message else "")
    expect(is_right, expected, _result(result), specimen.alone(custom_id))


def _result(result: object) -> str:
    """Return a result for people, in one line."""
    kind, message = (at(result, "error", "error", name) for name in ("type", "message"))
    words = check.text(at(result, "type"))
    return words if kind is check.MISSING else f"{words} {check.text(kind)}: {check.text(message)}"


def _succeeded(specimen: Specimen, custom_id: str) -> None:
    result = specimen.result(custom_id)
    expect(
        at(result, "type") == "succeeded", "succeeded", _result(result), specimen.alone(custom_id)
    )


@VALIDATION.point("a good request succeeds beside bad ones; stream: false is good", DOCUMENTED,
                  Need.END)  # fmt: skip
def _good(probe: Session) -> None:
    _succeeded(probe.own().main, "ok-1")


@VALIDATION.point("no messages: errored, messages: Field required", OBSERVED, Need.END)
def _no_messages(probe: Session) -> None:
    _errored(probe.own().main, "no-messages", "messages: Field required")


@VALIDATION.point("no model: errored, model: Field required", RECOMMENDED, Need.END)
def _no_model(probe: Session) -> None:
    _errored(probe.own().main, "no-model", "model: Field required")


@VALIDATION.point("no max_tokens: errored, max_tokens: Field required", RECOMMENDED, Need.END)
def _no_max_tokens(probe: Session) -> None:
    _errored(probe.own().main, "no-max-tokens", "max_tokens: Field required")


@VALIDATION.point("an unknown model: errored, not_found_error", OBSERVED, Need.END)
def _unknown_model(probe: Session) -> None:
    _errored(probe.own().main, "unknown-model", f"model: {UNKNOWN_MODEL}", "not_found_error")


@VALIDATION.point("stream: true: errored with the known text", OBSERVED, Need.END)
def _stream(probe: Session) -> None:
    _errored(probe.own().main, "stream",
             "`stream=True` is not supported in the Message Batches API")  # fmt: skip


@VALIDATION.point("max_tokens: 0: errored with the known text", OBSERVED, Need.END)
def _zero_tokens(probe: Session) -> None:
    _errored(probe.own().main, "zero-tokens", "max_tokens: must be greater than or equal to 1")


@VALIDATION.point("speed: fast: errored", DOCUMENTED, Need.END)
def _fast(probe: Session) -> None:
    _errored(probe.own().main, "fast")


@VALIDATION.point("max_tokens over the model's cap: errored, the text names the cap", OBSERVED,
                  Need.END)  # fmt: skip
def _over_cap(probe: Session) -> None:
    known = models.find(probe.model)
    if known is None:
        raise NotRun(f"the cap of {probe.model} is not known here")
    _errored(
        probe.own().main, "over-cap",
        f"max_tokens: {OVER_CAP} > {known.max_output}, which is the maximum allowed number of "
        f"output tokens for {known.snapshot}",
    )  # fmt: skip


@VALIDATION.point("300,000 output tokens without their beta: errored", DOCUMENTED, Need.END)
def _extended(probe: Session) -> None:
    result = probe.own().main.result("extended")
    if at(result, "error", "error", "type") == "not_found_error":
        raise NotRun("the model that this needs is not served")
    _errored(probe.own().main, "extended")


@VALIDATION.point("an unknown key in a tool: errored, the text names its path", OBSERVED, Need.END)
def _extra_key(probe: Session) -> None:
    _errored(
        probe.own().main, "extra-key",
        "tools.0.web_fetch_20250910.batchyard_probe: Extra inputs are not permitted",
    )  # fmt: skip


@VALIDATION.point("an unknown role: errored", DOCUMENTED, Need.END)
def _bad_role(probe: Session) -> None:
    _errored(probe.own().main, "bad-role")


@VALIDATION.point("sampling parameters are fine under version 2023-06-01", DOCUMENTED, Need.END)
def _old_sampling(probe: Session) -> None:
    main = probe.own().main
    sampled = next(name for name, given in main.requests.items() if "temperature" in given)
    _succeeded(main, sampled)


@VALIDATION.point("they are refused under version 2026-10-21", DOCUMENTED, Need.END)
def _new_sampling(probe: Session) -> None:
    _errored(probe.own().modern, "temperature")


@VALIDATION.point("a document in an assistant turn is refused under version 2026-10-21",
                  DOCUMENTED, Need.END)  # fmt: skip
def _new_document(probe: Session) -> None:
    _errored(probe.own().modern, "document")


@VALIDATION.point("citations in a user turn are refused under version 2026-10-21", DOCUMENTED,
                  Need.END)  # fmt: skip
def _new_citations(probe: Session) -> None:
    _errored(probe.own().modern, "citations")


@VALIDATION.point("a good request succeeds under version 2026-10-21", DOCUMENTED, Need.END)
def _new_good(probe: Session) -> None:
    _succeeded(probe.own().modern, "ok-1")


@VALIDATION.point("a batch of which no request can run ends as all others", OBSERVED, Need.END)
def _all_faulty(probe: Session) -> None:
    broken = probe.own().broken
    batch, exchange = broken.ended
    got = {name: at(batch, "request_counts", name) for name in COUNTS}
    expected = dict.fromkeys(COUNTS, 0) | {"errored": 1}
    expect(got == expected, check.text(expected), got, exchange)


# Lifecycle ---------------------------------------------------------------------------------------


def _in_progress(probe: Session) -> list[tuple[Specimen, Exchange]]:
    """Return every answer that shows a batch in progress; there is one at least."""
    found = [
        (specimen, exchange)
        for specimen in probe.own().all
        for exchange in [specimen.creation, *specimen.seen]
        if not isinstance(exchange, NoAnswer) and status_of(exchange) == "in_progress"
    ]
    if not found:
        raise NotRun("no batch was seen in progress")
    return found


@LIFECYCLE.point("counts do not move before the end", DOCUMENTED, Need.END)
def _frozen(probe: Session) -> None:
    for specimen, exchange in _in_progress(probe):
        expected = dict.fromkeys(COUNTS, 0) | {"processing": len(specimen.requests)}
        got = {name: at(exchange.json(), "request_counts", name) for name in COUNTS}
        expect(got == expected, check.text(expected), got, exchange)


@LIFECYCLE.point("before the end ended_at and results_url are null", DOCUMENTED, Need.END)
def _unset(probe: Session) -> None:
    for _, exchange in _in_progress(probe):
        got = [at(exchange.json(), name) for name in ("ended_at", "results_url")]
        are_unset = all(value is None or value is check.MISSING for value in got)
        expect(are_unset, "ended_at and results_url null", got, exchange)


@LIFECYCLE.point("at the end nothing is in `processing`, and the counts add up", DOCUMENTED,
                 Need.END)  # fmt: skip
def _sum(probe: Session) -> None:
    main = probe.own().main
    batch, exchange = main.ended
    counts = [at(batch, "request_counts", name) for name in COUNTS]
    numbers = [count for count in counts if is_count(count)]
    is_right = counts[0] == 0 and len(numbers) == 5 and sum(numbers) == len(main.requests)
    expect(is_right, f"processing 0, the others {len(main.requests)} together",
           at(batch, "request_counts"), exchange)  # fmt: skip


@LIFECYCLE.point("the counts are those of the lines", DOCUMENTED, Need.END)
def _counted(probe: Session) -> None:
    main = probe.own().main
    batch, exchange = main.ended
    kinds = [at(line, "result", "type") for line in main.lines]
    expected = {kind: kinds.count(kind) for kind in TYPES}
    got = {kind: at(batch, "request_counts", kind) for kind in TYPES}
    expect(got == expected, check.text(expected), got, exchange)


@LIFECYCLE.point("at the end ended_at is set, and not before created_at", DOCUMENTED, Need.END)
def _ended_at(probe: Session) -> None:
    batch, exchange = probe.own().main.ended
    created, ended = moment(at(batch, "created_at")), moment(at(batch, "ended_at"))
    if created is None:
        raise NotRun("created_at is no time")
    is_right = ended is not None and created <= ended
    expect(is_right, f"a time from {created.isoformat()} on", at(batch, "ended_at"), exchange)


@LIFECYCLE.point("at the end results_url is set", DOCUMENTED, Need.END)
def _results_url(probe: Session) -> None:
    batch, exchange = probe.own().main.ended
    url = at(batch, "results_url")
    expect(isinstance(url, str) and url, "an address", url, exchange)


@LIFECYCLE.point("cancel_initiated_at stays null without a cancel", DOCUMENTED, Need.END)
def _never_canceled(probe: Session) -> None:
    batch, exchange = probe.own().main.ended
    value = at(batch, "cancel_initiated_at")
    expect(value is None or value is check.MISSING, "null", value, exchange)


@LIFECYCLE.point("archived_at is null while there are results", DOCUMENTED, Need.END)
def _not_archived(probe: Session) -> None:
    batch, exchange = probe.own().main.ended
    value = at(batch, "archived_at")
    expect(value is None or value is check.MISSING, "null", value, exchange)


# Rate limits -------------------------------------------------------------------------------------


@RATES.point(f"{_RATE}-limit, -remaining and -reset are there", OBSERVED)
def _rate_headers(probe: Session) -> None:
    exchange = probe.get()
    names = [f"{_RATE}-{part}" for part in ("limit", "remaining", "reset")]
    missing = [name for name in names if exchange.header(name) is None]
    expect(not missing, ", ".join(names), f"without {', '.join(missing)}", exchange)


@RATES.point("remaining is at most the limit", DOCUMENTED)
def _rate_numbers(probe: Session) -> None:
    exchange = probe.get()
    limit, remaining = (exchange.header(f"{_RATE}-{part}") for part in ("limit", "remaining"))
    if limit is None or remaining is None:
        raise NotRun("there are no rate-limit headers")
    are_numbers = all(text.isascii() and text.isdigit() for text in (limit, remaining))
    expect(are_numbers and int(remaining[:18]) <= int(limit[:18]), "numbers, remaining ≤ limit",
           f"remaining {remaining}, limit {limit}", exchange)  # fmt: skip


@RATES.point("reset is an RFC 3339 time", DOCUMENTED)
def _rate_reset(probe: Session) -> None:
    exchange = probe.get()
    value = exchange.header(f"{_RATE}-reset")
    if value is None:
        raise NotRun("there are no rate-limit headers")
    expect(moment(value), "a time such as 2026-11-21T18:37:24Z", value, exchange)


@RATES.point("the results carry them too", OBSERVED, Need.END)
def _rates_on_results(probe: Session) -> None:
    read = probe.own().main.read
    expect(read.header(f"{_RATE}-limit"), f"{_RATE}-limit", "no such header", read)


@RATES.point("a create carries them too", OBSERVED, Need.BATCHES)
def _rates_on_create(probe: Session) -> None:
    created = probe.own().broken.created
    ok(created)
    expect(created.header(f"{_RATE}-limit"), f"{_RATE}-limit", "no such header", created)
