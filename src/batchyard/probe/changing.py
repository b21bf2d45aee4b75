"""Points about cancel and delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard.probe import check
from batchyard.probe.check import NotRun, at, expect, moment, ok, refused
from batchyard.probe.points import Need, Section, Source
from batchyard.probe.session import BATCHES, unknown_id

if TYPE_CHECKING:
    from batchyard.probe.http import Exchange
    from batchyard.probe.session import Session

DOCUMENTED, OBSERVED, RECOMMENDED = Source.DOCUMENTED, Source.OBSERVED, Source.RECOMMENDED

CANCEL = Section("4.1", "cancel")
DELETE = Section("4.2", "delete")

_IN_PROGRESS = "In progress batches cannot be deleted. Consider canceling the batch instead."


@CANCEL.point("an unknown id: 404 not_found_error", DOCUMENTED)
def _unknown(probe: Session) -> None:
    request = probe.request("POST", f"{BATCHES}/{unknown_id()}/cancel", body=b"")
    refused(probe.send(request), 404, "not_found_error")


@CANCEL.point("no body and no content type are needed: 200", OBSERVED, Need.BATCHES)
def _cancel(probe: Session) -> None:
    exchange = probe.own().story.ask("cancel")
    expect(exchange.status == 200, "200", check.answer(exchange), exchange)


@CANCEL.point("the answer is canceling", OBSERVED, Need.BATCHES)
def _canceling(probe: Session) -> None:
    exchange = probe.own().story.call("cancel")
    value = at(ok(exchange), "processing_status")
    expect(value == "canceling", "canceling", value, exchange)


@CANCEL.point("the answer has cancel_initiated_at", OBSERVED, Need.BATCHES)
def _initiated(probe: Session) -> None:
    exchange = probe.own().story.call("cancel")
    value = at(ok(exchange), "cancel_initiated_at")
    expect(moment(value), "a time", value, exchange)


@CANCEL.point("while it is canceling all requests are in `processing`", OBSERVED, Need.BATCHES)
def _frozen(probe: Session) -> None:
    own = probe.own()
    exchange = own.story.canceling("canceling")
    got = at(exchange.json(), "request_counts", "processing")
    expect(got == len(own.canceled.requests), str(len(own.canceled.requests)), got, exchange)


@CANCEL.point("canceling twice is canceling once: 200, the same time", RECOMMENDED, Need.BATCHES)
def _twice(probe: Session) -> None:
    story = probe.own().story
    first, again = story.canceling("cancel"), story.ask("cancel again")
    before = at(first.json(), "cancel_initiated_at")
    got = at(ok(again), "cancel_initiated_at")
    expect(got == before, f"cancel_initiated_at {before}", got, again)


@CANCEL.point("a canceled batch ends, and keeps cancel_initiated_at", OBSERVED, Need.END)
def _ends(probe: Session) -> None:
    own = probe.own()
    before = at(own.story.canceling("cancel").json(), "cancel_initiated_at")
    batch, exchange = own.canceled.ended
    got = at(batch, "cancel_initiated_at")
    expect(got == before, f"cancel_initiated_at {check.text(before)}", got, exchange)


@CANCEL.point("all requests of a canceled batch have a result", OBSERVED, Need.END)
def _all_lines(probe: Session) -> None:
    own = probe.own()
    own.story.canceling("cancel")
    ids = sorted(str(line.get("custom_id")) for line in own.canceled.lines)
    expected = sorted(own.canceled.requests)
    expect(ids == expected, check.text(expected), ids, own.canceled.read)


@CANCEL.point("canceling an ended batch changes nothing: 200", RECOMMENDED, Need.END)
def _ended(probe: Session) -> None:
    own = probe.own()
    exchange = own.delete()["cancel an ended one"]
    before, _ = own.broken.ended
    got = ok(exchange)
    expect(got == before, "the batch as it was", check.answer(exchange), exchange)


# Delete ------------------------------------------------------------------------------------------


@DELETE.point("an unknown id: 404 not_found_error", DOCUMENTED)
def _unknown_delete(probe: Session) -> None:
    request = probe.request("DELETE", f"{BATCHES}/{unknown_id()}")
    refused(probe.send(request), 404, "not_found_error")


@DELETE.point("in progress: 400 with the known text", OBSERVED, Need.BATCHES)
def _in_progress(probe: Session) -> None:
    story = probe.own().story
    exchange = story.ask("delete")
    if exchange.status != 200:  # a batch that is gone tells nothing more
        exchange = story.call("delete")
    elif at(story.ask("retrieve").json(), "processing_status") == "ended":
        raise NotRun("the batch ended before this could be asked")
    refused(exchange, 400, "invalid_request_error", _IN_PROGRESS)


@DELETE.point("canceling: 400 too", RECOMMENDED, Need.BATCHES)
def _while_canceling(probe: Session) -> None:
    story = probe.own().story
    exchange = story.ask("delete while canceling")
    if exchange.status != 200:
        exchange = story.canceling("delete while canceling")
    elif at(story.ask("cancel again").json(), "processing_status") != "canceling":
        raise NotRun("the batch ended before this could be asked")
    refused(exchange, 400, "invalid_request_error")


@DELETE.point("ended: 200 with id and type, and nothing else", DOCUMENTED, Need.END)
def _delete(probe: Session) -> None:
    own = probe.own()
    exchange = own.delete()["delete"]
    expected = {"id": own.broken.id, "type": "message_batch_deleted"}
    expect(ok(exchange) == expected, check.text(expected), check.answer(exchange), exchange)


def _after_delete(probe: Session, name: str) -> Exchange:
    calls = probe.own().delete()
    if calls["delete"].status != 200:
        raise NotRun("the batch could not be deleted")
    return calls[name]


@DELETE.point("afterwards retrieve is 404", DOCUMENTED, Need.END)
def _no_retrieve(probe: Session) -> None:
    refused(_after_delete(probe, "retrieve"), 404, "not_found_error")


@DELETE.point("afterwards results are 404", DOCUMENTED, Need.END)
def _no_results(probe: Session) -> None:
    refused(_after_delete(probe, "results"), 404, "not_found_error")


@DELETE.point("afterwards cancel is 404", DOCUMENTED, Need.END)
def _no_cancel(probe: Session) -> None:
    refused(_after_delete(probe, "cancel"), 404, "not_found_error")


@DELETE.point("afterwards delete is 404", DOCUMENTED, Need.END)
def _no_delete(probe: Session) -> None:
    refused(_after_delete(probe, "delete again"), 404, "not_found_error")


@DELETE.point("afterwards it is not in the list", DOCUMENTED, Need.END)
def _not_listed(probe: Session) -> None:
    exchange = _after_delete(probe, "list")
    gone = probe.own().broken.id
    data = at(ok(exchange), "data")
    ids = [at(batch, "id") for batch in data] if isinstance(data, list) else []
    expect(gone not in ids, f"a list without {gone}", ids, exchange)
