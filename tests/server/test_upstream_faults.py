"""What the upstream may do wrong, and what becomes of the request (see `dispatch/retry.py`)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from helpers_ports import Port
from helpers_upstream import Upstream, message
from helpers_yard import BATCHES, QUICK, Yard, answer_text, assert_answered, request

if TYPE_CHECKING:
    from pathlib import Path

ATTEMPTS = 8


# Faults that pass --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "408",
        "409",
        "429",
        "429:0",
        "429:nonsense",
        "500",
        "502",
        "503",
        "529:0",
        "599",
        "html",
        "html200",
        "empty",
        "nobody",
        "nostop",
        "badutf8",
        "truncated",
        "nolength",
        "endless",
        "close",
        "reset",
        "garbage",
    ],
)
def test_a_fault_that_passes_is_retried(yard: Yard, upstream: Upstream, fault: str) -> None:
    name = "pass-" + re.sub(r"\W", "-", fault)
    prompt = f"{name}|{fault},{fault},message"
    assert_answered(yard.run([prompt]), [prompt])
    assert upstream.counts[name] == 3


def test_refusals_because_of_load_do_not_use_up_the_attempts(
    yard: Yard, upstream: Upstream
) -> None:
    prompts = [f"load-{status}|" + f"{status}:0," * 20 + "message" for status in (429, 529)]
    assert_answered(yard.run(prompts), prompts)
    assert [upstream.counts[f"load-{status}"] for status in (429, 529)] == [21, 21]


def test_the_content_type_of_a_message_does_not_matter(yard: Yard) -> None:
    assert_answered(yard.run(["type-1|plain"]), ["type-1|plain"])


def test_a_long_retry_after_is_waited_for(yard: Yard, upstream: Upstream) -> None:
    """The call is not repeated at once: the other requests of the batch are through before."""
    held = "wait-long|429:900"
    others = [f"wait-{n}" for n in range(200)]
    batch = yard.create([request(held), *map(request, others)])
    yard.wait_progress(batch["id"], lambda progress: progress["results"] == 200)
    assert upstream.counts["wait-long"] == 1
    yard.post(f"{BATCHES}/{batch['id']}/cancel", b"")
    yard.wait_ended(batch["id"])
    assert yard.results(batch["id"])["wait-long"] == {"type": "canceled"}
    assert upstream.counts["wait-long"] == 1


def test_the_operator_sees_which_calls_failed_and_why(yard: Yard) -> None:
    batch = yard.create([request("seen-1|500,429:0,500,message"), request("seen-2")])
    yard.wait_ended(batch["id"])
    progress = yard.progress(batch["id"])
    assert (progress["calls"], progress["repeated_calls"]) == (5, 3)
    assert progress["failed_calls"] == {"500": 2, "429": 1}
    (failing,) = progress["failing"]
    assert (failing["custom_id"], failing["tries"], failing["reason"]) == ("seen-1", 3, "500")
    assert failing["reasons"] == {"500": 2, "429": 1}
    assert failing["is_over"]
    assert progress["estimate"] is None


@pytest.mark.parametrize("fault", ["close", "reset"])
def test_a_used_connection_that_had_been_closed_costs_no_try(tmp_path: Path, fault: str) -> None:
    """With a single try for each: the call is repeated at once, but it is told of."""
    bounds = QUICK | {
        "limits:ATTEMPTS_MAX": 1,
        # However late it is used again, and closed.
        "limits:UPSTREAM_IDLE_CONNECTION_S": 3_600.0,
        "limits:UPSTREAM_STALE_S": 3_600.0,
    }
    with (
        Upstream() as upstream,
        Yard(tmp_path / "data", upstream.url, bounds=bounds, slots=1) as yard,
    ):
        prompts = ["first-1", f"stale-1|{fault},message", f"twice-1|{fault},{fault},message"]
        batch = yard.create([request(prompt) for prompt in prompts])
        yard.wait_ended(batch["id"])
        results = yard.results(batch["id"])
        progress = yard.progress(batch["id"])

    assert_answered({name: results[name] for name in ("first-1", "stale-1")}, prompts[:2])
    assert results["twice-1"]["type"] == "errored", "the second time was over a new connection"
    assert [upstream.counts[name] for name in ("first-1", "stale-1", "twice-1")] == [1, 2, 2]
    assert (progress["calls"], progress["repeated_calls"]) == (5, 2)
    assert progress["failed_calls"] == {"stale": 2, "broken": 1}


# Faults that stay -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error_type", "text"),
    [
        ("500", "api_error", "scripted 500"),
        ("408", "api_error", "scripted 408"),
        ("html", "api_error", "The upstream answered with HTTP status 502."),
        ("html200", "api_error", "The upstream's reply is not a message"),
        ("empty", "api_error", "The upstream's reply is not a message"),
        ("nobody", "api_error", "The upstream's reply is not a message"),
        ("truncated", "api_error", "The connection to the upstream broke"),
        ("reset", "api_error", "The connection to the upstream broke"),
    ],
)
def test_a_fault_that_stays_is_errored_after_all_attempts(
    yard: Yard, upstream: Upstream, fault: str, error_type: str, text: str
) -> None:
    name = f"stay-{fault}"
    batch = yard.create([request(f"{name}|{fault}")])
    yard.wait_ended(batch["id"])
    result = yard.results(batch["id"])[name]
    assert result["type"] == "errored"
    error = result["error"]["error"]
    assert error["type"] == error_type
    assert error["message"].startswith(text)
    assert "<html>" not in json.dumps(result)
    failed = yard.progress(batch["id"])["failed_calls"]
    stale = failed.pop("stale", 0)  # where an earlier test has left a connection
    assert sum(failed.values()) == ATTEMPTS
    assert upstream.counts[name] == ATTEMPTS + stale


@pytest.mark.parametrize(
    ("fault", "error_type", "text"),
    [
        ("400", "invalid_request_error", "scripted 400"),
        ("404", "not_found_error", "scripted 404"),
        ("413", "invalid_request_error", "scripted 413"),
        ("422", "api_error", "scripted 422"),
        ("418", "api_error", "scripted 418"),
        ("huge", "api_error", "The upstream's reply is too large"),
        ("hugechunked", "api_error", "The upstream's reply is too large"),
    ],
)
def test_an_error_that_would_come_again_is_final(
    yard: Yard, upstream: Upstream, fault: str, error_type: str, text: str
) -> None:
    name = f"final-{fault}"
    result = yard.run([f"{name}|{fault}"])[name]
    assert result["type"] == "errored"
    assert list(result["error"]) == ["type", "error", "request_id"]
    assert result["error"]["error"]["type"] == error_type
    assert result["error"]["error"]["message"].startswith(text)
    if fault.isdigit():
        assert result["error"]["request_id"] == "req_upstream"
    assert upstream.counts[name] == 1


def test_a_redirect_is_never_followed(yard: Yard, upstream: Upstream) -> None:
    with Upstream() as elsewhere:
        result = yard.run([f"redirect-1|redirect:{elsewhere.port}"])["redirect-1"]
        forwarded = yard.post(
            "/v1/messages", request(f"redirect-2|redirect:{elsewhere.port}")["params"]
        )
        assert elsewhere.connections == 0
    assert result["type"] == "errored"
    assert forwarded.status == 302
    assert forwarded.headers["location"] is None
    assert upstream.number("redirect-") == 2


def test_one_bad_request_leaves_the_others_alone(yard: Yard) -> None:
    faults = ["400", "500", "empty", "reset", "huge", "html"]
    good = [f"mixed-good-{n}" for n in range(300)]
    bad = [f"mixed-{fault}|{fault}" for fault in faults]
    batch = yard.create([request(prompt) for prompt in [*bad, *good]])
    ended = yard.wait_ended(batch["id"])
    assert ended["request_counts"]["succeeded"] == 300
    assert ended["request_counts"]["errored"] == len(faults)
    results = yard.results(batch["id"])
    assert_answered({name: results[name] for name in good}, good)


# The key is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [402, 403])
def test_a_refused_key_pauses_and_nothing_is_lost(
    yard: Yard, upstream: Upstream, status: int
) -> None:
    model = f"refused-{status}"
    prompts = [f"refused-{status}-{n}|{status},{status},message" for n in range(5)]
    batch = yard.create([request(prompt, model=model) for prompt in prompts])
    yard.wait_ended(batch["id"])
    assert_answered(yard.results(batch["id"]), prompts)
    assert upstream.number(f"refused-{status}-") == 15


def test_a_401_pauses_until_the_upstream_accepts_again(yard: Yard, upstream: Upstream) -> None:
    """More requests than attempts and slots: a wrong key burns none of them."""
    prompts = [f"key-{n}|accepted:key" for n in range(700)]
    batch = yard.create([request(prompt, model="locked") for prompt in prompts])
    yard.wait_progress(batch["id"], lambda progress: "up/locked" in progress["paused"])
    first = upstream.number("key-")
    upstream.wait_until(lambda: upstream.number("key-") > first + ATTEMPTS, "single calls try")
    progress = yard.progress(batch["id"])
    why = "no key for upstream up: set BATCHYARD_UPSTREAM_UP_KEY (HTTP 401 authentication_error)"
    assert progress["paused"]["up/locked"] == why
    assert f"paused pool=up/locked: {why}" in yard.read_log()
    (wait,) = [wait for wait in progress["waiting"] if wait["reason"] == "paused"]
    assert wait["detail"] == why
    assert progress["results"] == 0
    # Another model of the same upstream goes on.
    assert_answered(yard.run(["unlocked"]), ["unlocked"])

    upstream.gate("key").open()

    ended = yard.wait_ended(batch["id"])
    assert ended["request_counts"]["succeeded"] == 700
    assert_answered(yard.results(batch["id"]), prompts)
    assert "up/locked" not in yard.progress(batch["id"])["paused"]


# Results --------------------------------------------------------------------------------------


def test_a_result_holds_the_message_of_the_upstream(yard: Yard) -> None:
    """Byte for byte but for the usage, which tells the tier, and line ends between tokens."""
    batch = yard.create([request("kept-1")])
    yard.wait_ended(batch["id"])
    answer = yard.get(f"{BATCHES}/{batch['id']}/results")
    sent = message("kept-1")
    before_usage = sent.partition(b'"usage": ')[0].replace(b"\n", b" ")
    begin = b'{"custom_id":"kept-1","result":{"type":"succeeded","message":' + before_usage
    assert answer.body.startswith(begin)
    expected = json.loads(sent)
    expected["usage"]["service_tier"] = "batch"
    assert answer.lines()[0]["result"]["message"] == expected


def test_a_yard_without_its_upstream_waits_for_it(tmp_path: Path) -> None:
    """Nothing listens where the upstream should be; then it does."""
    with Port() as later, Yard(tmp_path / "data", later.url, bounds=QUICK) as yard:
        batch = yard.create([request("early")])
        yard.wait_progress(batch["id"], lambda progress: progress["calls"])
        assert yard.post("/v1/messages", request("x")["params"]).status == 502
        with Upstream(port=later.number):
            yard.wait_ended(batch["id"])
        assert answer_text(yard.results(batch["id"])["early"])
