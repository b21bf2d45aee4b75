"""The pure parts of the probe: addresses, command lines, and what an answer is held against."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from batchyard.cli import probe_table
from batchyard.errors import ConfigError
from batchyard.probe import batches, check, http, run
from batchyard.probe.check import MISSING, Differs, at
from batchyard.probe.http import Exchange, Request
from batchyard.probe.points import Need, Source
from batchyard.probe.run import Finding

KEY = "sk-some-key"
HERE = http.target("http://127.0.0.1:8787")


def exchange(status: int = 200, body: bytes = b"{}", **headers: str) -> Exchange:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Exchange(Request("GET", "/v1/messages/batches", ()), status, named, body)


# Addresses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "base", "is_loopback"),
    [
        ("http://127.0.0.1:8787", "http://127.0.0.1:8787", True),
        ("http://localhost/", "http://localhost", True),
        ("http://[::1]:80/", "http://[::1]:80", True),
        ("https://api.anthropic.com/v1", "https://api.anthropic.com", False),
        ("https://relay.example/a/b/v1/", "https://relay.example/a/b", False),
        ("https://127.0.0.1.example", "https://127.0.0.1.example", False),
        ("http://0.0.0.0:1", "http://0.0.0.0:1", False),
    ],
)
def test_an_address_is_read_as_the_official_clients_read_it(
    url: str, base: str, is_loopback: bool
) -> None:
    found = http.target(url)
    assert (found.base, found.is_loopback) == (base, is_loopback)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:1", "ftp://x", "http://", "http://x:y", "http://x y", "http://x\r\n", "http://é",
     "http://[", "http://x?a=b", "http://x#a", "http://u@x", "http://:p@x"],
)  # fmt: skip
def test_what_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        http.target(url)


# Command lines -----------------------------------------------------------------------------------


def test_a_command_line_holds_all_but_the_key() -> None:
    request = Request(
        "POST",
        "/v1/messages/batches?a=b&c",
        (("x-api-key", KEY), ("authorization", f"Bearer {KEY}"), ("x-odd", "it's; $HOME")),
        b'{"a":"it\'s"}',
    )
    line = http.curl(HERE, request, KEY)
    assert KEY not in line
    assert shlex.split(line) == [
        "curl", "-isS", "-X", "POST", "http://127.0.0.1:8787/v1/messages/batches?a=b&c",
        "-H", "x-api-key: $ANTHROPIC_API_KEY",
        "-H", "authorization: Bearer $ANTHROPIC_API_KEY",
        "-H", "x-odd: it's; $HOME",
        "--data-binary", '{"a":"it\'s"}',
    ]  # fmt: skip
    assert '"x-api-key: $ANTHROPIC_API_KEY"' in line, "the shell puts the key in"
    assert "'x-odd: it'\"'\"'s; $HOME'" in line, "and nothing else"


def test_an_empty_body_and_odd_bytes_have_a_command_line() -> None:
    empty = http.curl(HERE, Request("POST", "/x", (), b""), KEY)
    assert empty == "curl -isS -X POST http://127.0.0.1:8787/x -H 'content-length: 0'"
    odd = http.curl(HERE, Request("POST", "/x", (), b"a'\xff"), KEY)
    assert odd.endswith(r" --data-binary $'a\x27\xff'")


def test_a_long_body_is_made_by_a_command() -> None:
    line = http.curl(HERE, Request("POST", "/x", (), b"long", recipe="python3 -c 'x'"), KEY)
    assert line == "python3 -c 'x' | curl -isS -X POST http://127.0.0.1:8787/x --data-binary @-"


# Answers -----------------------------------------------------------------------------------------


def test_a_part_that_is_not_there_is_missing_and_no_crash() -> None:
    value = {"a": [{"b": None}]}
    assert at(value, "a", 0, "b") is None
    for path in (("a", 1), ("a", "b"), ("c",), ("a", 0, "b", "c"), (0,)):
        assert at(value, *path) is MISSING
    assert at("text", 0) is MISSING
    assert check.text(MISSING) == "missing"


@pytest.mark.parametrize(
    ("value", "is_time", "is_precise"),
    [
        ("2026-11-21T18:37:24.100435Z", True, True),
        ("2026-11-21T18:37:24.000000+00:00", True, True),
        ("2026-11-21T18:37:24Z", True, False),
        ("2026-11-21T18:37:24.1Z", True, False),
        ("2026-11-21T18:37:24.100435", False, False),
        ("2026-11-21 18:37:24.100435Z", False, False),
        ("2026-13-21T18:37:24.100435Z", False, True),
        ("", False, False),
        (None, False, False),
        (1_795_000_000, False, False),
        ({}, False, False),
    ],
)
def test_times(value: object, is_time: bool, is_precise: bool) -> None:
    assert (check.moment(value) is not None) == is_time
    assert check.has_microseconds(value) == is_precise


def test_an_error_is_held_against_status_type_and_text() -> None:
    body = b'{"type":"error","error":{"type":"not_found_error","message":"not here"}}'
    check.refused(exchange(404, body), 404, "not_found_error", "not here")
    check.refused(exchange(404, body), 404, "not_found_error", begins="not")
    for wrong in (
        (400, "not_found_error", "not here"),
        (404, "api_error", "not here"),
        (404, "not_found_error", "not"),
    ):
        with pytest.raises(Differs) as caught:
            check.refused(exchange(404, body), *wrong)
        assert caught.value.got == "404 not_found_error: not here"
    with pytest.raises(Differs):
        check.refused(exchange(404, body), 404, "not_found_error", begins="x")
    for odd in (b"", b"<html>", b"[]", b"[" * 100_000, b"\xff", b'{"error":1}'):
        with pytest.raises(Differs):
            check.refused(exchange(404, odd), 404, "not_found_error")


def test_a_success_is_a_200_with_an_object() -> None:
    assert check.ok(exchange(200, b'{"a":1}')) == {"a": 1}
    for status, body in ((201, b"{}"), (200, b"[]"), (200, b"")):
        with pytest.raises(Differs):
            check.ok(exchange(status, body))


def test_headers_are_held_against_a_value_or_their_absence() -> None:
    check.expect_header(exchange(retry_after="10"), "retry-after", "10")
    check.expect_header(exchange(), "retry-after", None)
    with pytest.raises(Differs, match="expected no retry-after, got retry-after: 10"):
        check.expect_header(exchange(retry_after="10"), "retry-after", None)
    with pytest.raises(Differs, match="expected retry-after: 10, got no retry-after"):
        check.expect_header(exchange(), "retry-after", "10")


def test_what_is_shown_is_cut() -> None:
    with pytest.raises(Differs) as caught:
        check.expect(False, "short", "x" * 10_000, exchange())
    assert len(caught.value.got) <= 300


# What it makes -----------------------------------------------------------------------------------


def test_the_plan_counts_what_is_made() -> None:
    model = "claude-haiku-4-5"
    plan = batches.plan(model)
    groups = [
        batches.main_requests(model), batches.modern_requests(model),
        batches.canceled_requests(model),
    ]  # fmt: skip
    assert plan.requests_max == sum(map(len, groups)) + 4
    # 7 requests of 40 input and 16 output tokens at half of $1 and $5 a million.
    assert plan.micros == 7 * (40 * 0.5 + 16 * 2.5)
    assert batches.plan("mine").micros is None
    for group in groups:
        assert all(len(custom_id) <= 64 for custom_id in group)
    assert len(batches.LONG_ID) == 64


def test_the_page_about_the_probe_counts_its_points() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "probe.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d\.\d) \| (.+) \| (\d+) \|$", page, re.MULTILINE)
    assert rows == [
        (section.number, section.name, str(len(section.points))) for section in run.SECTIONS
    ]
    free = sum(point.need is Need.NOTHING for point in run.POINTS)
    assert f"{free} of the {len(run.POINTS)} points are asked then" in page


# How it looks ------------------------------------------------------------------------------------


def finding(outcome: str, source: Source = Source.DOCUMENTED) -> Finding:
    point = next(point for point in run.POINTS if point.source is source)
    return Finding(point, outcome, "a", "b", "curl", "why")  # type: ignore[arg-type]


def test_the_sum_names_what_does_not_count() -> None:
    holds, differs, skipped = map(finding, ("holds", "differs", "not run"))
    soft = finding("differs", Source.RECOMMENDED)
    assert differs.fails
    assert not soft.fails
    assert probe_table.total([holds]) == "1 of 1 hold"
    assert probe_table.total([holds, differs, skipped]) == "1 of 3 hold, 1 differs, 1 not run"
    assert probe_table.total([soft, soft, differs]) == "0 of 3 hold, 3 differ (2 recommended only)"
