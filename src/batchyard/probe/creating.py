"""Points about the create call and the limits of a batch.

A body that must be refused holds only requests that cannot run: a server that takes it all the
same has made a batch that costs nothing, and the probe removes it.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

from batchyard.probe import check
from batchyard.probe.batches import FAULTY, LONG_ID
from batchyard.probe.check import NotRun, at, expect, expect_header, ok, refused
from batchyard.probe.points import Need, Section, Source
from batchyard.probe.session import BATCHES, is_plain_id

if TYPE_CHECKING:
    from batchyard.probe.batches import Specimen
    from batchyard.probe.session import Session

DOCUMENTED, OBSERVED, RECOMMENDED = Source.DOCUMENTED, Source.OBSERVED, Source.RECOMMENDED

REFUSALS = Section("2.1", "create: what is refused at once")
CREATE = Section("2.2", "create: what is accepted")

_INVALID = "invalid_request_error"
_PATTERN = "^[a-zA-Z0-9_-]{1,64}$"
_DECLARED_BYTES = 300 * 1024 * 1024
_DECLARED_TIMEOUT_S = 10.0


def _refuses(probe: Session, ids: list[object], message: str) -> None:
    """Send requests with these ids and expect a 400 with this text."""
    body = {"requests": [{"custom_id": custom_id, "params": FAULTY} for custom_id in ids]}
    refused(probe.post(body), 400, _INVALID, message)


@REFUSALS.point("an empty list: the known text", OBSERVED)
def _empty(probe: Session) -> None:
    refused(
        probe.post({"requests": []}),
        400, _INVALID, "requests: List should have at least 1 item after validation, not 0",
    )  # fmt: skip


@REFUSALS.point("no `requests`: Field required", RECOMMENDED)
def _no_requests(probe: Session) -> None:
    refused(probe.post({}), 400, _INVALID, "requests: Field required")


@REFUSALS.point("`requests` that is no list: 400", DOCUMENTED)
def _no_list(probe: Session) -> None:
    refused(probe.post({"requests": "a"}), 400, _INVALID)


@REFUSALS.point("a body that is no object: 400", DOCUMENTED)
def _no_object(probe: Session) -> None:
    refused(probe.post(b"[]"), 400, _INVALID)


@REFUSALS.point("an empty body: 400", DOCUMENTED)
def _no_body(probe: Session) -> None:
    refused(probe.post(b""), 400, _INVALID)


@REFUSALS.point("a body that is not JSON: the known text", OBSERVED)
def _no_json(probe: Session) -> None:
    refused(probe.post(b'{"requests":'), 400, _INVALID,
            begins="The request body is not valid JSON: ")  # fmt: skip


@REFUSALS.point("a body that is not UTF-8: 400", DOCUMENTED)
def _no_utf8(probe: Session) -> None:
    body = b'{"requests":[{"custom_id":"a","params":{"model":"\xff\xfe"}}]}'
    refused(probe.post(body), 400, _INVALID)


@REFUSALS.point("an unknown key beside `requests`: Extra inputs are not permitted", RECOMMENDED)
def _extra(probe: Session) -> None:
    body = {"requests": [{"custom_id": "a", "params": FAULTY}], "batchyard_probe": 1}
    refused(probe.post(body), 400, _INVALID, "batchyard_probe: Extra inputs are not permitted")


@REFUSALS.point("no custom_id: Field required", OBSERVED)
def _no_custom_id(probe: Session) -> None:
    refused(probe.post({"requests": [{"params": FAULTY}]}), 400, _INVALID,
            "requests.0.custom_id: Field required")  # fmt: skip


@REFUSALS.point("no params: Field required", RECOMMENDED)
def _no_params(probe: Session) -> None:
    refused(probe.post({"requests": [{"custom_id": "a"}]}), 400, _INVALID,
            "requests.0.params: Field required")  # fmt: skip


@REFUSALS.point("a custom_id of 65 characters: the known text", OBSERVED)
def _long_custom_id(probe: Session) -> None:
    _refuses(probe, ["i" * 65], "requests.0.custom_id: String should have at most 64 characters")


@REFUSALS.point("an empty custom_id: the text in the same style", RECOMMENDED)
def _empty_custom_id(probe: Session) -> None:
    _refuses(probe, [""], "requests.0.custom_id: String should have at least 1 character")


@REFUSALS.point("a custom_id with other characters: the known text", OBSERVED)
def _bad_custom_id(probe: Session) -> None:
    _refuses(probe, ["a b"], f"requests.0.custom_id: String should match pattern '{_PATTERN}'")


@REFUSALS.point("a custom_id that ends in a line end: 400", DOCUMENTED)
def _line_end_in_custom_id(probe: Session) -> None:
    body = {"requests": [{"custom_id": "a\n", "params": FAULTY}]}
    refused(probe.post(body), 400, _INVALID)


@REFUSALS.point("a custom_id that is a number: 400", DOCUMENTED)
def _number_as_custom_id(probe: Session) -> None:
    refused(probe.post({"requests": [{"custom_id": 1, "params": FAULTY}]}), 400, _INVALID)


@REFUSALS.point("a custom_id twice: the known text", OBSERVED)
def _duplicate(probe: Session) -> None:
    _refuses(
        probe, ["a", "dup", "dup"],
        "requests: custom_id's must be unique within a batch. Duplicate custom_id found: dup",
    )  # fmt: skip


@REFUSALS.point("the text names the place of the faulty request", OBSERVED)
def _place(probe: Session) -> None:
    body = {
        "requests": [
            {"custom_id": "a", "params": FAULTY},
            {"custom_id": "b", "params": FAULTY},
            {"params": FAULTY},
        ]
    }
    refused(probe.post(body), 400, _INVALID, begins="requests.2.custom_id: ")


@cache
def _too_many_body() -> bytes:
    """Return what `_TOO_MANY_RECIPE` prints, which is too long for a command line."""
    rows = [{"custom_id": str(number), "params": {}} for number in range(100_001)]
    return json.dumps({"requests": rows}).encode() + b"\n"


_TOO_MANY_RECIPE = (
    'python3 -c \'import json; print(json.dumps({"requests": '
    '[{"custom_id": str(n), "params": {}} for n in range(100001)]}))\''
)


@REFUSALS.point("100,001 requests: 400", DOCUMENTED, Need.BATCHES)
def _too_many(probe: Session) -> None:
    # Only where batches may be made: a server that takes them has queued them.
    request = probe.request("POST", body=_too_many_body(), recipe=_TOO_MANY_RECIPE)
    refused(probe.send(request), 400, _INVALID)


@REFUSALS.point("300 MB announced: 413 request_too_large before the body", DOCUMENTED)
def _too_large(probe: Session) -> None:
    typed = {"content-type": "application/json", "content-length": str(_DECLARED_BYTES)}
    request = probe.request("POST", headers=dict(typed), timeout_s=_DECLARED_TIMEOUT_S)
    refused(probe.send(request), 413, "request_too_large")


# Accepted ----------------------------------------------------------------------------------------


def _made(specimen: Specimen) -> None:
    """Expect that a batch was created."""
    exchange = specimen.created
    expect(is_plain_id(at(ok(exchange), "id")), "200 and a batch", check.answer(exchange), exchange)


@CREATE.point("200 for a batch of which some requests are faulty", OBSERVED, Need.BATCHES)
def _accepted(probe: Session) -> None:
    _made(probe.own().main)


@CREATE.point("200 for a Bearer key, version 2026-10-21 and raw UTF-8", OBSERVED, Need.BATCHES)
def _accepted_modern(probe: Session) -> None:
    _made(probe.own().modern)


@CREATE.point("200 when no request of the batch can run", OBSERVED, Need.BATCHES)
def _accepted_faulty(probe: Session) -> None:
    _made(probe.own().broken)


@CREATE.point("the answer is in_progress, with all requests in `processing`", OBSERVED,
              Need.BATCHES)  # fmt: skip
def _begins(probe: Session) -> None:
    main = probe.own().main
    _ = main.id
    body = main.created.json()
    expected = {"processing_status": "in_progress", "processing": len(main.requests)}
    got = {
        "processing_status": at(body, "processing_status"),
        "processing": at(body, "request_counts", "processing"),
    }
    expect(got == expected, check.text(expected), got, main.created)


@CREATE.point("the answer has no Retry-After", OBSERVED, Need.BATCHES)
def _no_retry_after(probe: Session) -> None:
    main = probe.own().main
    _ = main.id
    expect_header(main.created, "retry-after", None)


@CREATE.point("the batch that was created can be retrieved", DOCUMENTED, Need.BATCHES)
def _retrievable(probe: Session) -> None:
    main = probe.own().main
    exchange = probe.get(main.path)
    expect(at(ok(exchange), "id") == main.id, f"id {main.id}", check.answer(exchange), exchange)


@CREATE.point("created_at and expires_at never change", DOCUMENTED, Need.BATCHES)
def _times_stay(probe: Session) -> None:
    main = probe.own().main
    exchange = probe.get(main.path)
    names = ("created_at", "expires_at")
    made = [at(main.created.json(), name) for name in names]
    now = [at(exchange.json(), name) for name in names]
    if exchange.status != 200:
        raise NotRun("the batch cannot be retrieved")
    expect(made == now, f"as created: {check.text(made)}", now, exchange)


@CREATE.point("a repeat of an official client makes no second batch", RECOMMENDED, Need.BATCHES)
def _retry(probe: Session) -> None:
    own = probe.own()
    first, again = own.broken.id, own.retry
    expect(at(ok(again.created), "id") == first, f"the batch of the first call, {first}",
           at(again.created.json(), "id"), again.created)  # fmt: skip


@CREATE.point("an Idempotency-Key makes one batch", RECOMMENDED, Need.BATCHES)
def _idempotency(probe: Session) -> None:
    first, again = probe.own().named
    expect(at(ok(again.created), "id") == first.id, f"the batch of the first call, {first.id}",
           at(again.created.json(), "id"), again.created)  # fmt: skip


@CREATE.point("a custom_id of 64 characters is accepted, and comes back", DOCUMENTED, Need.END)
def _longest_custom_id(probe: Session) -> None:
    main = probe.own().main
    ids = [line.get("custom_id") for line in main.lines]
    expect(LONG_ID in ids, f"a result of {LONG_ID}", check.text(ids), main.read)


@CREATE.point("a custom_id may be used again in another batch", DOCUMENTED, Need.BATCHES)
def _reused_custom_id(probe: Session) -> None:
    own = probe.own()
    _ = own.main.id
    assert own.main.requests.keys() & own.modern.requests.keys()
    _made(own.modern)


@CREATE.point("a new batch is in the list", DOCUMENTED, Need.BATCHES)
def _listed(probe: Session) -> None:
    main = probe.own().main
    exchange = probe.get(f"{BATCHES}?limit=100")
    data = at(ok(exchange), "data")
    ids = [at(batch, "id") for batch in data] if isinstance(data, list) else []
    expect(main.id in ids, f"{main.id} in the list", ids, exchange)
