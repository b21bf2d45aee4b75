"""Points about the batch object, retrieve and list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchyard.probe import check
from batchyard.probe.check import NotRun, at, expect, expect_header, is_count, moment, ok, refused
from batchyard.probe.points import Need, Section, Source
from batchyard.probe.session import BATCHES, is_plain_id, unknown_id

if TYPE_CHECKING:
    from batchyard.probe.http import Exchange
    from batchyard.probe.session import Session

DOCUMENTED, OBSERVED, RECOMMENDED = Source.DOCUMENTED, Source.OBSERVED, Source.RECOMMENDED

OBJECT = Section("3.1", "the batch object")
RETRIEVE = Section("3.2", "retrieve")
LIST = Section("3.3", "list")

KEYS = (
    "id", "type", "processing_status", "request_counts", "ended_at", "created_at", "expires_at",
    "archived_at", "cancel_initiated_at", "results_url",
)  # fmt: skip
COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")
_TIMES = ("created_at", "expires_at", "ended_at", "archived_at", "cancel_initiated_at")


# The batch object --------------------------------------------------------------------------------


@OBJECT.point("all ten keys are there, null when unset", OBSERVED)
def _keys(probe: Session) -> None:
    batch, exchange = probe.some_batch()
    missing = [key for key in KEYS if key not in batch]
    expect(not missing, "all ten keys", f"without {', '.join(missing)}", exchange)


@OBJECT.point("there is no other key", RECOMMENDED)
def _no_more_keys(probe: Session) -> None:
    batch, exchange = probe.some_batch()
    more = [key for key in batch if key not in KEYS]
    expect(not more, "the ten keys only", f"also {', '.join(more)}", exchange)


@OBJECT.point("the keys come in the order of the hosted service", RECOMMENDED)
def _key_order(probe: Session) -> None:
    batch, exchange = probe.some_batch()
    got = [key for key in batch if key in KEYS]
    expected = [key for key in KEYS if key in got]
    expect(got == expected, ", ".join(expected), ", ".join(got), exchange)


@OBJECT.point("the id begins with msgbatch_", OBSERVED)
def _id(probe: Session) -> None:
    batch, exchange = probe.some_batch()
    value = at(batch, "id")
    expect(isinstance(value, str) and value.startswith("msgbatch_"), "msgbatch_…", value, exchange)


@OBJECT.point('type is "message_batch"', DOCUMENTED)
def _type(probe: Session) -> None:
    batch, exchange = probe.some_batch()
    expect(at(batch, "type") == "message_batch", "message_batch", at(batch, "type"), exchange)


@OBJECT.point("processing_status is in_progress, canceling or ended", DOCUMENTED)
def _status(probe: Session) -> None:
    batch, exchange = probe.some_batch()
    value = at(batch, "processing_status")
    expect(value in ("in_progress", "canceling", "ended"),
           "in_progress, canceling or ended", value, exchange)  # fmt: skip


@OBJECT.point("request_counts are five integers", DOCUMENTED)
def _counts(probe: Session) -> None:
    batch, exchange = probe.some_batch()
    got = at(batch, "request_counts")
    expect(all(is_count(at(got, name)) for name in COUNTS), ", ".join(COUNTS), got, exchange)


@OBJECT.point("times are RFC 3339 with an offset", DOCUMENTED)
def _times(probe: Session) -> None:
    batch, exchange = probe.some_batch()
    set_ = {name: batch[name] for name in _TIMES if batch.get(name) is not None}
    expect(all(map(moment, set_.values())), "times such as 2026-11-21T18:37:24.100435Z", set_,
           exchange)  # fmt: skip


@OBJECT.point("times have six digits after the second", OBSERVED)
def _microseconds(probe: Session) -> None:
    batch, exchange = probe.some_batch()
    value = at(batch, "created_at")
    if moment(value) is None:
        raise NotRun("created_at is no time")
    expect(check.has_microseconds(value), "microseconds", value, exchange)


@OBJECT.point("expires_at is created_at + 24 h, to the microsecond", OBSERVED)
def _expires(probe: Session) -> None:
    batch, exchange = probe.some_batch()
    created, expires = moment(at(batch, "created_at")), moment(at(batch, "expires_at"))
    if created is None:
        raise NotRun("created_at is no time")
    expected = (created + check.DAY).isoformat()
    expect(expires == created + check.DAY, expected, at(batch, "expires_at"), exchange)


# Retrieve ----------------------------------------------------------------------------------------


@RETRIEVE.point("an unknown id: 404, Message Batch <id> not found.", OBSERVED)
def _unknown(probe: Session) -> None:
    name = unknown_id()
    refused(probe.get(f"{BATCHES}/{name}"), 404, "not_found_error",
            f"Message Batch {name} not found.")  # fmt: skip


@RETRIEVE.point("Retry-After: 10 while a batch is in progress", OBSERVED, Need.BATCHES)
def _retry_after(probe: Session) -> None:
    exchange = probe.own().story.call("retrieve")
    ok(exchange)
    expect_header(exchange, "retry-after", "10")


@RETRIEVE.point("Retry-After: 10 while it is canceling", RECOMMENDED, Need.BATCHES)
def _retry_after_canceling(probe: Session) -> None:
    exchange = probe.own().story.canceling("canceling")
    ok(exchange)
    expect_header(exchange, "retry-after", "10")


@RETRIEVE.point("no Retry-After once it has ended", OBSERVED, Need.END)
def _no_retry_after(probe: Session) -> None:
    _, exchange = probe.own().main.ended
    expect_header(exchange, "retry-after", None)


# List --------------------------------------------------------------------------------------------


def _page(probe: Session, query: str) -> tuple[list[Any], dict[str, Any], Exchange]:
    exchange = probe.get(BATCHES + query)
    page = ok(exchange)
    data = page.get("data")
    if not isinstance(data, list):
        raise check.Differs("a page with data", check.answer(exchange), exchange)
    return data, page, exchange


def _ids(data: list[Any]) -> list[object]:
    return [at(batch, "id") for batch in data]


@LIST.point("a page has data, has_more, first_id and last_id", DOCUMENTED)
def _page_keys(probe: Session) -> None:
    exchange = probe.get()
    page = ok(exchange)
    missing = [key for key in ("data", "has_more", "first_id", "last_id") if key not in page]
    expect(not missing, "all four keys", f"without {', '.join(missing)}", exchange)


@LIST.point("first_id and last_id are those of data, null when it is empty", DOCUMENTED)
def _page_ends(probe: Session) -> None:
    data, page, exchange = _page(probe, "")
    ids = _ids(data) or [None]
    got = [at(page, "first_id"), at(page, "last_id")]
    expect(got == [ids[0], ids[-1]], check.text([ids[0], ids[-1]]), got, exchange)


@LIST.point("20 batches at most unless `limit` says otherwise", DOCUMENTED)
def _default_limit(probe: Session) -> None:
    data, page, exchange = _page(probe, "")
    if len(data) < 20 and not at(page, "has_more"):
        raise NotRun("there are fewer than 20 batches")
    expect(len(data) == 20, "20 batches", f"{len(data)} batches", exchange)


@LIST.point("the newest comes first", DOCUMENTED)
def _newest_first(probe: Session) -> None:
    data, _, exchange = _page(probe, "?limit=100")
    times = [moment(at(batch, "created_at")) for batch in data]
    known = [time for time in times if time is not None]
    if len(known) < 2:
        raise NotRun("there are fewer than two batches")
    expect(known == sorted(known, reverse=True), "created_at falling",
           [at(batch, "created_at") for batch in data[:5]], exchange)  # fmt: skip


@LIST.point("limit=1 gives one batch", DOCUMENTED)
def _limit(probe: Session) -> None:
    probe.newest(2)
    data, _, exchange = _page(probe, "?limit=1")
    expect(len(data) == 1, "1 batch", f"{len(data)} batches", exchange)


@LIST.point("has_more is true when older ones follow", DOCUMENTED)
def _has_more(probe: Session) -> None:
    probe.newest(2)
    _, page, exchange = _page(probe, "?limit=1")
    expect(at(page, "has_more") is True, "has_more true", at(page, "has_more"), exchange)


@LIST.point("limit=1000 is accepted", DOCUMENTED)
def _largest_limit(probe: Session) -> None:
    _page(probe, "?limit=1000")


@LIST.point("limit=0: 400 with the text in the same style", RECOMMENDED)
def _limit_0(probe: Session) -> None:
    refused(probe.get(f"{BATCHES}?limit=0"), 400, "invalid_request_error",
            "limit: Input should be greater than or equal to 1")  # fmt: skip


@LIST.point("limit=1001: 400 with the text in the same style", RECOMMENDED)
def _limit_1001(probe: Session) -> None:
    refused(probe.get(f"{BATCHES}?limit=1001"), 400, "invalid_request_error",
            "limit: Input should be less than or equal to 1000")  # fmt: skip


@LIST.point("limit=many: 400", RECOMMENDED)
def _limit_many(probe: Session) -> None:
    refused(probe.get(f"{BATCHES}?limit=many"), 400, "invalid_request_error")


@LIST.point("after_id: the page right after it", DOCUMENTED)
def _after(probe: Session) -> None:
    first, second, third = probe.newest(3)
    data, _, exchange = _page(probe, f"?after_id={first}&limit=2")
    expect(_ids(data) == [second, third], f"{second}, {third}", _ids(data), exchange)


@LIST.point("before_id: the page right before it, the nearest", DOCUMENTED)
def _before(probe: Session) -> None:
    _, second, third = probe.newest(3)
    data, _, exchange = _page(probe, f"?before_id={third}&limit=1")
    expect(_ids(data) == [second], second, _ids(data), exchange)


@LIST.point("a page before a cursor is newest first too", DOCUMENTED)
def _before_order(probe: Session) -> None:
    first, second, third = probe.newest(3)
    data, _, exchange = _page(probe, f"?before_id={third}&limit=2")
    if set(map(str, _ids(data))) != {first, second}:
        raise NotRun("the page before the cursor holds others")
    expect(_ids(data) == [first, second], f"{first}, {second}", _ids(data), exchange)


@LIST.point("has_more looks in the direction of the page", DOCUMENTED)
def _before_has_more(probe: Session) -> None:
    _, _, third = probe.newest(3)
    _, page, exchange = _page(probe, f"?before_id={third}&limit=1")
    got = at(page, "has_more")
    expect(got is True, "has_more true: there are newer ones", got, exchange)


@LIST.point("before the newest: an empty page, null ids, no more", DOCUMENTED)
def _before_first(probe: Session) -> None:
    (first,) = probe.newest(1)
    _, page, exchange = _page(probe, f"?before_id={first}")
    expected = {"data": [], "has_more": False, "first_id": None, "last_id": None}
    got = {key: at(page, key) for key in expected}
    if got != expected and probe.newest(1) != [first]:
        raise NotRun("somebody else is making batches")
    expect(got == expected, check.text(expected), got, exchange)


@LIST.point("after the oldest: an empty page, null ids, no more", DOCUMENTED)
def _after_last(probe: Session) -> None:
    data, page, _ = _page(probe, "?limit=1000")
    last = _ids(data)[-1] if data else None
    if at(page, "has_more") is not False or not is_plain_id(last):
        raise NotRun("the oldest batch is not on the first page")
    _, page, exchange = _page(probe, f"?after_id={last}")
    expected = {"data": [], "has_more": False, "first_id": None, "last_id": None}
    got = {key: at(page, key) for key in expected}
    expect(got == expected, check.text(expected), got, exchange)


@LIST.point("going through the pages as the official clients do repeats nothing", DOCUMENTED)
def _walk(probe: Session) -> None:
    wanted = probe.newest(4)
    data, page, exchange = _page(probe, "?limit=1")
    found = _ids(data)
    while len(found) < len(wanted) and data:
        last = at(page, "last_id")
        expect(is_plain_id(last), "a last_id to go on from", last, exchange)
        data, page, exchange = _page(probe, f"?limit=1&after_id={last}")
        found += _ids(data)
    expect(found == wanted, check.text(wanted), found, exchange)


@LIST.point("with both cursors after_id counts", RECOMMENDED)
def _both(probe: Session) -> None:
    _, second, third = probe.newest(3)
    data, _, exchange = _page(probe, f"?after_id={second}&before_id={second}&limit=1")
    expect(_ids(data) == [third], third, _ids(data), exchange)


@LIST.point("an unknown cursor: 400 or an empty page, so that no client loops", RECOMMENDED)
def _unknown_cursor(probe: Session) -> None:
    exchange = probe.get(f"{BATCHES}?after_id={unknown_id()}")
    body = exchange.json()
    is_empty = exchange.status == 200 and at(body, "data") == [] and not at(body, "has_more")
    expect(exchange.status == 400 or is_empty, "400, or an empty page", check.answer(exchange),
           exchange)  # fmt: skip


@LIST.point("no Retry-After on a list", OBSERVED)
def _list_retry_after(probe: Session) -> None:
    exchange = probe.get()
    ok(exchange)
    expect_header(exchange, "retry-after", None)
