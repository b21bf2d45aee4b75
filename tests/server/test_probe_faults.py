"""The probe must name the fault of a server, and nothing else; and no point of it is idle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from batchyard.probe import run
from helpers_probe import (
    BATCHES,
    Answer,
    Call,
    Fault,
    RightServer,
    breaks,
    check,
    differing,
    drop,
    hangs,
    probed,
    put,
    says,
    session,
    stamp,
    turn,
    when,
)
from helpers_upstream import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    Changes = Callable[[RightServer], None]

IDS = {point.title: point.id for point in run.POINTS}


# One fault each ----------------------------------------------------------------------------------


def on_batches(change: Callable[[dict[str, Any]], object]) -> Any:
    """Return a fault that changes every batch object of every answer."""

    def fault(_server: RightServer, call: Call, answer: Answer) -> None:
        if answer.status != 200 or call.is_results or call.method == "DELETE":
            return

        def edit(body: Any) -> None:
            for batch in body.get("data", [body]):
                change(batch)

        answer.edit(edit)

    return fault


def status_of(call: Call, answer: Answer) -> str | None:
    if answer.status != 200 or call.is_results or call.is_page:
        return None
    return answer.json().get("processing_status")


def seconds_only(batch: dict[str, Any]) -> None:
    for name in ("created_at", "expires_at"):
        batch[name] = batch[name][:19] + "Z"


def reordered(batch: dict[str, Any]) -> None:
    batch["id"] = batch.pop("id")


def swapped(batch: dict[str, Any]) -> None:
    counts = batch["request_counts"]
    if len(batch["request_counts"]) == 5 and counts["succeeded"] and counts["errored"] > 1:
        counts["succeeded"], counts["errored"] = counts["errored"], counts["succeeded"]


def moving(batch: dict[str, Any]) -> None:
    counts = batch["request_counts"]
    if batch["processing_status"] == "in_progress" and counts["processing"] == 14:
        counts.update(processing=13, succeeded=1)


def counts_move(server: RightServer, call: Call, answer: Answer) -> None:
    if call.method == "GET":
        on_batches(moving)(server, call, answer)


def rewriting(change: Callable[[bytes], bytes]) -> Changes:
    def setting(server: RightServer) -> None:
        server.rewrite = change

    return setting


def lines(change: Callable[[dict[str, Any]], object]) -> Changes:
    """Return a fault that changes every result line."""

    def rewrite(body: bytes) -> bytes:
        rows = [json.loads(line) for line in body.splitlines()]
        for row in rows:
            change(row)
        return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)

    return rewriting(rewrite)


def judging(change: Callable[[dict[str, Any], str], bool], problem: Any) -> Changes:
    """Return a fault that judges some requests otherwise."""

    def setting(server: RightServer) -> None:
        server.judge = lambda params, version: (
            problem if change(params, version) else check(params, version)
        )

    return setting


def having(**settings: object) -> Changes:
    def setting(server: RightServer) -> None:
        for name, value in settings.items():
            assert hasattr(server, name)
            setattr(server, name, value)

    return setting


def is_page_before(call: Call, limit: str) -> bool:
    return call.is_page and "before_id" in call.query and call.query.get("limit") == limit


def newest_before(server: RightServer, call: Call, answer: Answer) -> None:
    """The page before a cursor begins at the newest, not at the nearest."""
    if is_page_before(call, "1") and "after_id" not in call.query and answer.json()["data"]:
        newest = [*server.batches][-1]

        def edit(body: Any) -> None:
            body["data"][0]["id"] = body["first_id"] = body["last_id"] = newest

        answer.edit(edit)


def oldest_first(_server: RightServer, call: Call, answer: Answer) -> None:
    if is_page_before(call, "2"):
        answer.edit(lambda body: body["data"].reverse())


def still_listed(server: RightServer, call: Call, answer: Answer) -> None:
    if call.is_page and server.deleted and call.query.get("limit") == "100":
        answer.edit(lambda body: body["data"].append({"id": server.deleted[0]}))


def cancels_again(server: RightServer, call: Call, answer: Answer) -> None:
    """Every cancel of a canceling batch is a new one; the first time is shown afterwards."""
    cancels = [c for c in server.calls if c.path == call.path]
    if call.path.endswith("/cancel") and len(cancels) > 1:
        answer.edit(lambda body: body.update(cancel_initiated_at="2026-11-22T00:00:00.000000Z"))


def cancels_ended(_server: RightServer, call: Call, answer: Answer) -> None:
    if call.path.endswith("/cancel") and status_of(call, answer) == "ended":
        answer.edit(lambda body: body.update(cancel_initiated_at=body["ended_at"]))


def same_request_id(_server: RightServer, _call: Call, answer: Answer) -> None:
    if answer.status == 200:
        answer.headers["request-id"] = "req_1"


def error_without_id(_server: RightServer, _call: Call, answer: Answer) -> None:
    if answer.status >= 400:
        answer.edit(lambda body: body.pop("request_id"))


def is_good_result(row: dict[str, Any]) -> bool:
    return row["result"]["type"] == "succeeded"


def is_bad_result(row: dict[str, Any]) -> bool:
    return row["result"]["type"] == "errored"


def in_message(**values: object) -> Changes:
    return lines(lambda row: row["result"]["message"].update(values) if is_good_result(row) else 0)


def in_usage(**values: object) -> Changes:
    return lines(
        lambda row: row["result"]["message"]["usage"].update(values) if is_good_result(row) else 0
    )


def in_error(change: Callable[[dict[str, Any]], object]) -> Changes:
    return lines(lambda row: change(row["result"]["error"]) if is_bad_result(row) else 0)


GET_200 = lambda call, answer: call.method == "GET" and answer.status == 200  # noqa: E731
UNKNOWN = "/v1/batchyard-probe-unknown-path"

FAULTS = [
    # Every call.
    Fault("version 2023-01-01 is refused", "version 2023-01-01 is known",
          when(lambda c, _: c.headers.get("anthropic-version") == "2023-01-01",
               turn(400, "invalid_request_error", "unknown version"))),
    Fault("another text for a missing version",
          "without a version header: 400, and the text says which is missing",
          when(lambda _, a: b"header is required" in a.body, says("is required", "is missing"))),
    Fault("?beta=true is an unknown path", "?beta=true is ignored",
          when(lambda c, _: c.query == {"beta": "true"} and "anthropic-beta" not in c.headers,
               turn(404, "not_found_error", "no such page"))),
    Fault("406 for another Accept", "Accept is not negotiated: never 406",
          when(lambda c, _: c.is_page and c.headers.get("accept") == "application/binary",
               turn(406, "invalid_request_error", "not acceptable"))),
    Fault("the connection is closed after every answer", "two calls go over one connection",
          when(lambda *_: True, put(connection="close"))),
    Fault("no request-id on a success", "request-id: req_… on a success",
          when(GET_200, drop("request-id"))),
    Fault("no request-id on an error", "request-id: req_… on an error",
          when(lambda _, a: a.status >= 400, drop("request-id"))),
    Fault("one request-id for all", "every answer has a request-id of its own", same_request_id),
    Fault("no organization", "anthropic-organization-id on an authenticated answer",
          when(GET_200, drop("anthropic-organization-id"))),
    Fault("an error is text/plain", "an error is application/json",
          when(lambda _, a: a.status >= 400, put(content_type="text/plain"))),
    Fault("no request_id in the envelope",
          "request_id of an error equals its request-id header", error_without_id),
    Fault("only its own ids are looked up",
          "an id may have any form: an unknown one is 404, not 400",
          when(lambda c, _: c.path.endswith("/message_batch_id"),
               turn(400, "invalid_request_error", "not an id"))),
    Fault("ids are not decoded", "an id may be percent-encoded",
          when(lambda c, _: "%6D" in c.raw_path, turn(404, "not_found_error", "unknown"))),
    Fault("an odd id is a crash", "an id with odd characters is 404 in the envelope, never 5xx",
          when(lambda c, _: "\0" in c.path, turn(500, "api_error", "crash"))),
    Fault("an unknown path is a page for people", "GET of an unknown path: 404 not_found_error",
          when(lambda c, _: c.path == UNKNOWN and c.method == "GET",
               lambda a: setattr(a, "body", b"<h1>Not found</h1>"))),
    Fault("no Allow", "a 405 names the methods in Allow",
          when(lambda _, a: a.status == 405, drop("allow"))),
    Fault(
        "any workspace is accepted",
        "an unknown workspace: 404 with the known text",
        when(
            lambda c, a: "anthropic-workspace-id" in c.headers and a.status == 404,
            lambda a: (setattr(a, "status", 200), setattr(a, "body", b'{"data":[]}')),
        ),
    ),
    # Create.
    Fault("an empty list has another text", "an empty list: the known text",
          when(lambda *_: True, says("List should have at least 1 item", "too short"))),
    Fault("a custom_id may stand twice", "a custom_id twice: the known text",
          setting=having(knows_duplicates=False)),
    Fault("the place is always the first", "the text names the place of the faulty request",
          when(lambda *_: True, says("requests.2.", "requests.0."))),
    Fault("413 is 400", "300 MB announced: 413 request_too_large before the body",
          when(lambda _, a: a.status == 413, turn(400, "invalid_request_error", "too large"))),
    Fault("a repeated create makes a second batch",
          "a repeat of an official client makes no second batch",
          when(lambda c, a: c.headers.get("x-stainless-retry-count") == "1",
               says("msgbatch_01", "msgbatch_02"))),
    Fault("a create has Retry-After", "the answer has no Retry-After",
          when(lambda c, _: c.method == "POST" and c.path == BATCHES, put(retry_after="10"))),
    # The object, retrieve, list.
    Fault("nine keys", "all ten keys are there, null when unset",
          on_batches(lambda batch: batch.pop("archived_at"))),
    Fault("eleven keys", "there is no other key",
          on_batches(lambda batch: batch.update(model="m"))),
    Fault("another order", "the keys come in the order of the hosted service",
          on_batches(reordered)),
    Fault("seconds", "times have six digits after the second", on_batches(seconds_only)),
    Fault("25 hours", "expires_at is created_at + 24 h, to the microsecond",
          on_batches(lambda batch: batch.update(expires_at="2099-01-01T00:00:00.000000Z"))),
    Fault("no Retry-After", "Retry-After: 10 while a batch is in progress",
          when(lambda c, a: status_of(c, a) == "in_progress", drop("retry-after"))),
    Fault("Retry-After for ever", "no Retry-After once it has ended",
          when(lambda c, a: status_of(c, a) == "ended", put(retry_after="10"))),
    Fault("limit=0 is 20", "limit=0: 400 with the text in the same style",
          when(lambda c, _: c.query.get("limit") == "0",
               lambda a: (setattr(a, "status", 200), setattr(a, "body", b'{"data":[]}')))),
    Fault("before_id begins at the newest", "before_id: the page right before it, the nearest",
          newest_before),
    Fault("before_id gives the oldest first", "a page before a cursor is newest first too",
          oldest_first),
    Fault("has_more looks at older ones only", "has_more looks in the direction of the page",
          when(lambda c, _: is_page_before(c, "1"), says('"has_more":true', '"has_more":false'))),
    Fault("an empty page says there is more", "after the oldest: an empty page, null ids, no more",
          when(lambda c, a: "after_id" in c.query and b'"data":[]' in a.body,
               says('"has_more":false', '"has_more":true'))),
    # Cancel and delete.
    Fault("a cancel has a time each", "canceling twice is canceling once: 200, the same time",
          cancels_again),
    Fault("an ended batch is canceled", "canceling an ended batch changes nothing: 200",
          cancels_ended),
    Fault("a batch in progress is deleted", "in progress: 400 with the known text",
          setting=having(deletes_at_any_time=True)),
    Fault("delete gives the object", "ended: 200 with id and type, and nothing else",
          when(lambda c, a: c.method == "DELETE" and a.status == 200,
               lambda a: a.edit(lambda body: body.update(deleted=True)))),
    Fault("deleted ones stay listed", "afterwards it is not in the list", still_listed),
    # Results.
    Fault("early results may be asked again at once", "that 404 says x-should-retry: false",
          when(lambda c, a: c.is_results, drop("x-should-retry"))),
    Fault("results are JSON", "they are application/x-jsonl",
          when(lambda c, a: c.is_results and a.status == 200,
               put(content_type="application/json"))),
    Fault("results are elsewhere", "results_url is at the address that the client used",
          when(lambda *_: True, says('"results_url":"http://127.0.0.1', '"results_url":"http://x'))),
    Fault("the end of the results is not marked",
          "the end of the answer is marked: a length, or chunks",
          when(lambda c, a: c.is_results and a.status == 200,
               put(unframed="1", connection="close"))),
    Fault("CRLF", "lines end with LF, never CR",
          setting=rewriting(lambda body: body.replace(b"\n", b"\r\n"))),
    Fault("a blank line", "there is no blank line, on which the official clients fail",
          setting=rewriting(lambda body: body.replace(b"\n", b"\n\n", 1))),
    Fault("no line end at the end", "the last line ends with LF",
          setting=rewriting(lambda body: body.rstrip(b"\n"))),
    Fault("a line is no JSON", "every line is a JSON object",
          setting=rewriting(lambda body: body + b"done\n")),
    Fault("gzip is ignored", "gzip when asked for",
          when(lambda c, a: "content-encoding" in a.headers,
               lambda a: (a.headers.pop("content-encoding")))),
    Fault("ranges are one too long", "a byte range is 206 with these bytes",
          when(lambda _, a: a.status == 206, lambda a: setattr(a, "body", a.body + b"x"))),
    Fault("a line has an index", "a line has custom_id and result, and nothing else",
          setting=lines(lambda row: row.update(index=1))),
    Fault("an id of its own", "the id of a message begins with msg_",
          setting=in_message(id="chatcmpl-1")),
    Fault("no stop reason", "its stop_reason is never null",
          setting=lines(lambda row: row["result"]["message"].update(stop_reason=None)
                        if row["custom_id"] == "ok-1" and is_good_result(row) else 0)),
    Fault("standard", 'its usage.service_tier is "batch"',
          setting=in_usage(service_tier="standard")),
    Fault("tokens as text", "its usage counts input and output tokens",
          setting=in_usage(output_tokens="1")),
    Fault("an alias", "its model is the snapshot that the name stands for",
          setting=in_message(model="claude-haiku-4-5")),
    Fault("no envelope in an errored line",
          "an errored line holds the envelope: its type is at error.error.type",
          setting=in_error(lambda error: error.pop("type"))),
    Fault("no request_id in an errored line", "its error has a request_id, a text or null",
          setting=in_error(lambda error: error.pop("request_id"))),
    Fault("more in a canceled line", 'a canceled line is exactly {"type":"canceled"}',
          setting=lines(lambda row: row["result"].update(at="now")
                        if row["result"]["type"] == "canceled" else 0)),
    # Validation, lifecycle, rates.
    Fault("an unknown model is invalid", "an unknown model: errored, not_found_error",
          setting=judging(lambda p, _: p.get("model", "").endswith("no-such-model"),
                          ("invalid_request_error", "model"))),
    Fault("a bad request spoils a good one",
          "a good request succeeds beside bad ones; stream: false is good",
          setting=judging(lambda p, _: p.get("stream") is False, ("api_error", "spoilt"))),
    Fault("another cap", "max_tokens over the model's cap: errored, the text names the cap",
          setting=judging(lambda p, _: p.get("max_tokens", 0) > 1_000_000,
                          ("invalid_request_error", "max_tokens: too many"))),
    Fault("temperature is fine for ever", "they are refused under version 2026-10-21",
          setting=judging(lambda p, _: "temperature" in p, None)),
    Fault("counts move", "counts do not move before the end", counts_move, having(looks=25)),
    Fault("counts are mixed up", "the counts are those of the lines", on_batches(swapped)),
    Fault("reset in seconds", "reset is an RFC 3339 time",
          when(lambda *_: True, put(anthropic_ratelimit_requests_reset="1795000000"))),
    # No HTTP, or none in time.
    Fault("a call is closed without an answer", "`requests` that is no list: 400",
          when(lambda c, _: c.body == b'{"requests":"a"}', breaks(b""))),
    Fault("a call is answered with garbage", "DELETE of an unknown path: 404 not_found_error",
          when(lambda c, _: c.path == UNKNOWN and c.method == "DELETE", breaks(b"\xff\0 \x1b[2J"))),
    Fault("a body is cut", "limit=many: 400",
          when(lambda c, _: c.query.get("limit") == "many",
               lambda a: (hangs(a), put(connection="close")(a)))),
    Fault("a body never ends", "an unknown version is refused: 400",
          when(lambda c, _: c.headers.get("anthropic-version") == "1999-12-31", hangs)),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_named_and_nothing_else(fault: Fault) -> None:
    with RightServer(fault.change) as server:
        if fault.setting is not None:
            fault.setting(server)
        # Only a call that never ends needs to run into its deadline.
        findings = probed(server.url, timeout_s=8.0 if "never" in fault.name else DEADLINE_S)
        found = differing(findings)
        assert list(found) == [fault.point], found
        if not server.deletes_at_any_time:
            assert server.batches == {}, "what the probe made is gone"


# Many faults at once -----------------------------------------------------------------------------


def is_create(call: Call, answer: Answer) -> bool:
    return call.method == "POST" and call.path == BATCHES and answer.status == 200


def accepts_everything(_server: RightServer, _call: Call, answer: Answer) -> None:
    if answer.status >= 400:
        answer.status, answer.body = 200, b"{}"


def refuses_everything(_server: RightServer, call: Call, answer: Answer) -> None:
    if answer.status == 200:
        turn(400, "invalid_request_error", "no")(answer)


def other_errors(_server: RightServer, _call: Call, answer: Answer) -> None:
    if answer.status >= 400:
        answer.status, answer.body = 418, b"I am a teapot"


def creates_only(_server: RightServer, call: Call, answer: Answer) -> None:
    """Batches can be made, and nothing else is right."""
    if answer.status == 200 and not is_create(call, answer):
        turn(400, "invalid_request_error", "no")(answer)


def is_undead(server: RightServer, call: Call, answer: Answer) -> None:
    """What was deleted goes on to answer."""
    if answer.status == 404 and any(name in call.path for name in server.deleted):
        answer.status, answer.body = 200, b"{}"


def odd_objects(batch: dict[str, Any]) -> None:
    batch.update(type="batch", request_counts={"done": 1}, created_at=1_795_000_000)


def odd_ends(batch: dict[str, Any]) -> None:
    if batch["processing_status"] == "ended":
        batch.update(
            ended_at="2020-01-01T00:00:00.000000Z", results_url="", archived_at=batch["created_at"],
            cancel_initiated_at=batch["created_at"],
        )  # fmt: skip
        batch["request_counts"].update(processing=1)
    else:
        batch.update(results_url="http://x")


def odd_list(_server: RightServer, call: Call, answer: Answer) -> None:
    """The ends of a page are not named, and nothing follows."""
    if call.is_page and answer.status == 200:
        answer.edit(lambda body: body.update(first_id="x", has_more=False))
        if "limit" not in call.query:
            answer.edit(lambda body: body.pop("last_id"))


def odd_pages(server: RightServer, call: Call, answer: Answer) -> None:
    """Cursors and most limits do nothing, and the oldest comes first."""
    if not call.is_page or call.query in ({"limit": "4"}, {"limit": "3"}, {"limit": "2"}):
        return
    batches = [
        {"id": name, "created_at": stamp(one.created)} for name, one in server.batches.items()
    ]
    page = {"data": batches, "has_more": False, "first_id": "x", "last_id": "y"}
    answer.status, answer.body = 200, json.dumps(page).encode()


def odd_cancels(_server: RightServer, call: Call, answer: Answer) -> None:
    if call.path.endswith("/cancel") and answer.status == 200:
        answer.edit(
            lambda body: body.update(processing_status="in_progress", cancel_initiated_at=None)
        )


def odd_canceling(_server: RightServer, call: Call, answer: Answer) -> None:
    """Once canceling, it looks like no batch that is; and some of it is lost."""
    if status_of(call, answer) == "canceling" and call.method == "GET":
        answer.headers.pop("retry-after", None)
        answer.edit(lambda body: body["request_counts"].update(processing=0))
    if status_of(call, answer) == "ended":
        answer.edit(lambda body: body.update(cancel_initiated_at=None))


def odd_results(row: dict[str, Any]) -> None:
    result = row["result"]
    if result["type"] == "succeeded":
        del result["message"]["content"]
    if row["custom_id"] == "cut-short":
        result["type"] = "truncated"
    if result["type"] == "errored":
        result["usage"] = {}
        result["error"]["error"]["type"] = "request_too_large"


def fewer_lines(body: bytes) -> bytes:
    lost = (b'"longest-', b'"cancel-2"')
    return b"".join(
        line for line in body.splitlines(keepends=True) if not any(name in line for name in lost)
    )


def coded_results(server: RightServer, call: Call, answer: Answer) -> None:
    """The results can be read once, and say that they are compressed."""
    if call.is_results and answer.status == 200:
        if sum(other.path == call.path for other in server.calls) > 1:
            turn(500, "api_error", "once only")(answer)
        answer.headers["content-encoding"] = "br"


def no_rates(_server: RightServer, _call: Call, answer: Answer) -> None:
    for part in ("limit", "remaining", "reset"):
        answer.headers.pop(f"anthropic-ratelimit-requests-{part}")


def odd_changes(server: RightServer, call: Call, answer: Answer) -> None:
    """Times move, keys are not understood, new batches do not show."""
    if call.method == "GET" and status_of(call, answer):
        answer.edit(lambda body: body.update(expires_at="2099-01-01T00:00:00.000000Z"))
    if is_create(call, answer):
        answer.edit(lambda body: body["request_counts"].update(processing=0))
        if "idempotency-key" in call.headers:
            says("msgbatch_01", f"msgbatch_{len(server.calls)}_")(answer)
    if call.is_page and call.query.get("limit") == "100":
        answer.edit(lambda body: body.update(data=[]))


GROSS = [
    Fault("accepts everything", "", accepts_everything),
    Fault("refuses everything", "", refuses_everything),
    Fault("other errors", "", other_errors),
    Fault("creates only", "", creates_only),
    Fault("undead", "", is_undead),
    Fault("odd objects", "", on_batches(odd_objects)),
    Fault("odd ends", "", on_batches(odd_ends)),
    Fault("odd status", "", when(lambda c, a: status_of(c, a) == "in_progress",
                                 says('"in_progress"', '"validating"')), having(looks=25)),
    Fault("a custom_id is used once and for all", "",
          when(lambda c, _: c.method == "POST" and "authorization" in c.headers,
               turn(400, "invalid_request_error", "used"))),
    Fault("odd list", "", odd_list),
    Fault("odd pages", "", odd_pages),
    Fault("odd cancels", "", odd_cancels),
    Fault("odd canceling", "", odd_canceling),
    Fault("odd changes", "", odd_changes),
    Fault("another prefix", "", setting=having(prefix="batch_")),
    Fault("odd results", "", setting=lines(odd_results)),
    Fault("fewer lines", "", setting=rewriting(fewer_lines)),
    Fault("coded results", "", coded_results),
    Fault("no results", "", when(lambda c, _: c.is_results, turn(500, "api_error", "no"))),
    Fault("nothing is validated", "", setting=judging(lambda *_: True, None)),
    Fault("nothing runs", "", setting=judging(lambda *_: True, ("api_error", "no"))),
    Fault("no rates", "", no_rates),
    Fault("more remain than there are", "",
          when(lambda *_: True, put(anthropic_ratelimit_requests_remaining="51"))),
    Fault("everything is text", "", when(lambda *_: True, put(content_type="text/plain"))),
    Fault("nobody's", "", when(lambda *_: True, drop("anthropic-workspace-id"))),
    Fault("pages have Retry-After", "", when(lambda c, _: c.is_page, put(retry_after="1"))),
]  # fmt: skip


def test_every_point_differs_at_some_server() -> None:
    """No point is idle: one that holds everywhere would say nothing."""
    single = {fault.point for fault in FAULTS}
    seen = {point.id for point in run.POINTS if point.title in single}
    for fault in GROSS:
        with RightServer(fault.change) as server:
            if fault.setting is not None:
                fault.setting(server)
            findings = run.ask(session(server.url), may_create=True, wait_s=DEADLINE_S)
        seen |= {finding.point.id for finding in findings if finding.outcome == "differs"}
    idle = {point.id: point.title for point in run.POINTS if point.id not in seen}
    assert idle == {}


def test_every_point_has_a_title_and_an_id_of_its_own() -> None:
    ids = [point.id for point in run.POINTS]
    assert len(set(ids)) == len(ids) >= 60
    by_section = {(point.section, point.title) for point in run.POINTS}
    assert len(by_section) == len(ids)
    assert {fault.point for fault in FAULTS} <= set(IDS), "a fault names a point that exists"
