"""Bad input, row by row: what is refused, how, and that nothing of it stays.

Each row has the id under which it is planned (B01 to B54). B51 to B53 are about the command line
and the configuration; foreign workspaces (B04) and limits (B47) stand in `test_admission.py`. A row
that we answer otherwise than planned says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import json
import socket
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from batchyard.errors import (
    BatchyardError,
    DamagedError,
    DeadSegment,
    DiskFull,
    InvalidRequest,
    SegmentRefused,
    SegmentsGone,
    StoreError,
)
from batchyard.server.guard import Guard, host_name
from helpers_raw import FIXED, exchange_in_time, head, one_reply, replies, reply_in_time
from helpers_upstream import DEADLINE_S
from helpers_yard import BATCHES, HEADERS, KEY, QUICK, Yard, poll, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers_raw import Reply
    from helpers_upstream import Upstream

GOOD = json.dumps({"requests": [request("good")]}).encode()
CAP = 1 << 20
LAST = "connection: close"
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "request_too_large",
    414: "invalid_request_error",
    431: "invalid_request_error",
}
PIECE = b"10000\r\n" + b" " * 65_536 + b"\r\n"
JSON = "The request body is not valid JSON: "


@dataclass(frozen=True)
class Row:
    """What is sent, and what comes back."""

    id: str
    data: bytes
    status: int
    text: str = ""
    """The message of the error begins with it, or has it where it begins with `…`."""
    code: str | None = None
    header: tuple[str, str] | None = None


def post(body: bytes | str = GOOD, *lines: str, **options: Any) -> bytes:
    """Return a whole create call."""
    data = body.encode() if isinstance(body, str) else body
    return head(f"content-length: {len(data)}", LAST, *lines, **options) + data


def get(target: str = BATCHES, *lines: str, method: str = "GET", **options: Any) -> bytes:
    return head(LAST, *lines, method=method, target=target, **options)


def chunked(*lines: str) -> bytes:
    return head("transfer-encoding: chunked", *lines, LAST) + b"%x\r\n%b\r\n0\r\n\r\n" % (
        len(GOOD),
        GOOD,
    )


def without(name: str, *lines: str) -> dict[str, Any]:
    return {"fixed": [line for line in FIXED if not line.startswith(f"{name}:")] + list(lines)}


def entry(params: str, custom_id: str = '"x"', more: str = "") -> str:
    """Return a body of a good request and one to be judged."""
    good = json.dumps(request("good"))
    return f'{{"requests":[{good},{{"custom_id":{custom_id},"params":{params}{more}}}]}}'


def content(text: str) -> str:
    """Return params whose content is this JSON."""
    start = '{"model":"scripted","max_tokens":1,"messages":[{"role":"user","content":'
    return f"{start}{text}}}]}}"


PATTERN = "requests.1.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'"
TWICE = "requests.1: Duplicate key"
NOT_HTTP = "The request is not valid HTTP/1.1: "
DEEP = "requests.1.params: nested deeper than 100 levels"
NO_KEY = without("x-api-key")
NO_VERSION = without("anthropic-version")
NO_HOST = without("host")

ROWS = [
    # The caller.
    Row("B01-no-key", post(**NO_KEY), 401, "x-api-key header is required"),
    Row("B01-empty-key", post(**without("x-api-key", "x-api-key: ")), 401, "x-api-key header is"),
    Row("B01-other-scheme", post(**without("x-api-key", "authorization: Basic YTpi")), 401),
    Row("B01-long-key", post(**without("x-api-key", "x-api-key: " + "k" * 513)), 401, "API key is"),
    # A key of 1 MB does not fit a head: 431 instead of 401, before any key is looked at.
    Row("B01-key-of-1-MB", post(**without("x-api-key", "x-api-key: " + "k" * 1_000_000)), 431),
    Row("B02-two-keys", post(GOOD, "authorization: Bearer other"), 401, "…different keys"),
    Row("B02-key-twice", post(GOOD, f"x-api-key: {KEY}"), 400, "x-api-key: the header was sent tw"),
    Row("B02-bearer-twice", post(GOOD, "authorization: Bearer a", "authorization: Bearer a"), 400,
        "authorization: the header was sent twice"),
    Row("B03-underscores", post(**without("x-api-key", f"x_api_key: {KEY}")), 401),
    Row("B04-malformed-workspace", post(GOOD, "anthropic-workspace-id: x"), 400,
        "anthropic-workspace-id header must be a valid workspace ID."),
    # The route.
    Row("B05-unknown-batch", get(f"{BATCHES}/msgbatch_01None"), 404,
        "Message Batch msgbatch_01None not found."),
    *[
        Row(f"B06-id-{name}", get(f"{BATCHES}/{part}"), 404)
        for name, part in {
            "dots": "..", "encoded-dots": "%2e%2e%2f", "nul": "%00", "2-kB": "x" * 2_000,
            "unicode": "%C3%A9", "bad-percent": "%zz", "bad-utf8": "%ff", "prefix": "batch_1",
            "lower-case": "msgbatch_01abc", "line-end": "msgbatch_01%0a", "quote": "%27%3b--",
        }.items()
    ],
    Row("B06-id-10-kB", get(f"{BATCHES}/{'x' * 10_000}"), 414),
    Row("B07-method", get(method="PUT"), 405, header=("allow", "GET, POST")),
    Row("B07-path", get("/v1/nothing"), 404),
    Row("B07-trailing-slash", get(f"{BATCHES}/"), 404),
    Row("B07-two-slashes", get(f"/{BATCHES}"), 404),
    Row("B08-no-version", post(**NO_VERSION), 400, "anthropic-version: header is required"),
    Row("B08-version", post(**without("anthropic-version", "anthropic-version: 2099-01-01")), 400),
    Row("B09-33-betas", post(GOOD, "anthropic-beta: " + ",".join(f"b{n}" for n in range(33))), 400),
    Row("B09-long-beta", post(GOOD, "anthropic-beta: " + "x" * 129), 400),
    Row("B09-beta-with-space", post(GOOD, "anthropic-beta: a b"), 400),
    # Heads.
    Row("B10-head-over-16-kB", post(GOOD, "x-a: " + "y" * 100_000), 431, "The request head is"),
    Row("B10-fields-over-100", post(GOOD, *["x: y"] * 101), 431, "The request head has more than"),
    Row("B10-url-over-8-kB", get(f"{BATCHES}?x={'y' * 9_000}"), 414, "The URL is longer than 8192"),
    # Framing. Every one of these closes the connection: see the test.
    Row("B11-length-and-coding", chunked("content-length: 5"), 400, NOT_HTTP),
    Row("B11-coding-and-length", head("content-length: 5", "transfer-encoding: chunked"), 400),
    Row("B11-two-lengths", head("content-length: 5", "content-length: 6"), 400, NOT_HTTP),
    Row("B11-two-equal-lengths", head("content-length: 5", "content-length: 5"), 400, NOT_HTTP),
    Row("B11-length-list", head("content-length: 5, 5"), 400, NOT_HTTP),
    Row("B11-coding-unknown", head("transfer-encoding: xchunked"), 400, "transfer-encoding: only"),
    Row("B11-coding-twice", head("transfer-encoding: chunked, chunked"), 400),
    Row("B11-coding-two-fields", head(*["transfer-encoding: chunked"] * 2), 400),
    Row("B11-coding-list", head("transfer-encoding: gzip, chunked"), 400, "transfer-encoding:"),
    Row("B11-coding-in-1.0", head("transfer-encoding: chunked").replace(b"/1.1", b"/1.0", 1), 400,
        "HTTP/1.1 is needed"),
    # A tab there is allowed, and the parser is stricter: refused, so nothing is read two ways.
    Row("B11-coding-and-tab", head("transfer-encoding: chunked\t"), 400, NOT_HTTP),
    Row("B11-space-before-colon", head("transfer-encoding : chunked"), 400, NOT_HTTP),
    Row("B11-length-plus", head("content-length: +3"), 400, NOT_HTTP),
    Row("B11-length-negative", head("content-length: -1"), 400, NOT_HTTP),
    Row("B11-length-hexadecimal", head("content-length: 0x5"), 400, NOT_HTTP),
    Row("B11-length-20-digits", head("content-length: 18446744073709551617"), 400, NOT_HTTP),
    Row("B11-length-zeros", head("content-length: 00000000000000000005"), 400, "content-length"),
    Row("B12-folded", get(BATCHES, "x-a: b", " c"), 400, NOT_HTTP),
    Row("B12-bare-lf", get().replace(b"\r\n", b"\n"), 400, NOT_HTTP),
    Row("B12-bare-lf-in-field", get(BATCHES, "x-a: b\nx-b: c"), 400, NOT_HTTP),
    Row("B12-no-host", get(**NO_HOST), 400, "Host "),
    Row("B12-two-hosts", get(BATCHES, "host: 127.0.0.1"), 400, "host: the header was sent twice"),
    Row("B12-nul", get(BATCHES, "x-a: b\0c"), 400, NOT_HTTP),
    Row("B12-nul-in-name", get(BATCHES, "x\0a: b"), 400, NOT_HTTP),
    Row("B12-cr", get(BATCHES, "x-a: b\rc"), 400, NOT_HTTP),
    Row("B12-escape", get(BATCHES, "x-a: \x1b[2J"), 400, NOT_HTTP),
    Row("B13-absolute", get(f"http://127.0.0.1{BATCHES}"), 400, "The request target"),
    Row("B13-absolute-foreign", get(f"http://evil.example{BATCHES}"), 400, "The request target"),
    Row("B13-authority", get("127.0.0.1:80", method="CONNECT"), 400, "The request target"),
    Row("B13-asterisk", get("*", method="OPTIONS"), 400, "The request target"),
    Row("B13-foreign-host", get(**without("host", "host: evil.example")), 400, "Host evil.example"),
    *[
        Row(f"B13-host-{name}", get(**without("host", f"host: {host}")), 400, "Host ")
        for name, host in {
            "path": "127.0.0.1/evil", "fragment": "127.0.0.1#x", "query": "127.0.0.1?x",
            "user": "u:p@127.0.0.1", "port-in-braces": "localhost:{x}", "port-empty": "localhost:",
            "port-65536": "localhost:65536", "port-signed": "localhost:+80", "two": "localhost,x",
            "port-twice": "localhost:80:80", "port-other-digit": "localhost:\xb2", "empty": "",
            "space": "localhost x", "name-in-brackets": "[localhost]", "ipv4-in-brackets":
            "[127.0.0.1]", "ipv6-bare": "::1", "ipv6-open": "[::1", "ipv6-then-text": "[::1]x",
            "ipv6-zone": "[::1%25lo]", "ipv6-foreign": "[::2]", "ipv6-malformed": "[:::1]",
        }.items()
    ],
    Row("B14-tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, NOT_HTTP),
    Row("B14-http-0.9", b"GET /v1/models\r\n\r\n", 400),
    Row("B14-http-2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, NOT_HTTP),
    Row("B14-version-2.0", get().replace(b"/1.1", b"/2.0", 1), 400, "HTTP/1.1 is needed"),
    Row("B14-version-1.0", get().replace(b"/1.1", b"/1.0", 1), 400, "HTTP/1.1 is needed"),
    Row("B15-origin-post", post(GOOD, "origin: http://evil.example"), 403),
    Row("B15-origin-delete", get(f"{BATCHES}/x", "origin: null", method="DELETE"), 403),
    # A form without an `Origin` is no browser's, and only an unfit content type: 400, not 403.
    Row("B15-form", post(GOOD, "content-type: application/x-www-form-urlencoded"), 400,
        "content-type: application/x-www-form-urlencoded is not supported"),
    Row("B15-multipart", post(GOOD, "content-type: multipart/form-data; boundary=x"), 400),
    Row("B15-text", post(GOOD, "content-type: text/plain"), 400),
    # Bodies.
    Row("B16-declared", head(f"content-length: {CAP + 1}"), 413, "Request exceeds the maximum size",
        header=("connection", "close")),
    Row("B16-expect", head(f"content-length: {CAP + 1}", "expect: 100-continue"), 413,
        "Request exceeds the maximum size", header=("connection", "close")),
    Row("B17-grows", head("transfer-encoding: chunked") + PIECE * 17, 413,
        "Request exceeds the maximum size", header=("connection", "close")),
    Row("B19-stops", head("content-length: 100") + b"{", 400, "The request body stopped",
        "request_body_timeout", ("connection", "close")),
    Row("B20-gzip", post(gzip.compress(GOOD), "content-encoding: gzip"), 400, "content-encoding: ",
        "request_body_encoding_unsupported"),
    # No coding is supported, so a bomb, a bad one or two in a row are refused alike, unread.
    Row("B21-bomb", post(gzip.compress(bytes(CAP * 50)), "content-encoding: gzip"), 400,
        "content-encoding: ", "request_body_encoding_unsupported"),
    Row("B21-two", post(GOOD, "content-encoding: gzip, gzip"), 400, "content-encoding: ",
        "request_body_encoding_unsupported"),
    Row("B22-type", post(GOOD, "content-type: application/xml"), 400, "content-type: "),
    *[
        Row(f"B22-charset-{name}", post(GOOD, f"content-type: application/json; {value}"), 400,
            "content-type: the charset must be UTF-8", "unsupported_charset")
        for name, value in {
            "utf-16": "charset=utf-16", "latin-1": 'charset="ISO-8859-1"',
            "utf-80": "charset=utf-80", "empty": "charset=",
            "second": "x=charset=utf-8; charset=utf-7",
        }.items()
    ],
    Row("B23-bad-utf8", post(entry(content('"X"')).encode().replace(b"X", b"\xff\xfe")), 400,
        "requests.1.params: not UTF-8 (invalid start byte)"),
    Row("B23-overlong", post(entry(content('"X"')).encode().replace(b"X", b"\xc0\xaf")), 400,
        "requests.1.params: not UTF-8"),
    Row("B23-bad-utf8-in-key", post(entry('{"X":1}').encode().replace(b"X", b"\xff")), 400,
        "requests.1.params: not UTF-8"),
    Row("B23-bad-utf8-in-id", post(entry("{}", '"X"').encode().replace(b"X", b"\xff")), 400, JSON),
    Row("B23-utf-16", post(GOOD.decode().encode("utf-16")), 400, JSON),
    Row("B23-utf-32", post(GOOD.decode().encode("utf-32-le")), 400, JSON),
    Row("B23-byte-order-mark", post(b"\xef\xbb\xbf" + GOOD), 400, JSON),
    Row("B23-control", post(entry(content('"a\1b"'))), 400, JSON),
    Row("B23-raw-line-end", post(entry(content('"a\nb"'))), 400, JSON),
    Row("B24-lone-surrogate", post(entry(content('"\\ud800"'))), 400, JSON),
    Row("B24-lone-surrogate-in-key", post(entry('{"\\udfff":1}')), 400, JSON),
    Row("B25-nan", post(entry('{"x":NaN}')), 400, JSON),
    Row("B25-infinity", post(entry('{"x":-Infinity}')), 400, JSON),
    Row("B25-1e400", post(entry('{"x":[1,1e400]}')), 400,
        "requests.1.params.x.1: Number out of range"),
    Row("B26-5000-digits", post(entry('{"x":%s}' % ("9" * 5_000))), 400,
        "requests.1.params.x: Integer of more than 4300 digits"),
    *[Row(f"B27-depth-{n}", post(entry('{"x":' + "[" * n + "]" * n + "}")), 400,
          DEEP if n < 900 else "") for n in (100, 500, 1_000, 5_000, 400_000)],
    Row("B27-objects", post(entry('{"x":' * 101 + "1" + "}" * 101)), 400, DEEP),
    Row("B28-twice", post(entry('{"model":"a","model":"b"}')), 400,
        'requests.1.params: Duplicate key "model"'),
    Row("B28-below", post(entry(content('[{"type":"text","text":"a","text":"b"}]'))), 400,
        'requests.1.params.messages.0.content.0: Duplicate key "text"'),
    Row("B28-escaped", post(entry('{"model":"a","mod\\u0065l":"b"}')), 400,
        'requests.1.params: Duplicate key "model"'),
    Row("B28-entry", post(entry('{},"params":{}')), 400, TWICE),
    Row("B28-entry-id", post(entry('{}', more=',"custom_id":"y"')), 400, TWICE),
    Row("B28-envelope", post('{"requests":[],' + entry("{}")[1:]), 400, 'Duplicate key "requests"'),
    Row("B29-empty", post(b""), 400, f"{JSON}it is empty"),
    Row("B29-trailing-comma", post(GOOD[:-2] + b",]}"), 400, JSON),
    Row("B29-comment", post(b"// x\n" + GOOD), 400, JSON),
    Row("B29-two-documents", post(GOOD + GOOD), 400, JSON),
    Row("B29-garbage-after", post(GOOD + b"x"), 400, JSON),
    Row("B29-cut", post(GOOD[:-1]), 400, JSON),
    Row("B30-list", post("[]"), 400, "Input should be a valid dictionary or object"),
    Row("B30-null", post("null"), 400, "Input should be a valid dictionary or object"),
    Row("B30-unknown-field", post('{"requests":[],"model":"m"}'), 400,
        "model: Extra inputs are not permitted"),
    Row("B30-unknown-field-of-a-request", post(entry("{}", more=',"x":1')), 400,
        "requests.1.x: Extra inputs are not permitted"),
    Row("B31-missing", post("{}"), 400, "requests: Field required"),
    Row("B31-no-list", post('{"requests":{}}'), 400, "requests: Input should be a valid list"),
    Row("B31-empty", post('{"requests":[]}'), 400,
        "requests: List should have at least 1 item after validation, not 0"),
    Row("B32-too-many", post(json.dumps({"requests": [{"custom_id": f"n{n}", "params": {}}
                                                      for n in range(1_001)]})), 400,
        "requests: List should have at most 1000 items after validation, not 1001"),
    Row("B33-missing", post('{"requests":[{"params":{}}]}'), 400,
        "requests.0.custom_id: Field required"),
    Row("B33-number", post(entry("{}", "1")), 400,
        "requests.1.custom_id: Input should be a valid string"),
    Row("B33-empty", post(entry("{}", '""')), 400,
        "requests.1.custom_id: String should have at least 1 character"),
    Row("B33-65-long", post(entry("{}", f'"{"x" * 65}"')), 400,
        "requests.1.custom_id: String should have at most 64 characters"),
    *[
        Row(f"B33-{name}", post(entry("{}", f'"{text}"')), 400, PATTERN)
        for name, text in {
            "space": "a b", "dot": "a.b", "slash": "a/b", "line-end": "a\\n", "digit": "٣",
            "nul": "\\u0000", "formula": "=cmd",
        }.items()
    ],
    # The text of the hosted API names the id, not both positions.
    Row("B34-twice", post(entry("{}", '"good"')), 400,
        "requests: custom_id's must be unique within a batch. Duplicate custom_id found: good"),
    Row("B35-missing", post('{"requests":[{"custom_id":"a"}]}'), 400,
        "requests.0.params: Field required"),
    Row("B35-no-object", post(entry("[]")), 400,
        "requests.1.params: Input should be a valid dictionary"),
    # Lists.
    *[
        Row(f"B42-limit-{value}", get(f"{BATCHES}?limit={value}"), 400, "limit: Input should be")
        for value in ("0", "-1", "1001", "abc", "1e3", "1.5", "%D9%A3", "%00", "", "9" * 5_000)
    ],
    Row("B42-unknown-cursor", get(f"{BATCHES}?after_id=msgbatch_01None"), 400, "after_id: no such"),
    Row("B43-nul-in-url", get(f"{BATCHES}?x=\0"), 400, NOT_HTTP),
    Row("B43-byte-in-url", get(f"{BATCHES}?x=\xe9"), 400, NOT_HTTP),
    Row("B43-8-kB", get(f"{BATCHES}?limit={'1' * 9_000}"), 414),
    Row("B44-cancel-unknown", head("content-length: 0", LAST, target=f"{BATCHES}/x/cancel"), 404),
    Row("B45-delete-unknown", get(f"{BATCHES}/x", method="DELETE"), 404),
    Row("B46-results-unknown", get(f"{BATCHES}/x/results"), 404),
    Row("B49-empty-key", post(GOOD, "idempotency-key: "), 400, "idempotency-key: 1 to 256",
        header=("x-should-retry", "false")),
    Row("B49-10-kB", post(GOOD, "idempotency-key: " + "k" * 10_000), 400, "idempotency-key: 1 to",
        header=("x-should-retry", "false")),
]  # fmt: skip


@pytest.fixture(scope="module")
def bad(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """A yard that never accepts a batch, with small caps."""
    bounds = {
        "limits:BATCH_BODY_BYTES_MAX": CAP,
        "limits:BATCH_REQUESTS_MAX": 1_000,
        "limits:HEAD_TIMEOUT_S": 0.2,
        "limits:UNREAD_TIMEOUT_S": 1.0,
        "server.guard:BODY_IDLE_S": 0.2,
    }
    with Yard(tmp_path_factory.mktemp("bad") / "data", upstream.url, bounds=bounds) as yard:
        yield yard


def refused(yard: Yard, row: Row) -> Reply:
    """Send a row on a connection of its own, which is then closed; check its answer."""
    reply = reply_in_time(yard.port, row.data)
    assert reply.status == row.status, reply.body
    error = reply.error()
    assert error["type"] == KINDS[row.status]
    if row.text.startswith("…"):
        assert row.text[1:] in error["message"]
    else:
        assert error["message"].startswith(row.text)
    assert error.get("details", {}).get("error_code") == row.code
    if row.header:
        assert reply.headers[row.header[0]] == row.header[1]
    assert KEY.encode() not in reply.body
    return reply


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_bad_input_is_refused_and_leaves_nothing(bad: Yard, row: Row) -> None:
    before = bad.read_log()
    refused(bad, row)
    assert bad.get(BATCHES).json()["data"] == []
    assert bad.files() == []
    log = bad.read_log()[len(before) :]
    assert "Traceback" not in log
    assert "defect" not in log


# What is accepted, so that the rows above refuse no more than they say -------------------------

FINE = {
    "B02-both-keys-equal": post(GOOD, f"authorization: Bearer {KEY}"),
    "B09-unknown-beta": post(GOOD, "anthropic-beta: never-heard-of-2099-01-01"),
    "B11-chunked": chunked(),
    "B11-chunked-upper-case": chunked().replace(b": chunked", b": Chunked"),
    "B11-chunked-and-blanks": chunked().replace(b": chunked", b":\t chunked  "),
    "B11-length-and-blanks": get(BATCHES, "content-length: 0\t "),
    "B13-host-with-port": get(**without("host", "host: LocalHost:65535")),
    "B13-host-ipv6": get(**without("host", "host: [::1]")),
    "B13-host-ipv6-with-port": get(**without("host", "host: [::1]:80")),
    "B22-no-type": post(GOOD),
    "B22-charset": post(GOOD, 'content-type: application/json; charset="UTF-8"'),
    "B26-2^64": post(entry('{"x":[9223372036854775808,18446744073709551616,-1e300]}')),
    "B27-100-levels": post(entry('{"x":' + "[" * 99 + "]" * 99 + "}")),
    "B28-same-key-in-two-objects": post(entry('{"a":{"a":1},"b":[{"a":1},{"a":1}]}')),
    "B34-other-case": post(entry("{}", '"GOOD"')),
    "B43-unknown-names": get(f"{BATCHES}?limit=1&beta=true&x=%zz&y=%00&limits=0"),
    # The contract's choice: with both cursors, `after_id` counts; both are empty here.
    "B42-both-cursors": get(f"{BATCHES}?limit=1&after_id=&before_id="),
    # Planned as 400: of a repeated name the last one counts, as with most servers.
    "B42-limit-twice": get(f"{BATCHES}?limit=0&limit=1"),
}


@pytest.mark.parametrize("case", FINE)
def test_what_is_odd_but_clear_is_accepted(yard: Yard, case: str) -> None:
    assert one_reply(yard.port, FINE[case]).status == 200


def test_a_host_of_an_internal_network_may_have_an_underscore() -> None:
    assert host_name("Batch_Yard.internal:80") == "batch_yard.internal"


# Rows that need more than one exchange ---------------------------------------------------------


def test_b16_a_declared_length_over_the_cap_is_not_invited(bad: Yard) -> None:
    asked = head(f"content-length: {CAP + 1}", "expect: 100-continue")
    received = exchange_in_time(bad.port, asked)
    assert b"100 Continue" not in received
    (reply,) = replies(received)
    assert reply.status == 413


def test_b18_f16_a_client_that_goes_during_the_upload_leaves_nothing(bad: Yard) -> None:
    """Cut at every 64 kB of a body."""
    body = json.dumps({"requests": [request("x" * 500_000)]}).encode()
    for cut in range(0, len(body), 65_536):
        with closing(socket.create_connection(("127.0.0.1", bad.port), DEADLINE_S)) as connection:
            connection.sendall(head(f"content-length: {len(body)}") + body[:cut])
    poll(lambda: bad.files() == [], lambda: str(bad.files()))
    assert bad.get(BATCHES).json()["data"] == []


def test_f14_slow_clients_do_not_hold_up_others(bad: Yard) -> None:
    with contextlib.ExitStack() as stack:
        slow = []
        for n in range(100):
            connection = socket.create_connection(("127.0.0.1", bad.port), DEADLINE_S)
            stack.enter_context(closing(connection))
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"POST /v1" if n % 2 else head("content-length: 9") + b"{")
            slow.append(connection)
        assert bad.get(BATCHES).status == 200
        answered = 0
        for n, connection in enumerate(slow):
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65_536):
                    received += part
            for reply in replies(received):  # none where the first byte came too late here
                assert reply.status == (408 if n % 2 else 400)
                answered += 1
        assert answered >= len(slow) / 2


BAD_PARAMS: dict[str, tuple[dict[str, object], str]] = {
    "B36-stream": ({"stream": True}, "`stream=True` is not supported"),
    "B36-speed": ({"speed": "fast"}, "`speed` is not supported"),
    "B36-store": ({"store": True}, "`store` is not supported"),
    "B36-thread": ({"previous_thread_event_id": "x"}, "`previous_thread_event_id` is not"),
    "B36-cache": ({"cache_hint": {}}, "`cache_hint` is not supported"),
    "B36-context": ({"context_hint": {}}, "`context_hint` is not supported"),
    "B36-preview": ({"research_preview_2026_02": "active"}, "`research_preview_2026_02` is not"),
    "B36-zero": ({"max_tokens": 0}, "max_tokens"),
    "B37-negative": ({"max_tokens": -1}, "max_tokens"),
    "B37-boolean": ({"max_tokens": True}, "max_tokens"),
    "B37-string": ({"max_tokens": "1"}, "max_tokens"),
    "B37-float": ({"max_tokens": 1.5}, "max_tokens"),
    "B37-null": ({"max_tokens": None}, "max_tokens"),
    "B38-10-kB": ({"model": "m" * 10_000}, "model"),
    "B38-number": ({"model": 5}, "model"),
    "B38-empty": ({"model": ""}, "model"),
    "B41-300k": ({"model": "claude-opus-4-6", "max_tokens": 300_000}, "max_tokens: 300000 > "),
}


def test_b36_to_b41_bad_params_are_accepted_and_errored_at_the_end(yard: Yard) -> None:
    entries = [request(name, name, **params) for name, (params, _) in BAD_PARAMS.items()]
    batch = yard.create([*entries, request("fine")])
    ended = yard.wait_ended(batch["id"])
    results = yard.results(batch["id"])
    assert results.pop("fine")["type"] == "succeeded"
    wrong = {}
    for name, result in results.items():
        error = result.get("error", {}).get("error", {})
        if error.get("type") != "invalid_request_error" or not error["message"].startswith(
            BAD_PARAMS[name][1]
        ):
            wrong[name] = result
    assert wrong == {}
    assert ended["request_counts"]["errored"] == len(BAD_PARAMS)


def test_b39_a_request_that_is_too_large_alone_is_errored_at_the_end(
    upstream: Upstream, tmp_path: Path
) -> None:
    """A create body holds what one call to a model may not."""
    bounds = QUICK | {"limits:MESSAGE_BODY_BYTES_MAX": 1 << 20}
    with Yard(tmp_path / "data", upstream.url, bounds=bounds) as yard:
        batch = yard.create([request("x" * (1 << 20), "large"), request("b39-small", "small")])
        yard.wait_ended(batch["id"])
        results = yard.results(batch["id"])
        assert results["small"]["type"] == "succeeded"
        large = results["large"]
        assert large["error"]["error"]["type"] == "invalid_request_error"
        assert large["error"]["error"]["message"].startswith("Request exceeds the maximum size")


def test_b40_urls_are_passed_only_to_who_may_fetch_them(yard: Yard) -> None:
    source = {"type": "url", "url": "http://169.254.169.254/latest"}
    content = [{"type": "image", "source": source}]
    inner = [{"type": "tool_result", "tool_use_id": "toolu_1", "content": content}]
    for name, blocks in (("b40-image", content), ("b40-nested", inner)):
        params = {"messages": [{"role": "user", "content": blocks}]}
        batch = yard.create([request(name, name, **params)])
        yard.wait_ended(batch["id"])
        result = yard.results(batch["id"])[name]
        assert result["type"] == "errored", "the upstream here may not fetch"
        error = result["error"]["error"]
        assert error["type"] == "invalid_request_error"
        assert "source.url: URLs are not passed on" in error["message"]


def test_b48_below_the_reserve_of_the_disk_no_batch_is_accepted(
    upstream: Upstream, tmp_path: Path
) -> None:
    """What happens on a disk that is full is in tests/disk."""
    environment = {"BATCHYARD_DISK_RESERVE_MB": str(1 << 30)}
    with Yard(tmp_path / "data", upstream.url, environment=environment) as yard:
        answer = yard.post(BATCHES, {"requests": [request("b48")]})
        assert answer.status == 529
        assert answer.json()["error"]["type"] == "overloaded_error"
        assert int(answer.headers["retry-after"]) > 0
        assert yard.get(BATCHES).json()["data"] == []
        assert yard.files() == []


def test_b38_a_model_with_control_characters_stays_one_line_of_the_log(yard: Yard) -> None:
    """The upstream here takes any model; the name must not get out of its place."""
    model = 'x"}\n2026-01-01 INFO forged \x1b[2J/../y'
    before = len(yard.read_log())
    results = yard.run(["b38"])
    batch = yard.create([request("b38-odd", model=model)])
    yard.wait_ended(batch["id"])
    assert set(results) == {"b38"}
    assert "\n2026-01-01 INFO forged" not in yard.read_log()[before:]


def test_b44_b45_cancel_and_delete_again(yard: Yard) -> None:
    batch = yard.create([request("b44")])
    path = f"{BATCHES}/{batch['id']}"
    ended = yard.wait_ended(batch["id"])
    again = yard.request("POST", f"{path}/cancel")
    assert (again.status, again.json()) == (200, ended)
    assert yard.request("DELETE", path).status == 200
    gone = yard.request("DELETE", path)
    assert (gone.status, gone.json()["error"]["type"]) == (404, "not_found_error")
    assert yard.get(f"{path}/results").status == 404


def test_b49_an_idempotency_key_for_other_content_is_refused(yard: Yard) -> None:
    headers = HEADERS | {"idempotency-key": "b49"}
    assert yard.post(BATCHES, GOOD, headers).status == 200
    answer = yard.post(BATCHES, {"requests": [request("other")]}, headers)
    assert (answer.status, answer.headers["x-should-retry"]) == (400, "false")


async def guarded(app: Any, failures: list[StoreError] | None = None) -> list[Any]:
    """Return what is sent where an app behind the guard is asked something."""
    sent: list[Any] = []
    failures = [] if failures is None else failures
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"host", b"h")]}

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(app, frozenset({"h"}), failures.append)
    await guard(scope, None, send)  # type: ignore[arg-type]
    return sent


def test_an_answer_that_the_end_of_the_process_cuts_is_no_defect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60.0)

    assert asyncio.run(guarded(waiting)) == []
    assert "the server ends" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_call_that_comes_when_the_process_has_ended_its_threads_is_no_defect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def late(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.get_running_loop().shutdown_default_executor()
        await asyncio.to_thread(int)

    start, _ = asyncio.run(guarded(late))
    assert start["status"] == 500
    assert "the server ends" in caplog.text
    assert "Traceback" not in caplog.text


def test_b50_a_defect_is_500_with_a_fixed_text(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError("secret detail")

    start, body = asyncio.run(guarded(broken))
    answer = json.loads(body["body"])
    assert (start["status"], answer["error"]["type"]) == (500, "api_error")
    assert answer["error"]["message"] == "Internal server error."
    assert dict(start["headers"])[b"request-id"] == answer["request_id"].encode()
    assert answer["request_id"] in caplog.text
    assert "secret detail" in caplog.text


@pytest.mark.parametrize(
    ("error", "status", "is_of_the_store"),
    [
        (StoreError, 500, True),
        (DeadSegment, 500, True),
        (DamagedError, 500, False),
        (SegmentRefused, 500, False),
        (SegmentsGone, 500, False),
        (DiskFull, 529, False),
        (InvalidRequest, 400, False),
    ],
)
@pytest.mark.parametrize("has_begun", [False, True])
def test_what_fails_of_the_store_itself_is_told_after_the_answer_and_nothing_else_is(
    error: type[BatchyardError], status: int, is_of_the_store: bool, has_begun: bool
) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        if has_begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error("secret detail")

    failures: list[StoreError] = []
    start, *rest = asyncio.run(guarded(failing, failures))
    assert start["status"] == (200 if has_begun else status)
    assert bool(rest) != has_begun
    assert [str(each) for each in failures] == ["secret detail"] * is_of_the_store
    assert b"secret" not in (rest or [{"body": b""}])[0]["body"] or error is InvalidRequest


def test_too_many_open_files_are_no_end_of_the_store() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise StoreError("cannot open") from OSError(errno.EMFILE, "too many open files")

    failures: list[StoreError] = []
    start, _ = asyncio.run(guarded(failing, failures))
    assert start["status"] == 500
    assert failures == []


@pytest.mark.parametrize(
    "data",
    [
        get("/v1/x%0a2026-01-01%20INFO%20forged"),
        get(f"{BATCHES}/%0a2026-01-01%20INFO%20forged"),
        get(BATCHES, "x-a: {\"level\":\"forged\"}", "user-agent: \xff\xfe"),
        get(**without("host", "host: forged\x85example")),
        post(entry("{}", '"\\n2026-01-01 INFO forged"')),
        post('{"\\n2026-01-01 INFO forged":1}'),
        b"FORGED\n2026-01-01 INFO forged\r\n\r\n",
    ],
)  # fmt: skip
def test_b54_nothing_of_a_request_makes_a_line_of_the_log(yard: Yard, data: bytes) -> None:
    before = len(yard.read_log())
    one_reply(yard.port, data)
    assert "forged" not in yard.read_log()[before:].lower()


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model":1}', b"\xff", b"[" * 100_000])
def test_bad_bodies_of_what_is_passed_on_are_refused_here(
    yard: Yard, path: str, body: bytes
) -> None:
    assert one_reply(yard.port, post(body, target=path)).status == 400
