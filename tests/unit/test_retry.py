"""What every outcome means."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits, result, wire
from batchyard.dispatch import retry
from batchyard.dispatch.limiter import Signal
from batchyard.dispatch.retry import Again, Done, Fail, Pause, backoff_s, decide
from batchyard.upstream import Failure, FailureKind, Reply
from batchyard.upstream.messages import MessagesUpstream

NOW = 1_790_000_000_000_000  # 2026-09-21T14:13:20Z
MESSAGE = (
    b'{"type":"message","content":[],"stop_reason":"end_turn","usage":{"service_tier":"standard"}}'
)
PAUSES = {401, 402, 403}
WAITS = {429, 529}


def error(kind: str, message: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


@pytest.mark.parametrize("body", [b"", b"<html>x</html>", error("api_error", "x"), b"\xff\0"])
def test_every_status_has_its_action(body: bytes) -> None:
    for status in range(100, 1_000):
        action = decide(Reply(status, body, "3", "req_1"), NOW)
        note = f"status {status}: {action}"
        if status in PAUSES or (status in {404, 405} and b"error" not in body):
            assert isinstance(action, Pause), note
        elif status == 200:
            assert isinstance(action, Again), note
            assert (action.retry_after_s, action.counted) == (None, True), note
        elif status >= 500 or status < 300 or status in WAITS or status in {408, 409}:
            assert isinstance(action, Again), note
            assert action.retry_after_s == 3.0, note
            assert action.counted == (status not in WAITS | {503}), note
            assert action.reached, note
        else:
            assert isinstance(action, Fail), note
            assert action.request_id == "req_1", note
        assert not isinstance(action, Done), note
        assert action.type in result.ERROR_TYPES, note
        assert action.message, note
        assert "<" not in action.message, note


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (408, "timeout_error"),
        (409, "api_error"),
        (413, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (418, "api_error"),
        (204, "api_error"),
        (302, "api_error"),
        (500, "api_error"),
        (503, "api_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
        (999, "api_error"),
    ],
)
def test_a_body_that_says_nothing_leaves_the_type_to_the_status(status: int, kind: str) -> None:
    action = decide(Reply(status, b"oops"), NOW)
    assert not isinstance(action, Done)
    assert action.type == kind
    assert action.message == f"The upstream answered with HTTP status {status}."


def test_an_address_without_the_api_pauses_instead_of_burning_the_batch() -> None:
    action = decide(Reply(404, b"<html>not here</html>"), NOW)
    assert isinstance(action, Pause)
    assert "/v1/messages" in action.message
    assert isinstance(decide(Reply(404, error("not_found_error", "model: x")), NOW), Fail)


def test_the_upstreams_own_error_is_kept() -> None:
    body = error("not_found_error", "model: x")
    assert decide(Reply(400, body, None, "req_9"), NOW) == Fail(
        "not_found_error", "model: x", "req_9"
    )


@pytest.mark.parametrize("kind", ["request_too_large", "invented_error", "", "x" * 10_000])
def test_an_error_type_that_clients_do_not_know_becomes_that_of_the_status(kind: str) -> None:
    action = decide(Reply(413, error(kind, "x")), NOW)
    assert isinstance(action, Fail)
    assert action.type == "invalid_request_error"


def test_a_long_error_text_is_cut() -> None:
    action = decide(Reply(400, error("api_error", "x" * 100_000)), NOW)
    assert isinstance(action, Fail)
    assert len(action.message) == 1_000


@pytest.mark.parametrize(
    "body",
    [b"{}", b"", b"[]", b"null", b"<html>", b"\xff", MESSAGE[:-1], b"[" * 100_000,
     error("api_error", "x"), MESSAGE.replace(b'"end_turn"', b"null")],
)  # fmt: skip
def test_a_200_that_is_no_message_is_tried_again_and_counts(body: bytes) -> None:
    action = decide(Reply(200, body), NOW)
    assert isinstance(action, Again)
    assert (action.type, action.counted, action.reached) == ("api_error", True, True)


def test_a_message_is_done() -> None:
    action = decide(Reply(200, MESSAGE), NOW)
    assert isinstance(action, Done)
    assert b'"service_tier":"batch"' in action.message.body


FAILURES = {
    FailureKind.CONNECT: ("api_error", False, False),
    FailureKind.TIMEOUT: ("timeout_error", True, True),
    FailureKind.BROKEN: ("api_error", True, True),
    FailureKind.STALE: ("api_error", False, True),
    FailureKind.NO_STREAM: ("api_error", False, True),
    FailureKind.UNWANTED: ("api_error", False, False),
}


@pytest.mark.parametrize("kind", list(FailureKind))
def test_every_failure_has_its_action(kind: FailureKind) -> None:
    action = decide(Failure(kind, "why"), NOW)
    if kind is FailureKind.TOO_LARGE:
        assert action == Fail("api_error", "The upstream's reply is too large: why", None)
        return
    assert isinstance(action, Again)
    assert (action.type, action.counted, action.reached) == FAILURES[kind]
    assert action.message.endswith("why")
    assert action.retry_after_s is None
    assert action.at_once == (kind in {FailureKind.STALE, FailureKind.NO_STREAM})
    assert action.is_sent == (kind is not FailureKind.UNWANTED)


def test_only_what_an_upstream_asks_us_to_wait_for_is_free() -> None:
    """Being told to wait, or not reaching it, must not use up the tries of a request."""
    free = [
        s
        for s in range(100, 1_000)
        if isinstance(action := decide(Reply(s, b""), NOW), Again) and not action.counted
    ]
    assert free == [429, 529]


# retry-after: fault F20 ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("007", 7.0),
        ("900", 900.0),
        ("901", 900.0),
        ("99999999999999999999", 900.0),
        ("9" * 400, 900.0),
        ("-5", None),
        ("+3", None),
        ("1e9", None),
        ("nan", None),
        ("inf", None),
        ("1_0", None),
        ("٣", None),
        ("²", None),
        ("0x10", None),
        ("7, 9", None),
        ("1.2.3", None),
        (".", None),
        ("", None),
        ("soon", None),
        ("\xff", None),
        ("Mon, 21 Sep 2026 14:13:50 GMT", 30.0),
        ("Mon, 21 Sep 2026 14:13:20 GMT", 0.0),
        ("Mon, 21 Sep 2026 13:00:00 GMT", 0.0),  # past
        ("Tue, 22 Sep 2026 14:13:20 GMT", 900.0),  # far
        ("Mon, 21 Sep 9999 14:13:20 GMT", 900.0),
        ("Mon, 99 Sep 2026 14:13:20 GMT", None),
        ("Mon, 21 Sep 99999 14:13:20 GMT", None),
        ("2026-09-21T14:13:50Z", None),
        ("GMT", None),
    ],
)
def test_retry_after_is_read_strictly(value: str | None, seconds: float | None) -> None:
    assert wire.parse_retry_after(value, NOW, cap_s=limits.RETRY_AFTER_CAP_S) == seconds


@given(st.text(max_size=60) | st.text(max_size=36).map(lambda text: text + "GMT"))
def test_any_retry_after_is_none_or_within_its_cap(text: str) -> None:
    seconds = wire.parse_retry_after(text, NOW, cap_s=limits.RETRY_AFTER_CAP_S)
    assert seconds is None or 0.0 <= seconds <= limits.RETRY_AFTER_CAP_S


# Backoff ---------------------------------------------------------------------------------------


@given(
    st.integers(1, 10_000),
    st.none() | st.floats(0, limits.RETRY_AFTER_CAP_S),
    st.integers(0, 2**32),
)
def test_a_delay_is_never_before_retry_after_and_never_beyond_its_cap(
    tries: int, retry_after_s: float | None, seed: int
) -> None:
    delay = backoff_s(tries, retry_after_s, random.Random(seed))
    if retry_after_s is None:
        most = min(limits.BACKOFF_CAP_S, limits.BACKOFF_BASE_S * 2.0 ** min(tries - 1, 50))
        assert 0.0 <= delay <= most
    else:
        assert retry_after_s <= delay <= retry_after_s + 1.0


def test_delays_grow_and_are_spread() -> None:
    rng = random.Random(1)
    means = [sum(backoff_s(t, None, rng) for _ in range(500)) / 500 for t in (1, 3, 5, 7, 20)]
    assert means == sorted(means)
    ceiling = limits.BACKOFF_BASE_S * 2**6
    delays = [backoff_s(7, None, rng) for _ in range(500)]
    assert min(delays) < 0.1 * ceiling
    assert max(delays) > 0.9 * ceiling


def test_a_503_that_names_no_time_is_a_failure() -> None:
    action = decide(Reply(503, b""), NOW)
    assert isinstance(action, Again)
    assert (action.retry_after_s, action.counted) == (None, True)


def test_an_account_without_credit_is_no_fault_of_the_request() -> None:
    """The API answers 400 to it."""
    text = "Your credit balance is too low to access the Anthropic API. Please go to Plans"
    action = decide(Reply(400, error("invalid_request_error", text)), NOW)
    assert action == Pause("billing_error", text)
    assert isinstance(decide(Reply(400, error("invalid_request_error", "no")), NOW), Fail)


def test_all_who_were_told_the_same_time_do_not_come_back_at_once() -> None:
    rng = random.Random(1)
    assert len({backoff_s(1, 10.0, rng) for _ in range(100)}) > 90


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, error("authentication_error", "no"), "HTTP 401 authentication_error"),
        (401, b'{"error":"Unauthorized"}', "HTTP 401 authentication_error"),
        (403, error("permission_error", "no"), "HTTP 403 permission_error"),
        (403, error("authentication_error", "no"), "HTTP 403 authentication_error"),
    ],
)
def test_a_pause_for_want_of_a_key_names_the_variable_first(
    status: int, body: bytes, said: str
) -> None:
    reply = Reply(status, body)
    action = decide(reply, NOW)
    assert isinstance(action, Pause)
    without = MessagesUpstream("emu", "http://127.0.0.1:1", None, unset_key="EMU_KEY")
    why = retry.why_paused(reply, action, without)
    assert why == f"no key for upstream emu: set EMU_KEY ({said})"
    with_key = MessagesUpstream("emu", "http://127.0.0.1:1", "sk-1")
    assert retry.why_paused(reply, action, with_key) == retry.told(reply, action)


@pytest.mark.parametrize("reply", [Reply(402, error("billing_error", "no")), Reply(404, b"")])
def test_a_pause_for_something_else_says_nothing_of_a_key(reply: Reply) -> None:
    action = decide(reply, NOW)
    assert isinstance(action, Pause)
    without = MessagesUpstream("emu", "http://127.0.0.1:1", None, unset_key="EMU_KEY")
    assert retry.why_paused(reply, action, without) == retry.told(reply, action)


def test_a_pause_and_a_wait_are_told_apart_for_every_status() -> None:
    assert retry._PAUSE == PAUSES
    assert retry._WAIT == WAITS


@given(
    st.integers(1, 100),
    st.none() | st.floats(0, limits.RETRY_AFTER_CAP_S),
    st.integers(0, 2**32),
    st.floats(-10, 1_000),
    st.booleans(),
)
def test_a_retry_never_passes_the_expiry(
    tries: int, retry_after_s: float | None, seed: int, left_s: float, is_gated: bool
) -> None:
    rng = random.Random(seed)
    delay = retry.delay_s(tries, retry_after_s, rng, left_s=left_s, is_gated=is_gated)
    assert delay is None or (retry_after_s or 0.0) <= delay < left_s


def test_every_outcome_tells_something_of_the_upstream() -> None:
    told = {s: retry.signal(r, decide(r, NOW)) for s in range(100, 1_000) for r in [Reply(s, b"")]}
    assert {s for s, told_of in told.items() if told_of is Signal.LIMITED} == {429}
    assert {s for s, told_of in told.items() if told_of is Signal.OVERLOADED} == {529}
    assert {s for s, told_of in told.items() if told_of is Signal.BARRED} == PAUSES | {404, 405}
    assert all(told[s] is Signal.TAKEN for s in (302, 400, 409, 413, 422))
    assert all(told[s] is Signal.FAILED for s in (200, 204, 500, 502, 503))
    done = Reply(200, MESSAGE)
    assert retry.signal(done, decide(done, NOW)) is Signal.TAKEN
    refused = Failure(FailureKind.CONNECT, "why")
    assert retry.signal(refused, decide(refused, NOW)) is Signal.UNREACHABLE
