"""Points about the results: the call, the bytes, the lines."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

from batchyard import models
from batchyard.probe import check
from batchyard.probe.check import NotRun, at, expect, expect_header, is_count, refused
from batchyard.probe.http import parsed
from batchyard.probe.points import Need, Section, Source
from batchyard.probe.session import BATCHES, unknown_id

if TYPE_CHECKING:
    from batchyard.probe.http import Exchange
    from batchyard.probe.session import Session

DOCUMENTED, OBSERVED, RECOMMENDED = Source.DOCUMENTED, Source.OBSERVED, Source.RECOMMENDED

CALL = Section("5.1", "results: the call")
BYTES = Section("5.2", "results: the bytes")
LINES = Section("5.3", "results: the lines")

TYPES = ("succeeded", "errored", "canceled", "expired")
_ERROR_TYPES = (
    "invalid_request_error", "authentication_error", "billing_error", "permission_error",
    "not_found_error", "rate_limit_error", "timeout_error", "api_error", "overloaded_error",
)  # fmt: skip
_STOP_REASONS = (
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal",
    "model_context_window_exceeded", "compaction",
)  # fmt: skip


# The call ----------------------------------------------------------------------------------------


@CALL.point("an unknown id: 404, Message Batch <id> not found.", OBSERVED)
def _unknown(probe: Session) -> None:
    name = unknown_id()
    refused(probe.get(f"{BATCHES}/{name}/results"), 404, "not_found_error",
            f"Message Batch {name} not found.")  # fmt: skip


@CALL.point("an unfinished batch has no results: 404 with the known text", OBSERVED, Need.BATCHES)
def _early(probe: Session) -> None:
    own = probe.own()
    refused(own.story.call("results"), 404, "not_found_error",
            f"Message Batch {own.canceled.id} has no available results.")  # fmt: skip


@CALL.point("that 404 says x-should-retry: false", OBSERVED, Need.BATCHES)
def _early_retry(probe: Session) -> None:
    exchange = probe.own().story.call("results")
    if exchange.status != 404:
        raise NotRun("early results are not answered with 404")
    expect_header(exchange, "x-should-retry", "false")


@CALL.point("neither has one that is canceling", OBSERVED, Need.BATCHES)
def _early_canceling(probe: Session) -> None:
    own = probe.own()
    refused(own.story.canceling("results while canceling"), 404, "not_found_error",
            f"Message Batch {own.canceled.id} has no available results.")  # fmt: skip


@CALL.point("results can be read as soon as the batch has ended", DOCUMENTED, Need.END)
def _at_once(probe: Session) -> None:
    main = probe.own().main
    _, exchange = main.ended
    if main.results is None:
        raise check.Differs("200", "no whole answer", exchange)
    expect(main.results.status == 200, "200", check.answer(main.results), main.results)


@CALL.point("they are application/x-jsonl", OBSERVED, Need.END)
def _media_type(probe: Session) -> None:
    read = probe.own().main.read
    expect(read.media_type == "application/x-jsonl", "content-type: application/x-jsonl",
           read.media_type, read)  # fmt: skip


@CALL.point("Accept is not negotiated: never 406", OBSERVED, Need.END)
def _accept(probe: Session) -> None:
    main = probe.own().main
    _ = main.ended
    exchange = probe.get(f"{main.path}/results", accept="application/binary")
    expect(exchange.status == 200, "200", check.answer(exchange), exchange)


@CALL.point("results_url is at the address that the client used", OBSERVED, Need.END)
def _url(probe: Session) -> None:
    main = probe.own().main
    batch, exchange = main.ended
    expected = f"{probe.target.base}{main.path}/results"
    expect(at(batch, "results_url") == expected, expected, at(batch, "results_url"), exchange)


@CALL.point("results_url gives the results", DOCUMENTED, Need.END)
def _url_works(probe: Session) -> None:
    main = probe.own().main
    batch, _ = main.ended
    url = at(batch, "results_url")
    if isinstance(url, str) and url.startswith("/") and not url.startswith("//"):
        path = url  # below the base URL, as the official clients take it
    elif isinstance(url, str) and url.startswith(f"{probe.target.base}/"):
        path = url.removeprefix(probe.target.base)
    else:
        raise NotRun("results_url is on another host, which is not given the key")
    if not path.isascii() or not path.isprintable() or " " in path:
        raise NotRun("results_url is no address")
    exchange = probe.get(path)
    expect(exchange.status == 200, "200", check.answer(exchange), exchange)


@CALL.point("a batch of which no request ran has results too", OBSERVED, Need.END)
def _all_errored(probe: Session) -> None:
    broken = probe.own().broken
    _, exchange = broken.ended
    came = broken.results
    if came is None:
        raise check.Differs("200", "no whole answer", exchange)
    expect(came.status == 200, "200", check.answer(came), came)


# The bytes ---------------------------------------------------------------------------------------


@BYTES.point("the end of the answer is marked: a length, or chunks", RECOMMENDED, Need.END)
def _framed(probe: Session) -> None:
    read = probe.own().main.read
    is_chunked = "chunked" in (read.header("transfer-encoding") or "").lower()
    expect(is_chunked or read.header("content-length") is not None,
           "content-length or transfer-encoding: chunked", "neither", read)  # fmt: skip


@BYTES.point("lines end with LF, never CR", DOCUMENTED, Need.END)
def _lf(probe: Session) -> None:
    read = probe.own().main.read
    place = read.body.find(b"\r")
    expect(place < 0, "LF only", read.body[max(0, place - 20) : place + 20], read)


@BYTES.point("there is no blank line, on which the official clients fail", DOCUMENTED, Need.END)
def _no_blank_line(probe: Session) -> None:
    read = probe.own().main.read
    lines = read.body.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
    blank = [number for number, line in enumerate(lines, 1) if not line.strip()]
    expect(not blank, "no blank line", f"line {blank[0] if blank else 0} is blank", read)


@BYTES.point("the last line ends with LF", RECOMMENDED, Need.END)
def _last_lf(probe: Session) -> None:
    read = probe.own().main.read
    expect(read.body.endswith(b"\n"), "LF at the end", read.body[-20:], read)


@BYTES.point("every line is a JSON object", DOCUMENTED, Need.END)
def _json_lines(probe: Session) -> None:
    read = probe.own().main.read
    for line in read.body.splitlines():
        if line.strip():
            expect(isinstance(parsed(line), dict), "a JSON object in each line", line, read)


@BYTES.point("it is not compressed unless asked for", DOCUMENTED, Need.END)
def _plain(probe: Session) -> None:
    read = probe.own().main.read
    value = read.header("content-encoding")
    expect(value in {None, "identity"}, "no content-encoding", value, read)


@BYTES.point("gzip when asked for", RECOMMENDED, Need.END)
def _gzip(probe: Session) -> None:
    main = probe.own().main
    plain = main.read.body
    exchange = probe.get(f"{main.path}/results", accept_encoding="gzip")
    value = exchange.header("content-encoding")
    expect(exchange.status == 200 and value == "gzip", "200 and content-encoding: gzip",
           f"{exchange.status} and {value or 'no content-encoding'}", exchange)  # fmt: skip
    try:
        body = gzip.decompress(exchange.body)
    except (OSError, EOFError, zlib.error):
        raise check.Differs("a gzip stream", exchange.body[:20].hex(), exchange) from None
    expect(body == plain, "the same bytes inside", body, exchange)


@BYTES.point("a byte range is 206 with these bytes", RECOMMENDED, Need.END)
def _range(probe: Session) -> None:
    main = probe.own().main
    whole = main.read.body
    exchange = probe.get(f"{main.path}/results", range="bytes=2-11")
    expected = {
        "status": 206,
        "content-range": f"bytes 2-11/{len(whole)}",
        "body": whole[2:12].decode("utf-8", "replace"),
    }
    got = {
        "status": exchange.status,
        "content-range": exchange.header("content-range"),
        "body": exchange.body[:40].decode("utf-8", "replace"),
    }
    expect(got == expected, check.text(expected), got, exchange)


@BYTES.point("a second read gives the same lines", DOCUMENTED, Need.END)
def _again(probe: Session) -> None:
    main = probe.own().main
    before = sorted(main.read.body.splitlines())
    exchange = probe.get(f"{main.path}/results")
    got = sorted(exchange.body.splitlines())
    expect(got == before, f"the same {len(before)} lines", check.answer(exchange), exchange)


# The lines ---------------------------------------------------------------------------------------


@LINES.point("one line for each request, no more", DOCUMENTED, Need.END)
def _one_each(probe: Session) -> None:
    main = probe.own().main
    ids = sorted(str(line.get("custom_id")) for line in main.lines)
    missing = sorted(main.requests.keys() - set(ids))
    more = sorted(name for name in set(ids) if ids.count(name) > 1 or name not in main.requests)
    expect(not missing and not more, f"{len(main.requests)} lines, one for each custom_id",
           f"missing {check.text(missing)}, too many of {check.text(more)}", main.read)  # fmt: skip


@LINES.point("a line has custom_id and result, and nothing else", OBSERVED, Need.END)
def _line_keys(probe: Session) -> None:
    main = probe.own().main
    for line in main.lines:
        expect(set(line) == {"custom_id", "result"}, "custom_id and result", sorted(line),
               main.read)  # fmt: skip


@LINES.point("a result is succeeded, errored, canceled or expired", DOCUMENTED, Need.END)
def _types(probe: Session) -> None:
    main = probe.own().main
    for line in main.lines:
        kind = at(line, "result", "type")
        expect(kind in TYPES, ", ".join(TYPES), kind, main.read)


def _messages(probe: Session) -> tuple[list[object], Exchange]:
    """Return the messages of the succeeded lines; there is one at least."""
    main = probe.own().main
    found = [
        at(line, "result", "message")
        for line in main.lines
        if at(line, "result", "type") == "succeeded"
    ]
    if not found:
        raise NotRun("no request has succeeded")
    return found, main.read


@LINES.point("a succeeded line holds a whole message", DOCUMENTED, Need.END)
def _message(probe: Session) -> None:
    messages, exchange = _messages(probe)
    for message in messages:
        is_whole = (
            at(message, "type") == "message"
            and at(message, "role") == "assistant"
            and isinstance(at(message, "content"), list)
            and isinstance(at(message, "model"), str)
            and isinstance(at(message, "usage"), dict)
        )
        expect(is_whole, "type, role, content, model and usage of a message", message, exchange)


@LINES.point("the id of a message begins with msg_", DOCUMENTED, Need.END)
def _message_id(probe: Session) -> None:
    messages, exchange = _messages(probe)
    for message in messages:
        value = at(message, "id")
        expect(isinstance(value, str) and value.startswith("msg_"), "msg_…", value, exchange)


@LINES.point("its stop_reason is never null", DOCUMENTED, Need.END)
def _stop_reason(probe: Session) -> None:
    messages, exchange = _messages(probe)
    for message in messages:
        value = at(message, "stop_reason")
        expect(value in _STOP_REASONS, "a stop reason", value, exchange)


@LINES.point("its usage counts input and output tokens", DOCUMENTED, Need.END)
def _usage(probe: Session) -> None:
    messages, exchange = _messages(probe)
    for message in messages:
        usage = at(message, "usage")
        is_right = is_count(at(usage, "input_tokens")) and is_count(at(usage, "output_tokens"))
        expect(is_right, "input_tokens and output_tokens", usage, exchange)


@LINES.point('its usage.service_tier is "batch"', OBSERVED, Need.END)
def _service_tier(probe: Session) -> None:
    messages, exchange = _messages(probe)
    for message in messages:
        value = at(message, "usage", "service_tier")
        expect(value == "batch", "batch", value, exchange)


@LINES.point("its model is the snapshot that the name stands for", OBSERVED, Need.END)
def _snapshot(probe: Session) -> None:
    known = models.find(probe.model)
    if known is None:
        raise NotRun(f"{probe.model} is not a model that is known here")
    messages, exchange = _messages(probe)
    for message in messages:
        expect(at(message, "model") == known.snapshot, known.snapshot, at(message, "model"),
               exchange)  # fmt: skip


@LINES.point("an answer cut at max_tokens has succeeded", DOCUMENTED, Need.END)
def _cut_short(probe: Session) -> None:
    main = probe.own().main
    result = main.result("cut-short")
    got = {"type": at(result, "type"), "stop_reason": at(result, "message", "stop_reason")}
    expected = {"type": "succeeded", "stop_reason": "max_tokens"}
    expect(got == expected, check.text(expected), got, main.read)


def _errors(probe: Session) -> tuple[list[object], Exchange]:
    """Return the results of the errored lines; there is one at least."""
    main = probe.own().main
    found = [line["result"] for line in main.lines if at(line, "result", "type") == "errored"]
    if not found:
        raise NotRun("no request is errored")
    return found, main.read


@LINES.point("an errored line holds the envelope: its type is at error.error.type", OBSERVED,
             Need.END)  # fmt: skip
def _nesting(probe: Session) -> None:
    results, exchange = _errors(probe)
    for result in results:
        is_right = (
            at(result, "error", "type") == "error"
            and isinstance(at(result, "error", "error", "type"), str)
            and isinstance(at(result, "error", "error", "message"), str)
        )
        expect(is_right, '{"type":"error","error":{"type":…,"message":…},…}',
               at(result, "error"), exchange)  # fmt: skip


@LINES.point("its error has a request_id, a text or null", OBSERVED, Need.END)
def _error_request_id(probe: Session) -> None:
    results, exchange = _errors(probe)
    for result in results:
        value = at(result, "error", "request_id")
        expect(value is None or isinstance(value, str), "request_id", value, exchange)


@LINES.point("its type is one of the nine that clients know", DOCUMENTED, Need.END)
def _error_types(probe: Session) -> None:
    results, exchange = _errors(probe)
    for result in results:
        value = at(result, "error", "error", "type")
        if value is check.MISSING:
            raise NotRun("the error is not nested")
        expect(value in _ERROR_TYPES, ", ".join(_ERROR_TYPES), value, exchange)


@LINES.point("it holds no message and no usage", OBSERVED, Need.END)
def _error_keys(probe: Session) -> None:
    results, exchange = _errors(probe)
    for result in results:
        assert isinstance(result, dict)  # it has a type
        more = sorted(set(result) - {"type", "error"})
        expect(not more, "type and error only", more, exchange)


@LINES.point('a canceled line is exactly {"type":"canceled"}', OBSERVED, Need.END)
def _canceled_line(probe: Session) -> None:
    canceled = probe.own().canceled
    results = [line.get("result") for line in canceled.lines]
    found = [result for result in results if at(result, "type") == "canceled"]
    if not found:
        raise NotRun("every request was done before the cancel")
    for result in found:
        expect(result == {"type": "canceled"}, '{"type":"canceled"}', result, canceled.read)
